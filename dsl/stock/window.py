"""Local attention: keys within a fixed distance."""

from __future__ import annotations

from typing import Any

from ..part import MaskPart, mask
from .checks import whole


def sliding_window(left: int, right: int = 0) -> MaskPart:
    """Keys at most ``left`` positions before and ``right`` positions after the query, both inclusive.

    Beltagy et al., Longformer, 2020; Jiang et al., Mistral 7B, 2023. ``left`` and ``right`` count tokens besides the
    query's own and are run-time scalars, as in FlashAttention's ``window_size=(left, right)``. A window of
    W tokens that ends at the query, as Mistral counts, is ``sliding_window(W - 1)``. Positions are aligned as
    ``rg.attention(align=)`` says. Raises :class:`ParameterError` unless both are whole numbers ≥ 0.

    >>> import regard as rg
    >>> print(rg.attention(rg.sliding_window(255)))
    attention sliding_window(left: int = 255, right: int = 0) {
      keep      q - kv <= left and kv - q <= right
      normalize softmax
    }
    """
    return _sliding_window(left=whole("left", left, 0), right=whole("right", right, 0))


@mask
def _sliding_window(q: Any, kv: Any, left: int, right: int) -> Any:
    return (q - kv <= left) & (kv - q <= right)
