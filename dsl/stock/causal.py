"""Everything, and everything up to now."""

from __future__ import annotations

from typing import Any

from ..part import mask


@mask
def full() -> Any:
    """Every query attends to every key. Vaswani et al., Attention Is All You Need, 2017.

    The neutral mask: ``rg.attention()`` means the same.

    >>> import regard as rg
    >>> print(rg.attention(rg.full))
    attention full() {
      normalize softmax
    }
    """
    return True


@mask
def causal(q: Any, kv: Any) -> Any:
    """A query attends to keys at its own position and before it. Vaswani et al., Attention Is All You Need, 2017.

    Positions are aligned at the start (query 0 meets key 0); for decoding with a cache use
    ``rg.attention(rg.causal, align="end")``, where the last query meets the last key.

    >>> import regard as rg
    >>> print(rg.attention(rg.causal))
    attention causal() {
      keep      q >= kv
      normalize softmax
    }
    """
    return q >= kv
