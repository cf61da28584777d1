"""Blocks of keys drawn at random, by counting."""

from __future__ import annotations

from typing import Any

from ..part import MaskPart, mask
from ..static import static
from .checks import whole

_BITS = 2**31 - 1


def random_blocks(size: int, count: int, seed: int = 0) -> MaskPart:
    """Every block of ``size`` queries attends to ``count`` blocks of keys drawn at random, some perhaps twice.

    Zaheer et al., BigBird, arXiv:2007.14062, is ``rg.random_blocks(64, 3) | rg.sliding_window(96, 96) |
    rg.global_tokens(128)``. Draws are a hash of the block's number and of ``seed``: the same in both directions, in
    every batch, head and run, and nothing is stored. Keys after the query are drawn too; combine it with ``rg.causal``.
    ``size`` (tokens) and ``count`` are baked in; ``seed`` is a run-time scalar. Blocks count from position 0; positions
    are aligned as ``rg.attention(align=)`` says. Raises :class:`ParameterError` unless ``size`` and ``count`` are whole
    numbers ≥ 1 and ``seed`` is one ≥ 0.

    >>> import regard as rg
    >>> attn = rg.attention(rg.random_blocks(64, 3))
    >>> attn.explain((1, 1, 1024, 64), exact=True, target="cpu").counts.pairs.pairs <= 1024 * 3 * 64
    True
    """
    return _random_blocks(
        size=whole("size", size, 1), count=static(whole("count", count, 1)), seed=whole("seed", seed, 0)
    )


@mask
def _random_blocks(q: Any, kv: Any, kv_len: Any, size: int, count: int, seed: int) -> Any:
    blocks = (kv_len + size - 1) // size
    allowed: Any = False
    for i in range(count):
        draw = _hash(q // size * count + (i + seed * 7919)) * blocks // (_BITS + 1)
        allowed = (kv // size == draw) | allowed
    return allowed


def _hash(x: Any) -> Any:
    """31 well-mixed bits of ``x``: rounds of shift, xor and multiply, whose products stay far below 2**63."""
    x = x & _BITS
    for factor in (0x5F0AAAD, 0xB35A2D9):
        x = (x ^ (x >> 15)) * factor & _BITS
    return x ^ (x >> 15)
