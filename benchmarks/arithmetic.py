"""Divisions of masks for FlexAttention, as those write them who want fast kernels."""

from __future__ import annotations

from torch import Tensor


def quotient(x: Tensor, by: int) -> Tensor:
    """``x // by``, rounded down; a shift by powers of two, because the compiled ``//`` tests signs and remainders."""
    return x >> (by.bit_length() - 1) if _is_power(by) else x // by


def remainder(x: Tensor, by: int) -> Tensor:
    """``x % by``, not negative, in the same way."""
    return x & (by - 1) if _is_power(by) else x % by


def _is_power(by: int) -> bool:
    return by & (by - 1) == 0
