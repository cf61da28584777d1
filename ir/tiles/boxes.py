"""Masks as boxes of a token space: for every axis the keys that a run of queries sees, as ranges of coordinates.

Each axis is analysed alone, by the rules of :mod:`.ranges`, over coordinates in place of positions. The product of
what the axes may allow covers the mask; where every condition belongs to one axis, it is the mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, assert_never

from .. import printer
from ..bounds import Range, interval
from ..build import binary, const
from ..nodes import COMPARISONS, ZERO, Binary, BinaryOp, Const, Coordinate, Expr, Index
from ..passes.expand_coordinates import expanded
from ..symbolic import Linear, linear, simplify, to_expr
from ..traverse import index_names, substitute, walk
from ..types import I32
from .classes import Classes, Relation, SameResidue, joined, relation, remainder_of
from .digits import digit, rewritten, with_distances
from .formula import All, Any, Atom, Formula, atoms, conjoin, disjoin, negated, to_condition, to_formula
from .overflow import is_exact, with_bounded_loads
from .plan import BoxAxis, BoxTerm, Interval, Proof, Ranges, Side
from .ranges import is_solved, tile_ranges
from .several_axes import at_most_zero, axes_in, implied_along, sufficient_along
from .token_space import LINE, POSITIONS, Space, declared_space, first_position, inferred_space, starts_where

# Disjoint parts that a disjunction is written as, at most: each costs a skeleton another walk.
TERMS = 3

Direction = Literal["keys", "queries"]


def find_boxes(mask: Expr) -> tuple[BoxTerm, ...]:
    """``mask`` (after the pipeline, with its coordinates) as disjoint terms; none where boxes say no more than runs."""
    if not any(e.type.is_integer and _divides(e) for e in walk(mask)):
        return ()
    formula = to_formula(mask)
    best: tuple[BoxTerm, ...] = (_term(formula, formula),)
    for reverse in (False, True):
        if _vagueness(best):
            parts = tuple(_term(part, formula) for part in _disjoint(formula, reverse))
            best = min(best, parts, key=_vagueness)
    best = tuple(term for term in best if all(a.keys.may for a in term.axes))  # the others hold no pair
    return best if any(map(_says_more, best)) else ()


def _vagueness(terms: tuple[BoxTerm, ...]) -> int:
    return sum(len(term.remaining) for term in terms)


def _divides(e: Expr) -> bool:
    return isinstance(e, Coordinate) or (isinstance(e, Binary) and e.op in ("floordiv", "mod"))


def _says_more(term: BoxTerm) -> bool:
    """Whether a term is more than runs of the flattened order: it has classes, or limits an inner axis."""
    return any(a.has_classes or (i > 0 and _limits(a)) for i, a in enumerate(term.axes))


def _limits(axis: BoxAxis) -> bool:
    size = _extent(axis.key, Classes(axis.residue, axis.shift, axis.block, axis.offset))
    return axis.keys.may != (Interval(ZERO, size),)


def _disjoint(f: Formula, reverse: bool) -> tuple[Formula, ...]:
    """``f`` as alternatives of which at most one holds; ``f`` alone where it is no short disjunction.

    Each excludes those before it: simple ones come first, because the opposite of a band is two bands, or last.
    """
    parts = f.parts if isinstance(f, All) else (f,)
    choices = [(p, few) for p in parts if isinstance(p, Any) and len(few := _alternatives(p)) <= TERMS]
    if not choices:
        return (f,)
    choice, alternatives = choices[0]
    rest = tuple(p for p in parts if p is not choice)
    divisions = {p: sum(_divides(e) for a in atoms(p) for e in walk(a)) for p in alternatives}
    ordered = sorted(divisions, key=divisions.__getitem__, reverse=reverse)
    return tuple(
        conjoin((*rest, part, *(negated(before) for before in ordered[:i]))) for i, part in enumerate(ordered)
    )


def _alternatives(f: Any) -> tuple[Formula, ...]:
    """The parts of ``f``; where they are too many, those that divide nothing are one: ranges of positions."""
    plain = [p for p in f.parts if not any(_divides(e) for a in atoms(p) for e in walk(a))]
    if len(f.parts) <= TERMS or len(plain) < 2:
        return f.parts
    return (disjoin(tuple(plain)), *(p for p in f.parts if p not in plain))


def _term(f: Formula, whole: Formula) -> BoxTerm:
    """``f``, a part of ``whole``, over the declared axes, or, where remainders are left over, over those they make."""
    mask, required = _comparisons(atoms(whole)), _required(f)
    declared = declared_space(atoms(f), required, mask)
    if declared is not None and len(declared.query) > 1:
        # One part may read the grid of keys alone: the others know how many queries there are.
        wider = declared_space(atoms(whole), required, mask)
        declared = wider if wider is not None and wider.is_like(declared) else declared
    if declared is None or not all(starts_where(declared, position, required, mask) for position in POSITIONS):
        declared = LINE
    term = _over(f, declared)
    if term.remaining and len(declared.query) == 1:
        space = inferred_space([_over_coordinates(a, declared) for a in term.remaining])
        if space is not None:
            return _over(f, space)
    return term


def _comparisons(conditions: Iterable[Expr]) -> list[Expr]:
    return [e for e in conditions if _is_integer_comparison(e)]


def _required(f: Formula) -> list[Expr]:
    """Comparisons that hold for every pair of ``f``."""
    return _comparisons(p.condition for p in (f.parts if isinstance(f, All) else (f,)) if isinstance(p, Atom))


def _over_coordinates(condition: Expr, space: Space) -> Expr:
    return rewritten(expanded(with_bounded_loads(condition)), space.table(), space.ranges())


def _over(f: Formula, space: Space) -> BoxTerm:
    parts = f.parts if isinstance(f, All) else (f,)
    conditions = [_comparison(part, space) for part in parts]
    relations = [_relation(condition, space) for condition in conditions]
    classes = [
        joined([known for axis, known in filter(None, relations) if axis == i] + _common_residues(conditions, i))
        for i in range(len(space.query))
    ]
    rest = [
        part
        for part, known in zip(parts, relations, strict=True)
        if known is None or not classes[known[0]].implies(known[1])
    ]
    keys, places = _ranges(rest, space, classes, "keys")
    queries, _ = _ranges(rest, space, classes, "queries")
    axes = tuple(
        BoxAxis(query, key, c.block, c.offset, c.residue, c.shift, k, q)
        for query, key, c, k, q in zip(space.query, space.key, classes, keys, queries, strict=True)
    )
    remaining = tuple(a for part, place in zip(rest, places, strict=True) if place is None for a in atoms(part))
    proofs = [*_proved_as_classes(parts, rest, relations), *_proved_along_axes(rest, places, space, classes)]
    order = [a for part in parts for a in atoms(part)]
    return BoxTerm(
        mask=expanded(to_condition(f)),
        axes=axes,
        remaining=tuple(dict.fromkeys(remaining)),
        proofs=tuple(sorted(proofs, key=lambda p: order.index(p.atom))),
        query_origin=first_position(space),
        key_origin=space.key_origin,
        query_end=space.query_end,
        key_end=space.key_end,
    )


def _comparison(part: Formula, space: Space) -> Expr | None:
    """``part`` over coordinates, if it is a comparison of integers."""
    if not isinstance(part, Atom) or not _is_integer_comparison(part.condition):
        return None
    return _over_coordinates(part.condition, space)


def _relation(condition: Expr | None, space: Space) -> tuple[int, Relation] | None:
    """The axis that ``condition`` puts into classes, and how."""
    for axis in range(len(space.query)) if condition is not None else ():
        assert condition is not None
        known = relation(condition, f"q{axis}", f"kv{axis}")
        if known is not None:
            return axis, known
    return None


def _common_residues(conditions: Sequence[Expr | None], axis: int) -> list[Relation]:
    """What follows from ``q % d == a`` beside ``kv % d == b``: queries and keys of one residue each, of all classes."""
    of_queries, of_keys = (
        dict(filter(None, (remainder_of(c, f"{position}{axis}") for c in conditions if c is not None)))
        for position in POSITIONS
    )
    return [
        SameResidue(d, simplify(binary("mod", binary("sub", of_keys[d], of_queries[d]), const(d))))
        for d in of_queries
        if d in of_keys
    ]


def _proved_as_classes(
    parts: Sequence[Formula], rest: Sequence[Formula], relations: Sequence[tuple[int, Relation] | None]
) -> Iterator[Proof]:
    for part, known in zip(parts, relations, strict=True):
        if known is not None and part not in rest and isinstance(part, Atom):
            axis, what = known
            yield Proof(part.condition, "class", f"queries see keys of {what} along axis {axis}", part.condition.loc)


def _proved_along_axes(
    parts: Sequence[Formula], places: Sequence[int | None], space: Space, classes: Sequence[Classes]
) -> Iterator[Proof]:
    table, limits = _digits(space, classes, "keys")
    for part, axis in zip(parts, places, strict=True):
        over_digits = _mapped(part, space, table, limits)
        for atom in atoms(part):
            if over_digits == All(()):
                yield Proof(atom, "closed form", "holds for all tokens of the grid", atom.loc)
                continue
            if axis is not None and over_digits is not None and len(_axes_of(over_digits)) > 1:
                yield Proof(atom, "closed form", f"follows from what is asked along axis {axis}", atom.loc)
                continue
            if axis is not None and over_digits is not None:
                may, must = _shown([over_digits], space, classes, axis)
                yield Proof(atom, "closed form", f"key range {may} along axis {axis}, full in {must}", atom.loc)
                continue
            found = []
            for i in sorted(_axes_of(over_digits)) if isinstance(over_digits, Atom) else ():
                bounds = implied_along(over_digits.condition, i, limits) if isinstance(over_digits, Atom) else []
                may = _shown(bounds, space, classes, i)[0]
                if may != _shown([], space, classes, i)[0]:
                    found.append(f"{may} along axis {i}")
            if found:
                bounded = f"keys within {' and '.join(found)}; evaluated inside of boxes"
                yield Proof(atom, "interval", bounded, atom.loc)
            else:
                yield Proof(atom, "partial", "belongs to no axis alone: evaluated inside of boxes", atom.loc)


def _shown(parts: Sequence[Formula], space: Space, classes: Sequence[Classes], axis: int) -> tuple[str, str]:
    """What a run of queries may and must see along one axis, in words."""
    ranges, ends = _along(parts, axis, "keys"), _ends(space, classes[axis], axis)
    return printer.print_union(_moved(ranges.may, ends)), printer.print_union(_moved(ranges.must, ends))


def _is_integer_comparison(e: Expr) -> bool:
    return isinstance(e, Binary) and e.op in COMPARISONS and e.a.type.is_integer and is_exact(with_bounded_loads(e))


# --- from conditions on positions to ranges of one axis --------------------------------------------------------


def _ranges(
    parts: Sequence[Formula], space: Space, classes: Sequence[Classes], direction: Direction
) -> tuple[list[Ranges], list[int | None]]:
    """The ranges of each axis, and for each part the axis that decides it, if any does."""
    table, limits = _digits(space, classes, direction)
    own: list[list[Formula]] = [[] for _ in classes]
    implied: list[list[Formula]] = [[] for _ in classes]
    sufficient: list[list[Formula]] = [[] for _ in classes]
    places: list[int | None] = []
    pending: list[tuple[int, int, list[Formula]]] = []
    may_be_full = True
    for part in parts:
        over_digits = _mapped(part, space, table, limits)
        axes = None if over_digits is None else _axes_of(over_digits)
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
    ranges = []
    for axis, c in enumerate(classes):
        certain, possible = (_along(own[axis] + more, axis, direction) for more in (sufficient[axis], implied[axis]))
        ends = _ends(space, c, axis)
        ranges.append(Ranges(_moved(possible.may, ends), _moved(certain.must, ends) if may_be_full else ()))
    return ranges, places


def _follows(wanted: Formula, given: Formula) -> bool:
    """Whether ``wanted``, a sum that is at most 0, follows from ``given`` because that asks for no more of the sum."""
    if wanted == given:
        return True
    if not all(isinstance(f, Atom) and _is_integer_comparison(f.condition) for f in (wanted, given)):
        return False
    assert isinstance(wanted, Atom) and isinstance(given, Atom)
    needed, known = at_most_zero(wanted.condition), at_most_zero(given.condition)
    return bool(needed) and all(any(x.terms == y.terms and x.constant >= y.constant for x in known) for y in needed)


def _ends(space: Space, c: Classes, axis: int) -> dict[Expr, Expr]:
    """From the names inside of the analysis of one axis to those that ranges have."""
    table: dict[Expr, Expr] = {digit(f"{name} {axis}"): digit(name) for name in ("block", "residue")}
    for name, sides in (("q", space.query), ("kv", space.key)):
        table |= {Index(f"{name}_len", I32): _extent(sides[axis], c)}
        table |= {Index(f"{name} length", I32): Index(f"{name}_len", I32)}
    return table


def _digits(
    space: Space, classes: Sequence[Classes], direction: Direction
) -> tuple[dict[Index, Expr], dict[str, Range]]:
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


def _mapped(
    f: Formula, space: Space, table: Mapping[Index, Expr], limits: Mapping[str, Range]
) -> Formula | None:
    """``f`` over coordinates inside of classes; None where an atom cannot be."""
    match f:
        case All() | Any():
            parts = tuple(_mapped(p, space, table, limits) for p in f.parts)
            known = tuple(p for p in parts if p is not None)
            if len(known) < len(parts):
                return None
            return conjoin(known) if isinstance(f, All) else type(f)(known)
        case Atom(condition):
            if not index_names(condition) & {"q", "kv"}:
                return Atom(_renamed_lengths(condition))
            if not _is_integer_comparison(condition):
                return None
            # In two steps: the last class of an axis may be cut short, which coordinates as a whole know.
            whole = _over_coordinates(condition, space)
            if all(interval(to_expr(x), space.ranges())[1] <= 0 for x in at_most_zero(whole) or [Linear(1, ())]):
                return All(())
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


def _axes_of(f: Formula) -> set[int]:
    return set[int]().union(*(axes_in(a) for a in atoms(f)))


def _along(parts: Iterable[Formula], axis: int, direction: Direction) -> Ranges:
    """The ranges of one axis, whose coordinates take the names of positions."""
    formula = _named_as_positions(conjoin(tuple(parts)), axis)
    return tile_ranges(formula, "q", "kv") if direction == "keys" else tile_ranges(formula, "kv", "q")


def _named_as_positions(f: Formula, axis: int) -> Formula:
    names: dict[Expr, Expr] = {digit(f"{name} {axis}"): Index(name, I32) for name in ("q", "kv")}
    match f:
        case Atom(condition):
            return to_formula(simplify(substitute(condition, names)))
        case All() | Any():
            return type(f)(tuple(_named_as_positions(p, axis) for p in f.parts))
        case _:
            assert_never(f)


def _extent(side: Side, c: Classes) -> Expr:
    """How many coordinates a class has, at most."""
    if c.block:
        return const(c.block // c.residue)
    return simplify(binary("floordiv", binary("add", side.size, const(c.residue - 1)), const(c.residue)))


def _moved(union: tuple[Interval, ...], table: Mapping[Expr, Expr]) -> tuple[Interval, ...]:
    moved = [Interval(*(simplify(substitute(e, table)) for e in (i.start, i.stop))) for i in union]
    return tuple(i for i in moved if not _is_never(i))


def _is_never(i: Interval) -> bool:
    """Whether no coordinate is in an interval, whatever parameters are."""
    return isinstance(i.stop, Const) and i.stop.value <= (i.start.value if isinstance(i.start, Const) else 0)
