"""What the tile analysis hands to the code generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..location import Location
from ..nodes import Expr
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


Verdict = Literal["closed form", "interval", "partial"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proved about one atom of the mask."""

    atom: Expr
    verdict: Verdict
    reason: str
    loc: Location | None = None


Method = Literal["closed", "classified", "exact"]


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tile structure of a variant, for any tile size, lengths and scalar values.

    ``closed``: the kernel evaluates ``keys``/``queries`` itself, nothing is stored.
    ``classified``: a device program evaluates ``classification`` for all pairs of tiles (O(S) data,
    O((S/N)**2) tiles) and the kernel follows its lists.
    ``exact``: the mask is evaluated on all pairs, in chunks, and the kernel follows the lists.
    ``keys`` and ``queries`` are sound under every method (a hull where they are not sharp).
    """

    variant: Variant
    method: Method
    keys: Ranges
    queries: Ranges
    classification: Classification | None
    proofs: tuple[Proof, ...]
    rows_never_empty: bool
    rows_reason: str
