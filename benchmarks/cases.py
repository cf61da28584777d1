"""The attentions that are measured: each written for Regard, for FlexAttention, and as the flags of other kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

import regard as rg

from .arithmetic import quotient, remainder
from .case import GRIDS_2D, GRIDS_3D, Case

WINDOW = 1024
DOCUMENTS = 16
DILATION = 4
# Odd sides of the neighbourhoods.
WINDOW_2D, WINDOW_3D = (21, 21), (9, 13, 13)
# 128 tokens each, FlexAttention's block: the order of tokens in which its blocks are boxes of the grid.
BOX_2D, BOX_3D = (8, 16), (2, 8, 8)


@dataclass(frozen=True)
class Flags:
    """The mask as the arguments of kernels that know only some: causal, (left, right) window, cap, first tokens.

    ``starts``: first token of each document and the length, int32, where documents are packed in a sequence.
    """

    causal: bool
    window: tuple[int, int] | None = None
    softcap: float = 0.0
    starts: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        return self.window is None and not self.softcap and self.starts is None


@dataclass(frozen=True)
class Contestants:
    """The same attention several times.

    ``flex_mask`` and ``flex_score`` take index tensors of any shapes that broadcast; None is no mask, no change.
    ``flags`` is None where no flags say it. ``position`` maps places in another order of the tokens, which suits
    FlexAttention's blocks better, to tokens. ``per_head``: the mask differs from head to head. ``causal``: no key after
    the query is allowed, so that dense attention would be causal.
    """

    regard: Any
    flex_mask: Callable[..., torch.Tensor] | None
    flex_score: Callable[..., torch.Tensor] | None
    flags: Flags | None = None
    position: Callable[[torch.Tensor], torch.Tensor] | None = None
    per_head: bool = False
    causal: bool = False

    @property
    def sdpa_causal(self) -> bool | None:
        """SDPA's ``is_causal``; None where it has no kernel for the mask but with a dense tensor."""
        return self.flags.causal if self.flags is not None and self.flags.plain else None


def masked(*parts: Any, flex: Callable[..., torch.Tensor], **options: Any) -> Contestants:
    """The contestants of a mask that no other kernel has flags for."""
    return Contestants(rg.attention(*parts), flex, None, **options)


def document_ids(length: int, count: int = DOCUMENTS, device: str = "cuda") -> torch.Tensor:
    """Sorted ids of ``count`` documents of uneven length (fixed seed), shape (length,), int32."""
    generator = torch.Generator().manual_seed(1)
    cuts = torch.randperm(length - 1, generator=generator)[: count - 1].sort().values + 1
    ids = torch.zeros(length, dtype=torch.int32)
    ids[cuts] = 1
    return ids.cumsum(0).to(torch.int32).to(device)


def alibi_slopes(heads: int, device: str = "cuda") -> torch.Tensor:
    """2 ** (-8 (h + 1) / heads), shape (heads,), float32."""
    return torch.exp2(-8.0 * (torch.arange(heads) + 1) / heads).to(device)


def build(case: Case, device: str = "cuda") -> Contestants:
    """The contestants of one case, their tensors on ``device``. Raises ValueError for an unknown variant."""
    match case.variant:
        case "full":
            return Contestants(rg.attention(rg.full()), None, None, Flags(causal=False))
        case "causal":
            return Contestants(rg.attention(rg.causal()), _causal, None, Flags(causal=True))
        case "window":
            # sliding_window(left, right): keys q - left .. q + right
            return Contestants(
                rg.attention(rg.sliding_window(WINDOW - 1)),
                lambda b, h, q, k: (q >= k) & (q - k < WINDOW),
                None,
                Flags(causal=True, window=(WINDOW - 1, 0)),
            )
        case "document":
            ids = document_ids(case.length, device=device)
            starts = torch.searchsorted(ids, torch.arange(DOCUMENTS + 1, device=device, dtype=torch.int32))
            return Contestants(
                rg.attention(rg.causal() & rg.document(ids)),
                lambda b, h, q, k: (q >= k) & (ids[q] == ids[k]),
                None,
                Flags(causal=True, starts=starts.to(torch.int32)),
            )
        case "alibi":
            slopes = alibi_slopes(case.heads, device)
            return Contestants(
                rg.attention(rg.causal(), rg.alibi(slopes=slopes)),
                _causal,
                lambda s, b, h, q, k: s + slopes[h] * (k - q),
            )
        case "softcap":
            return Contestants(
                rg.attention(rg.causal(), rg.softcap(30.0)),
                _causal,
                lambda s, b, h, q, k: 30.0 * torch.tanh(s / 30.0),
                Flags(causal=True, softcap=30.0),
            )
        case "prefix":
            return Contestants(rg.attention(rg.prefix_lm(WINDOW)), lambda b, h, q, k: (k < WINDOW) | (q >= k), None)
        case "dilated":
            reach = DILATION * WINDOW
            return Contestants(
                rg.attention(rg.sliding_window(reach - 1) & rg.dilated(DILATION)),
                lambda b, h, q, k: (q >= k) & (q - k < reach) & (remainder(q - k, DILATION) == 0),
                None,
                position=lambda p: p % (case.length // DILATION) * DILATION + p // (case.length // DILATION),
            )
        case "neighbourhood2d":
            return _neighbourhood(GRIDS_2D[case.length], WINDOW_2D, BOX_2D)
        case "neighbourhood3d":
            return _neighbourhood(GRIDS_3D[case.length], WINDOW_3D, BOX_3D)
    # Its modules import this one.
    from .pattern_table import PATTERNS

    if case.variant not in PATTERNS:
        raise ValueError(f"unknown variant {case.variant}")
    return PATTERNS[case.variant](case, device)


def _causal(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q >= k


def _neighbourhood(sides: tuple[int, ...], window: tuple[int, ...], box: tuple[int, ...]) -> Contestants:
    """Hassani et al., Neighborhood Attention Transformer, 2023: at a border the window moves inwards, whole."""
    strides = tuple(prod(sides[axis + 1 :]) for axis in range(len(sides)))
    axes = tuple(zip(strides, sides, window, strict=True))

    @rg.mask
    def neighbourhood(q: Any, kv: Any) -> Any:
        allowed: Any = True
        for stride, side, width in axes:
            first = rg.clamp(q // stride % side - width // 2, 0, side - width)
            place = kv // stride % side
            allowed = (place >= first) & (place < first + width) & allowed
        return allowed

    def flex_mask(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        allowed = q >= 0
        for stride, side, width in axes:
            here, there = (remainder(quotient(x, stride), side) for x in (q, k))
            offset = there - (here - width // 2).clamp(0, side - width)
            allowed = allowed & (offset >= 0) & (offset < width)
        return allowed

    return Contestants(rg.attention(neighbourhood), flex_mask, None, position=box_order(sides, box))


def box_order(sides: tuple[int, ...], box: tuple[int, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    """From places to tokens of a grid: box after box, in each of them row by row. The boxes must divide the grid."""

    def position(p: torch.Tensor) -> torch.Tensor:
        inside, outside = p % prod(box), p // prod(box)
        token, stride = torch.zeros_like(p), 1
        for side, edge in reversed(tuple(zip(sides, box, strict=True))):
            boxes = side // edge
            token = token + stride * (outside % boxes * edge + inside % edge)
            inside, outside, stride = inside // edge, outside // boxes, stride * side
        return token

    return position
