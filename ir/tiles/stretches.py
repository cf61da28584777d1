"""Stretches of rows along which the ends of intervals move evenly, so that a million rows are summed by a few of them.

An integer expression of the row is a piecewise linear function as long as it is made of sums, minima, maxima, choices,
and quotients and remainders by constants. Where all ends of a union are linear and keep their order, the number of keys
of a row is linear too: its sum over a stretch is known from the first and the last row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..interpret import evaluate
from ..nodes import COMPARISONS, TILE_NAMES, Binary, Cast, Expr, Index, ReductionOp, Select, Unary
from ..symbolic import TILE_FIRST, TILE_LAST
from ..traverse import index_names, substitute
from .numeric import Array, Values, disjoint
from .plan import Interval

# Operators whose result is made of linear pieces, as their operands are.
_LINEAR = COMPARISONS | {"add", "sub", "mul", "min", "max", "floordiv", "mod", "and", "or"}
# A tile of one row, in which what depends on its two ends is the same once.
_ONE_ROW: dict[Expr, Expr] = {TILE_LAST: TILE_FIRST}


@dataclass(frozen=True, slots=True)
class Pieces:
    """A function of the rows 0 … ``rows``: from ``starts[i]`` on ``values[i]``, growing by ``slopes[i]`` a row."""

    rows: int
    starts: Array
    values: Array
    slopes: Array

    @property
    def lengths(self) -> Array:
        return np.append(self.starts[1:], self.rows) - self.starts

    def cut(self, starts: Array) -> Pieces:
        """The same function in pieces that begin at ``starts``, which have those of this one among them."""
        if starts is self.starts:
            return self
        if len(self.starts) == 1:
            return Pieces(self.rows, starts, self.values + self.slopes * starts, np.repeat(self.slopes, len(starts)))
        ends = np.searchsorted(starts, self.starts[1:])
        ends = np.append(ends, len(starts))
        ends[1:] -= ends[:-1].copy()
        at = np.repeat(np.arange(len(self.starts)), ends)
        values = self.values[at] + self.slopes[at] * (starts - self.starts[at])
        return Pieces(self.rows, starts, values, self.slopes[at])


def stretches(union: Sequence[Interval], low: int, high: int, first: int, rows: int, env: Values) -> Array | None:
    """The first rows of stretches of the ``rows`` rows from ``first`` on, for positions in ``[low, high)``.

    ``env`` has a number for every name but the row's, which is both ends of its tile. None where the ends are not
    piecewise linear, or in too many pieces for this to help.
    """
    found = _ends_of_rows([union], first, rows, env)
    ends = None if found is None else _in_stretches(found[0], low, high, rows)
    return None if ends is None else first + ends[0]


def positions_of_rows(
    unions: Sequence[Sequence[Interval]], low: int, high: int, first: int, rows: int, env: Values
) -> list[int] | None:
    """How many positions of each union all these rows have together, by :func:`stretches`."""
    found = _ends_of_rows(unions, first, rows, env)
    counts: dict[tuple[int, ...], int] = {}
    for ends in found or ():
        if tuple(map(id, ends)) in counts:  # what some of a tile see, all of one row do
            continue
        cut = _in_stretches(ends, low, high, rows)
        if cut is None:
            return None
        starts, pieces = cut
        lengths = np.append(starts[1:], rows) - starts
        # Of each stretch, the first row and the last one.
        every = [np.concatenate([p.values, p.values + p.slopes * (lengths - 1)]) for p in pieces]
        runs = disjoint(np.stack(every[0::2]), np.stack(every[1::2])).total.reshape(2, -1) if every else lengths * 0
        counts[tuple(map(id, ends))] = int((runs * lengths).sum()) // 2
    return None if found is None else [counts[tuple(map(id, ends))] for ends in found]


def _ends_of_rows(
    unions: Sequence[Sequence[Interval]], first: int, rows: int, env: Values
) -> list[list[Pieces]] | None:
    """The ends of each union, one by one, as functions of so many rows; None where they are not piecewise linear."""
    of = _pieces_over(Pieces(rows, *(np.array([x]) for x in (0, first, 1))), env)
    every = [[of(substitute(e, _ONE_ROW)) for i in union for e in (i.start, i.stop)] for union in unions]
    found = [[p for p in ends if p is not None] for ends in every]
    return found if [*map(len, found)] == [*map(len, every)] else None


def _in_stretches(ends: list[Pieces], low: int, high: int, rows: int) -> tuple[Array, list[Pieces]] | None:
    """Where stretches begin, counted from the first row, and ``ends`` in such pieces; None where they are too many."""
    clipped = {id(p): _clipped(p, low, max(low, high)) for p in ends}
    aligned = [*_aligned(*clipped.values())]
    starts = _common_starts(*aligned, *(_apart(a, b)[0] for a, b in combinations(aligned, 2)))
    if len(starts) > max(rows // 8, 64):
        return None
    cut = dict(zip(clipped, (p.cut(starts) for p in aligned), strict=True))
    return starts, [cut[id(p)] for p in ends]


def always(condition: Expr, rows: int, env: Values) -> bool | None:
    """Whether ``condition`` of the row holds for all rows from 0 on; None where it is not made of linear pieces."""
    found = _pieces_over(_rows(rows), env)(condition)
    if found is not None:
        return bool((found.values != 0).all())
    match condition:
        case Binary(op="or", a=a, b=b):
            return always(a, rows, env) or always(b, rows, env) or None
        case _:
            return None


def reduced(found: Pieces, block: int, op: ReductionOp) -> Array:
    """A function of the row, reduced over every ``block`` rows."""
    rows = found.rows
    firsts = np.arange(0, rows, block)
    found = found.cut(firsts if len(found.starts) == 1 else _union(found.starts, firsts))
    ends = found.values, found.values + found.slopes * (found.lengths - 1)
    combine = np.minimum if op in ("min", "all") else np.maximum
    of_pieces = combine(*ends)
    if len(of_pieces) == len(firsts):
        return np.asarray(of_pieces)
    return np.asarray(combine.reduceat(of_pieces, np.searchsorted(found.starts, firsts)))


def _rows(count: int) -> Pieces:
    return Pieces(count, *(np.array([x]) for x in (0, 0, 1)))


def _union(*starts: Array) -> Array:
    """All of ``starts``, each of which is sorted, once."""
    every = np.sort(np.concatenate(starts), kind="stable")
    return np.asarray(every[np.append(True, every[1:] != every[:-1])])


def pieces_of_rows(rows: int, env: Values) -> Callable[[Expr], Pieces | None]:
    """Expressions that are no floats as functions of the rows from 0 on; None for those not made of linear pieces."""
    return _pieces_over(_rows(rows), env)


def _pieces_over(row: Pieces, env: Values) -> Callable[[Expr], Pieces | None]:
    """Expressions as functions of the row; booleans are 0 and 1."""
    known: dict[Expr, Pieces | None] = {}

    def of(e: Expr) -> Pieces | None:
        if e not in known:
            known[e] = _made(e, row, env, of)
        return known[e]

    return of


def _made(e: Expr, row: Pieces, env: Values, of: Callable[[Expr], Pieces | None]) -> Pieces | None:
    """:func:`_pieces_over` of ``e``, from what ``of`` gives for its operands."""
    if not index_names(e) & set(TILE_NAMES):
        value = np.asarray(evaluate(e, env, clamp=True))
        return _constant(int(value.item()), row.rows) if value.size == 1 and value.dtype.kind in "bi" else None
    match e:
        case Index():
            return row
        case Cast(x=x) if e.type.is_integer:
            return of(x)
        case Unary(op=op, x=x):
            a = of(x)
            return None if a is None else _unary(op, a)
        case Select(condition=c, a=x, b=y):
            known = of(c)
            if known is not None and (known.values == known.values[0]).all():  # the same for all rows
                return of(x if known.values[0] else y)
            parts = [p for p in (known, of(x), of(y)) if p is not None]
            if len(parts) < 3:
                return None
            condition, a, b = _aligned(*parts)
            chosen = condition.values != 0
            values, slopes = np.where(chosen, a.values, b.values), np.where(chosen, a.slopes, b.slopes)
            return Pieces(row.rows, a.starts, values, slopes)
        case Binary(op=op, a=x, b=y) if op in _LINEAR:
            first, second = of(x), of(y)
            return None if first is None or second is None else _binary(op, first, second)
        case _:
            return None


def _unary(op: str, a: Pieces) -> Pieces | None:
    negative = Pieces(a.rows, a.starts, -a.values, -a.slopes)
    match op:
        case "neg":
            return negative
        case "abs":
            return _extreme(a, negative, "max")
        case "not":
            return Pieces(a.rows, a.starts, 1 - a.values, a.slopes)
        case _:
            return None


def _binary(op: str, a: Pieces, b: Pieces) -> Pieces | None:
    match op:
        case "add" | "sub":
            a, b = _aligned(a, b)
            sign = 1 if op == "add" else -1
            return Pieces(a.rows, a.starts, a.values + sign * b.values, a.slopes + sign * b.slopes)
        case "mul":
            a, b = _aligned(a, b)
            if ((a.slopes != 0) & (b.slopes != 0)).any():
                return None
            return Pieces(a.rows, a.starts, a.values * b.values, a.slopes * b.values + a.values * b.slopes)
        case "min" | "max":
            return _extreme(a, b, op)
        case "floordiv" | "mod":
            if len(b.starts) > 1 or b.slopes[0] or b.values[0] <= 0:
                return None
            quotient = _quotient(a, int(b.values[0]))
            if quotient is None or op == "floordiv":
                return quotient
            whole = Pieces(a.rows, quotient.starts, *(int(b.values[0]) * x for x in (quotient.values, quotient.slopes)))
            return _binary("sub", a, whole)
        case "and" | "or":
            a, b = _aligned(a, b)
            both = np.minimum(a.values, b.values) if op == "and" else np.maximum(a.values, b.values)
            return Pieces(a.rows, a.starts, both, a.slopes)
        case _ if op in COMPARISONS:
            a, b = _apart(a, b)
            said = {
                "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
                "eq": np.equal, "ne": np.not_equal,
            }[op](a.values, b.values)  # fmt: skip
            return Pieces(a.rows, a.starts, said.astype(np.int64), np.zeros_like(a.starts))
        case _:
            return None


def _constant(value: int, rows: int) -> Pieces:
    return Pieces(rows, *(np.array([x]) for x in (0, value, 0)))


def _clipped(p: Pieces, low: int, high: int) -> Pieces:
    """``p``, but not less than ``low`` and not more than ``high``."""
    ends = np.stack([p.values, p.values + p.slopes * (p.lengths - 1)])
    if ends.min() < low:
        p = _extreme(p, _constant(low, p.rows), "max")
    return _extreme(p, _constant(high, p.rows), "min") if ends.max() > high else p


def _aligned(*parts: Pieces) -> tuple[Pieces, ...]:
    starts = _common_starts(*parts)
    return tuple(p.cut(starts) for p in parts)


def _common_starts(*parts: Pieces) -> Array:
    """Where pieces of some of ``parts`` begin."""
    every = {id(p.starts): p.starts for p in parts if len(p.starts) > 1}
    match [*every.values()]:
        case []:
            return np.zeros(1, np.int64)
        case [starts]:
            return starts
        case several:
            return _union(*several)


def _apart(a: Pieces, b: Pieces) -> tuple[Pieces, Pieces]:
    """Both in pieces along which one is always below, at, or above the other."""
    a, b = _aligned(a, b)
    slope = a.slopes - b.slopes
    (moving,) = slope.nonzero()
    if not len(moving):
        return a, b
    begin, length = a.starts[moving], a.lengths[moving]
    apart, slope = (a.values - b.values)[moving], slope[moving]
    # Towards each other, or from a common point on: where they meet, and the row after.
    sign = np.where(apart != 0, np.sign(apart), -np.sign(slope))
    apart, slope = apart * sign, -slope * sign
    speed = np.maximum(slope, 1)
    inside = [(begin + t)[(slope > 0) & (t > 0) & (t < length)] for t in (-(-apart // speed), apart // speed + 1)]
    starts = _union(a.starts, *inside) if any(map(len, inside)) else a.starts
    return a.cut(starts), b.cut(starts)


def _extreme(a: Pieces, b: Pieces, op: str) -> Pieces:
    a, b = _apart(a, b)
    apart, slope = a.values - b.values, a.slopes - b.slopes
    middle = apart * 2 + slope * (a.lengths - 1) <= 0 if slope.any() else apart <= 0
    first = middle if op == "min" else ~middle
    return Pieces(a.rows, a.starts, np.where(first, a.values, b.values), np.where(first, a.slopes, b.slopes))


def _quotient(a: Pieces, divisor: int) -> Pieces | None:
    """``a // divisor``: linear where the divisor divides the slope, else steps, which must be of a row or more."""
    even = a.slopes % divisor == 0
    if (~even & (abs(a.slopes) >= divisor)).any():
        return None
    first, last = a.values // divisor, (a.values + a.slopes * (a.lengths - 1)) // divisor
    steps = np.where(even, 0, abs(last - first))
    if steps.sum() > a.rows // 8:
        return None
    piece = np.repeat(np.arange(len(steps)), steps + 1)
    step = np.arange(len(piece)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    value, slope = a.values[piece], np.where(even, 0, a.slopes)[piece]
    level = first[piece] + np.sign(slope) * step
    # The first row at which the value has come to the level: from below to its foot, from above under its top.
    upwards = -(-(level * divisor - value) // np.maximum(slope, 1))
    downwards = (value - (level + 1) * divisor) // np.maximum(-slope, 1) + 1
    offset = np.where(step == 0, 0, np.where(slope > 0, upwards, downwards))
    return Pieces(a.rows, a.starts[piece] + offset, level, np.where(even, a.slopes // divisor, 0)[piece])
