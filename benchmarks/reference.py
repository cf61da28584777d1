"""What is right: dense attention of one key head in float32, forward and backward, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from . import block_masks
from .case import Case
from .cases import Contestants


def attention(made: Contestants, query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output and gradients of the query heads that share key head 0 of batch 0, float32, by plain autograd.

    ``query`` and ``grad``: (heads, length, size); ``key`` and ``value``: (length, size). Any dtype.
    """
    q, k, v = (x.detach().float().requires_grad_() for x in (query, key, value))
    out = torch.empty_like(q, requires_grad=False)
    heads, length, size = q.shape
    rows = max(1, block_masks.PAIRS // (heads * length))
    places = torch.arange(length, device=q.device)
    head = torch.arange(heads, device=q.device)[:, None, None]
    for start in range(0, length, rows):
        row = places[start : start + rows, None]
        scores = q[:, start : start + rows] @ k.mT * size**-0.5
        if made.flex_score is not None:
            scores = made.flex_score(scores, 0, head, row, places)
        if made.flex_mask is not None:
            scores = scores.masked_fill(~made.flex_mask(0, head, row, places), float("-inf"))
        chunk = torch.softmax(scores, -1) @ v
        torch.autograd.backward(chunk, grad[:, start : start + rows].float())
        out[:, start : start + rows] = chunk.detach()
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return {"out": out.detach(), "query": q.grad, "key": k.grad, "value": v.grad}


def count_pairs(case: Case, made: Contestants, device: str) -> int:
    """Allowed pairs of all batches and heads, by asking the mask about each.

    Raises AssertionError if Regard's own count, where it claims to be exact, is another.
    """
    length = case.length
    alike = 1 if made.per_head else case.heads
    total = length * length * (case.heads // alike)
    if made.flex_mask is not None:
        total = int(block_masks.count_pairs(made.flex_mask, case.heads // alike, length, device).sum())
    total *= case.batch * alike
    query, key = ((case.batch, heads, length, case.head_dim) for heads in (case.heads, case.kv_heads))
    counted = made.regard.explain(query, key, key, exact=False).counts.pairs
    assert not counted.exact or counted.pairs == total, f"Regard counts {counted.pairs} pairs, there are {total}"
    return total
