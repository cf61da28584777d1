"""Patterns of sequences, from positions and from data, each written for Regard and for FlexAttention.

Masks for FlexAttention are written out anew, so that a mistake on either side shows as a difference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import regard as rg

from .arithmetic import quotient, remainder
from .case import Case
from .cases import Contestants, document_ids, masked


def strided(case: Case, device: str) -> Contestants:
    return masked(
        rg.strided(128), flex=lambda b, h, q, k: (q >= k) & ((q - k < 128) | (remainder(q - k, 128) == 0)), causal=True
    )


def fixed(case: Case, device: str) -> Contestants:
    @rg.mask
    def summaries(q: Any, kv: Any) -> Any:
        same, earlier = q // 128 == kv // 128, kv // 128 < q // 128
        return same & (q >= kv) | earlier & (kv % 128 >= 120)

    return masked(
        summaries,
        flex=lambda b, h, q, k: (q >= k) & ((quotient(q, 128) == quotient(k, 128)) | (remainder(k, 128) >= 120)),
        causal=True,
    )


def longnet(case: Case, device: str) -> Contestants:
    return masked(
        rg.causal & rg.block_diagonal(2048) & rg.dilated(4),
        flex=lambda b, h, q, k: (q >= k) & (quotient(q, 2048) == quotient(k, 2048)) & (remainder(q - k, 4) == 0),
        position=lambda p: p // 2048 * 2048 + p % 512 * 4 + p // 512 % 4,
        causal=True,
    )


def distant(case: Case, device: str) -> Contestants:
    return masked(
        rg.causal & rg.dilated(16),
        flex=lambda b, h, q, k: (q >= k) & (remainder(q - k, 16) == 0),
        position=lambda p: p % (case.length // 16) * 16 + p // (case.length // 16),
        causal=True,
    )


def shards(case: Case, device: str) -> Contestants:
    """Every head has a strided shard of blocks of its own, and the local ones."""

    @rg.mask
    def shards(q: Any, kv: Any, head: Any) -> Any:
        here, there = q // 128, kv // 128
        return (q >= kv) & ((here - there < 4) | ((there - head) % 8 == 0))

    return masked(
        shards,
        flex=lambda b, h, q, k: (
            (q >= k) & ((quotient(q, 128) - quotient(k, 128) < 4) | (remainder(quotient(k, 128) - h, 8) == 0))
        ),
        per_head=True,
        causal=True,
    )


def longformer(case: Case, device: str) -> Contestants:
    return masked(
        rg.sliding_window(256, 256) | rg.global_tokens(64),
        flex=lambda b, h, q, k: ((q - k).abs() <= 256) | (q < 64) | (k < 64),
    )


def bigbird(case: Case, device: str) -> Contestants:
    blocks, count = -(-case.length // 128), 3

    def draw(block: Tensor, i: int) -> Tensor:
        x = (block * count + i) & 0x7FFFFFFF
        for factor in (0x5F0AAAD, 0xB35A2D9):
            x = (x ^ (x >> 15)) * factor & 0x7FFFFFFF
        return (x ^ (x >> 15)) * blocks >> 31

    # FlexAttention reads what was drawn: hashing in its kernel would be no favour to it.
    drawn = [draw(torch.arange(blocks, device=device), i) for i in range(count)]

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        hit = ((q - k).abs() <= 192) | (q < 128) | (k < 128)
        for of_block in drawn:
            hit = hit | (of_block[quotient(q, 128)] == quotient(k, 128))
        return hit

    return masked(rg.random_blocks(128, count) | rg.sliding_window(192, 192) | rg.global_tokens(128), flex=flex)


def star(case: Case, device: str) -> Contestants:
    """Acharya et al., Star Attention, arXiv:2411.17116, first phase: blocks, each behind the first one."""
    return masked(
        rg.causal & (rg.block_diagonal(2048) | rg.sinks(2048)),
        flex=lambda b, h, q, k: (q >= k) & ((quotient(q, 2048) == quotient(k, 2048)) | (k < 2048)),
        causal=True,
    )


def block_diffusion(case: Case, device: str) -> Contestants:
    """Arriola et al., Block Diffusion, arXiv:2503.09573: noisy tokens, then the clean ones, in blocks of 64."""
    half = case.length // 2

    @rg.mask
    def block_diffusion(q: Any, kv: Any) -> Any:
        here, there = q % half // 64, kv % half // 64
        noisy_q, noisy_kv = q < half, kv < half
        own = (here == there) & noisy_q & noisy_kv
        return own | (here > there) & noisy_q & ~noisy_kv | (here >= there) & ~noisy_q & ~noisy_kv

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        here, there = (quotient(remainder(x, half), 64) for x in (q, k))
        return torch.where(k < half, (q < half) & (here == there), (here > there) | ((q >= half) & (here == there)))

    return masked(block_diffusion, flex=flex)


def staircase(case: Case, device: str) -> Contestants:
    return masked(rg.block_causal(1000), flex=lambda b, h, q, k: quotient(q, 1000) >= quotient(k, 1000))


def longlora(case: Case, device: str) -> Contestants:
    """Chen et al., LongLoRA, arXiv:2309.12307: groups, shifted by half in half of the heads."""
    half = case.heads // 2

    @rg.mask
    def shifted(q: Any, kv: Any, head: Any) -> Any:
        by = rg.where(head < half, 0, 1024)
        return (q >= kv) & ((q + by) // 2048 == (kv + by) // 2048)

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        by = torch.where(h < half, 0, 1024)
        return (q >= k) & (quotient(q + by, 2048) == quotient(k + by, 2048))

    return masked(shifted, flex=flex, per_head=True, causal=True)


def tree(case: Case, device: str) -> Contestants:
    """A shared prefix of an eighth, then 14 continuations of uneven length."""
    ids = document_ids(case.length * 7 // 8, 14, "cpu")
    prefix = case.length - len(ids)
    last = torch.searchsorted(ids, ids, right=True) + prefix
    ends = torch.cat([torch.full((prefix,), case.length), last]).to(device, torch.int32)
    return masked(rg.tree(ends), flex=lambda b, h, q, k: (q >= k) & (q < ends[k]), causal=True)


def interleaved(case: Case, device: str) -> Contestants:
    """Causal text; images, every second stretch of uneven length, are seen whole by themselves."""
    ids = document_ids(case.length, 16, device)
    # Every token of text is a segment of its own.
    segments = ((ids % 2 == 0) | (ids != ids.roll(1))).cumsum(0)
    return masked(rg.causal | rg.document(segments), flex=lambda b, h, q, k: (q >= k) | (segments[q] == segments[k]))


def retrieval(case: Case, device: str) -> Contestants:
    """Ma et al., Block-Attention, arXiv:2409.15355: passages by themselves, and a question that sees all of them."""
    ids = document_ids(case.length, 16, device)

    @rg.mask
    def retrieval(q: Any, kv: Any, block: Tensor) -> Any:
        return (q >= kv) & ((block[q] == block[kv]) | (block[q] == 15))

    return masked(
        retrieval(block=ids),
        flex=lambda b, h, q, k: (q >= k) & ((ids[q] == ids[k]) | (ids[q] == 15)),
        causal=True,
    )


def shuffled(case: Case, device: str) -> Contestants:
    """Documents whose tokens lie in runs of 256, in any order."""
    ids = document_ids(case.length, 16, "cpu").view(-1, 256)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(2))].flatten().to(device)
    return masked(rg.document(ids), flex=lambda b, h, q, k: ids[q] == ids[k])


def lengths(case: Case, device: str) -> Contestants:
    lengths = torch.full((case.batch,), case.length * 3 // 5, device=device, dtype=torch.int32)
    return masked(rg.causal & rg.padding(lengths), flex=lambda b, h, q, k: (q >= k) & (k < lengths[b]), causal=True)


def positions(case: Case, device: str) -> Contestants:
    """Positions that start anew with every document, and a window of them."""
    ids = document_ids(case.length, 16, "cpu")
    starts = torch.searchsorted(ids, ids)
    places = (torch.arange(case.length) - starts).to(device, torch.int32)

    @rg.mask
    def packed(q: Any, kv: Any, position: Tensor) -> Any:
        return (q >= kv) & (q - kv == position[q] - position[kv]) & (position[q] - position[kv] < 2048)

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        apart = places[q] - places[k]
        return (q >= k) & (q - k == apart) & (apart < 2048)

    return masked(packed(position=places), flex=flex, causal=True)


def modalities(case: Case, device: str) -> Contestants:
    """Tokens of one modality see all of it; the others are causal."""
    labels = document_ids(case.length, 32, device) % 3

    @rg.mask
    def modalities(q: Any, kv: Any, label: Tensor) -> Any:
        return (q >= kv) & (label[kv] == 0) | (label[q] == 1) & (label[kv] == 1)

    return masked(
        modalities(label=labels),
        flex=lambda b, h, q, k: ((q >= k) & (labels[k] == 0)) | ((labels[q] == 1) & (labels[k] == 1)),
    )


def head_windows(case: Case, device: str) -> Contestants:
    """Xu et al., MSWA, arXiv:2501.01039: windows that grow from head to head."""
    windows = torch.tensor([256 << (4 * i // case.heads) for i in range(case.heads)], device=device, dtype=torch.int32)

    @rg.mask
    def banded(q: Any, kv: Any, head: Any, windows: Tensor) -> Any:
        return (q >= kv) & (q - kv < windows[head])

    return masked(
        banded(windows=windows), flex=lambda b, h, q, k: (q >= k) & (q - k < windows[h]), per_head=True, causal=True
    )


def kept(case: Case, device: str) -> Contestants:
    """Keys kept in runs of 64: a third of them."""
    runs = torch.rand(-(-case.length // 64), generator=torch.Generator().manual_seed(3)) < 1 / 3
    kept = runs.repeat_interleave(64)[: case.length].to(device)

    @rg.mask
    def keep(q: Any, kv: Any, kept: Tensor) -> Any:
        return (q >= kv) & kept[kv]

    return masked(keep(kept=kept), flex=lambda b, h, q, k: (q >= k) & kept[k], causal=True)
