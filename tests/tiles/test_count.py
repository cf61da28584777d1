"""Counts of pairs, tiles, FLOPs and bytes, by hand and at lengths nobody could enumerate."""

from __future__ import annotations

import numpy as np
import pytest

from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.count import PairCount, pair_count, tile_counts, tile_map, work
from regard.ir.tiles.numeric import Sizes


def plan_of(keep: str, parameters: str = "") -> TilePlan:
    variant, _ = parse_variant(f"attention mask({parameters}) {{ keep {keep} normalize softmax }}")
    return make_plan(run_pipeline(variant))


def test_a_small_triangle_by_hand() -> None:
    plan = plan_of("q >= kv")
    expected = [[1, 0, 0], [2, 1, 0], [2, 2, 1]]
    assert tile_map(plan, Sizes(1, 1, 1, 11, 11), {}, 4, 4).tolist() == [[expected]]
    counts = tile_counts(plan, Sizes(2, 3, 1, 11, 11), {}, 4, 4)
    assert (counts.empty, counts.partial, counts.full, counts.exact) == (18, 18, 18, True)


def test_a_tile_cut_short_is_full_where_all_its_pairs_are_allowed() -> None:
    assert tile_map(plan_of("true"), Sizes(1, 1, 1, 5, 5), {}, 4, 4).tolist() == [[[[2, 2], [2, 2]]]]


def test_pairs_of_a_million_tokens_follow_the_formula() -> None:
    n, window = 2**20, 1024
    sizes = Sizes(1, 1, 1, n, n)
    assert pair_count(plan_of("q >= kv"), sizes, {}) == PairCount(n * (n + 1) // 2, n * n, True)
    band = plan_of("q >= kv and q - kv < window", "window: int")
    assert pair_count(band, sizes, {"window": window}).pairs == n * window - window * (window - 1) // 2
    assert tile_counts(band, sizes, {"window": window}, 128, 128).visited == 9 * (n // 128) - 36


def test_heads_and_batches_are_counted_apart() -> None:
    plan = plan_of(
        "kv < lengths[batch] and q - kv < windows[head] and q >= kv", "lengths: i32[batch], windows: i32[head]"
    )
    values = {"lengths": np.array([7, 30]), "windows": np.array([1, 4, 100])}
    sizes = Sizes(2, 3, 3, 33, 33)
    found = pair_count(plan, sizes, values)
    assert found == pair_count(plan, sizes, values, exact=True)
    assert tile_map(plan, sizes, values, 8, 8).shape == (2, 3, 5, 5)


def test_undecided_pairs_are_labelled_a_bound_until_asked_for() -> None:
    plan = plan_of("table[q, kv] and q >= kv", "table: bool[_, _]")
    values = {"table": np.eye(20, dtype=bool)}
    sizes = Sizes(1, 2, 1, 20, 20)
    assert str(pair_count(plan, sizes, values)) == "at most 420 of 800 pairs (52.50%)"
    assert pair_count(plan, sizes, values, exact=True) == PairCount(40, 800, True)
    assert not tile_counts(plan, sizes, values, 8, 8).exact
    assert tile_counts(plan, sizes, values, 8, 8, exact=True).visited == 6


@pytest.mark.parametrize("shape", [(0, 2, 0, 8, 8), (2, 2, 1, 0, 8), (2, 2, 1, 8, 0)])
@pytest.mark.parametrize("keep", ["q >= kv", "ids[q] == ids[kv]"])
def test_empty_problems_have_no_pairs(keep: str, shape: tuple[int, ...]) -> None:
    sizes, values = Sizes(*shape), {"ids": np.zeros(8, np.int32)}
    plan = plan_of(keep, "ids: i32[_]")
    assert pair_count(plan, sizes, values).pairs == 0
    assert pair_count(plan, sizes, values, exact=True).pairs == 0
    assert tile_counts(plan, sizes, values, 4, 4).visited == 0


def test_work_of_one_call() -> None:
    """B 2, H 4, Hkv 2, Lq 3, Lkv 5, D 16, Dv 32, two bytes an element, everything allowed."""
    plan, sizes = plan_of("true"), Sizes(2, 4, 2, 3, 5)
    cost = work(pair_count(plan, sizes, {}), sizes, {}, tile_counts(plan, sizes, {}, 4, 8), 16, 32, 2)
    pairs, queries, keys = 2 * 4 * 3 * 5, 2 * 4 * 3, 2 * 2 * 5
    assert cost.forward_flops == pairs * 96
    assert cost.backward_flops == pairs * 240
    assert cost.tile_flops == 8 * 4 * 8 * 96
    assert cost.forward_bytes == (queries * 16 + keys * 48 + queries * 32) * 2 + queries * 4
    assert "forward 11.5 kFLOP" in str(cost)
