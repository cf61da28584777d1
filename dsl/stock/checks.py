"""Checks of the values that users hand to stock parts."""

from __future__ import annotations

import math
import numbers

import torch

from ...ir.errors import ParameterError
from ..callsite import caller


def whole(name: str, value: object, least: int) -> int:
    """``value`` as an int, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ParameterError(f"`{name}` must be a whole number ≥ {least}, got {value!r}", location=caller())
    return value if isinstance(value, int) else int(value)


def number(name: str, value: object, *, above: float = -math.inf) -> float:
    """``value`` as a finite float, greater than ``above``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value <= above:
        bound = "" if above == -math.inf else f" > {above:g}"
        raise ParameterError(f"`{name}` must be a finite number{bound}, got {value!r}", location=caller())
    return float(value)


def tensor(name: str, value: object, shape: str, *, ranks: tuple[int, ...], kind: str) -> torch.Tensor:
    """``value`` if it is a tensor of one of ``ranks`` and of ``kind`` ("float", "integer" or "bool")."""
    if not isinstance(value, torch.Tensor):
        raise ParameterError(
            f"`{name}` must be a tensor of shape {shape}, got {type(value).__name__}", location=caller()
        )
    if value.dim() not in ranks:
        raise ParameterError(f"`{name}` must have shape {shape}, got {tuple(value.shape)}", location=caller())
    is_bool, is_float = value.dtype is torch.bool, value.dtype.is_floating_point
    found = "bool" if is_bool else "float" if is_float else "integer"
    if found != kind:
        raise ParameterError(f"`{name}` must be a tensor of kind {kind}, got {value.dtype}", location=caller())
    return value
