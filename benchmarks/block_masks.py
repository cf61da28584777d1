"""FlexAttention's block masks, from pairs counted a few rows at a time; nothing of it is compiled.

Compiled, ``create_block_mask`` takes tens of seconds for masks of images and videos; otherwise it holds all pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

Mask = Callable[..., Tensor]
BLOCK = 128
# So many pairs are held at once, a few times over.
PAIRS = 2**26


def count_pairs(mask: Mask, heads: int, length: int, device: str) -> Tensor:
    """Allowed pairs in blocks of 128 queries and 128 keys, shape (heads, blocks, blocks), int32, on ``device``.

    Batch item 0 is asked about each pair.
    """
    blocks = -(-length // BLOCK)
    counts = torch.empty(heads, blocks, blocks, dtype=torch.int32, device=device)
    places = torch.arange(length, dtype=torch.int32, device=device)
    step = max(1, PAIRS // (length * BLOCK))
    beyond = blocks * BLOCK - length
    for head in range(heads):
        number = torch.tensor(head, dtype=torch.int32, device=device)
        for first in range(0, blocks, step):
            rows = places[first * BLOCK : (first + step) * BLOCK, None]
            allowed = mask(places.new_zeros(()), number, rows, places).expand(len(rows), length)
            short = -len(rows) % BLOCK
            tiles = torch.nn.functional.pad(allowed, (0, beyond, 0, short)).view(-1, BLOCK, blocks, BLOCK)
            counts[head, first : first + step] = tiles.sum((1, 3), dtype=torch.int32)
            if counts.is_cuda:
                # Little is ever queued: who pauses this process need not wait for more.
                torch.cuda.synchronize()
    return counts


def block_mask(mask: Mask, heads: int, length: int, device: str) -> BlockMask:
    """What ``create_block_mask`` makes of the mask for one batch item, and ``heads`` heads or one for all."""
    counts = count_pairs(mask, heads, length, device)
    full = counts == BLOCK * BLOCK
    (partial_count, partial), (full_count, full_index) = (_listed(x[None]) for x in ((counts > 0) & ~full, full))
    return BlockMask.from_kv_blocks(
        partial_count, partial, full_count, full_index, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(length, length)
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are chosen, and which, first."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32).contiguous()
