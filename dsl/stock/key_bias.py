"""One bias per key."""

from __future__ import annotations

from typing import Any

import torch

from ..part import ScorePart, score
from .checks import tensor


def key_bias(bias: torch.Tensor | None = None) -> ScorePart:
    """Adds ``bias`` of the key to all of its scores.

    The per-token form of an additive attention mask (Vaswani et al., 2017); token weights and log-counts of merged
    tokens (Bolya et al., Token Merging, 2022) enter this way. ``bias`` is a float tensor, shape (Lkv,), (B, Lkv) or
    (B, H, Lkv) with H query heads, differentiable; without it a (B, Lkv) tensor is left open for the call:
    ``attn(q, k, v, bias=bias)``. Raises :class:`ParameterError` for other shapes and dtypes.

    >>> import regard as rg
    >>> print(rg.attention(rg.key_bias()))
    attention key_bias(bias: f32[batch, kv]) {
      score     s + bias[batch, kv]
      normalize softmax
    }
    """
    if bias is None:
        return _key_bias()
    tensor("bias", bias, "(Lkv,), (B, Lkv) or (B, H, Lkv)", ranks=(1, 2, 3), kind="float")
    return (_key_bias_shared, _key_bias, _key_bias_per_head)[bias.dim() - 1](bias=bias)


@score
def _key_bias_shared(s: Any, kv: Any, bias: torch.Tensor) -> Any:
    return s + bias[kv]


@score
def _key_bias(s: Any, batch: Any, kv: Any, bias: torch.Tensor) -> Any:
    return s + bias[batch, kv]


@score
def _key_bias_per_head(s: Any, batch: Any, head: Any, kv: Any, bias: torch.Tensor) -> Any:
    return s + bias[batch, head, kv]
