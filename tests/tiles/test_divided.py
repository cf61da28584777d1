"""Grids that nobody declares, but divisions make: where lengths fit, they are analysed as declared ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxes import (
    DECLARED,
    EXACT,
    IMAGE,
    NESTED,
    TWO_GRIDS,
    VIDEO,
    Call,
    Position,
    calls,
    check,
    plan_of,
    product_of_axes,
)
from regard.ir import build
from regard.ir.lengths import fit_of_lengths
from regard.ir.nodes import Coordinate, Expr
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.passes.expand_coordinates import expanded
from regard.ir.tiles import make_plan
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.tiles.plan import Fit, TilePlan
from regard.ir.traverse import rewrite
from regard.ir.variant import Variant


def fit(keep: str, q_len: int, kv_len: int) -> Fit:
    return fit_of_lengths(parse_variant(f"attention mask() {{ keep {keep} }}")[0], q_len, kv_len)


@pytest.mark.parametrize(
    ("keep", "lengths", "expected"),
    [
        ("q // 8 <= kv // 8 and q % 8 == kv % 8", (24, 24), "grid"),
        ("q // 8 <= kv // 8 and q % 8 == kv % 8", (24, 8), "grid"),  # each position has a grid of its own
        ("q // 8 <= kv // 8 and q % 8 == kv % 8", (24, 25), "any"),
        ("q // 8 <= kv // 8 and q % 8 == kv % 8", (0, 8), "any"),
        ("q // 8 <= kv // 8 and q % 8 == kv % 4", (24, 22), "any"),
        ("q // 8 <= kv // 8 and q % 8 == kv % 4", (24, 16), "grid"),
        ("q // 8 % 4 <= kv // 8 % 4 and q % 8 == kv % 8", (32, 32), "grid"),
        ("q // 8 % 4 <= kv // 8 % 4 and q % 8 == kv % 8", (32, 64), "repeats"),
        ("q // 8 % 4 <= kv // 8 % 4 and q % 8 == kv % 8", (24, 24), "any"),  # cut short
        ("q // 8 % 4 <= kv // 8 and q % 8 == kv % 8", (32, 48), "grid"),
        ("q % 32 // 8 <= kv % 32 // 8 and q % 8 == kv % 8", (32, 32), "grid"),
        ("abs(q % 8 - kv % 8) <= 2", (24, 24), "repeats"),
        ("abs(q % 8 - kv % 8) <= 2", (8, 8), "grid"),
        ("abs(q // 8 - kv // 8) <= 2", (24, 24), "any"),  # runs of positions say as much
        ("abs(q % 8 - kv % 8) <= 2 and q // 12 == kv // 12", (24, 24), "grid"),  # 12 is a block of no axis
        ("abs(q % 8 - kv % 8) <= 2 and q % 12 == kv % 12", (24, 24), "any"),  # no grid is cut at both
        ("q >= kv", (24, 24), "any"),
    ],
)
def test_which_lengths_fit(keep: str, lengths: tuple[int, int], expected: Fit) -> None:
    assert fit(keep, *lengths) == expected


def divided(mask: Expr, end: Literal["open", "closed"]) -> Expr:
    """``mask`` with divisions in place of coordinates; "closed": the first one is a remainder too."""

    def rule(e: Expr) -> Expr:
        if isinstance(e, Coordinate) and e.axis == 0 and end == "closed":
            rows = build.binary("floordiv", e.x, build.const(int(np.prod(e.sizes[1:]))))
            return build.binary("mod", rows, build.const(e.sizes[0]))
        return expanded(e)

    return rewrite(mask, rule)


def plan_for(mask: Expr, v: Variant, call: Call) -> TilePlan:
    """The plan of a call."""
    changed = Variant(mask, parameters=v.parameters)
    return make_plan(run_pipeline(changed), fit_of_lengths(changed, call.q_len, call.kv_len))


ON_GRIDS = {name: x for name, x in (EXACT | NESTED).items() if x[0] in (IMAGE, VIDEO, TWO_GRIDS)}


@pytest.mark.parametrize("end", ["open", "closed"])
@pytest.mark.parametrize("name", ON_GRIDS)
def test_divisions_are_as_good_as_a_declared_grid(name: str, end: Literal["open", "closed"]) -> None:
    tokens, keep = ON_GRIDS[name]
    declared, v = plan_of(keep, DECLARED)
    by: Position
    for call in calls(tokens, 4, keep):
        plan = plan_for(divided(v.mask, end), v, call)
        if all(len(term.axes) == 1 for term in plan.boxes):  # blocks and residues of the line of positions
            assert not any(term.remaining for term in plan.boxes)
            continue
        assert len(plan.boxes) == len(declared.boxes)
        for ours, theirs in zip(plan.boxes, declared.boxes, strict=True):
            assert not any(side.is_cut for axis in ours.axes for side in (axis.query, axis.key))
            assert len(ours.remaining) == len(theirs.remaining) and ours.is_nested == theirs.is_nested
            for side, within in ((1, False), (2, False), (2, True), (3, True)):
                for by in ("q", "kv"):
                    for x, y in zip(
                        product_of_axes(ours, call, side, by, within=within),
                        product_of_axes(theirs, call, side, by, within=within),
                        strict=True,
                    ):
                        assert (x == y).all()


# --- random masks ------------------------------------------------------------------------------------------------

# Rows, columns and coordinates in a cube, open and closed; blocks, remainders of sums, other grids.
READS = (
    "X // 6", "X % 6", "X // 6 % 4", "X % 24 // 6", "X // 3 % 2", "X % 3", "X // 12", "X % 6 // 2", "(X + 2) % 6",
    "X % 4", "X % 24", "X",
)  # fmt: skip
TEMPLATES = (
    "A == B", "abs(A - B) <= {c}", "A - B {op} {c}", "B >= max(min(A - 1, {c}), 0)", "(A - B) % {d} == 0", "A {op} {c}",
    "abs(A - B) + abs(C - D) <= {c}", "abs(C - D) <= where(abs(A - B) >= {d}, 1, {c})", "B % {d} {op} {c}",
    "A // {d} == B // {d}",
)  # fmt: skip


@st.composite
def predicates(draw: st.DrawFn, depth: int = 2) -> str:
    if depth == 0 or draw(st.booleans()):
        a, c = (draw(st.sampled_from(READS)) for _ in range(2))
        b, d = (draw(st.sampled_from((x, x, x, *READS))) for x in (a, c))
        text = draw(st.sampled_from(TEMPLATES)).format(
            c=draw(st.integers(-1, 6)),
            d=draw(st.integers(1, 4)),
            op=draw(st.sampled_from(("<", "<=", ">=", "==", "!="))),
        )
        for letter, read, name in (("A", a, "q"), ("B", b, "kv"), ("C", c, "q"), ("D", d, "kv")):
            text = text.replace(letter, f"({read.replace('X', name)})")
        return text
    parts = [draw(predicates(depth - 1)) for _ in range(2)]
    form = draw(st.sampled_from(("({} and {})",) * 4 + ("({} or {})", "not ({} and {})")))
    return str(form.format(*parts))


@given(predicates(), st.sampled_from((24, 48, 12, 25, 6, 23)), st.sampled_from((24, 24, 48, 6, 29)), st.integers(2, 4))
def test_random_divisions_are_never_decided_wrongly(keep: str, q_len: int, kv_len: int, side: int) -> None:
    v, _ = parse_variant(f"attention mask() {{ keep {keep} }}")
    call = Call(q_len, kv_len, {})
    plan = plan_for(v.mask, v, call)
    counted = pair_count(plan, Sizes(1, 1, 1, q_len, kv_len), {})
    pairs = int(call.allowed(v.mask).sum())
    assert counted.pairs == pairs if counted.exact else counted.pairs >= pairs
    if plan.boxes:
        check(plan, v.mask, call, side)
