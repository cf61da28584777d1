"""What the tile analysis hands to the code generators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from ..location import Location
from ..nodes import Expr
from ..traverse import index_names, loads
from ..variant import Variant

# How the lengths of a call fit the grids that divisions of positions make: not that anything were known, as whole grids
# one after the other, or as one grid each.
Fit = Literal["any", "repeats", "grid"]


@dataclass(frozen=True, slots=True)
class Interval:
    """Positions ``start <= x < stop`` (empty where ``start >= stop``), as integer expressions.

    Over ``tile_first`` and ``tile_last``, lengths, ``head``/``kv_head``/``batch``, scalar parameters and loads
    indexed by these alone. Not clipped to the length: users of an interval clip it.
    """

    start: Expr
    stop: Expr


@dataclass(frozen=True, slots=True)
class Ranges:
    """For a tile of one axis, the positions of the other axis, as unions of intervals.

    ``may`` covers every position that has an allowed pair with some position of the tile;
    ``must`` holds only positions allowed with *all* positions of the tile. Intervals of one union may
    overlap and come in no order.
    """

    may: tuple[Interval, ...]
    must: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class Classification:
    """Two boolean expressions over :class:`Reduction` leaves that classify a pair of tiles.

    ``may`` false proves the pair of tiles empty, ``must`` true proves it full.
    """

    may: Expr
    must: Expr


Verdict = Literal["closed form", "class", "interval", "partial"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proved about one atom of the mask."""

    atom: Expr
    verdict: Verdict
    reason: str
    loc: Location | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """Queries, or keys, along one axis of the token space.

    ``stride``: positions between neighbouring coordinates. ``size``: number of coordinates, a literal, or an
    expression of a length where the axis is the outermost. ``is_cut``: its last row may end before inner axes do.
    """

    stride: int
    size: Expr
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class BoxAxis:
    """One axis of the token space, cut into classes. A coordinate ``y`` is read as

        y + offset == block * b + residue * x + c,   0 <= c < residue,   0 <= residue * x < block

    (no ``b`` and no end of ``x`` where ``block`` is 0). The query and the key of an allowed pair have the same
    ``b``, and the key's ``c`` is ``(c + shift) % residue`` for the query's ``c``. ``offset`` (0 … block - 1) and
    ``shift`` may depend on head and batch item: each has classes of its own then. ``keys`` are the ``x`` of keys for
    the run ``tile_first <= x <= tile_last`` of queries of one class, ``queries`` the other way round; both may
    depend on the class of that run, named ``block`` and ``residue``, besides what any range depends on.
    Users clip them to the coordinates that exist: ``0 <= y < size``.

    ``keys_within`` and ``queries_within`` are the same for a pair of runs along every axis before this one, whose ends
    are the names of :func:`~.narrowing.run_of`; the classes along all axes are ``block 0``, ``residue 0`` and so on.
    None where axes do not depend on each other. Of a visited box the axes after it see what they may see with all of
    it, and it is full where it lies in every ``must`` of these.
    """

    query: Side
    key: Side
    block: int
    offset: Expr
    residue: int
    shift: Expr
    keys: Ranges
    queries: Ranges
    keys_within: Ranges | None = None
    queries_within: Ranges | None = None

    @property
    def has_classes(self) -> bool:
        return self.block > 0 or self.residue > 1

    @property
    def by_head(self) -> bool:
        """Whether classes differ from head to head, or between batch items."""
        own = (self.offset, self.shift)
        return any(index_names(e) & {"batch", "head", "kv_head"} or loads(e) for e in own)


@dataclass(frozen=True, slots=True)
class BoxTerm:
    """Pairs whose tiles are boxes of a token space: the product of what ``axes`` allow.

    ``mask`` says exactly which pairs belong to the term, on rows and columns. ``remaining`` are atoms that the axes
    only approximate; without any, the product of the axes is the mask. The point of all coordinates 0 has the position
    ``query_origin`` or ``key_origin``; no pair before it belongs to the term, nor one from ``query_end`` or ``key_end``
    on, where there are positions after the grid. ``fit``: of lengths for which its axes are right.
    """

    mask: Expr
    axes: tuple[BoxAxis, ...]
    remaining: tuple[Expr, ...]
    proofs: tuple[Proof, ...]
    query_origin: Expr
    key_origin: Expr
    query_end: Expr | None = None
    key_end: Expr | None = None
    fit: Fit = "any"

    @property
    def is_nested(self) -> bool:
        """Whether what an axis allows depends on where boxes lie along the axes before it."""
        return any(r is not None for a in self.axes for r in (a.keys_within, a.queries_within))

    def axis_by_axis(self) -> BoxTerm:
        """The same term with what each axis allows by itself."""
        return replace(self, axes=tuple(replace(a, keys_within=None, queries_within=None) for a in self.axes))


Method = Literal["closed", "classified", "exact"]

_T = TypeVar("_T")


class _WhenAsked(Generic[_T]):
    """A field that may be given as a function, which is called when the field is read for the first time."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, plan: Any, owner: type) -> _T:
        if plan is None:  # the class itself: the field has no default
            raise AttributeError(self._place)
        found = getattr(plan, self._place)
        if callable(found):
            found = found()
            self.__set__(plan, found)
        return found  # type: ignore[no-any-return]

    def __set__(self, plan: Any, value: _T | Callable[[], _T]) -> None:
        object.__setattr__(plan, self._place, value)


@dataclass(frozen=True, eq=False)
class TilePlan:
    """The tile structure of a variant, for any tile size, lengths and scalar values.

    ``closed``: the kernel evaluates ``keys``/``queries`` itself, nothing is stored.
    ``classified``: a device program evaluates ``classification`` for all pairs of tiles (O(S) data,
    O((S/N)**2) tiles) and the kernel follows its lists.
    ``exact``: the mask is evaluated on all pairs, in chunks, and the kernel follows the lists.
    ``keys`` and ``queries`` are sound under every method (a hull where they are not sharp). What runs of positions
    decide, all from ``method`` to ``rows_reason``, may be found when asked for: who walks boxes asks for little of it.
    ``boxes``: the same pairs as boxes of token spaces, for skeletons that can walk them; terms are disjoint and
    together they are the mask. Empty where the mask has neither coordinates nor classes. ``boxes_decide_more``:
    boxes decide, or bound, an atom that runs of positions cannot.
    """

    variant: Variant
    method: _WhenAsked[Method] = _WhenAsked()
    keys: _WhenAsked[Ranges] = _WhenAsked()
    queries: _WhenAsked[Ranges] = _WhenAsked()
    classification: _WhenAsked[Classification | None] = _WhenAsked()
    proofs: _WhenAsked[tuple[Proof, ...]] = _WhenAsked()
    rows_never_empty: _WhenAsked[bool] = _WhenAsked()
    rows_reason: _WhenAsked[str] = _WhenAsked()
    boxes: tuple[BoxTerm, ...] = ()
    boxes_decide_more: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TilePlan) and (self.variant, self.boxes) == (other.variant, other.boxes)

    def __hash__(self) -> int:
        return hash((self.variant, self.boxes))

    @property
    def fit(self) -> Fit:
        """The lengths that all boxes are right for."""
        return next((term.fit for term in self.boxes if term.fit != "any"), "any")
