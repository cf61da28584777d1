"""Sequences cut into blocks of equal size."""

from __future__ import annotations

from typing import Any

from ..part import MaskPart, mask
from .checks import whole


def block_diagonal(size: int) -> MaskPart:
    """Queries and keys of the same block of ``size`` positions attend to each other.

    Qiu et al., Blockwise Self-Attention for Long Document Understanding, 2019. ``size`` (tokens) is baked in,
    because it divides; blocks count from position 0, and the last may be shorter. Positions are aligned as
    ``rg.attention(align=)`` says. Raises :class:`ParameterError` unless it is a whole number ≥ 1.

    >>> import regard as rg
    >>> print(rg.attention(rg.block_diagonal(64)))
    attention block_diagonal(size: static int = 64) {
      keep      q // size == kv // size
      normalize softmax
    }
    """
    return _block_diagonal(size=whole("size", size, 1))


@mask
def _block_diagonal(q: Any, kv: Any, size: int) -> Any:
    return q // size == kv // size


def chunked_causal(size: int) -> MaskPart:
    """Causal attention inside blocks of ``size`` positions; nothing crosses a block's border.

    The chunked attention of Meta's Llama 4 (2025; ``attention_chunk_size`` in transformers). Same rules as
    :func:`block_diagonal`.

    >>> import regard as rg
    >>> print(rg.attention(rg.chunked_causal(8192)))
    attention chunked_causal(size: static int = 8192) {
      keep      q >= kv and q // size == kv // size
      normalize softmax
    }
    """
    return _chunked_causal(size=whole("size", size, 1))


@mask
def _chunked_causal(q: Any, kv: Any, size: int) -> Any:
    return (q >= kv) & (q // size == kv // size)


def checkerboard(size: int) -> MaskPart:
    """Blocks of ``size`` by ``size`` pairs, alternately allowed and not, as the white squares of a chess board.

    A test pattern of block-sparse libraries (Gray et al., GPU Kernels for Block-Sparse Weights, 2017, allow any
    block layout). The block of query 0 and key 0 is allowed. Same rules as :func:`block_diagonal`.

    >>> import regard as rg
    >>> print(rg.attention(rg.checkerboard(64)))
    attention checkerboard(size: static int = 64) {
      keep      (q // size + kv // size) % 2 == 0
      normalize softmax
    }
    """
    return _checkerboard(size=whole("size", size, 1))


@mask
def _checkerboard(q: Any, kv: Any, size: int) -> Any:
    return (q // size + kv // size) % 2 == 0


def block_causal(size: int) -> MaskPart:
    """Blocks of ``size`` positions in order: queries attend to the whole of their own block and to all before it.

    A staircase. Tokens of a block are generated together: Arriola et al., Block Diffusion, arXiv:2503.09573; frames of
    a video one after the other: Yin et al., From Slow Bidirectional to Fast Autoregressive Video Diffusion Models,
    arXiv:2412.07772. Same rules as :func:`block_diagonal`.

    >>> import regard as rg
    >>> print(rg.attention(rg.block_causal(1560)))
    attention block_causal(size: static int = 1560) {
      keep      q // size >= kv // size
      normalize softmax
    }
    """
    return _block_causal(size=whole("size", size, 1))


@mask
def _block_causal(q: Any, kv: Any, size: int) -> Any:
    return q // size >= kv // size
