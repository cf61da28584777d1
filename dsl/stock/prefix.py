"""A prefix that is read in both directions."""

from __future__ import annotations

from typing import Any

import torch

from ..part import MaskPart, mask
from .checks import tensor, whole


def prefix_lm(prefix: int | torch.Tensor | None = None) -> MaskPart:
    """Causal attention, except that the first ``prefix`` keys are seen by every query.

    Raffel et al., T5, 2020 (prefix language model); Tay et al., UL2, 2022. ``prefix`` counts tokens: a whole
    number ≥ 0 (a run-time scalar), an integer tensor of shape (B,), or None, which leaves the tensor open for the
    call: ``attn(q, k, v, prefix=lengths)``. Positions are aligned as ``rg.attention(align=)`` says. Raises
    :class:`ParameterError` for anything else.

    >>> import regard as rg
    >>> print(rg.attention(rg.prefix_lm(64)))
    attention prefix_lm(prefix: int = 64) {
      keep      q >= kv or kv < prefix
      normalize softmax
    }
    >>> print(rg.attention(rg.prefix_lm()))
    attention prefix_lm_per_batch(prefix: i32[batch]) {
      keep      q >= kv or kv < prefix[batch]
      normalize softmax
    }
    """
    if prefix is None:
        return _prefix_lm_per_batch()
    if isinstance(prefix, torch.Tensor):
        return _prefix_lm_per_batch(prefix=tensor("prefix", prefix, "(B,)", ranks=(1,), kind="integer"))
    return _prefix_lm(prefix=whole("prefix", prefix, 0))


@mask
def _prefix_lm(q: Any, kv: Any, prefix: int) -> Any:
    return (q >= kv) | (kv < prefix)


@mask
def _prefix_lm_per_batch(batch: Any, q: Any, kv: Any, prefix: torch.Tensor) -> Any:
    return (q >= kv) | (kv < prefix[batch])
