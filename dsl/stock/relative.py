"""Learned biases by relative position."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...ir.errors import ParameterError
from .. import functions as rg
from ..callsite import caller
from ..part import ScorePart, score
from .checks import tensor, whole


def relative_bias(table: torch.Tensor | None = None, *, reach: int | None = None) -> ScorePart:
    """Adds ``table[head, kv - q]``, with the relative position clipped to what the table holds.

    Shaw et al., Self-Attention with Relative Position Representations, 2018 (the clipping), as a scalar bias per head.
    ``table`` is a float tensor of shape (H, 2 R + 1), differentiable; column R + d is for keys d tokens after the
    query, the outer columns for everything beyond R. Without it ``reach`` says R, and the tensor is left open for the
    call: ``attn(q, k, v, table=table)``. Only differences of positions matter, which ``align`` shifts. Raises
    :class:`ParameterError` for other shapes and dtypes, and unless one of both is given.

    >>> import regard as rg
    >>> print(rg.attention(rg.relative_bias(torch.zeros(8, 65))))
    attention relative_bias(table: f32[head, _], reach: int = 32) {
      score     s + table[head, min(max(kv - q, -reach), reach) + reach]
      normalize softmax
    }
    """
    if (table is None) == (reach is None):
        raise ParameterError(
            "relative_bias takes either `table` or `reach`", location=caller(), hint="write rg.relative_bias(table)"
        )
    if table is None:
        return _relative_bias(reach=whole("reach", reach, 0))
    tensor("table", table, "(H, 2 R + 1)", ranks=(2,), kind="float")
    if table.shape[1] % 2 == 0:
        raise ParameterError(
            f"`table` must have an odd number of columns, got shape {tuple(table.shape)}", location=caller()
        )
    return _relative_bias(table=table, reach=table.shape[1] // 2)


@score
def _relative_bias(s: Any, q: Any, kv: Any, head: Any, table: torch.Tensor, reach: int) -> Any:
    return s + table[head, rg.clamp(kv - q, -reach, reach) + reach]


def t5_bias(table: torch.Tensor, *, bidirectional: bool = True, max_distance: int = 128) -> ScorePart:
    """Adds a learned bias per head and per bucket of relative positions.

    Raffel et al., T5, 2020. ``table`` is a float tensor of shape (buckets, H), differentiable: the weight of
    transformers' ``relative_attention_bias``. Half of the buckets hold one distance each, the others grow
    logarithmically up to ``max_distance`` (tokens). ``bidirectional``: one half of the buckets is for keys after
    the query; otherwise those share the bucket of distance 0. T5 does not scale its scores: use
    ``rg.attention(..., scale=1.0)``. Only differences of positions matter, which ``align`` shifts. The bucket of every
    distance is computed here once and looked up by the kernel, so that no rounding can move a border. Raises
    :class:`ParameterError` for other shapes and dtypes and for fewer than 4 buckets.

    >>> import regard as rg
    >>> print(rg.attention(rg.t5_bias(torch.zeros(32, 8)), scale=1.0))
    attention t5_bias(table: f32[_, head], buckets: i32[_], reach: int = 128) {
      score     s + table[buckets[min(max(kv - q, -reach), reach) + reach], head]
      normalize softmax
      scale     1.0
    }
    """
    tensor("table", table, "(buckets, H)", ranks=(2,), kind="float")
    count = table.shape[0]
    if count < 4 or (bidirectional and count % 2):
        raise ParameterError(
            f"`table` must have at least 4 buckets, an even number if bidirectional, got {count}", location=caller()
        )
    per_side = count // 2 if bidirectional else count
    exact = per_side // 2
    reach = whole("max_distance", max_distance, exact + 1)
    relative = torch.arange(-reach, reach + 1)
    distance = relative.abs() if bidirectional else (-relative).clamp(min=0)
    # In float32 and in this order of operations, as T5's own code: borders of buckets depend on the rounding.
    growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(reach / exact) * (per_side - exact)
    far = (exact + growth.to(torch.int64)).clamp(max=per_side - 1)
    buckets = torch.where(distance < exact, distance, far)
    if bidirectional:
        buckets = buckets + torch.where(relative > 0, per_side, 0)
    return _t5_bias(table=table, buckets=buckets.to(torch.int32).to(table.device), reach=reach)


@score
def _t5_bias(s: Any, q: Any, kv: Any, head: Any, table: torch.Tensor, buckets: torch.Tensor, reach: int) -> Any:
    return s + table[buckets[rg.clamp(kv - q, -reach, reach) + reach], head]
