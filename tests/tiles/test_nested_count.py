"""Boxes whose axes depend on each other: counted by kinds as box by box, and pairs as the mask has them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest

import regard as rg
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.box_count import count_boxes, count_pairs, environments, term_of_head, tiles_along
from regard.ir.tiles.box_walk import products, ranges_within, walk_boxes
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes

IMAGE, VIDEO = rg.grid(19, 23), rg.grid(5, 9, 10)


@rg.mask
def circles(q: Any, kv: Any, head: Any) -> Any:
    (y, x), (j, i) = IMAGE(q), IMAGE(kv)
    return (y - j) * (y - j) + (x - i) * (x - i) < 30 + 20 * head


@rg.mask
def causal_diamond(q: Any, kv: Any) -> Any:
    (y, x), (j, i) = IMAGE(q), IMAGE(kv)
    return (q >= kv) & (abs(y - j) + abs(x - i) < 7)


@rg.mask
def dilated_circle(q: Any, kv: Any) -> Any:
    (y, x), (j, i) = IMAGE(q), IMAGE(kv)
    return ((y - j) * (y - j) + (x - i) * (x - i) < 80) & ((y - j) % 2 == 0) & (x % 3 == i % 3)


@rg.mask
def wider_with_distance(q: Any, kv: Any) -> Any:
    (y, x), (j, i) = IMAGE(q), IMAGE(kv)
    return (y // 5 == j // 5) & (abs(x - i) <= abs(y - j) + 2)


@rg.mask
def octahedra(q: Any, kv: Any, reach: int) -> Any:
    (t, y, x), (u, j, i) = VIDEO(q), VIDEO(kv)
    return (abs(t - u) + abs(y - j) + abs(x - i) < reach) & ((y - j) % 2 == 0)


CASES: dict[str, tuple[Any, int]] = {
    "circles": (circles, 19 * 23),
    "a causal diamond": (causal_diamond, 19 * 23),
    "a dilated circle": (dilated_circle, 19 * 23),
    "wider with distance": (wider_with_distance, 19 * 23),
    "octahedra": (octahedra(reach=5), 450),
}


@pytest.mark.parametrize("name", CASES)
def test_boxes_are_counted_by_kinds_as_one_by_one(name: str) -> None:
    part, length = CASES[name]
    attn = rg.attention(part)
    values: Any = dict(attn.binding)
    sizes = Sizes(2, 2, 1, length, length)
    (term,) = make_plan(run_pipeline(attn.variant)).boxes
    assert term.is_nested
    for side in (1, 2, 4):
        own, other = (side,) * len(term.axes), (2, *(4,) * (len(term.axes) - 1))
        assert count_boxes(term, own, other, sizes, values) == one_by_one(term, own, other, sizes, values)


def one_by_one(term: Any, own: tuple[int, ...], other: tuple[int, ...], sizes: Sizes, values: Any) -> tuple[int, int]:
    visited = full = 0
    for env, copies in environments(term, sizes, values):
        axes = term_of_head(term, int(env["batch"]), int(env["head"]), sizes, values).axes
        tiles = [tiles_along(a, m, sizes, values, each=True) for a, m in zip(axes, own, strict=True)]
        for boxes in products(tiles):
            sides = [np.full(len(boxes[0].first), n) for n in other]
            found = walk_boxes(ranges_within(term), boxes, sides, env)
            visited += copies * int(found.visited.sum())
            full += copies * int(found.full.sum())
    assert 0 < visited < 2 * sizes.heads * prod(len(t.first) for t in tiles) ** 2
    return visited, full


@pytest.mark.parametrize("name", CASES)
def test_pairs_are_those_of_the_mask(name: str) -> None:
    part, length = CASES[name]
    attn = rg.attention(part)
    values: Any = dict(attn.binding)
    sizes = Sizes(1, 2, 1, length, length)
    plan = make_plan(run_pipeline(attn.variant))
    true = pair_count(plan, sizes, values, exact=True).pairs
    most, least = count_pairs(plan.boxes[0], sizes, values)
    assert most == true or name == "a dilated circle"
    assert least <= true <= most
