"""The cases of the kernel benchmark: one attention, written for Regard, FlexAttention and SDPA.

The list is fixed before kernels are tuned, and every case is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import regard as rg

WINDOW = 1024
DOCUMENTS = 16


@dataclass(frozen=True)
class Case:
    """Shapes (batch, query heads, key heads, length, head size) and a name from :data:`VARIANTS`."""

    variant: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int

    @property
    def title(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}:{self.kv_heads}"
        return f"{self.variant} B{self.batch} H{heads} S{self.length} D{self.head_dim}"


@dataclass(frozen=True)
class Contestants:
    """The same attention thrice; ``sdpa`` is None where SDPA has no kernel for it without a dense mask."""

    regard: Any
    flex_mask: Callable[..., torch.Tensor] | None
    flex_score: Callable[..., torch.Tensor] | None
    sdpa_causal: bool | None


def document_ids(length: int, count: int = DOCUMENTS) -> torch.Tensor:
    """Sorted ids of ``count`` documents of uneven length (fixed seed), shape (length,), int32."""
    generator = torch.Generator().manual_seed(1)
    cuts = torch.randperm(length - 1, generator=generator)[: count - 1].sort().values + 1
    ids = torch.zeros(length, dtype=torch.int32)
    ids[cuts] = 1
    return ids.cumsum(0).to(torch.int32).cuda()


def alibi_slopes(heads: int) -> torch.Tensor:
    """2 ** (-8 (h + 1) / heads), shape (heads,), float32."""
    return torch.exp2(-8.0 * (torch.arange(heads) + 1) / heads).cuda()


def build(case: Case) -> Contestants:
    """The contestants of one case."""
    match case.variant:
        case "full":
            return Contestants(rg.attention(rg.full()), None, None, False)
        case "causal":
            return Contestants(rg.attention(rg.causal()), lambda b, h, q, k: q >= k, None, True)
        case "window":
            # sliding_window(left, right): keys q - left .. q + right
            return Contestants(
                rg.attention(rg.sliding_window(WINDOW - 1)), lambda b, h, q, k: (q >= k) & (q - k < WINDOW), None, None
            )
        case "document":
            ids = document_ids(case.length)
            return Contestants(
                rg.attention(rg.causal() & rg.document(ids)),
                lambda b, h, q, k: (q >= k) & (ids[q] == ids[k]),
                None,
                None,
            )
        case "alibi":
            slopes = alibi_slopes(case.heads)
            return Contestants(
                rg.attention(rg.causal(), rg.alibi(slopes=slopes)),
                lambda b, h, q, k: q >= k,
                lambda s, b, h, q, k: s + slopes[h] * (k - q),
                None,
            )
        case "softcap":
            return Contestants(
                rg.attention(rg.causal(), rg.softcap(30.0)),
                lambda b, h, q, k: q >= k,
                lambda s, b, h, q, k: 30.0 * torch.tanh(s / 30.0),
                None,
            )
        case "prefix":
            return Contestants(
                rg.attention(rg.prefix_lm(WINDOW)), lambda b, h, q, k: (k < WINDOW) | (q >= k), None, None
            )
    raise ValueError(f"unknown variant {case.variant}")


VARIANTS = ("causal", "window", "document", "alibi", "full", "softcap", "prefix")
CASES = (
    *(Case(variant, 4, 16, 16, 4096, dim) for dim in (128, 64) for variant in VARIANTS),
    Case("causal", 2, 16, 16, 8192, 128),
    Case("causal", 4, 32, 4, 4096, 128),
    Case("causal", 16, 16, 16, 1024, 64),
    Case("window", 1, 16, 16, 32768, 64),
)
