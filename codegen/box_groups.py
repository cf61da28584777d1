"""Terms of boxes as walks of kernels: which of them share the boxes that a program owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..ir.bounds import interval
from ..ir.build import binary
from ..ir.nodes import TILE_NAMES, ZERO, Expr, Index, Select
from ..ir.passes.narrow_integers import narrow
from ..ir.tiles.plan import BoxAxis, BoxTerm, Interval, Ranges, Side
from ..ir.traverse import children, substitute
from ..ir.types import I32

Letter = Literal["q", "k"]


@dataclass(frozen=True, slots=True)
class Walk:
    """The boxes of one term that a program visits.

    ``on_line``: tiles are runs of positions, and what the owned box sees follows from the run of positions that it
    lies in; else owned and visited boxes are of one space.
    """

    term: BoxTerm
    on_line: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Walks of one kernel, whose programs own boxes of the first walk's space.

    ``adds``: rows have results of groups that ran before, to which those of this one are added. ``last``: no group
    adds to them any more. ``outside``: rows are those before a grid, or after one, which are few and may see far more
    than others; they lie on a line.
    """

    walks: tuple[Walk, ...]
    adds: bool = False
    last: bool = True
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Groups:
    """All kernels of one direction, in the order in which they run; ``complete``: every row is in one of them."""

    groups: tuple[Group, ...]
    complete: bool

    @property
    def add_up(self) -> bool:
        """Whether rows are in several groups: then sums between kernels are float32."""
        return any(g.adds for g in self.groups)


def groups_of(terms: Sequence[BoxTerm], own: Letter) -> Groups:
    """The kernels over boxes of ``own`` that visit every pair of ``terms``, disjoint, once.

    Terms of one space are walked one after the other by the same programs. So are terms over positions, unless both
    ends of what they allow move with the owned box (a window, of which a box of the grid would see too much); the
    rows before a grid that starts later, and those after one, are then groups of their own. All others meet in the
    sums.
    """
    spaces: dict[object, list[BoxTerm]] = {}
    for term in terms:
        spaces.setdefault(_space(term), []).append(term)
    lines = next((found for found in spaces.values() if _is_line(found[0])), [])
    # What visits the most comes first: wide ranges make few, long programs.
    grids = sorted((found for found in spaces.values() if found is not lines), key=lambda g: -len(g[0].axes))
    if not grids:
        return Groups((Group(tuple(map(Walk, lines))),), True)
    beside = [t for t in lines if not any(_moves(i.start) and _moves(i.stop) for i in _may(t.axes[0], own))]
    apart = [t for t in lines if t not in beside]
    main, *others = grids
    origin = _origin(main[0], own)
    if not apart and not others:
        group = Group((*map(Walk, main), *(Walk(t, True) for t in beside)))
        end = _end(main[0], own)
        before = [Walk(_up_to(t, own, origin)) for t in beside] if _starts_late(main[0], own) else []
        after = [Walk(_from(t, own, end)) for t in beside] if end is not None else []
        outside = tuple(Group(tuple(walks), outside=True) for walks in (before, after) if walks)
        return Groups((*outside, group), bool(beside) or _has_all_rows(main[0], own))
    if not all(_has_all_rows(g[0], own) for g in grids):
        beside, apart = [], lines
    kinds = [tuple(map(Walk, apart)), (*map(Walk, main), *(Walk(t, True) for t in beside))]
    kinds += [tuple(map(Walk, g)) for g in others]
    # Kernels that have all rows begin and end: they need no zeros, and nobody converts what they leave.
    all_rows = [k for k in kinds if k and _has_all_rows(k[0].term, own)]
    some_rows = [k for k in kinds if k and k not in all_rows]
    ordered = [*all_rows[:1], *some_rows, *all_rows[1:]]
    last = len(ordered) - 1 if len(all_rows) > 1 or not some_rows else -1
    groups = tuple(
        Group(walks, adds=i > 0 or not all_rows, last=i == last) for i, walks in enumerate(ordered)
    )
    return Groups(groups, bool(all_rows))


def _space(term: BoxTerm) -> object:
    axes = tuple((a.query, a.key, a.block, a.offset, a.residue, a.shift) for a in term.axes)
    return term.query_origin, term.key_origin, term.query_end, term.key_end, axes


def _is_line(term: BoxTerm) -> bool:
    return (
        len(term.axes) == 1
        and not term.axes[0].has_classes
        and term.query_origin == term.key_origin == ZERO
        and term.axes[0].query.stride == term.axes[0].key.stride == 1
    )


def _origin(term: BoxTerm, own: Letter) -> Expr:
    return term.query_origin if own == "q" else term.key_origin


def _end(term: BoxTerm, own: Letter) -> Expr | None:
    return term.query_end if own == "q" else term.key_end


def _starts_late(term: BoxTerm, own: Letter) -> bool:
    """Whether there may be rows before the grid."""
    return interval(_origin(term, own), {})[1] > 0


def _has_all_rows(term: BoxTerm, own: Letter) -> bool:
    return not _starts_late(term, own) and _end(term, own) is None


def _may(axis: BoxAxis, own: Letter) -> tuple[Interval, ...]:
    return axis.keys.may if own == "q" else axis.queries.may


def _moves(e: Expr) -> bool:
    """Whether an end of a range depends on where a tile is, other than by a condition."""
    match e:
        case Index(name):
            return name in TILE_NAMES
        case Select(_, a, b):
            return _moves(a) or _moves(b)
        case _:
            return any(_moves(x) for x in children(e))


def _up_to(term: BoxTerm, own: Letter, origin: Expr) -> BoxTerm:
    """``term``, over positions, with the rows before ``origin`` alone."""
    length = Index("q_len" if own == "q" else "kv_len", I32)
    rows = Side(1, narrow(binary("min", binary("max", origin, ZERO), length)))
    (axis,) = term.axes
    return replace(term, axes=(replace(axis, query=rows) if own == "q" else replace(axis, key=rows),))


def _from(term: BoxTerm, own: Letter, end: Expr) -> BoxTerm:
    """``term``, over positions, with the rows from ``end`` on alone."""
    first = narrow(binary("max", end, ZERO))
    rows = Side(1, narrow(binary("sub", Index("q_len" if own == "q" else "kv_len", I32), first)))
    moved: dict[Expr, Expr] = {Index(x, I32): binary("add", Index(x, I32), first) for x in TILE_NAMES}

    def later(union: tuple[Interval, ...]) -> tuple[Interval, ...]:
        return tuple(Interval(*(narrow(substitute(e, moved)) for e in (i.start, i.stop))) for i in union)

    (axis,) = term.axes
    if own == "q":
        seen = Ranges(later(axis.keys.may), later(axis.keys.must))
        return replace(term, axes=(replace(axis, query=rows, keys=seen),), query_origin=first)
    seen = Ranges(later(axis.queries.may), later(axis.queries.must))
    return replace(term, axes=(replace(axis, key=rows, queries=seen),), key_origin=first)
