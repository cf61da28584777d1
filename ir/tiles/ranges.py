"""From a solved formula to the positions that a tile may, and must, attend to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import assert_never

from ..build import binary, const, select
from ..linear_form import mentions
from ..nodes import FALSE, TRUE, Expr, Index
from ..symbolic import TILE_FIRST, TILE_LAST, linear, simplify
from ..traverse import substitute
from ..types import I32
from .extremes import extremes
from .formula import All, Atom, Formula
from .plan import Interval, Ranges
from .residue import tighten
from .solve import Axis, Both, Either, Free, Limit, Side, Solution, Unsolved, solve
from .spans import EVERYTHING, Span, Union, at_most, finish, guarded, intersect, unite

# More intervals than this cost a kernel more than they save; intersections may need more on the way.
INTERVALS, WIDEST = 3, 8
# So many are compared with each other on the way: of hundreds of alternatives, pairs would take minutes.
MOST = 2 * WIDEST


def tile_ranges(f: Formula, tile: Axis, other: Axis) -> Ranges:
    """The positions of ``other`` that a tile of ``tile`` may and must attend to under ``f``."""
    return Ranges(may_attend(f, tile, other), must_attend(f, tile, other))


@lru_cache(maxsize=512)
def may_attend(f: Formula, tile: Axis, other: Axis) -> tuple[Interval, ...]:
    """The positions of ``other`` that some of a tile of ``tile`` may attend to under ``f``."""
    return finish(at_most(_may(_solution(f, tile, other), tile, other), INTERVALS), other)


@lru_cache(maxsize=512)
def must_attend(f: Formula, tile: Axis, other: Axis) -> tuple[Interval, ...]:
    """The positions of ``other`` that all of a tile of ``tile`` attend to under ``f``."""
    conditions = [p for p in (f.parts if isinstance(f, All) else (f,)) if isinstance(p, Atom)]
    if any(isinstance(solve(p, tile, other), Unsolved) for p in reversed(conditions)):
        return ()  # whatever the others say, which is not looked at
    return finish(_must(_solution(f, tile, other), tile, other)[:INTERVALS], other)


@lru_cache(maxsize=512)
def _solution(f: Formula, tile: Axis, other: Axis) -> Solution:
    return solve(tighten(f), tile, other)


@lru_cache(maxsize=512)
def is_solved(f: Formula) -> bool:
    """Whether every atom of ``f`` has a closed form for keys given queries, and for queries given keys."""
    return _closed(solve(f, "q", "kv"), "q") and _closed(solve(f, "kv", "q"), "kv")


def _closed(s: Solution, tile: Axis) -> bool:
    match s:
        case Both() | Either():
            return all(_closed(p, tile) for p in s.parts)
        case Limit(bound=e):
            return all(extremes(x, tile) is not None for x in (e, *s.unless))
        case Side(difference=e):
            return extremes(e, tile) is not None
        case Free():
            return True
        case Unsolved():
            return False
        case _:
            assert_never(s)


def _may(s: Solution, tile: Axis, other: Axis) -> Union:
    match s:
        case Both():
            sides = [p.difference for p in s.parts if isinstance(p, Side)]
            return _narrowed(_conjunction(s, tile, other), sides, tile, other)
        case Either():
            together: Union = ()
            for part in s.parts:
                together = at_most(unite(together, _may(part, tile, other)), MOST)
            return at_most(together, WIDEST)
        case _:
            return _leaf(s, tile, other, easiest=True)


def _must(s: Solution, tile: Axis, other: Axis) -> Union:
    match s:
        case Both():
            result = () if any(isinstance(part, Unsolved) for part in s.parts) else EVERYTHING
            for part in s.parts if result else ():
                result = intersect(result, _must(part, tile, other))[:WIDEST]
            return result
        case Either():
            union = guarded(EVERYTHING, _no_gap_guard(s, tile))
            for part in s.parts:
                union = unite(union, _must(part, tile, other))[:MOST]
            # Positions that meet a condition on the tile's axis alone ask nothing of the other parts.
            remaining = [binary("sub", const(1), p.difference) for p in s.parts if isinstance(p, Side)]
            return _narrowed(union[:WIDEST], remaining, tile, other)
        case _:
            return _leaf(s, tile, other, easiest=False)


def _leaf(s: Limit | Side | Free | Unsolved, tile: Axis, other: Axis, easiest: bool) -> Union:
    """What one atom allows for some (``easiest``), or for all, positions of the tile."""
    match s:
        case Free(condition=condition):
            return guarded(EVERYTHING, condition)
        case Unsolved():
            return EVERYTHING if easiest else ()
        case Side(difference=difference):
            ends = extremes(difference, tile)
            if ends is None:
                return EVERYTHING if easiest else ()
            return guarded(EVERYTHING, binary("le", ends[0] if easiest else ends[1], const(0)))
        case Limit(direction=direction, bound=bound):
            ends = extremes(bound, tile)
            if ends is None:
                return EVERYTHING if easiest else ()
            low, high = ends
            free = _unless(s, tile, easiest)
            if direction == "at most":
                stop = simplify(binary("add", high if easiest else low, const(1)))
                length = binary("max", stop, Index(f"{other}_len", I32))
                return (Span(stop=simplify(select(free, length, stop))),)
            start = low if easiest else high
            return (Span(start=simplify(select(free, binary("min", start, const(0)), start))),)
        case _:
            assert_never(s)


def _unless(s: Limit, tile: Axis, easiest: bool) -> Expr:
    """Whether the limit does not matter to some (``easiest``), or to all, positions of the tile."""
    free: Expr = FALSE
    for difference in s.unless:
        ends = extremes(difference, tile)
        if ends is not None:
            free = binary("or", free, binary("le", ends[0] if easiest else ends[1], const(0)))
        elif easiest:
            return TRUE
    return simplify(free)


def _conjunction(s: Both, tile: Axis, other: Axis) -> Union:
    result = guarded(EVERYTHING, _band_guard(s, tile))
    for part in s.parts:
        result = at_most(intersect(result, _may(part, tile, other)), WIDEST)
    return result


def _limits(s: Both) -> tuple[Limit, ...]:
    """The limits that all hold, also those of nested conjunctions."""
    nested = (_limits(p) if isinstance(p, Both) else (p,) if isinstance(p, Limit) else () for p in s.parts)
    return tuple(x for group in nested for x in group if not x.unless)


def _pairs(limits: tuple[Limit, ...], tile: Axis) -> Iterator[Expr]:
    """The number of positions that an upper and a lower limit leave between them, where no row differs."""
    for upper in limits:
        for lower in limits:
            if upper.direction == "at most" and lower.direction == "at least":
                width = binary("sub", binary("add", upper.bound, const(1)), lower.bound)
                if not linear(width).depends_on(tile):
                    yield width


def _band_guard(s: Both, tile: Axis) -> Expr:
    """Whether rows can hold anything between their lower and upper limit, where that does not depend on the row.

    A band ``0 <= q - kv < window`` is empty for ``window <= 0``, though over a whole tile the smallest start
    lies before the largest stop.
    """
    guard: Expr = TRUE
    for width in _pairs(_limits(s), tile):
        guard = binary("and", guard, binary("gt", width, const(0)))
    return simplify(guard)


def _no_gap_guard(s: Either, tile: Axis) -> Expr:
    """Whether rows are covered by two limits, as by ``kv <= q or kv > q``, though no limit alone holds for a tile."""
    guard: Expr = FALSE
    for width in _pairs(tuple(p for p in s.parts if isinstance(p, Limit)), tile):
        guard = binary("or", guard, binary("ge", width, const(0)))
    return simplify(guard)


def _narrowed(u: Union, differences: list[Expr], tile: Axis, other: Axis) -> Union:
    """``u`` for the part of the tile where all ``differences <= 0``, such as ``q >= 100``.

    Where that part is empty ``u`` means nothing: then a guard decides the tile.
    """
    first, last = TILE_FIRST, TILE_LAST
    narrowed_first: Expr = first
    narrowed_last: Expr = last
    for difference in differences:
        for limit in _tile_limits(difference, tile, other):
            if limit.direction == "at least":
                narrowed_first = simplify(binary("max", narrowed_first, limit.bound))
            else:
                narrowed_last = simplify(binary("min", narrowed_last, limit.bound))
    if narrowed_first == first and narrowed_last == last:
        return u
    # Simultaneous: the replaced ends mention tile_first and tile_last themselves.
    table: dict[Expr, Expr] = {first: narrowed_first, last: narrowed_last}

    def move(e: Expr | None) -> Expr | None:
        return None if e is None else simplify(substitute(e, table))

    return tuple(Span(move(x.start), move(x.stop), x.guard) for x in u)


def _tile_limits(difference: Expr, tile: Axis, other: Axis) -> tuple[Limit, ...]:
    """``difference <= 0`` solved for ``tile``, where that gives limits that all hold."""
    solved = solve(Atom(binary("le", difference, const(0))), other, tile)
    found = _limits(Both((solved,)))
    return tuple(x for x in found if not mentions(x.bound, tile))
