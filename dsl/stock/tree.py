"""Tokens that see a stretch of others, given as data."""

from __future__ import annotations

from typing import Any

import torch

from ..part import MaskPart, mask
from .checks import tensor


def tree(ends: torch.Tensor | None = None) -> MaskPart:
    """A prefix tree in depth-first order: a token attends to itself and to its ancestors.

    A key is seen by the queries from itself up to the end of its subtree: ``ends[batch, kv]`` is the first position
    after it, an integer tensor of shape (B, S), or (S,) where all batches are alike; without it a (B, S) tensor is left
    open for the call: ``attn(q, k, v, ends=ends)``. Shared prefixes, whose subtree holds all that continues them:
    Ye et al., ChunkAttention, arXiv:2402.15220; trees of drafts: Miao et al., SpecInfer, arXiv:2305.09781; the interval
    for every key: Wang et al., FlashMask, arXiv:2410.01359. Queries and keys count the same tokens. Raises
    :class:`ParameterError` for other dtypes and ranks.

    >>> import regard as rg
    >>> print(rg.attention(rg.tree()))
    attention tree(ends: i32[batch, kv]) {
      keep      q >= kv and q < ends[batch, kv]
      normalize softmax
    }
    """
    if ends is None:
        return _tree()
    ends = tensor("ends", ends, "(B, S) or (S,)", ranks=(1, 2), kind="integer")
    return _tree(ends=ends) if ends.dim() == 2 else _tree_shared(ends=ends)


@mask
def _tree(batch: Any, q: Any, kv: Any, ends: torch.Tensor) -> Any:
    return (q >= kv) & (q < ends[batch, kv])


@mask
def _tree_shared(q: Any, kv: Any, ends: torch.Tensor) -> Any:
    return (q >= kv) & (q < ends[kv])
