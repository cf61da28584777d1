"""From conditions on positions to the ranges of one axis of a token space, over coordinates inside of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, assert_never

from ..bounds import Range, interval
from ..build import binary, const
from ..linear_form import Linear, to_expr
from ..nodes import COMPARISONS, ZERO, Binary, BinaryOp, Const, Expr, Index
from ..passes.expand_coordinates import expanded
from ..symbolic import linear, simplify
from ..traverse import index_names, substitute
from ..types import I32
from .classes import Classes, remainder_of
from .digits import digit, rewritten, with_distances
from .formula import All, Any, Atom, Formula, atoms, conjoin, to_formula
from .narrowing import Narrowing
from .overflow import is_exact, with_bounded_loads
from .plan import Interval, Ranges, Side
from .ranges import is_solved, may_attend, must_attend
from .several_axes import at_most_zero, axes_in, implied_along, sufficient_along
from .solve import Axis
from .token_space import Space

Direction = Literal["keys", "queries"]
DIRECTIONS: tuple[Direction, Direction] = ("keys", "queries")
# Whose tile is given, and whose positions are asked for.
_ROLES: dict[Direction, tuple[Axis, Axis]] = {"keys": ("q", "kv"), "queries": ("kv", "q")}


@lru_cache(maxsize=1024)
def over_coordinates(condition: Expr, space: Space) -> Expr:
    """``condition``, whose positions are sums of the coordinates of ``space``."""
    return rewritten(expanded(with_bounded_loads(condition)), space.table(), space.ranges())


def is_integer_comparison(e: Expr) -> bool:
    """Whether ``e`` compares integers that cannot wrap."""
    return isinstance(e, Binary) and e.op in COMPARISONS and e.a.type.is_integer and is_exact(with_bounded_loads(e))


@dataclass(frozen=True, slots=True)
class AxisParts:
    """What a formula asks of each axis: ``own`` conditions, what others imply of it, and what of it suffices for them.

    ``places``: for each part of the formula the axis that decides it, if any does. ``may_be_full``: whether what meets
    all that is their own, and all that suffices, meets the whole formula.
    """

    own: tuple[tuple[Formula, ...], ...]
    implied: tuple[tuple[Formula, ...], ...]
    sufficient: tuple[tuple[Formula, ...], ...]
    places: tuple[int | None, ...]
    may_be_full: bool


def axis_parts(
    parts: Sequence[Formula], space: Space, classes: Sequence[Classes], direction: Direction
) -> AxisParts:
    """What ``parts`` ask of each axis, in classes."""
    limits, inner = over_inner(tuple(parts), space, tuple(classes), direction)
    own, implied, sufficient = ([list[Formula]() for _ in classes] for _ in range(3))
    places: list[int | None] = []
    pending: list[tuple[int, int, list[Formula]]] = []
    may_be_full = True
    for over_digits in inner:
        axes = None if over_digits is None else axes_of(over_digits)
        if axes is None or len(axes) > 1:
            places.append(None)
            first = min(axes, default=0) if axes else 0
            enough: list[Formula] = []
            if isinstance(over_digits, Atom):
                for axis in axes or ():
                    implied[axis] += implied_along(over_digits.condition, axis, limits)
                enough = sufficient_along(over_digits.condition, first, limits)
            sufficient[first] += enough
            may_be_full = may_be_full and bool(enough)
            pending.append((len(places) - 1, first, enough))
        else:
            assert over_digits is not None
            axis = min(axes, default=0)
            own[axis].append(over_digits)
            places.append(axis if is_solved(_named_as_positions(over_digits, axis)) else None)
    for i, axis, enough in pending:  # what suffices may be asked for anyway
        if enough and all(any(_follows(x, given) for given in own[axis]) for x in enough):
            places[i] = axis
    of_axes = [tuple(map(tuple, found)) for found in (own, implied, sufficient)]
    return AxisParts(of_axes[0], of_axes[1], of_axes[2], tuple(places), may_be_full)


def axis_ranges(
    asked: AxisParts, space: Space, classes: Sequence[Classes], direction: Direction
) -> list[Ranges]:
    """The ranges of each axis."""
    ranges = []
    for axis, c in enumerate(classes):
        ends = names_outside(space, c, axis)
        may = with_names(possible_along(asked.own[axis] + asked.implied[axis], axis, direction), ends)
        certain = certain_along(asked.own[axis] + asked.sufficient[axis], axis, direction) if asked.may_be_full else ()
        ranges.append(Ranges(may, with_names(certain, ends)))
    return ranges


def _follows(wanted: Formula, given: Formula) -> bool:
    """Whether ``wanted``, a sum that is at most 0, follows from ``given`` because that asks for no more of the sum."""
    if wanted == given:
        return True
    if not all(isinstance(f, Atom) and is_integer_comparison(f.condition) for f in (wanted, given)):
        return False
    assert isinstance(wanted, Atom) and isinstance(given, Atom)
    needed, known = at_most_zero(wanted.condition), at_most_zero(given.condition)
    return bool(needed) and all(any(x.terms == y.terms and x.constant >= y.constant for x in known) for y in needed)


def ranges_within(
    parts: Sequence[Formula], space: Space, classes: Sequence[Classes]
) -> tuple[Sequence[Ranges | None], ...]:
    """The ranges of keys, and those of queries, of each axis for a pair of runs along those before it.

    None where none of them depends on these.
    """
    views = [over_inner(tuple(parts), space, tuple(classes), direction) for direction in DIRECTIONS]
    asked = [_AskedWithin.of(*views[0], axis) for axis in range(len(classes))]
    others = asked if views[0] is views[1] else [_AskedWithin.of(*views[1], axis) for axis in range(len(classes))]
    found = []
    for direction, of_axes in zip(DIRECTIONS, (asked, others), strict=True):
        ranges, depends = list[Ranges](), False
        for axis, (c, x) in enumerate(zip(classes, of_axes, strict=True)):
            ends = names_outside(space, c, axis)
            may = with_names(possible_along(x.implied, axis, direction), ends)
            certain = () if x.sufficient is None else certain_along(x.sufficient, axis, direction)
            must = with_names(certain, ends)
            depends = depends or x.narrowing.is_used((*may, *must))
            ranges.append(Ranges(x.narrowing.in_full(may, ends), x.narrowing.in_full(must, ends)))
        found.append(ranges if depends else [None] * len(classes))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _AskedWithin:
    """What is asked of an axis, its bounds under the names of ``narrowing``; ``sufficient`` is None if nothing is."""

    narrowing: Narrowing
    implied: list[Formula]
    sufficient: list[Formula] | None

    @staticmethod
    def of(limits: Mapping[str, Range], inner: Sequence[Formula | None], axis: int) -> _AskedWithin:
        narrowing = Narrowing(axis, limits)
        known = [f for f in inner if f is not None]
        own, implied, sufficient = list[Formula](), list[Formula](), list[Formula]()
        for f in known:
            axes = axes_of(f) or {0}
            if axes == {axis}:
                own.append(f)
            elif axis in axes:
                implied.append(narrowing.implied(f))
            if axis == max(axes) and len(axes) > 1:
                sufficient.append(narrowing.sufficient(f))
        return _AskedWithin(narrowing, own + implied, own + sufficient if len(known) == len(inner) else None)


def names_outside(space: Space, c: Classes, axis: int) -> dict[Expr, Expr]:
    """From the names inside of the analysis of one axis to those that ranges have."""
    table: dict[Expr, Expr] = {digit(f"{name} {axis}"): digit(name) for name in ("block", "residue")}
    for name, sides in (("q", space.query), ("kv", space.key)):
        table |= {Index(f"{name}_len", I32): extent(sides[axis], c)}
        table |= {Index(f"{name} length", I32): Index(f"{name}_len", I32)}
    return table


def over_inner(
    parts: tuple[Formula, ...], space: Space, classes: tuple[Classes, ...], direction: Direction
) -> tuple[Mapping[str, Range], tuple[Formula | None, ...]]:
    """``parts`` over coordinates inside of classes, None for one that cannot be; and the values that these take."""
    # Directions differ in whose residue is shifted.
    return _over_inner(parts, space, classes, direction if any(c.shift != ZERO for c in classes) else "keys")


@lru_cache(maxsize=64)
def _over_inner(
    parts: tuple[Formula, ...], space: Space, classes: tuple[Classes, ...], direction: Direction
) -> tuple[Mapping[str, Range], tuple[Formula | None, ...]]:
    _, limits = _inner_digits(space, classes, direction)
    return limits, tuple(_part_over_inner(part, space, classes, direction) for part in parts)


@lru_cache(maxsize=64)
def _inner_digits(
    space: Space, classes: tuple[Classes, ...], direction: Direction
) -> tuple[Mapping[Index, Expr], Mapping[str, Range]]:
    """Coordinates over those inside of classes, and the values that these take."""
    table: dict[Index, Expr] = {}
    limits: dict[str, Range] = {}
    spaces = space.ranges()
    for axis, c in enumerate(classes):
        block, residue = digit(f"block {axis}"), digit(f"residue {axis}")
        limits[residue.name] = (0, c.residue - 1)
        for position in ("q", "kv"):
            x = digit(f"{position} {axis}")
            most = int(spaces[f"{position}{axis}"][1] + interval(c.offset, {})[1])
            limits[x.name] = (0, (c.block - 1 if c.block else most) // c.residue)
            if c.block:
                limits[block.name] = (0, max(most // c.block, limits.get(block.name, (0, 0))[1]))
            remainder: Expr = residue
            if c.shift != ZERO and (position == "kv") == (direction == "keys"):
                sign: BinaryOp = "add" if position == "kv" else "sub"
                remainder = binary("mod", binary(sign, residue, c.shift), const(c.residue))
            y = binary("sub", binary("mul", const(c.block), block) if c.block else ZERO, c.offset)
            y = binary("add", y, binary("mul", const(c.residue), x if c.block != c.residue else ZERO))
            table[digit(f"{position}{axis}")] = y if c.residue == 1 else binary("add", y, remainder)
    return table, limits


@lru_cache(maxsize=1024)
def _part_over_inner(
    f: Formula, space: Space, classes: tuple[Classes, ...], direction: Direction
) -> Formula | None:
    """``f`` over coordinates inside of classes; None where an atom cannot be."""
    match f:
        case All() | Any():
            parts = tuple(_part_over_inner(p, space, classes, direction) for p in f.parts)
            known = tuple(p for p in parts if p is not None)
            if len(known) < len(parts):
                return None
            return conjoin(known) if isinstance(f, All) else type(f)(known)
        case Atom(condition):
            if not index_names(condition) & {"q", "kv"}:
                return Atom(_renamed_lengths(condition))
            if not is_integer_comparison(condition):
                return None
            # In two steps: the last class of an axis may be cut short, which coordinates as a whole know.
            whole = over_coordinates(condition, space)
            if all(interval(to_expr(x), space.ranges())[1] <= 0 for x in at_most_zero(whole) or [Linear(1, ())]):
                return All(())
            table, limits = _inner_digits(space, classes, direction)
            moved = with_distances(rewritten(whole, table, limits))
            assert isinstance(moved, Binary)
            moved = _without_remainder(moved, limits)
            form = linear(_renamed_lengths(binary("sub", moved.a, moved.b)))
            return to_formula(simplify(binary(moved.op, to_expr(Linear(0, form.terms)), const(-form.constant))))


def _without_remainder(condition: Binary, limits: Mapping[str, Range]) -> Binary:
    """``x == r % 4`` for ``(x - r) % 4 == 0`` where the coordinate ``x`` is in 0 … 3."""
    for name in index_names(condition) & limits.keys():
        found = remainder_of(condition, name)
        if found is not None and limits[name][0] >= 0 and limits[name][1] < found[0]:
            changed = binary("eq", digit(name), found[1])
            assert isinstance(changed, Binary)
            return changed
    return condition


def _renamed_lengths(e: Expr) -> Expr:
    """The lengths in ``e`` under other names: the ranges of an axis end at its own lengths."""
    return substitute(e, {Index(f"{name}_len", I32): Index(f"{name} length", I32) for name in ("q", "kv")})


def axes_of(f: Formula) -> set[int]:
    """The axes that a formula over coordinates inside of classes asks about."""
    return set[int]().union(*(axes_in(a) for a in atoms(f)))


def possible_along(parts: Iterable[Formula], axis: int, direction: Direction) -> tuple[Interval, ...]:
    """What of one axis, whose coordinates take the names of positions, some of a tile may see."""
    return may_attend(_named_as_positions(conjoin(tuple(parts)), axis), *_ROLES[direction])


def certain_along(parts: Iterable[Formula], axis: int, direction: Direction) -> tuple[Interval, ...]:
    """What of one axis all of a tile see."""
    return must_attend(_named_as_positions(conjoin(tuple(parts)), axis), *_ROLES[direction])


@lru_cache(maxsize=1024)
def _named_as_positions(f: Formula, axis: int) -> Formula:
    names: dict[Expr, Expr] = {digit(f"{name} {axis}"): Index(name, I32) for name in ("q", "kv")}
    match f:
        case Atom(condition):
            return to_formula(simplify(substitute(condition, names)))
        case All() | Any():
            return type(f)(tuple(_named_as_positions(p, axis) for p in f.parts))
        case _:
            assert_never(f)


def extent(side: Side, c: Classes) -> Expr:
    """How many coordinates a class has, at most."""
    if c.block:
        return const(c.block // c.residue)
    return simplify(binary("floordiv", binary("add", side.size, const(c.residue - 1)), const(c.residue)))


def with_names(union: tuple[Interval, ...], table: Mapping[Expr, Expr]) -> tuple[Interval, ...]:
    """Intervals with other names in them, without those that hold nothing."""
    kept = [Interval(*(simplify(substitute(e, table)) for e in (i.start, i.stop))) for i in union]
    return tuple(i for i in kept if not _is_never(i))


def _is_never(i: Interval) -> bool:
    """Whether no coordinate is in an interval, whatever parameters are."""
    return isinstance(i.stop, Const) and i.stop.value <= (i.start.value if isinstance(i.start, Const) else 0)
