"""Pairs of tiles are counted along rows, and large tiles decided, as if each pair had been looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import regard as rg
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.class_count import count_classes
from regard.ir.tiles.count import tile_map
from regard.ir.tiles.numeric import Sizes, Values


@rg.mask
def shards(q: Any, kv: Any, head: Any) -> Any:
    here, there = q // 48, kv // 48
    return (q >= kv) & ((here - there < 4) | ((there - head) % 8 == 0))


@rg.mask
def halves(q: Any, kv: Any) -> Any:
    here, there, first_q, first_kv = q % 500 // 16, kv % 500 // 16, q < 500, kv < 500
    return (here == there) & first_q & first_kv | (here > there) & first_q & ~first_kv | ~first_q & (here >= there)


@rg.mask
def frames(q: Any, kv: Any) -> Any:
    apart = abs(q // 128 - kv // 128)
    reach = rg.where(apart >= 4, 9, rg.where(apart >= 2, 24, rg.where(apart >= 1, 40, 64)))
    return (abs(q % 128 - kv % 128) <= reach) | (kv < 128)


@rg.mask
def banded(q: Any, kv: Any, head: Any) -> Any:
    return (abs(q // 16 * 16 - kv) <= 9 + 16 * head) | ((q // 64 * 7 + 3) % 16 == kv // 64)


IDS = torch.arange(1003) // 91
MASKS: dict[str, Any] = {
    "blocks drawn anywhere": rg.random_blocks(48, 3),
    "and a window and global tokens": rg.random_blocks(32, 2, 5) | rg.sliding_window(40, 9) | rg.global_tokens(33),
    "shards of heads": shards,
    "two halves": halves,
    "frames": frames,
    "bands of heads": banded,
    "sorted documents": rg.causal & rg.document(IDS),
}


def plan_and_values(part: Any, align: Any = "start") -> tuple[TilePlan, Values]:
    attn = rg.attention(part, align=align)
    values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in attn.binding.items()}
    return make_plan(run_pipeline(attn.variant)), values


@pytest.fixture
def never_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pairs of tiles are looked at one by one, which would hide how many are counted."""
    monkeypatch.setattr("regard.ir.tiles.class_count._FEW", 0)


@pytest.mark.usefixtures("never_one_by_one")
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize("name", MASKS)
def test_classes_are_counted_as_in_the_map(name: str, align: Any, heads: int) -> None:
    plan, values = plan_and_values(MASKS[name], align)
    assert plan.classification is not None
    for q_len in (1003, 610):
        sizes = Sizes(2, heads, 1, q_len, 1003)
        for tile in ((128, 64), (16, 32), (64, 64), (33, 50)):
            found = count_classes(plan.classification, sizes, values, *tile)
            # Frames are taken apart only where they are whole numbers of tiles.
            assert found is not None or name == "frames"
            classes = np.broadcast_to(tile_map(plan, sizes, values, *tile), (2, heads, *tile_shape(sizes, tile)))
            assert found in (None, tuple(int((classes == kind).sum()) for kind in (1, 2)))


def tile_shape(sizes: Sizes, tile: tuple[int, int]) -> tuple[int, int]:
    return -(-sizes.q_len // tile[0]), -(-sizes.kv_len // tile[1])


@pytest.mark.parametrize("name", MASKS)
def test_few_pairs_are_looked_at_one_by_one(name: str) -> None:
    plan, values = plan_and_values(MASKS[name])
    assert plan.classification is not None
    sizes = Sizes(1, 1, 1, 610, 1003)
    classes = np.broadcast_to(tile_map(plan, sizes, values, 48, 48), (1, 1, *tile_shape(sizes, (48, 48))))
    expected = tuple(int((classes == kind).sum()) for kind in (1, 2))
    assert count_classes(plan.classification, sizes, values, 48, 48) == expected


@pytest.mark.usefixtures("never_one_by_one")
def test_frames_are_taken_apart() -> None:
    """Their rows are too uneven to be followed, their inside is the same for all pairs of frames as far apart."""
    plan, values = plan_and_values(frames)
    assert plan.classification is not None
    assert count_classes(plan.classification, Sizes(1, 1, 1, 4096, 4096), values, 32, 32) is not None
    assert count_classes(plan.classification, Sizes(1, 1, 1, 4096, 4096), values, 48, 48) is None


@pytest.mark.parametrize("length", [997, 1024])
def test_large_tiles_see_every_block_in_them(length: int) -> None:
    """Blocks of 16, of which 16 by 16 lie in a pair of tiles: it is empty exactly where all of them are."""
    plan, values = plan_and_values(rg.random_blocks(16, 2))
    sizes = Sizes(1, 1, 1, length, length)
    true = tile_map(plan, sizes, values, 256, 256, exact=True)
    np.testing.assert_array_equal(tile_map(plan, sizes, values, 256, 256) > 0, true > 0)
    small = tile_map(plan, sizes, values, 16, 16)
    assert small.max() == 2 and tile_map(plan, sizes, values, 256, 256).max() == 1


def test_nothing_to_count() -> None:
    plan, values = plan_and_values(rg.random_blocks(16, 2))
    assert plan.classification is not None
    for sizes in (Sizes(0, 1, 1, 9, 9), Sizes(1, 1, 1, 0, 9), Sizes(1, 1, 1, 9, 0)):
        assert count_classes(plan.classification, sizes, values, 16, 16) == (0, 0)
