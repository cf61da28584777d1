"""Several documents packed into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from ...ir.errors import ParameterError
from ..callsite import caller
from ..part import MaskPart, mask
from .checks import tensor, whole


def document(
    ids: torch.Tensor | None = None,
    kv_ids: torch.Tensor | None = None,
    *,
    offsets: torch.Tensor | Sequence[int] | None = None,
) -> MaskPart:
    """Queries attend to keys of their own document.

    Sequence packing: Krell et al., Efficient Sequence Packing without Cross-contamination, 2021. ``ids`` are integer
    document numbers per token, shape (B, S), or (S,) where all batches are packed alike; any order will do, sorted
    ones are fastest. ``kv_ids``, of the same rank, numbers the keys where they are other tokens than the queries.
    Without ``ids`` a (B, S) tensor is left open for the call: ``attn(q, k, v, ids=ids)``. Positions are aligned as
    ``rg.attention(align=)`` says.

    ``offsets``, in place of ``ids``, are the N + 1 positions where N documents begin and the last one ends, in order,
    as ``cu_seqlens`` of kernels for ragged batches; all batches are packed alike. They become ids of ``offsets[-1]``
    tokens on their device; the host reads them once, when the part is built.

    Raises :class:`ParameterError` for other dtypes and ranks, and for offsets that do not begin at 0, or decrease.

    >>> import regard as rg
    >>> print(rg.attention(rg.document()))
    attention document(ids: i32[batch, _]) {
      keep      ids[batch, q] == ids[batch, kv]
      normalize softmax
    }
    """
    if offsets is not None:
        if ids is not None or kv_ids is not None:
            raise ParameterError("`offsets` stand in place of `ids` and `kv_ids`", location=caller())
        return _document_shared(ids=_ids(offsets))
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


def _ids(offsets: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """The number of the document of every token."""
    if not isinstance(offsets, torch.Tensor):
        offsets = torch.tensor([whole("offsets", n, 0) for n in offsets], dtype=torch.int64)
    offsets = tensor("offsets", offsets, "(N + 1,)", ranks=(1,), kind="integer")
    ends = offsets.tolist()
    if not ends or ends[0] != 0:
        first = f"begin at {ends[0]}" if ends else "are none"
        raise ParameterError(
            f"the `offsets` {first}, but the first document begins at 0", location=caller(),
            hint="N documents have N + 1 offsets: the last one is the number of tokens",
        )  # fmt: skip
    for place, (before, after) in enumerate(pairwise(ends), 1):
        if after < before:
            raise ParameterError(
                f"the `offsets` decrease: {after} at index {place} comes after {before}", location=caller(),
                hint="offsets are positions in order; lengths of documents become offsets by a cumulative sum, and "
                "documents in any other order are said by the number of each token's: rg.document(ids)",
            )  # fmt: skip
    numbers = torch.arange(len(ends) - 1, device=offsets.device)
    return numbers.repeat_interleave(offsets.diff(), output_size=ends[-1])


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
