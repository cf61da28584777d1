"""Tiles that begin anew where data changes: where that is, and how many of their pairs are of each class."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import regard as rg
from regard.codegen.triton_cuts import cuts_of
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.count import tile_counts
from regard.ir.tiles.cuts import Cuts
from regard.ir.tiles.numeric import Array, Sizes, Values, allowed
from regard.ir.tiles.places import parts_of_call


def runs(*lengths: int) -> Tensor:
    """Documents of these lengths, one after the other."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).int()


@rg.mask
def same_and_near(q: Any, kv: Any, head: Any, ids: Any, near: int) -> Any:
    return (ids[head, q] == ids[head, kv]) & (q - kv < near * (head + 1))


@rg.mask
def same_batch(q: Any, kv: Any, batch: Any, head: Any, asked: Any, held: Any) -> Any:
    return (asked[batch, q] == held[batch, kv]) & (q - kv < 40 * (head + 1))


RANDOM = torch.randint(4, (157,), generator=torch.Generator().manual_seed(0)).int()
SORTED = runs(40, 1, 20, 61, 35)
BY_BATCH = torch.stack([SORTED, RANDOM])
MASKS: dict[str, Any] = {
    "sorted": rg.causal & rg.document(SORTED),
    "one document": rg.causal & rg.document(torch.zeros(157, dtype=torch.int32)),
    "in no order": rg.sliding_window(50, 20) & rg.document(runs(40, 1, 20, 61, 35)[torch.arange(157) % 80]),
    "random": rg.document(RANDOM),
    "by batch": rg.causal & rg.document(BY_BATCH),
    "by head": same_and_near(ids=torch.stack([SORTED, RANDOM, SORTED.flip(0)]), near=30),
    "only queries": same_batch(asked=BY_BATCH.flip(0), held=BY_BATCH),
}


def plan_of(part: Any) -> tuple[TilePlan, Cuts, Values]:
    attn = rg.attention(part)
    values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in attn.binding.items()}
    plan = make_plan(run_pipeline(attn.variant))
    cuts = cuts_of(plan)
    assert cuts is not None
    return plan, cuts, values


def where(part: Any, sizes: Sizes, block_m: int, block_n: int) -> list[tuple[list[int], list[int]]]:
    plan, cuts, values = plan_of(part)
    found = [x.tiles for x in parts_of_call(plan, cuts, sizes, values, block_m, block_n)]
    return [(x.queries.firsts.tolist(), x.keys.firsts.tolist()) for x in found]


def test_tiles_begin_where_data_changes() -> None:
    part = rg.document(runs(5, 1, 9, 8, 4))
    (found,) = where(part, Sizes(2, 3, 1, 27, 27), 8, 4)
    assert found == ([0, 5, 6, 14, 15, 23], [0, 4, 5, 6, 10, 14, 15, 19, 23])
    # Lengths may be shorter than the data.
    assert where(part, Sizes(1, 1, 1, 6, 0), 8, 4) == [([0, 5], [])]


def test_tiles_are_at_most_twice_as_many() -> None:
    """Of 64 positions 4 tiles of 16 are cut into at most 8; queries and keys are asked apart."""
    for lengths in ((1, 1, 1, 1, 16, 16, 16, 12), (1, 1, 1, 1, 1, 16, 16, 16, 11)):
        ids = runs(*lengths)
        (found,) = where(rg.document(ids), Sizes(1, 1, 1, 64, 64), 16, 2)
        begins = [0, *np.cumsum(lengths)[:-1]]
        assert found[0] == (begins if len(lengths) == 8 else [0, 16, 32, 48])
        assert set(begins) < set(found[1])


def test_batch_items_and_heads_are_cut_apart() -> None:
    whole = list(range(0, 157, 16))
    assert [x[0] == whole for x in where(MASKS["by batch"], Sizes(2, 3, 1, 157, 157), 16, 16)] == [False, True]
    assert [x[0] == whole for x in where(MASKS["by head"], Sizes(2, 3, 3, 157, 157), 16, 16)] == [False, True, False]
    found = where(MASKS["only queries"], Sizes(2, 3, 3, 157, 157), 16, 16)
    assert [(q == whole, kv == whole) for q, kv in found] == [(True, False), (False, True)]


def counted_one_by_one(keep: Array, rows: list[int], columns: list[int], block_n: int) -> Array:
    """Empty, partial and full pairs of tiles in a mask."""
    count = np.zeros(3, int)
    every_row, every_column = (pairwise([*x, n]) for x, n in zip((rows, columns), keep.shape, strict=True))
    for (top, bottom), (left, right) in product(every_row, [*every_column]):
        pairs = keep[top:bottom, left:right]
        count[0 if not pairs.any() else 2 if pairs.all() and right - left == block_n else 1] += 1
    return count


@pytest.mark.parametrize("q_len", [157, 90])
@pytest.mark.parametrize("name", MASKS)
def test_counts_are_those_of_the_mask(name: str, q_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, cuts, values = plan_of(MASKS[name])
    sizes = Sizes(2, 3, 3, q_len, 157)
    (_, keep), = allowed(plan, sizes, values, np.zeros(1, int))
    places = where(MASKS[name], sizes, 16, 8)
    by_batch, by_head = len(places) == 2, len(places) == 3
    expected = np.zeros(3, int)
    for batch, head in product(range(2), range(3)):
        own = places[batch if by_batch else head if by_head else 0]
        expected += counted_one_by_one(keep[batch, head], *own, 8)
    for chunk in (2**22, 6 * 157 * 20):  # pairs are evaluated some rows at a time
        monkeypatch.setattr("regard.ir.tiles.numeric.CHUNK", chunk)
        counts = tile_counts(plan, sizes, values, 16, 8, exact=True, cuts=cuts)
        assert [counts.empty, counts.partial, counts.full] == [*expected]
    assert counts.tile_pairs == 128 * counts.visited and counts.dense_pairs == 6 * 128 * 20 * -(-q_len // 16)
    found = tile_counts(plan, sizes, values, 16, 8, cuts=cuts)
    monkeypatch.setattr("regard.ir.tiles.class_count._FEW", 0)
    assert found == tile_counts(plan, sizes, values, 16, 8, cuts=cuts)
    assert found.visited + found.empty == expected.sum()
    assert found.visited >= counts.visited and found.full <= counts.full
    if name in ("sorted", "one document"):
        assert found == counts
        assert found.begun_anew == (name == "sorted") == ("begun anew where data changes" in str(found))
