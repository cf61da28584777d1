"""Boxes of token spaces, pair by pair: masks to ask about, and what a plan says about every pair of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
    head: int = 0

    @property
    def env(self) -> dict[str, Any]:
        who = {"head": self.head, "kv_head": self.head // 2, "batch": self.head % 2}
        return {**self.values, **who, "q_len": self.q_len, "kv_len": self.kv_len}

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
    origin = int(evaluate(term.query_origin if position == "q" else term.key_origin, call.env))
    y = (np.arange(call.length(position)) - origin) // side.stride
    if axis:
        y = y % int(evaluate(side.size, call.env))
    y = y + int(evaluate(a.offset, call.env))
    block, within = (y // a.block, y % a.block) if a.block else (0 * y, y)
    return Digits(block, within // a.residue, within % a.residue)


def holds(union: tuple[Interval, ...], env: dict[str, Any], x: Array) -> Array:
    inside = np.zeros((1, 1), bool)
    for interval in union:
        inside = inside | ((evaluate(interval.start, env) <= x) & (x < evaluate(interval.stop, env)))
    return inside


def product_of_axes(
    term: BoxTerm, call: Call, side: int, by: Position, *, within: bool = False
) -> tuple[Array, Array]:
    """Pairs (Lq, Lkv) that the boxes may, and must, hold; ``side``: coordinates of a box along every axis.

    ``within``: along every axis for a pair of boxes of that side along the axes before it.
    """
    other: Position = "kv" if by == "q" else "q"
    may = must = np.ones((1, 1), bool)
    runs: dict[str, Array] = {}
    for i in range(len(term.axes)):
        own = digits(term, i, by, call)
        runs |= {f"block {i}": own.block[:, None], f"residue {i}": own.residue[:, None]}
    for i, a in enumerate(term.axes):
        d, e = digits(term, i, by, call), digits(term, i, other, call)
        env = {**call.env, **runs, "block": d.block[:, None], "residue": d.residue[:, None]}
        first, last = (x[:, None] for x in _run(d, side))
        ends = {"tile_first": first, "tile_last": last}
        runs |= {f"{by} first {i}": first, f"{by} last {i}": last}
        runs |= dict(zip((f"{other} first {i}", f"{other} last {i}"), _run(e, side), strict=True))
        shift = evaluate(a.shift, env) * (1 if by == "q" else -1)
        match = (d.block[:, None] == e.block) & ((d.residue[:, None] + shift) % a.residue == e.residue)
        ranges = a.keys if by == "q" else a.queries
        if within:
            ranges = (a.keys_within if by == "q" else a.queries_within) or ranges
        may = may & match & holds(ranges.may, {**env, **ends}, e.x)
        must = must & match & holds(ranges.must, {**env, **ends}, e.x)
    position: Position
    for position, origin, end in (("q", term.query_origin, term.query_end), ("kv", term.key_origin, term.key_end)):
        places = np.arange(call.length(position))
        exists = places >= int(evaluate(origin, call.env))
        exists &= end is None or places < int(evaluate(end, call.env))
        exists = exists[:, None] if position == by else exists
        may, must = may & exists, must & exists
    shape = (call.length(by), call.length(other))
    may, must = (np.broadcast_to(x, shape) for x in (may, must))
    return (may, must) if by == "q" else (may.T, must.T)


def _run(d: Digits, side: int) -> tuple[Array, Array]:
    """First and last coordinate of the run of every position; it ends where its class does."""
    first = d.x // side * side
    same_class = (d.block[:, None] == d.block) & (d.residue[:, None] == d.residue)
    return first, np.minimum(first + side - 1, np.where(same_class, d.x, 0).max(1))


def misjudged(term: BoxTerm, call: Call, side: int, by: Position) -> int:
    """Of boxes of ``side`` coordinates, the keys that are wrongly said to be seen by some, or not by all, queries."""
    may, must, keep = (*product_of_axes(term, call, side, by, within=term.is_nested), call.allowed(term.mask))
    if by == "kv":
        may, must, keep = may.T, must.T, keep.T
    own = [digits(term, axis, by, call) for axis in range(len(term.axes))]
    boxes = np.stack([x for d in own for x in (d.block, d.residue, d.x // side)])
    wrong = 0
    for box in np.unique(boxes, axis=1).T:
        rows = (boxes == box[:, None]).all(0)
        some, every = keep[rows].any(0), keep[rows].all(0)
        wrong += int((may[rows][0] != some).sum() + (must[rows][0] != every).sum())
    return wrong


def check(plan: TilePlan, mask: Expr, call: Call, side: int) -> float:
    """Asks that no claim is wrong; returns the share of pairs that single rows decide.

    Where axes depend on each other, single pairs of boxes of one row and one key along the axes before.
    """
    truth = call.allowed(mask)
    terms = [call.allowed(term.mask) for term in plan.boxes]
    assert (np.sum(terms, axis=0, dtype=int) == truth).all(), "terms overlap, or are not the mask"
    decided = 0.0
    for term, keep in zip(plan.boxes, terms, strict=True):
        by: Position
        for by in ("q", "kv"):
            for s in (1, side):
                for within in (False, True):
                    may, must = product_of_axes(term, call, s, by, within=within)
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


class _FromEnd(str):
    """A coordinate whose query counts from where the last tokens meet."""

    def format(self, *names: object, **_: object) -> str:
        return str(self).replace("{}", "q + kv_len - q_len" if names == ("q",) else str(names[0]))


FROM_END = _FromEnd(Y)


def every(*parts: str) -> str:
    return " and ".join(parts)


CLAMPED = "max(min(Q - n // 2, 7 - n), 0)"
# By the number of tokens of the grid; 0 where any length will do.
ANY, IMAGE, VIDEO, TWO_GRIDS, LAST = 0, 35, 60, -1, -2
EXACT = {
    "dilated": (ANY, "(q - kv) % 4 == 0"),
    "dilated window": (ANY, "q >= kv and q - kv < n and (kv - q) % 4 == 0"),
    "dilated, by De Morgan": (ANY, "not ((q % 3 != kv % 3) or q < kv)"),
    "dilated, by a quotient": (ANY, "(q - kv) // 3 * 3 == q - kv and abs(q - kv) < n"),
    "dilated, by an order": (ANY, "(q - kv) % 3 < 1 and q > kv"),
    "largest residue": (ANY, "(q - kv) % 3 >= 2 and q > kv"),
    "other residue": (ANY, "(q - kv) % 4 == 1 and q - kv < n"),
    "checkerboard": (ANY, "(q // 8 + kv // 8) % 2 == 0"),
    "sum of residues": (ANY, "(q + kv + n) % 2 == 1 and q >= kv"),
    "multiple of a residue": (ANY, "(3 * q + 5 * kv) % 4 == 2"),
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
    "every third block": (ANY, "q >= kv and (q // 4 == kv // 4 or (q // 4 - kv // 4) % 3 == 0 and q // 4 > kv // 4)"),
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
    "squared distance": (IMAGE, every(along("(Q - K) * (Q - K) <= 5", Y), along("(Q - K) * (Q - K) < 7", X))),
    "either side": (IMAGE, every(along("Q == K", Y), along("(Q < 2 or K > 3)", X))),
    "image after text": (
        ANY,
        "q < 3 or kv < 3 or abs(coordinate(q - 3, 0, 5, 7) - coordinate(kv - 3, 0, 5, 7)) <= n"
        " and abs(coordinate(q - 3, 1, 5, 7) - coordinate(kv - 3, 1, 5, 7)) <= 1",
    ),
    "image after n tokens": (
        ANY,
        "q >= n and kv >= n and n > 0 and coordinate(q - n, 1, 5, 7) == coordinate(kv - n, 1, 5, 7) and q >= kv",
    ),
    "residue of a head": (ANY, "(q - kv) % 4 == head % 4 and q >= kv"),
    "residue of a head from a table": (ANY, "(q - kv + shift[head]) % 3 == 0 and abs(q - kv) < n"),
    "segments of a head": (ANY, "q % 3 == head % 3 and kv % 3 == head % 3 and q // 12 == kv // 12"),
    "other residues of a head": (ANY, "q % 4 == head % 4 and kv % 4 == (head + 1) % 4 and q >= kv"),
    "residues that are out of range": (ANY, "q % 3 == shift[head] and kv % 3 == shift[head]"),
    "keys of a head": (ANY, "kv % 4 == head % 4 and abs(q // 4 - kv // 4) <= n"),
    "blocks of a head": (ANY, "(q + 3 * head) // 8 == (kv + 3 * head) // 8 and q >= kv"),
    "blocks by a table, or diagonals": (
        ANY, "(q - shift[head]) // 6 == (kv - shift[head]) // 6 or (q - kv) % 6 == 0"
    ),
    "shards of a head": (ANY, "q >= kv and (q // 4 - kv // 4 < 2 or (q // 4 - kv // 4 - head) % 3 == 0)"),
    "segments and dilation of a head": (
        ANY, "(q + 2 * head) // 12 == (kv + 2 * head) // 12 and q % 3 == kv % 3 and q >= kv"
    ),
    "windows shifted by heads": (
        IMAGE,
        every(along("(Q + head) // 2 == (K + head) // 2", Y),
              along("(Q + where(head < 2, 0, 1)) // 3 == (K + where(head < 2, 0, 1)) // 3", X)),
    ),
    "text after an image": (
        ANY,
        "q >= 21 or kv >= 21 or abs(coordinate(q, 0, 3, 7) - coordinate(kv, 0, 3, 7)) <= n"
        " and abs(coordinate(q, 1, 3, 7) - coordinate(kv, 1, 3, 7)) <= 1",
    ),
    "image between n tokens and others": (
        ANY,
        "q < n or kv < n or n + 20 < q or kv - n >= 21 or"
        " coordinate(q - n, 0, 3, 7) // 2 == coordinate(kv - n, 0, 3, 7) // 2 and"
        " abs(coordinate(q - n, 1, 3, 7) - coordinate(kv - n, 1, 3, 7)) <= 1",
    ),
    "image alone between others": (
        ANY,
        "q >= 2 and kv >= 2 and q < 23 and kv < 23 and coordinate(q - 2, 1, 3, 7) == coordinate(kv - 2, 1, 3, 7)",
    ),
    "last rows": (
        LAST,
        every(along("abs(Q - K) <= n", FROM_END), "coordinate(q + kv_len - q_len, 1, 5, 7) >= " + X.format("kv")),
    ),
    "last rows, dilated": (
        LAST, along("(Q - K) % 2 == 0", FROM_END) + " and " + X.format("q + (kv_len - q_len)") + " == " + X.format("kv")
    ),
    "last rows, windows": (LAST, along("Q // 2 == K // 2", FROM_END) + " and " + X.format("kv") + " < 4"),
    "cube": (VIDEO, every(along("abs(Q - K) <= 1", T), along("Q >= K", H), along("Q // 2 == K // 2", W))),
    "frames": (VIDEO, every(along("abs(Q - K) <= n", T), along("Q == K", H))),
    "two grids": (
        TWO_GRIDS,
        "coordinate(q, 0, 5, 7) == coordinate(kv, 0, 5, 3) "
        "and abs(coordinate(q, 1, 5, 7) // 2 - coordinate(kv, 1, 5, 3)) < 2",
    ),
}


DISTANCE, FRAMES = (along("abs(Q - K)", Y), along("abs(Q - K)", T))
SQUARES = " + ".join(along("(Q - K) * (Q - K)", x) for x in (Y, X))
# Masks that are no product of axes, but whose inner axes narrow by where boxes lie along the outer ones.
NESTED = {
    "circle": (IMAGE, f"{SQUARES} < n * n"),
    "circle of one size": (IMAGE, f"{SQUARES} <= 9"),
    "circle, the other way round": (IMAGE, f"not (n * n <= {SQUARES})"),
    "ellipse": (IMAGE, f"4 * ({along('(Q - K) * (Q - K)', Y)}) + {along('(Q - K) * (Q - K)', X)} <= n * n"),
    "ellipse that lies": (IMAGE, f"{along('(Q - K) * (Q - K)', Y)} + 3 * ({along('(Q - K) * (Q - K)', X)}) < n * n"),
    "ring": (IMAGE, every(f"{SQUARES} < n * n", f"{SQUARES} >= 5")),
    "circle in a window": (IMAGE, every(f"{SQUARES} < n * n", along("Q - K < 2", X), along("abs(Q - K) <= 3", Y))),
    "diamond": (IMAGE, f"{DISTANCE} + {along('abs(Q - K)', X)} <= n"),
    "raster order": (IMAGE, every("q >= kv", along("abs(Q - K) <= n", Y), along("abs(Q - K) <= 2", X))),
    "radial": (IMAGE, along(f"abs(Q - K) < where({DISTANCE} >= 3, 1, where({DISTANCE} >= 1, n, 7))", X)),
    "radial by factors": (
        IMAGE, along(f"abs(Q - K) * where({DISTANCE} == 0, 1, 2) <= n + where({DISTANCE} < 2, 2, 0)", X)
    ),
    "cases": (
        IMAGE,
        " or ".join(
            every(f"{DISTANCE} {apart}", along(f"abs(Q - K) <= {reach}", X))
            for apart, reach in (("== 0", "n"), ("== 1", "2"), ("== 2", "1"), (">= 3", "0"))
        ),
    ),
    "leaning": (IMAGE, f"abs(2 * ({along('Q - K', Y)}) - ({along('Q - K', X)})) <= n"),
    "dilated circle": (IMAGE, every(f"{SQUARES} <= 20", along("Q % 2 == K % 2", X), along("Q // 3 == K // 3", Y))),
    "circle after text": (
        ANY,
        "q >= 2 and kv >= 2 and "
        + SQUARES.replace("coordinate(q,", "coordinate(q - 2,").replace("coordinate(kv,", "coordinate(kv - 2,")
        + " < n * n",
    ),
    "sphere": (VIDEO, " + ".join(along("(Q - K) * (Q - K)", x) for x in (T, H, W)) + " < n * n"),
    "radial video": (
        VIDEO,
        every(*(along(f"abs(Q - K) < where({FRAMES} >= 2, 1, where({FRAMES} >= 1, 2, n))", x) for x in (H, W))),
    ),
    "first axis free": (VIDEO, " + ".join(along("abs(Q - K)", x) for x in (H, W)) + " <= 3"),
}
# What masks of several heads read, besides n.
DECLARED = "n: int, shift: i32[head]"
SHIFTS = np.array([0, -5, 2, 7], np.int32)


def calls(tokens: int, n: int, keep: str = "") -> list[Call]:
    """Calls to ask about; where ``keep`` differs from head to head, for several heads."""
    lengths = [(tokens, tokens)] if tokens else [(37, 37), (29, 41), (48, 24), (1, 1)]
    if tokens == TWO_GRIDS:
        lengths = [(35, 15)]
    if tokens == LAST:  # queries are the last tokens of the grid
        lengths = [(14, 35), (35, 35), (1, 35), (10, 35)]
    values = {"n": n, "shift": SHIFTS}
    return [Call(q, kv, values, head) for q, kv in lengths for head in range(4 if "head" in keep else 1)]
