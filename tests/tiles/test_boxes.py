"""Boxes of token spaces against brute force: never wrong, and exact where every condition belongs to one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.ir.interpret import evaluate
from regard.ir.nodes import Expr
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.plan import BoxTerm, Interval, TilePlan
from regard.ir.variant import Variant

Array = npt.NDArray[Any]
Position = Literal["q", "kv"]


@dataclass(frozen=True)
class Call:
    """Lengths and values that a plan knows nothing about."""

    q_len: int
    kv_len: int
    values: dict[str, Any]

    @property
    def env(self) -> dict[str, Any]:
        return {**self.values, "q_len": self.q_len, "kv_len": self.kv_len, "head": 0, "kv_head": 0, "batch": 0}

    def length(self, position: Position) -> int:
        return self.q_len if position == "q" else self.kv_len

    def allowed(self, mask: Expr) -> Array:
        env = {**self.env, "q": np.arange(self.q_len)[:, None], "kv": np.arange(self.kv_len)}
        return np.broadcast_to(evaluate(mask, env), (self.q_len, self.kv_len))


@dataclass(frozen=True)
class Digits:
    """Block, coordinate inside of the class, and residue of every position along one axis."""

    block: Array
    x: Array
    residue: Array


def digits(term: BoxTerm, axis: int, position: Position, call: Call) -> Digits:
    a = term.axes[axis]
    side = a.query if position == "q" else a.key
    y = np.arange(call.length(position)) // side.stride
    if axis:
        y = y % int(evaluate(side.size, call.env))
    y = y + a.offset
    block, within = (y // a.block, y % a.block) if a.block else (0 * y, y)
    return Digits(block, within // a.residue, within % a.residue)


def holds(union: tuple[Interval, ...], env: dict[str, Any], x: Array) -> Array:
    inside = np.zeros((1, 1), bool)
    for interval in union:
        inside = inside | ((evaluate(interval.start, env) <= x) & (x < evaluate(interval.stop, env)))
    return inside


def product_of_axes(term: BoxTerm, call: Call, side: int, by: Position) -> tuple[Array, Array]:
    """Pairs (Lq, Lkv) that the boxes may, and must, hold; ``side``: coordinates of a box along every axis."""
    other: Position = "kv" if by == "q" else "q"
    may = must = np.ones((1, 1), bool)
    for i, a in enumerate(term.axes):
        d, e = digits(term, i, by, call), digits(term, i, other, call)
        env = {**call.env, "block": d.block[:, None], "residue": d.residue[:, None]}
        first = d.x // side * side
        # A box ends where its class does.
        same_class = (d.block[:, None] == d.block) & (d.residue[:, None] == d.residue)
        last = np.minimum(first + side - 1, np.where(same_class, d.x, 0).max(1))
        ends = {"tile_first": first[:, None], "tile_last": last[:, None]}
        shift = evaluate(a.shift, env) * (1 if by == "q" else -1)
        match = (d.block[:, None] == e.block) & ((d.residue[:, None] + shift) % a.residue == e.residue)
        ranges = a.keys if by == "q" else a.queries
        may = may & match & holds(ranges.may, {**env, **ends}, e.x)
        must = must & match & holds(ranges.must, {**env, **ends}, e.x)
    shape = (call.length(by), call.length(other))
    may, must = (np.broadcast_to(x, shape) for x in (may, must))
    return (may, must) if by == "q" else (may.T, must.T)


def check(plan: TilePlan, mask: Expr, call: Call, side: int) -> float:
    """Asks that no claim is wrong; returns the share of pairs that single rows decide."""
    truth = call.allowed(mask)
    terms = [call.allowed(term.mask) for term in plan.boxes]
    assert (np.sum(terms, axis=0, dtype=int) == truth).all(), "terms overlap, or are not the mask"
    decided = 0.0
    for term, keep in zip(plan.boxes, terms, strict=True):
        by: Position
        for by in ("q", "kv"):
            for s in (1, side):
                may, must = product_of_axes(term, call, s, by)
                assert not (keep & ~may).any(), f"an allowed pair outside of the boxes, by {by}, side {s}"
                assert not (must & ~keep).any(), f"a forbidden pair in a full box, by {by}, side {s}"
                if s == 1:
                    decided += float((may == must).mean()) / 2
    return decided / len(plan.boxes)


def plan_of(keep: str, parameters: str = "") -> tuple[TilePlan, Variant]:
    v, _ = parse_variant(f"attention mask({parameters}) {{ keep {keep} }}")
    return make_plan(run_pipeline(v)), v


Y, X = ("coordinate({}, 0, 5, 7)", "coordinate({}, 1, 5, 7)")
T, H, W = (f"coordinate({{}}, {i}, 3, 4, 5)" for i in range(3))


def along(text: str, coordinate: str) -> str:
    """``text`` with Q and K for the coordinates of query and key."""
    return text.replace("Q", coordinate.format("q")).replace("K", coordinate.format("kv"))


def every(*parts: str) -> str:
    return " and ".join(parts)


CLAMPED = "max(min(Q - n // 2, 7 - n), 0)"
# By the number of tokens of the grid; 0 where any length will do.
ANY, IMAGE, VIDEO, TWO_GRIDS = 0, 35, 60, -1
EXACT = {
    "dilated": (ANY, "(q - kv) % 4 == 0"),
    "dilated window": (ANY, "q >= kv and q - kv < n and (kv - q) % 4 == 0"),
    "dilated, by De Morgan": (ANY, "not ((q % 3 != kv % 3) or q < kv)"),
    "dilated, by a quotient": (ANY, "(q - kv) // 3 * 3 == q - kv and abs(q - kv) < n"),
    "dilated, by an order": (ANY, "(q - kv) % 3 < 1 and q > kv"),
    "largest residue": (ANY, "(q - kv) % 3 >= 2 and q > kv"),
    "other residue": (ANY, "(q - kv) % 4 == 1 and q - kv < n"),
    "residue of a scalar": (ANY, "(q - kv) % 4 == n % 4 and abs(q - kv) < 17"),
    "two dilations": (ANY, "(q - kv) % 4 == 0 and (q - kv) % 6 == 0"),
    "blocks": (ANY, "q // 8 == kv // 8"),
    "causal blocks": (ANY, "q // 8 == kv // 8 and q >= kv"),
    "shifted blocks": (ANY, "(q + 3) // 8 == (kv + 3) // 8 and q >= kv"),
    "nested blocks": (ANY, "q // 8 == kv // 8 and q // 16 == kv // 16"),
    "dilated blocks": (ANY, "q // 12 == kv // 12 and q % 3 == kv % 3 and q >= kv"),
    "dilated across blocks": (ANY, "q // 10 == kv // 10 and q % 3 == kv % 3 and q >= kv"),
    "strided": (ANY, "q >= kv and (q - kv < 8 or (q - kv) % 8 == 0)"),
    "blocks or diagonals": (ANY, "q // 8 == kv // 8 or (q - kv) % 8 == 0"),
    "grid told from divisions": (ANY, "abs(q // 8 - kv // 8) <= 1 and abs(q % 8 - kv % 8) <= n"),
    "cube told from divisions": (
        ANY,
        "abs(q // 12 - kv // 12) <= 1 and abs(q // 3 % 4 - kv // 3 % 4) <= 1 and q % 3 >= kv % 3",
    ),
    "rows": (IMAGE, along("Q == K", Y)),
    "causal rows": (IMAGE, every(along("Q == K", Y), "q >= kv")),
    "causal columns": (IMAGE, every(along("Q == K", X), "q >= kv")),
    "window": (IMAGE, every(along("abs(Q - K) <= 1", Y), along("abs(Q - K) <= n", X))),
    "windows": (IMAGE, every(along("Q // 2 == K // 2", Y), along("Q // 3 == K // 3", X))),
    "shifted windows": (
        IMAGE,
        every(along("(Q + 1) // 2 == (K + 1) // 2", Y), along("(Q + 2) // 3 == (K + 2) // 3", X)),
    ),
    "dilated axes": (IMAGE, every(along("(Q - K) % 2 == 0", Y), along("Q % 3 == K % 3 and abs(Q - K) < n", X))),
    "shifted inwards": (IMAGE, along("K >= max(min(Q - 1, 4), 0) and K < max(min(Q - 1, 4), 0) + 3", X)),
    "shifted inwards, n wide": (IMAGE, along(f"K >= {CLAMPED} and K < {CLAMPED} + n", X)),
    "halo": (IMAGE, every(along("K >= Q // 3 * 3 - 1 and K < Q // 3 * 3 + 4", X), along("Q // 2 == K // 2", Y))),
    "either side": (IMAGE, every(along("Q == K", Y), along("(Q < 2 or K > 3)", X))),
    "cube": (VIDEO, every(along("abs(Q - K) <= 1", T), along("Q >= K", H), along("Q // 2 == K // 2", W))),
    "frames": (VIDEO, every(along("abs(Q - K) <= n", T), along("Q == K", H))),
    "two grids": (
        TWO_GRIDS,
        "coordinate(q, 0, 5, 7) == coordinate(kv, 0, 5, 3) "
        "and abs(coordinate(q, 1, 5, 7) // 2 - coordinate(kv, 1, 5, 3)) < 2",
    ),
}
VAGUE = {
    "fixed": (ANY, "q >= kv and (q // 8 == kv // 8 or kv % 8 == 7)"),
    "raster order": (IMAGE, every("q >= kv", along("abs(Q - K) <= 1", Y), along("abs(Q - K) <= n", X))),
    "circle": (
        IMAGE,
        every(
            along("abs(Q - K) <= 2", Y),
            along("abs(Q - K) <= 2", X),
            along("(Q - K) * (Q - K)", Y) + along(" + (Q - K) * (Q - K) <= n", X),
        ),
    ),
    "dilations that no axis has": (ANY, "(q - kv) % 4 == 0 and (q + kv) % 3 == 0"),
    "rows of coordinates of sums": (IMAGE, every(along("Q == K", Y), "(q + kv) % 5 == 1")),
}


def calls(tokens: int, n: int) -> list[Call]:
    if tokens == TWO_GRIDS:
        return [Call(35, 15, {"n": n})]
    lengths = [(tokens, tokens)] if tokens else [(37, 37), (29, 41), (48, 24), (1, 1)]
    return [Call(q, kv, {"n": n}) for q, kv in lengths]


@pytest.mark.parametrize("n", [4, 1, -3, 100])
@pytest.mark.parametrize("name", EXACT)
def test_products_of_axes_are_the_mask(name: str, n: int) -> None:
    tokens, keep = EXACT[name]
    plan, v = plan_of(keep, "n: int")
    assert plan.boxes and not any(term.remaining for term in plan.boxes)
    for call in calls(tokens, n):
        for side in (2, 4):
            assert check(plan, v.mask, call, side) == 1


@pytest.mark.parametrize("n", [4, 2])
@pytest.mark.parametrize("name", VAGUE)
def test_what_belongs_to_no_axis_is_never_decided_wrongly(name: str, n: int) -> None:
    tokens, keep = VAGUE[name]
    plan, v = plan_of(keep, "n: int")
    assert plan.boxes and any(term.remaining for term in plan.boxes)
    for call in calls(tokens, n):
        assert check(plan, v.mask, call, 3) > 0.3 or call.q_len == 1


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


@given(st.data(), st.sampled_from(tuple(GRIDS)))
def test_random_masks_are_never_decided_wrongly(data: st.DataObject, grid: tuple[int, ...]) -> None:
    keep = data.draw(predicates(grid))
    plan, v = plan_of(keep, "n: int")
    if not plan.boxes:
        return
    lengths = (int(np.prod(grid)), int(np.prod(GRIDS[grid]))) if grid else (data.draw(st.sampled_from((31, 24))), 29)
    check(plan, v.mask, Call(*lengths, {"n": data.draw(st.integers(-3, 9))}), data.draw(st.sampled_from((2, 3, 4))))
