"""What the tile analysis hands to the code generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..location import Location
from ..nodes import Expr
from ..traverse import index_names, loads
from ..variant import Variant


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
    expression of a length where the axis is the outermost.
    """

    stride: int
    size: Expr


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
    """

    query: Side
    key: Side
    block: int
    offset: Expr
    residue: int
    shift: Expr
    keys: Ranges
    queries: Ranges

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
    on, where there are positions after the grid.
    """

    mask: Expr
    axes: tuple[BoxAxis, ...]
    remaining: tuple[Expr, ...]
    proofs: tuple[Proof, ...]
    query_origin: Expr
    key_origin: Expr
    query_end: Expr | None = None
    key_end: Expr | None = None


Method = Literal["closed", "classified", "exact"]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tile structure of a variant, for any tile size, lengths and scalar values.

    ``closed``: the kernel evaluates ``keys``/``queries`` itself, nothing is stored.
    ``classified``: a device program evaluates ``classification`` for all pairs of tiles (O(S) data,
    O((S/N)**2) tiles) and the kernel follows its lists.
    ``exact``: the mask is evaluated on all pairs, in chunks, and the kernel follows the lists.
    ``keys`` and ``queries`` are sound under every method (a hull where they are not sharp).
    ``boxes``: the same pairs as boxes of token spaces, for skeletons that can walk them; terms are disjoint and
    together they are the mask. Empty where the mask has neither coordinates nor classes. ``boxes_decide_more``:
    boxes decide, or bound, an atom that runs of positions cannot.
    """

    variant: Variant
    method: Method
    keys: Ranges
    queries: Ranges
    classification: Classification | None
    proofs: tuple[Proof, ...]
    rows_never_empty: bool
    rows_reason: str
    boxes: tuple[BoxTerm, ...] = ()
    boxes_decide_more: bool = False
