"""Tokens at the start of the sequence that everybody attends to."""

from __future__ import annotations

from typing import Any

from ..part import MaskPart, mask
from .checks import whole


def global_tokens(count: int) -> MaskPart:
    """The first ``count`` positions attend to every key, and every query attends to them.

    Beltagy et al., Longformer, 2020; Zaheer et al., BigBird, 2020. Combine it by ``|`` with a local mask, e.g.
    ``rg.sliding_window(128, 128) | rg.global_tokens(2)``. ``count`` (tokens) is a run-time scalar; positions are
    aligned as ``rg.attention(align=)`` says. Raises :class:`ParameterError` unless it is a whole number ≥ 0.

    >>> import regard as rg
    >>> print(rg.attention(rg.global_tokens(2)))
    attention global_tokens(count: int = 2) {
      keep      q < count or kv < count
      normalize softmax
    }
    """
    return _global_tokens(count=whole("count", count, 0))


@mask
def _global_tokens(q: Any, kv: Any, count: int) -> Any:
    return (q < count) | (kv < count)


def sinks(count: int) -> MaskPart:
    """Every query attends to the first ``count`` keys.

    Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023: StreamingLLM is
    ``rg.causal & (rg.sliding_window(255) | rg.sinks(4))``. Alone it allows keys after the query too.
    ``count`` (tokens) is a run-time scalar. Raises :class:`ParameterError` unless it is a whole number ≥ 0.

    >>> import regard as rg
    >>> print(rg.attention(rg.causal & (rg.sliding_window(255) | rg.sinks(4)), name="streaming"))
    attention streaming(left: int = 255, right: int = 0, count: int = 4) {
      keep      q >= kv and (q - kv <= left and kv - q <= right or kv < count)
      normalize softmax
    }
    """
    return _sinks(count=whole("count", count, 0))


@mask
def _sinks(kv: Any, count: int) -> Any:
    return kv < count
