"""Every so many-th key."""

from __future__ import annotations

from typing import Any

from ..part import MaskPart, mask
from .checks import whole


def dilated(dilation: int) -> MaskPart:
    """Keys whose distance from the query is a multiple of ``dilation``, in both directions.

    Beltagy et al., Longformer, 2020 (dilated windows); Hassani and Shi, Dilated Neighborhood Attention, 2022.
    Combine it by ``&``: ``rg.causal & rg.sliding_window(255) & rg.dilated(4)`` leaves 64 keys. ``dilation``
    (tokens) is baked in, because it divides. Only differences of positions matter, which ``align`` shifts.
    Raises :class:`ParameterError` unless it is a whole number ≥ 1.

    >>> import regard as rg
    >>> print(rg.attention(rg.dilated(4)))
    attention dilated(dilation: static int = 4) {
      keep      (q - kv) % dilation == 0
      normalize softmax
    }
    """
    return _dilated(dilation=whole("dilation", dilation, 1))


@mask
def _dilated(q: Any, kv: Any, dilation: int) -> Any:
    return (q - kv) % dilation == 0


def strided(stride: int) -> MaskPart:
    """The last ``stride`` keys up to the query, and before them every ``stride``-th.

    The strided pattern of Child et al., Generating Long Sequences with Sparse Transformers, 2019, both of its
    heads in one; it is causal. ``stride`` (tokens) is baked in, because it divides. Only differences of
    positions matter, which ``align`` shifts. Raises :class:`ParameterError` unless it is a whole number ≥ 1.

    >>> import regard as rg
    >>> print(rg.attention(rg.strided(128)))
    attention strided(stride: static int = 128) {
      keep      q >= kv and (q - kv < stride or (q - kv) % stride == 0)
      normalize softmax
    }
    """
    return _strided(stride=whole("stride", stride, 1))


@mask
def _strided(q: Any, kv: Any, stride: int) -> Any:
    return (q >= kv) & ((q - kv < stride) | ((q - kv) % stride == 0))
