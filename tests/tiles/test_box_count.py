"""Counting over boxes, axis by axis, against enumeration; and the choice of boxes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from boxes import DECLARED, EXACT, NESTED, Array, Call, Digits, Position, calls, digits
from regard.ir.interpret import evaluate
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.box_choice import choose_boxes
from regard.ir.tiles.box_count import count_boxes, count_pairs, is_countable, term_of_head
from regard.ir.tiles.box_map import box_map
from regard.ir.tiles.count import box_counts, pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.tiles.plan import BoxTerm

SIDES = (1, 2, 4)


def plan_of(keep: str, parameters: str = DECLARED) -> TilePlan:
    return make_plan(run_pipeline(parse_variant(f"attention mask({parameters}) {{ keep {keep} }}")[0]))


def of_heads(call: Call) -> list[Call]:
    return [replace(call, head=head) for head in range(4)]


@pytest.mark.parametrize("n", [4, 1, -3, 100])
@pytest.mark.parametrize("name", EXACT)
def test_pairs_are_counted_exactly(name: str, n: int) -> None:
    tokens, keep = EXACT[name]
    plan = plan_of(keep)
    for call in calls(tokens, n):
        sizes = Sizes(2, 4, 2, call.q_len, call.kv_len)
        found = [count_pairs(term, sizes, call.values) for term in plan.boxes]
        truth = [2 * sum(int(c.allowed(term.mask).sum()) for c in of_heads(call)) for term in plan.boxes]
        if all(is_countable(term, sizes, call.values) for term in plan.boxes):
            assert found == [(x, x) for x in truth]
            counted = pair_count(plan, sizes, call.values)
            assert counted.exact and counted.pairs == sum(truth)
        else:
            assert all(x <= most for (most, _), x in zip(found, truth, strict=True))


def enumerated(term: BoxTerm, call: Call, queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[int, int]:
    """Visited and full pairs of boxes, from the mask itself; the keys of a box of queries are a box."""
    keep = call.allowed(term.mask)
    axes = [(digits(term, i, "q", call), digits(term, i, "kv", call)) for i in range(len(term.axes))]
    names = []
    for (q, _), m in zip(axes, queries, strict=True):
        same_class = (q.block[:, None] == q.block) & (q.residue[:, None] == q.residue)
        first = np.where(same_class, q.x, q.x.max()).min(1)
        names += [q.block, q.residue, (q.x - first) // m]
    visited = full = 0
    for box in np.unique(names, axis=1).T:
        rows = (np.array(names) == box[:, None]).all(0)
        seen = keep[rows].any(0)
        if seen.any():
            starts = [k.x[seen].min() for _, k in axes]
            places = np.stack([(k.x - s) // n for (_, k), s, n in zip(axes, starts, keys, strict=True)])
            for tile in np.unique(places[:, seen], axis=1).T:
                visited += 1
                full += bool(keep[np.ix_(rows, (places == tile[:, None]).all(0) & _hull(axes, seen))].all())
    return visited, full


def _hull(axes: list[tuple[Digits, Digits]], seen: Array) -> Array:
    """The smallest box around the keys ``seen``."""
    values = [x for _, k in axes for x in (k.block, k.residue, k.x)]
    return np.asarray(np.all([(x >= x[seen].min()) & (x <= x[seen].max()) for x in values], axis=0))


CONVEX = (
    "dilated window", "causal blocks", "dilated blocks", "window", "shifted windows", "dilated axes", "cube", "halo",
    "frames", "residue of a head", "segments of a head", "segments and dilation of a head", "windows shifted by heads",
)  # fmt: skip


@pytest.mark.parametrize("name", CONVEX)
def test_tiles_are_counted_exactly(name: str) -> None:
    tokens, keep = EXACT[name]
    plan = plan_of(keep)
    (term,) = plan.boxes
    call = calls(tokens, 3)[0]
    sizes = Sizes(1, 4, 2, call.q_len, call.kv_len)
    sides = list(itertools.product(SIDES, repeat=len(term.axes)))[:12]
    for queries, keys in zip(sides, reversed(sides), strict=True):
        truth = [enumerated(term, c, queries, keys) for c in of_heads(call)]
        assert count_boxes(term, queries, keys, sizes, call.values) == tuple(map(sum, zip(*truth, strict=True)))


@pytest.mark.parametrize("name", CONVEX)
def test_the_best_boxes_visit_the_fewest_tiles(name: str) -> None:
    tokens, keep = EXACT[name]
    (term,) = plan_of(keep).boxes
    call = calls(tokens, 3)[0]
    sizes = Sizes(1, 1, 1, call.q_len, call.kv_len)
    best = choose_boxes(term, sizes, call.values, 4, 4)
    assert best.visited == count_boxes(term, best.queries, best.keys, sizes, call.values)[0]
    boxes = [x for x in itertools.product(SIDES, repeat=len(term.axes)) if np.prod(x) <= 4]
    assert best.visited == min(count_boxes(term, q, k, sizes, call.values)[0] for q in boxes for k in boxes)


def test_counts_of_heads_and_batches() -> None:
    plan = plan_of("abs(coordinate(q, 1, 5, 7) - coordinate(kv, 1, 5, 7)) < widths[head]", "widths: i32[head]")
    widths = np.array([1, 0, 3, 9])
    sizes = Sizes(3, 4, 2, 35, 35)
    x = np.arange(35) % 7
    truth = 3 * sum(int((abs(x[:, None] - x) < w).sum()) for w in widths)
    assert count_pairs(plan.boxes[0], sizes, {"widths": widths}) == (truth, truth)
    assert box_counts(plan, sizes, {"widths": widths}, 8, 8).visited > 0


def test_heads_may_differ_in_full_boxes_alone() -> None:
    """Every head may see all keys of a class along the first axis, and surely sees all but one."""
    y, x = "coordinate(q, 0, 6, 6)", "coordinate(q, 1, 6, 6)"
    j, i = "coordinate(kv, 0, 9, 6)", "coordinate(kv, 1, 9, 6)"
    one = f"{y} % 2 == head % 2 and {y} % 6 == head % 6 and {j} % 6 == head % 6"
    plan = plan_of(f"not ({one}) and {x} % 2 == head % 2 and {i} % 2 == head % 2", "")
    calls_of_heads = of_heads(Call(36, 54, {}, 0))
    pairs = sum(int(call.allowed(plan.variant.mask).sum()) for call in calls_of_heads)
    counted = pair_count(plan, Sizes(1, 4, 2, 36, 54), {})
    assert counted.pairs == pairs if counted.exact else counted.pairs >= pairs


def test_a_million_tokens_are_counted_by_axes() -> None:
    """Nothing is enumerated: rows of classes that differ in nothing are counted once."""
    plan = plan_of("q >= kv and q - kv < 4096 and (q - kv) % 4 == 0", "")
    sizes = Sizes(1, 1, 1, 1 << 20, 1 << 20)
    found = pair_count(plan, sizes, {})
    assert found.exact and found.pairs == sum(min(i // 4 + 1, 1024) for i in range(1 << 20))
    counts = box_counts(plan, sizes, {}, 128, 128)
    assert counts.visited == 4 * sum(min(i + 1, 9) for i in range(2048))


@pytest.mark.parametrize("name", EXACT | NESTED)
def test_maps_of_boxes_hold_the_mask(name: str) -> None:
    """The boxes of a map, looked up pair by pair: nothing allowed is empty, nothing forbidden full."""
    tokens, keep = (EXACT | NESTED)[name]
    plan = plan_of(keep)
    call = calls(tokens, 4)[0]
    sizes = Sizes(1, 4, 2, call.q_len, call.kv_len)
    countable = [term for term in plan.boxes if is_countable(term, sizes, call.values)]
    for term, of_head in itertools.product(countable, of_heads(call)):
        sides = (2,) * len(term.axes)
        own = term_of_head(term, 0, of_head.head, sizes, call.values)
        tiles = box_map(own, sides, sides, sizes, call.values, most=10**6).tiles[0]
        classes = tiles[of_head.head % len(tiles)]
        rows, columns = (_places(term, position, of_head) for position in ("q", "kv"))
        found = classes[rows[:, None], columns]
        allowed = of_head.allowed(term.mask)[_of_grid(term, "q", call)][:, _of_grid(term, "kv", call)]
        assert not (allowed & (found == 0)).any() and not (~allowed & (found == 2)).any()


def _of_grid(term: BoxTerm, position: Position, call: Call) -> slice:
    """The positions of the grid."""
    origin, end = (term.query_origin, term.query_end) if position == "q" else (term.key_origin, term.key_end)
    return slice(int(evaluate(origin, call.env)), None if end is None else int(evaluate(end, call.env)))


def _places(term: BoxTerm, position: Position, call: Call) -> Array:
    """The number of the box of every position of the grid, in the order of a map."""
    here = _of_grid(term, position, call)
    whole = [digits(term, axis, position, call) for axis in range(len(term.axes))]
    own = [Digits(d.block[here], d.x[here], d.residue[here]) for d in whole]
    names = [x for d in own for x in (d.block, d.residue)]
    for d in own:
        same_class = (d.block[:, None] == d.block) & (d.residue[:, None] == d.residue)
        names.append((d.x - np.where(same_class, d.x, d.x.max()).min(1)) // 2)
    _, numbers = np.unique(np.stack(names), axis=1, return_inverse=True)
    return np.asarray(numbers).reshape(-1)
