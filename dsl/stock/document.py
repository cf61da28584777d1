"""Several documents packed into one sequence."""

from __future__ import annotations

from typing import Any

import torch

from ...ir.errors import ParameterError
from ..callsite import caller
from ..part import MaskPart, mask
from .checks import tensor


def document(ids: torch.Tensor | None = None, kv_ids: torch.Tensor | None = None) -> MaskPart:
    """Queries attend to keys of their own document.

    Sequence packing: Krell et al., Efficient Sequence Packing without Cross-contamination, 2021. ``ids`` are integer
    document numbers per token, shape (B, S), or (S,) where all batches are packed alike; any order will do, sorted
    ones are fastest. ``kv_ids``, of the same rank, numbers the keys where they are other tokens than the queries.
    Without ``ids`` a (B, S) tensor is left open for the call: ``attn(q, k, v, ids=ids)``. Positions are aligned as
    ``rg.attention(align=)`` says. Raises :class:`ParameterError` for other dtypes and ranks.

    >>> import regard as rg
    >>> print(rg.attention(rg.document()))
    attention document(ids: i32[batch, _]) {
      keep      ids[batch, q] == ids[batch, kv]
      normalize softmax
    }
    """
    if ids is None:
        if kv_ids is not None:
            raise ParameterError("`kv_ids` needs `ids` beside it", location=caller())
        return _document()
    q_ids = tensor("ids", ids, "(B, S) or (S,)", ranks=(1, 2), kind="integer")
    if kv_ids is None:
        return _document(ids=q_ids) if q_ids.dim() == 2 else _document_shared(ids=q_ids)
    shape = "(B, Lkv)" if q_ids.dim() == 2 else "(Lkv,)"
    kv_ids = tensor("kv_ids", kv_ids, f"{shape}, the rank of `ids`", ranks=(q_ids.dim(),), kind="integer")
    return (_document_cross if q_ids.dim() == 2 else _document_cross_shared)(ids=q_ids, kv_ids=kv_ids)


@mask
def _document(batch: Any, q: Any, kv: Any, ids: torch.Tensor) -> Any:
    return ids[batch, q] == ids[batch, kv]


@mask
def _document_shared(q: Any, kv: Any, ids: torch.Tensor) -> Any:
    return ids[q] == ids[kv]


@mask
def _document_cross(batch: Any, q: Any, kv: Any, ids: torch.Tensor, kv_ids: torch.Tensor) -> Any:
    return ids[batch, q] == kv_ids[batch, kv]


@mask
def _document_cross_shared(q: Any, kv: Any, ids: torch.Tensor, kv_ids: torch.Tensor) -> Any:
    return ids[q] == kv_ids[kv]
