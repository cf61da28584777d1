"""Boxes whose inner axes narrow by where they lie along the outer ones: never wrong, exact for single tokens, counted.

Counts are those of the boxes that a kernel visits, here enumerated from the mask itself.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxes import NESTED, Array, Call, Position, along, calls, digits, plan_of, product_of_axes
from regard.ir.tiles.box_choice import choose_boxes
from regard.ir.tiles.box_count import count_boxes
from regard.ir.tiles.box_walk import ranges_within
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.tiles.plan import BoxTerm, TilePlan


def check(plan: TilePlan, call: Call, side: int) -> float:
    """Asks that no claim is wrong, in both directions; returns the share of pairs that are decided."""
    decided = []
    for term in plan.boxes:
        keep = call.allowed(term.mask)
        by: Position
        for by in ("q", "kv"):
            may, must = product_of_axes(term, call, side, by, within=True)
            assert not (keep & ~may).any(), f"an allowed pair outside of the boxes, by {by}, side {side}"
            assert not (must & ~keep).any(), f"a forbidden pair in a full box, by {by}, side {side}"
            decided.append(float((may == must).mean()))
    return float(np.mean(decided))


@pytest.mark.parametrize("n", [4, 1, -3])
@pytest.mark.parametrize("name", NESTED)
def test_single_tokens_are_decided(name: str, n: int) -> None:
    tokens, keep = NESTED[name]
    plan, _ = plan_of(keep, "n: int")
    assert any(term.is_nested for term in plan.boxes) and plan.boxes_decide_more
    for call in calls(tokens, n):
        counted = pair_count(plan, Sizes(1, 1, 1, call.q_len, call.kv_len), call.values)
        pairs = sum(int(call.allowed(term.mask).sum()) for term in plan.boxes)
        assert counted.pairs == pairs if counted.exact else counted.pairs >= pairs
        assert counted.exact or name in ("cases", "circle after text")
        assert check(plan, call, 1) >= (0.8 if name == "cases" else 1)  # four intervals are more than there may be
        for side in (2, 3):
            check(plan, call, side)


def enumerated(term: BoxTerm, call: Call, queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[int, int]:
    """Visited and full pairs of boxes: axis by axis, the boxes from the first to the last key that a box may see."""
    keep = call.allowed(term.mask)
    of_q, of_kv = ([digits(term, i, position, call).x for i in range(len(term.axes))] for position in ("q", "kv"))
    visited = full = 0

    def visit(rows: Array, columns: Array, axis: int) -> None:
        nonlocal visited, full
        x = of_kv[axis]
        seen = x[columns & keep[rows].any(0)]
        if not len(seen):
            visited += axis > 0  # the spare one
            return
        for first in range(seen.min(), seen.max() + 1, keys[axis]):
            box = columns & (x >= first) & (x < min(first + keys[axis], seen.max() + 1))
            if axis + 1 < len(keys):
                visit(rows, box, axis + 1)
            else:
                visited += 1
                full += bool(keep[rows][:, box].all())

    places = np.stack([x // m for x, m in zip(of_q, queries, strict=True)])
    for box in np.unique(places, axis=1).T:
        visit((places == box[:, None]).all(0), np.ones(call.kv_len, bool), 0)
    return visited, full


SEPARATE = (
    "circle", "circle in a window", "diamond", "raster order", "radial", "sphere", "radial video", "first axis free",
)  # fmt: skip


@pytest.mark.parametrize("name", SEPARATE)
def test_boxes_are_those_that_the_mask_needs(name: str) -> None:
    tokens, keep = NESTED[name]
    (term,) = plan_of(keep, "n: int")[0].boxes
    call = calls(tokens, 4)[0]
    sizes = Sizes(1, 1, 1, call.q_len, call.kv_len)
    sides = list(itertools.product((1, 2, 4), repeat=len(term.axes)))[:9]
    for queries, keys in zip(sides, reversed(sides), strict=True):
        found = count_boxes(term, queries, keys, sizes, call.values)
        assert found == enumerated(term, call, queries, keys), (queries, keys)
        assert found[0] <= count_boxes(term.axis_by_axis(), queries, keys, sizes, call.values)[0]


def test_heads_are_counted_one_by_one() -> None:
    keep = NESTED["circle"][1].replace("n * n", "radius[head]")
    plan, _ = plan_of(keep, "radius: i32[head]")
    radius = np.array([0, 1, 9, 30])
    sizes = Sizes(3, 4, 2, 35, 35)
    alone, _ = plan_of(NESTED["circle"][1].replace("n * n", "n"), "n: int")
    each = [(pair_count(alone, Sizes(1, 1, 1, 35, 35), {"n": int(n)}).pairs) for n in radius]
    counted = pair_count(plan, sizes, {"radius": radius})
    assert counted.exact and counted.pairs == 3 * sum(each)


def test_a_large_circle_visits_few_boxes_and_many_full_ones() -> None:
    """Boxes of a product would be an eighth more, none of them full."""
    keep = "(A - B) * (A - B) + (C - D) * (C - D) < n * n"
    names = {"A": "coordinate(q, 0, 256, 256)", "B": "coordinate(kv, 0, 256, 256)"}
    names |= {"C": "coordinate(q, 1, 256, 256)", "D": "coordinate(kv, 1, 256, 256)"}
    for name, text in names.items():
        keep = keep.replace(name, text)
    (term,) = plan_of(keep, "n: int")[0].boxes
    sizes, values = Sizes(1, 1, 1, 65536, 65536), {"n": 60}
    visited, full = count_boxes(term, (8, 16), (8, 16), sizes, values)
    product, none = count_boxes(term.axis_by_axis(), (8, 16), (8, 16), sizes, values)
    assert visited < 0.89 * product and full > 0.4 * visited and none == 0
    best = choose_boxes(term, sizes, values, 128, 128)
    assert best.visited <= visited


def test_products_of_axes_are_not_narrowed() -> None:
    plan, _ = plan_of(along("abs(Q - K) <= n", "coordinate({}, 1, 5, 7)") + " and q // 7 - kv // 7 < 2", "n: int")
    assert not any(term.is_nested for term in plan.boxes)
    assert all(r == a.keys for term in plan.boxes for r, a in zip(ranges_within(term), term.axes, strict=True))


# --- random masks ------------------------------------------------------------------------------------------------

TEMPLATES = (
    "abs(A - B) + abs(C - D) {op} {c}", "(A - B) * (A - B) + (C - D) * (C - D) {op} {c}", "{d} * (A - B) {op} C - D",
    "abs(C - D) < where(abs(A - B) >= {d}, {r}, {c})", "A * B {op} C * D", "C {op} where(A >= B, D + {r}, D - n)",
    "max(A - B, C - D) {op} {c}", "min(A - B, C - D + n) {op} {c}", "(A - B) * (C - D) {op} {c}",
    "A + C {op} B + D + {r}", "A + 2 * C // {d} {op} B + D", "(A + C) % {d} {op} (B - D) % 3", "abs(A - B) <= {d}",
    "C * C - n * D {op} A - {c}", "abs(A - B) * abs(C - D) <= {c}",
)  # fmt: skip
GRIDS = ((5, 7), (3, 4, 5))


@st.composite
def predicates(draw: st.DrawFn, grid: tuple[int, ...], depth: int = 2) -> str:
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        axes = draw(st.permutations(range(len(grid))))[:2]
        text = draw(st.sampled_from(TEMPLATES)).format(
            op=draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!="))),
            c=draw(st.integers(-2, 12)), d=draw(st.integers(1, 4)), r=draw(st.integers(0, 3)),
        )  # fmt: skip
        sizes = ", ".join(map(str, grid))
        for names, axis in zip((("A", "B"), ("C", "D")), axes, strict=True):
            for name, position in zip(names, ("q", "kv"), strict=True):
                text = text.replace(name, f"coordinate({position}, {axis}, {sizes})")
        return text
    parts = [draw(predicates(grid, depth - 1)) for _ in range(2)]
    return str(draw(st.sampled_from(("({} and {})", "({} and {})", "({} or {})", "not ({} and {})"))).format(*parts))


@settings(max_examples=40)
@given(st.data(), st.sampled_from(GRIDS))
def test_random_masks_are_never_decided_wrongly(data: st.DataObject, grid: tuple[int, ...]) -> None:
    plan, v = plan_of(data.draw(predicates(grid)), "n: int")
    tokens = int(np.prod(grid))
    call = Call(tokens, tokens, {"n": data.draw(st.integers(-3, 9))})
    truth = call.allowed(v.mask)
    assert (np.sum([call.allowed(t.mask) for t in plan.boxes], axis=0, dtype=int) == truth).all() or not plan.boxes
    for side in (1, data.draw(st.sampled_from((2, 3, 4)))):
        if plan.boxes:
            check(plan, call, side)
    counted = pair_count(plan, Sizes(1, 1, 1, tokens, tokens), call.values)
    assert counted.pairs == truth.sum() if counted.exact else counted.pairs >= truth.sum()
