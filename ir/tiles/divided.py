"""Grids that a mask reads positions in by dividing them: ``q // 32`` and ``q % 32``, where nobody declares the grid.

Where its last row ends such a grid does not say. So it is asked of the lengths of a call: a plan for those that fit
takes the grid for a declared one, the plan for any lengths does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..build import const
from ..nodes import Binary, Cast, Const, Expr, Index
from ..traverse import children
from ..types import I32
from .plan import Fit, Side
from .token_space import POSITIONS, Position, Space, axes_of


@dataclass(frozen=True, slots=True)
class DividedGrid:
    """What remainders of one position make: ``cuts``, the strides of the axes from the outermost on, all above 1.

    ``is_closed``: positions are read in remainders alone, so that as many tokens as the first cut may be a whole grid.
    """

    cuts: tuple[int, ...]
    is_closed: bool

    def fit(self, length: int) -> Fit:
        """How so many positions fit; any number of whole rows is one grid, unless it is closed."""
        if length == 0 or length % self.cuts[0]:
            return "any"
        return "repeats" if self.is_closed and length > self.cuts[0] else "grid"


def divided_grids(mask: Expr) -> dict[Position, DividedGrid]:
    """The grids of queries and keys that ``mask`` reads single coordinates in, after the pipeline.

    None of a position that is only divided into blocks (``q // 32`` alone), or cut at places which do not divide each
    other.

    >>> from ..parser import parse_expr
    >>> divided_grids(parse_expr("q // 32 % 16 <= kv // 64 and q % 32 == kv % 32"))
    {'q': DividedGrid(cuts=(512, 32), is_closed=True), 'kv': DividedGrid(cuts=(32,), is_closed=False)}
    """
    found: dict[Position, DividedGrid] = {}
    for position in POSITIONS:
        reads = list(_reads(mask, position))
        cuts = sorted({period for _, period in reads if period is not None}, reverse=True)
        if cuts and all(wider % cut == 0 for wider, cut in pairwise(cuts)):
            found[position] = DividedGrid(tuple(cuts), all(period is not None for _, period in reads))
    return found


def fit_of(grids: Mapping[Position, DividedGrid], q_len: int, kv_len: int) -> Fit:
    """How the lengths of a call fit all of ``grids``."""
    lengths: dict[Position, int] = {"q": q_len, "kv": kv_len}
    fits = [grid.fit(lengths[position]) for position, grid in grids.items()]
    if not fits or "any" in fits:
        return "any"
    return "repeats" if "repeats" in fits else "grid"


def divided_space(mask: Expr, fit: Fit) -> Space | None:
    """The space of the grids that ``mask`` divides positions into, for lengths that fit all of them; else None.

    A position that is read in no grid is cut as the other one, wherever it ends.
    """
    grids = divided_grids(mask) if fit != "any" else {}
    if not grids:
        return None
    sides = {position: _sides(position, grid, fit) for position, grid in grids.items()}
    (known, *_) = sides.values()
    query, key = (sides.get(p) or axes_of(p, tuple(side.stride for side in known[:-1])) for p in POSITIONS)
    return Space(query, key) if len(query) == len(key) else None


def _sides(position: Position, grid: DividedGrid, fit: Fit) -> tuple[Side, ...]:
    if grid.is_closed and fit == "grid":
        return axes_of(position, grid.cuts[1:], const(grid.cuts[0]))
    return axes_of(position, grid.cuts, Index(f"{position}_len", I32))


def _reads(e: Expr, position: Position) -> Iterator[tuple[int, int | None]]:
    """Stride and period of each coordinate of ``position`` in ``e``, of which none is part of another."""
    read = _read(e, position)
    if read is None:
        for child in children(e):
            yield from _reads(child, position)
    elif read != (1, None):
        yield read


def _read(e: Expr, position: Position) -> tuple[int, int | None] | None:
    """Of ``position // stride % (period // stride)`` stride and period; None of what is nothing like it."""
    match e:
        case Index(name) if name == position:
            return 1, None
        case Cast(x) if e.type.is_integer:
            return _read(x, position)
        case Binary("floordiv" | "mod" as op, a, Const(value=w)) if e.type.is_integer and w > 0:
            inner = _read(a, position)
            if inner is None:
                return None
            stride, period = inner
            wider = stride * int(w)
            if period is not None and period % wider:
                return None
            return (wider, period) if op == "floordiv" else (stride, wider)
        case _:
            return None
