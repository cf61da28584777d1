"""Boxes of token spaces against brute force: never wrong, and exact where every condition belongs to one axis."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from boxes import (
    ANY,
    DECLARED,
    EXACT,
    IMAGE,
    SHIFTS,
    Call,
    X,
    Y,
    along,
    calls,
    check,
    every,
    plan_of,
)  # fmt: skip
from regard.ir.interpret import evaluate
from regard.ir.nodes import Expr
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.traverse import rewrite
from regard.ir.variant import Variant
from spellings import SPELLINGS

VAGUE = {
    "fixed": (ANY, "q >= kv and (q // 8 == kv // 8 or kv % 8 == 7)"),
    "raster order": (IMAGE, every("q >= kv", along("abs(Q - K) <= 1", Y), along("abs(Q - K) <= n", X))),
    "circle": (IMAGE, along("(Q - K) * (Q - K)", Y) + along(" + (Q - K) * (Q - K) < n * n", X)),
    "diamond": (IMAGE, along("abs(Q - K)", Y) + along(" + abs(Q - K) <= n", X)),
    "dilations that no axis has": (ANY, "(q - kv) % 4 == 0 and (q + kv) % 3 == 0"),
    "rows of coordinates of sums": (IMAGE, every(along("Q == K", Y), "(q + kv) % 5 == 1")),
}


@pytest.mark.parametrize("n", [4, 1, -3, 100])
@pytest.mark.parametrize("name", EXACT)
def test_products_of_axes_are_the_mask(name: str, n: int) -> None:
    tokens, keep = EXACT[name]
    plan, v = plan_of(keep, DECLARED)
    assert plan.boxes and not any(term.remaining for term in plan.boxes)
    for call in calls(tokens, n, keep):
        for side in (2, 4):
            assert check(plan, v.mask, call, side) == 1


@pytest.mark.parametrize("change", SPELLINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", EXACT)
def test_another_spelling_gives_the_same_boxes(name: str, change: Callable[[Expr], Expr]) -> None:
    tokens, keep = EXACT[name]
    plan, v = plan_of(keep, DECLARED)
    mask = rewrite(v.mask, change)
    changed = make_plan(run_pipeline(Variant(mask)))
    assert len(changed.boxes) == len(plan.boxes)
    for term, clone in zip(plan.boxes, changed.boxes, strict=True):
        assert not clone.remaining
        for a, b in zip(term.axes, clone.axes, strict=True):
            assert (a.block, a.residue) == (b.block, b.residue)
            assert [s.stride for s in (a.query, a.key)] == [s.stride for s in (b.query, b.key)]
    for call in calls(tokens, 4, keep)[:2]:
        clone_call = Call(call.q_len, call.kv_len, {**call.values, "my_n": 4, "my_shift": SHIFTS}, call.head)
        for term, clone in zip(plan.boxes, changed.boxes, strict=True):
            for a, b in zip(term.axes, clone.axes, strict=True):
                assert evaluate(a.offset, call.env) == evaluate(b.offset, clone_call.env)
                assert evaluate(a.shift, call.env) == evaluate(b.shift, clone_call.env)
        assert check(changed, mask, clone_call, 2) == 1


@pytest.mark.parametrize("n", [4, 2])
@pytest.mark.parametrize("name", VAGUE)
def test_what_belongs_to_no_axis_is_never_decided_wrongly(name: str, n: int) -> None:
    tokens, keep = VAGUE[name]
    plan, v = plan_of(keep, "n: int")
    assert plan.boxes and any(term.remaining for term in plan.boxes)
    for call in calls(tokens, n):
        assert check(plan, v.mask, call, 3) > 0.1 or call.q_len == 1


@pytest.mark.parametrize(
    "keep",
    [
        "q >= kv and q - kv < n",  # runs of positions
        "coordinate(q, 0, 5, 7) >= coordinate(kv, 0, 5, 7)",  # whole rows are runs
        "coordinate(q, 0, 5, 7) == coordinate(kv, 1, 7, 1, 5)",  # different numbers of axes
    ],
)
def test_no_boxes_where_runs_say_as_much(keep: str) -> None:
    assert plan_of(keep, "n: int")[0].boxes == ()


# --- random masks ------------------------------------------------------------------------------------------------

TEMPLATES = (
    "Q % {d} == head % {d} and K % {d} == head % {d}", "(Q - K + {r} * head) % {d} == 0",
    "K % {d} == (head + {r}) % {d}", "(Q + shift[head]) // {d} == (K + shift[head]) // {d}",
    "(Q // {d} - K // {d} - head) % {e} == 0",
    "Q - K {op} {c}", "abs(Q - K) <= {c}", "(Q - K) % {d} == {r}", "(K - Q) % {d} {op} {r}", "Q % {d} == K % {d}",
    "(Q + {r}) // {d} == (K + {r}) // {d}", "K // {d} {op} Q // {d} + {r}", "(Q // {d} - K // {d}) % {e} == {r}",
    "Q % {d} // {e} == K % {d} // {e}", "K >= max(min(Q - {r}, {d}), 0)", "K <= min(max(Q + {r}, n), {d})",
    "2 * Q - 3 * K {op} {c}", "Q * K {op} {d}", "K % {d} {op} {r}", "Q {op} {d}", "K {op} n", "q {op} kv",
    "q - kv < {d}", "(q - kv) % {d} == 0", "n > {c}", "Q // {d} * {d} + {r} {op} K",
)  # fmt: skip
GRIDS = {(5, 7): (5, 7), (3, 4, 5): (3, 4, 5), (40,): (40,), (6, 6): (9, 6), (): ()}


@st.composite
def predicates(draw: st.DrawFn, grid: tuple[int, ...], depth: int = 3) -> str:
    """A condition on a random axis of ``grid``, or several of them, in the text language."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        axis = draw(st.integers(0, max(len(grid) - 1, 0)))
        numbers = {"c": st.integers(-3, 6), "d": st.integers(1, 6), "e": st.integers(1, 4), "r": st.integers(0, 3)}
        values: dict[str, Any] = {name: draw(numbers[name]) for name in numbers}
        op = draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!=")))
        text = draw(st.sampled_from(TEMPLATES)).format(op=op, **values)
        names = (f"coordinate(q, {axis}, {sizes(grid)})", f"coordinate(kv, {axis}, {sizes(GRIDS[grid])})")
        query, key = names if grid else ("q", "kv")
        return text.replace("Q", query).replace("K", key)
    parts = [draw(predicates(grid, depth - 1)) for _ in range(2)]
    form = draw(st.sampled_from(("({} and {})",) * 4 + ("({} or {})", "not ({} and {})")))
    return str(form.format(*parts))


def sizes(grid: tuple[int, ...]) -> str:
    return ", ".join(map(str, grid))


def placed(keep: str, lengths: tuple[int, int], place: str) -> tuple[str, tuple[int, int]]:
    """``keep`` on a grid that stands elsewhere: after two tokens, between others that see it or not, or at its end."""
    q_len, kv_len = lengths
    later = keep.replace("coordinate(q,", "coordinate(q - 2,").replace("coordinate(kv,", "coordinate(kv - 2,")
    match place:
        case "after":
            return f"q >= 2 and kv >= 2 and ({later})", (q_len + 2, kv_len + 2)
        case "between":
            ends = f"q < {q_len + 2} and kv < {kv_len + 2}"
            return f"q >= 2 and kv >= 2 and {ends} and ({later})", (q_len + 5, kv_len + 3)
        case "beside":
            return f"q >= {q_len} or kv >= {kv_len} or ({keep})", (q_len + 4, kv_len + 9)
        case "last" if q_len == kv_len and "coordinate(kv," in keep and "coordinate(q," in keep:
            return keep.replace("coordinate(q,", "coordinate(q + (kv_len - q_len),"), (q_len * 2 // 3, kv_len)
        case _:
            return keep, lengths


def decided(data: st.DataObject, grid: tuple[int, ...], places: Sequence[str]) -> float | None:
    """Checks a random mask on a random call; the share of pairs that it decides, None where it has no boxes."""
    keep = data.draw(predicates(grid))
    lengths = (int(np.prod(grid)), int(np.prod(GRIDS[grid]))) if grid else (data.draw(st.sampled_from((31, 24))), 29)
    keep, lengths = placed(keep, lengths, data.draw(st.sampled_from(places)))
    plan, v = plan_of(keep, DECLARED)
    values = {"n": data.draw(st.integers(-3, 9)), "shift": SHIFTS}
    heads = [Call(*lengths, values, head) for head in range(4)]
    counted = pair_count(plan, Sizes(1, 4, 2, *lengths), heads[0].values)
    pairs = sum(int(call.allowed(v.mask).sum()) for call in heads)
    assert counted.pairs == pairs if counted.exact else counted.pairs >= pairs
    call = data.draw(st.sampled_from(heads))
    return check(plan, v.mask, call, data.draw(st.sampled_from((2, 3, 4)))) if plan.boxes else None


@given(st.data(), st.sampled_from(tuple(GRIDS)))
def test_random_masks_are_never_decided_wrongly(data: st.DataObject, grid: tuple[int, ...]) -> None:
    decided(data, grid, ("alone", "after", "between", "beside", "last"))


def test_random_masks_are_sharply_decided() -> None:
    """The share of random masks that have boxes, and of pairs that these decide, stay where they were."""
    shares: list[float | None] = []

    @settings(max_examples=150, derandomize=True, database=None, phases=[Phase.generate])
    @given(st.data(), st.sampled_from(tuple(GRIDS)))
    def collect(data: st.DataObject, grid: tuple[int, ...]) -> None:
        shares.append(decided(data, grid, ("alone", "after")))

    collect()
    of_boxes = [share for share in shares if share is not None]
    found = {"masks with boxes": len(of_boxes) / len(shares), "pairs of boxes": float(np.mean(of_boxes))}
    print(found)
    least = json.loads(Path(__file__).with_name("sharpness.json").read_text())
    assert all(share >= least[name] for name, share in found.items()), "the analysis lost precision"


@pytest.mark.parametrize(
    ("keep", "more"),
    [
        ("(q - kv) % 4 == 0 and ids[q] == ids[kv]", True),  # the class
        ("q // 8 == kv // 8 and ids[q] == ids[kv]", False),  # blocks are runs, and data bounds no axis
        ("coordinate(q, 0, 5, 7) == coordinate(kv, 0, 5, 7)", False),  # rows are runs
        ("coordinate(q, 1, 5, 7) == coordinate(kv, 1, 5, 7)", True),
        (along("(Q - K) * (Q - K)", Y) + along(" + (Q - K) * (Q - K) < n * n", X), True),  # bounds of a circle
        (along("ids[Q] == ids[K]", X) + " and " + along("abs(Q - K) <= n", Y), False),  # data decides
    ],
)
def test_boxes_decide_more_where_runs_are_vague(keep: str, more: bool) -> None:
    assert plan_of(keep, "n: int, ids: i32[_]")[0].boxes_decide_more == more
