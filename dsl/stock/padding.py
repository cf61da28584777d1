"""Batches of sequences of different lengths."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from ..part import MaskPart, mask
from .checks import tensor


def padding(lengths: torch.Tensor | None = None) -> MaskPart:
    """Only the first ``lengths[batch]`` keys of each batch are attended to.

    ``lengths`` counts keys, an integer tensor of shape (B,); without it the tensor is left open for the call:
    ``attn(q, k, v, lengths=lengths)``. Queries in the padding attend to the same keys; ignore their rows. Padding on
    the left or in the middle is for :func:`key_mask`. Raises :class:`ParameterError` for other dtypes and ranks.

    >>> import regard as rg
    >>> print(rg.attention(rg.padding()))
    attention padding(lengths: i32[batch]) {
      keep      kv < lengths[batch]
      normalize softmax
    }
    """
    if lengths is None:
        return _padding()
    return _padding(lengths=tensor("lengths", lengths, "(B,)", ranks=(1,), kind="integer"))


@mask
def _padding(batch: Any, kv: Any, lengths: torch.Tensor) -> Any:
    return kv < lengths[batch]


def key_mask(visible: torch.Tensor | None = None) -> MaskPart:
    """Only keys marked in ``visible`` are attended to.

    ``visible`` is a bool tensor of shape (B, Lkv): what tokenizers call the attention mask, as
    ``attention_mask.bool()``. Without it the tensor is left open for the call: ``attn(q, k, v, visible=visible)``.
    Raises :class:`ParameterError` for other dtypes and ranks.

    >>> import regard as rg
    >>> print(rg.attention(rg.key_mask()))
    attention key_mask(visible: bool[batch, kv]) {
      keep      visible[batch, kv]
      normalize softmax
    }
    """
    if visible is None:
        return _key_mask()
    return _key_mask(visible=tensor("visible", visible, "(B, Lkv)", ranks=(2,), kind="bool"))


@mask
def _key_mask(batch: Any, kv: Any, visible: Annotated[torch.Tensor, "bool[batch, kv]"]) -> Any:
    return visible[batch, kv]
