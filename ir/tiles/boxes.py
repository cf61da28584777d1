"""Masks as boxes of a token space: for every axis the keys that a run of queries sees, as ranges of coordinates.

Each axis is analysed alone, by the rules of :mod:`.ranges`, over coordinates in place of positions. The product of
what the axes may allow covers the mask; where every condition belongs to one axis, it is the mask. Where one does not,
axes are analysed again with the boxes along those before them known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .. import printer
from ..bounds import Range
from ..build import binary, const
from ..nodes import ZERO, Binary, Coordinate, Expr
from ..passes.expand_coordinates import expanded
from ..symbolic import simplify
from ..traverse import walk
from .box_ranges import (
    AxisParts,
    axes_of,
    axis_parts,
    axis_ranges,
    certain_along,
    extent,
    is_integer_comparison,
    names_outside,
    over_coordinates,
    over_inner,
    possible_along,
    ranges_within,
    with_names,
)
from .classes import Classes, Relation, SameResidue, joined, relation, remainder_of
from .divided import divided_space
from .formula import All, Any, Atom, Formula, atoms, conjoin, disjoin, negated, to_condition, to_formula
from .narrowing import Narrowing
from .overflow import with_bounded_loads
from .plan import BoxAxis, BoxTerm, Fit, Interval, Proof
from .ranges import is_solved
from .several_axes import implied_along
from .token_space import (
    LINE,
    POSITIONS,
    Position,
    Space,
    declared_space,
    first_position,
    inferred_space,
    is_whole,
    starts_where,
)

# Disjoint parts that a disjunction is written as, at most: each costs a skeleton another walk.
TERMS = 3


@dataclass(frozen=True, slots=True)
class _Draft:
    """A term before its axes have ranges and what is proved about it is put in words.

    ``rest`` are the parts of the formula that no class says, ``asked`` what they ask of the keys of each axis.
    ``declared``: the axes are those of a grid that the mask names, or that lengths fit, not those that remainders of
    positions make.
    """

    formula: Formula
    space: Space
    classes: list[Classes]
    relations: list[tuple[int, Relation] | None]
    rest: list[Formula]
    asked: AxisParts
    declared: bool

    @property
    def parts(self) -> tuple[Formula, ...]:
        return self.formula.parts if isinstance(self.formula, All) else (self.formula,)

    @property
    def remaining(self) -> tuple[Expr, ...]:
        undecided = (part for part, place in zip(self.rest, self.asked.places, strict=True) if place is None)
        return tuple(dict.fromkeys(a for part in undecided for a in atoms(part)))


def find_boxes(mask: Expr, fit: Fit = "any") -> tuple[BoxTerm, ...]:
    """``mask`` (after the pipeline, with its coordinates) as disjoint terms; none where boxes say no more than runs.

    ``fit``: of the lengths that the boxes are for, in grids that positions are divided into.
    """
    if not any(e.type.is_integer and _divides(e) for e in walk(mask)):
        return ()
    formula, fitted = to_formula(mask), divided_space(mask, fit)
    best: tuple[_Draft, ...] = (_draft(formula, formula, fitted),)
    for reverse in (False, True):
        best = _clearer(_disjoint(formula, reverse), formula, fitted, _vagueness(best)) or best
    drafts = [(d, axes) for d, axes in zip(best, map(_axes, best), strict=True) if all(a.keys.may for a in axes)]
    # The others hold no pair.
    terms = tuple(_term(d, axes, fit if d.space is fitted else "any") for d, axes in drafts)
    return terms if any(map(_says_more, terms)) else ()


def is_checked(mask: Expr, position: Position, origin: Expr, tokens: int) -> bool:
    """Whether the analysis of ``mask`` takes it that no position comes after such a grid: then the call must check."""
    return is_whole(position, origin, tokens, _comparisons(atoms(to_formula(mask))))


def _vagueness(drafts: Iterable[_Draft]) -> int:
    return sum(len(draft.remaining) for draft in drafts)


def _clearer(
    parts: Sequence[Formula], whole: Formula, fitted: Space | None, vagueness: int
) -> tuple[_Draft, ...] | None:
    """Drafts of ``parts`` if they leave less undecided than so much; else those that are left are not drafted."""
    found: list[_Draft] = []
    for part in parts:
        if _vagueness(found) >= vagueness:
            return None
        found.append(_draft(part, whole, fitted))
    return tuple(found) if _vagueness(found) < vagueness else None


def _divides(e: Expr) -> bool:
    return isinstance(e, Coordinate) or (isinstance(e, Binary) and e.op in ("floordiv", "mod"))


def _says_more(term: BoxTerm) -> bool:
    """Whether a term is more than runs of the flattened order: it has classes, or limits an inner axis."""
    if term.is_nested and not all(is_solved(Atom(with_bounded_loads(expanded(a)))) for a in term.remaining):
        return True
    return any(a.has_classes or (i > 0 and _limits(a)) for i, a in enumerate(term.axes))


def _limits(axis: BoxAxis) -> bool:
    size = extent(axis.key, Classes(axis.residue, axis.shift, axis.block, axis.offset))
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
    return tuple(conjoin((*rest, part, *(negated(before) for before in ordered[:i]))) for i, part in enumerate(ordered))


def _alternatives(f: Any) -> tuple[Formula, ...]:
    """The parts of ``f``; where they are too many, those that divide nothing are one: ranges of positions."""
    plain = [p for p in f.parts if not any(_divides(e) for a in atoms(p) for e in walk(a))]
    if len(f.parts) <= TERMS or len(plain) < 2:
        return f.parts
    return (disjoin(tuple(plain)), *(p for p in f.parts if p not in plain))


def _draft(f: Formula, whole: Formula, fitted: Space | None) -> _Draft:
    """``f``, a part of ``whole``, over the declared axes, or, where remainders are left over, over those they make.

    ``fitted``: the space of these, as good as declared, where it is known that lengths fit.
    """
    mask, required = _comparisons(atoms(whole)), _required(f)
    declared = declared_space(atoms(f), required, mask)
    if declared is not None and len(declared.query) > 1:
        # One part may read the grid of keys alone: the others know how many queries there are.
        wider = declared_space(atoms(whole), required, mask)
        declared = wider if wider is not None and wider.is_like(declared) else declared
    if declared is None or not all(starts_where(declared, position, required) for position in POSITIONS):
        declared = LINE
    draft = _over(f, declared)
    if draft.remaining and len(declared.query) == 1:
        if fitted is not None:
            return _over(f, fitted)
        space = inferred_space([over_coordinates(a, declared) for a in draft.remaining])
        if space is not None:
            return _over(f, space, declared=False)
    return draft


def _comparisons(conditions: Iterable[Expr]) -> list[Expr]:
    return [e for e in conditions if is_integer_comparison(e)]


def _required(f: Formula) -> list[Expr]:
    """Comparisons that hold for every pair of ``f``."""
    return _comparisons(p.condition for p in (f.parts if isinstance(f, All) else (f,)) if isinstance(p, Atom))


def _over(f: Formula, space: Space, *, declared: bool = True) -> _Draft:
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
    return _Draft(f, space, classes, relations, rest, axis_parts(rest, space, classes, "keys"), declared)


def _axes(d: _Draft) -> tuple[BoxAxis, ...]:
    keys = axis_ranges(d.asked, d.space, d.classes, "keys")
    queries = axis_ranges(axis_parts(d.rest, d.space, d.classes, "queries"), d.space, d.classes, "queries")
    return tuple(
        BoxAxis(query, key, c.block, c.offset, c.residue, c.shift, k, q)
        for query, key, c, k, q in zip(d.space.query, d.space.key, d.classes, keys, queries, strict=True)
    )


def _term(d: _Draft, axes: tuple[BoxAxis, ...], fit: Fit) -> BoxTerm:
    # Along axes that nobody declared, as remainders make them, runs of positions say as much.
    if d.remaining and d.declared:
        keys, queries = ranges_within(d.rest, d.space, d.classes)
        axes = tuple(replace(a, keys_within=k, queries_within=q) for a, k, q in zip(axes, keys, queries, strict=True))
    proofs = [*_proved_as_classes(d.parts, d.rest, d.relations)]
    proofs += _proved_along_axes(d.rest, d.asked.places, d.space, d.classes)
    order = [a for part in d.parts for a in atoms(part)]
    return BoxTerm(
        mask=expanded(to_condition(d.formula)),
        axes=axes,
        remaining=d.remaining,
        proofs=tuple(sorted(proofs, key=lambda p: order.index(p.atom))),
        query_origin=first_position(d.space),
        key_origin=d.space.key_origin,
        query_end=d.space.query_end,
        key_end=d.space.key_end,
        fit=fit,
    )


def _comparison(part: Formula, space: Space) -> Expr | None:
    """``part`` over coordinates, if it is a comparison of integers."""
    if not isinstance(part, Atom) or not is_integer_comparison(part.condition):
        return None
    return over_coordinates(part.condition, space)


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
    limits, inner = over_inner(tuple(parts), space, tuple(classes), "keys")
    for part, axis, over_digits in zip(parts, places, inner, strict=True):
        narrowed = [] if over_digits is None else _narrowed(over_digits, limits)
        for atom in atoms(part):
            if over_digits == All(()):
                yield Proof(atom, "closed form", "holds for all tokens of the grid", atom.loc)
                continue
            if axis is not None and over_digits is not None and len(axes_of(over_digits)) > 1:
                yield Proof(atom, "closed form", f"follows from what is asked along axis {axis}", atom.loc)
                continue
            if axis is not None and over_digits is not None:
                seen = (see([over_digits], axis, "keys") for see in (possible_along, certain_along))
                may, must = (_shown(x, space, classes, axis) for x in seen)
                yield Proof(atom, "closed form", f"key range {may} along axis {axis}, full in {must}", atom.loc)
                continue
            found = []
            for i in sorted(axes_of(over_digits)) if isinstance(over_digits, Atom) else ():
                bounds = implied_along(over_digits.condition, i, limits) if isinstance(over_digits, Atom) else []
                may, most = (_shown(possible_along(x, i, "keys"), space, classes, i) for x in (bounds, []))
                if may != most:
                    found.append(f"{may} along axis {i}")
            reasons = [f"keys within {' and '.join(found)}"] if found else []
            if narrowed:
                reasons.append(f"fewer along {' and '.join(narrowed)} by where boxes lie along axes before")
            if reasons:
                yield Proof(atom, "interval", f"{'; '.join(reasons)}; evaluated inside of boxes", atom.loc)
            else:
                yield Proof(atom, "partial", "belongs to no axis alone: evaluated inside of boxes", atom.loc)


def _narrowed(f: Formula, limits: Mapping[str, Range]) -> list[str]:
    """Axes along which ``f`` allows fewer keys where boxes along the axes before are known."""
    found = []
    for axis in sorted(axes_of(f))[1:]:
        narrowing = Narrowing(axis, limits)
        if narrowing.is_used(possible_along([narrowing.implied(f)], axis, "keys")):
            found.append(f"axis {axis}")
    return found


def _shown(seen: tuple[Interval, ...], space: Space, classes: Sequence[Classes], axis: int) -> str:
    """What a run of queries sees along one axis, in words."""
    return printer.print_union(with_names(seen, names_outside(space, classes[axis], axis)))
