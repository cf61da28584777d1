"""The axes of a token space: which grids a mask reads positions in, declared or told from its divisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Literal, TypeGuard

from ..bounds import POSITION, Range, interval
from ..build import binary, const, unary
from ..linear_form import Linear, to_expr
from ..nodes import ZERO, Binary, Cast, Const, Coordinate, Expr, Index
from ..symbolic import linear, simplify
from ..traverse import walk
from ..types import I32
from .classes import is_settled, is_uniform
from .digits import digit
from .plan import Side
from .several_axes import at_most_zero

Position = Literal["q", "kv"]
POSITIONS: tuple[Position, ...] = ("q", "kv")


@dataclass(frozen=True, slots=True)
class Space:
    """Queries and keys as points of grids of equally many axes, outermost first.

    ``query_origin`` and ``key_origin`` are the positions of their first points, the same for all heads; ``query_end``
    and ``key_end`` those after their last ones, where other positions may follow.
    """

    query: tuple[Side, ...]
    key: tuple[Side, ...]
    query_origin: Expr = ZERO
    key_origin: Expr = ZERO
    query_end: Expr | None = None
    key_end: Expr | None = None

    def sides(self, position: Position) -> tuple[Side, ...]:
        return self.query if position == "q" else self.key

    def origin(self, position: Position) -> Expr:
        return self.query_origin if position == "q" else self.key_origin

    def is_like(self, other: Space) -> bool:
        """Whether both cut positions at the same places."""
        return (self.query_origin, self.key_origin) == (other.query_origin, other.key_origin) and all(
            [side.stride for side in self.sides(p)] == [side.stride for side in other.sides(p)] for p in POSITIONS
        )

    def table(self) -> dict[Index, Expr]:
        """Positions as sums of the coordinates ``q0``, ``q1`` … and ``kv0``, ``kv1`` …"""
        return {
            Index(position, I32): total(
                self.origin(position),
                (
                    binary("mul", const(side.stride), digit(f"{position}{i}"))
                    for i, side in enumerate(self.sides(position))
                ),
            )
            for position in POSITIONS
        }

    def ranges(self) -> dict[str, Range]:
        """The values that the coordinates can take."""
        return {
            f"{position}{i}": (0, min(interval(side.size, {})[1] - 1, POSITION[1]))
            for position in POSITIONS
            for i, side in enumerate(self.sides(position))
        }


def total(first: Expr, rest: Iterable[Expr]) -> Expr:
    """A sum in normal form."""
    for x in rest:
        first = binary("add", first, x)
    return simplify(first)


LINE = Space((Side(1, Index("q_len", I32)),), (Side(1, Index("kv_len", I32)),))


@dataclass(slots=True)
class _Found:
    """What the grids of one position say: the strides of its axes, how many tokens, and which is the first."""

    cuts: tuple[int, ...] = ()
    tokens: int | None = None
    origin: Expr = ZERO


def declared_space(
    conditions: Iterable[Expr], required: Sequence[Expr] = (), mask: Sequence[Expr] = ()
) -> Space | None:
    """The space of the grids that ``conditions`` read positions in; the line of positions where there is none.

    A grid may start later, ``coordinate(q - text, 0, 16, 32)``, which has no pair before only if ``required`` says so,
    and end before the last position, where ``required`` says that too. ``required`` holds for all pairs, and ``mask``
    are all conditions of the mask. None where the grids of queries and keys have different numbers of axes.
    """
    found: dict[Position, _Found] = {}
    for e in (x for condition in conditions for x in walk(condition)):
        for position in POSITIONS:
            origin = origin_of(e.x, position) if isinstance(e, Coordinate) else None
            if origin is not None and isinstance(e, Coordinate):
                grid = found.setdefault(position, _Found(origin=origin))
                if grid.origin == origin:
                    strides = [prod(e.sizes[i:]) for i in range(1, len(e.sizes))]
                    grid.cuts = _chain((*grid.cuts, *strides))
                    grid.tokens = prod(e.sizes)
    # A position that is read in no grid is cut as the other one.
    query = found.get("q") or _Found(found["kv"].cuts if "kv" in found else ())
    key = found.get("kv") or _Found(query.cuts)
    if len(query.cuts) != len(key.cuts):
        return None
    queries, query_origin, query_end = _placed("q", query, required, mask)
    keys, key_origin, key_end = _placed("kv", key, required, mask)
    return Space(queries, keys, query_origin, key_origin, query_end, key_end)


def _placed(
    position: Position, grid: _Found, required: Sequence[Expr], mask: Sequence[Expr]
) -> tuple[tuple[Side, ...], Expr, Expr | None]:
    """The axes of a grid, its first position, and the one after its last if others may follow."""
    origin, tokens = grid.origin, grid.tokens
    if tokens is None:
        return _sides(position, grid), origin, None
    if is_whole(position, origin, tokens, mask):
        if origin == ZERO:
            return _sides(position, grid, const(tokens)), ZERO, None
        # Queries are the last tokens: the rows before theirs are left out.
        grid = replace(grid, origin=_last_rows((*grid.cuts, 1)[0]))
        return _sides(position, grid), grid.origin, None
    end = simplify(binary("add", origin, const(tokens)))
    if not _says(required, binary("le", binary("add", Index(position, I32), const(1)), end)):
        return _sides(position, grid), origin, None
    return _sides(position, grid, most=tokens), origin, end


def _last_rows(row: int) -> Expr:
    """Where the row of the grid begins that holds the first query, counted from that query."""
    before = binary("floordiv", unary("neg", FROM_END), const(row))
    return simplify(binary("add", FROM_END, binary("mul", const(row), before)))


def is_whole(position: Position, origin: Expr, tokens: int, mask: Sequence[Expr]) -> bool:
    """Whether the call checks that a grid ends with the last position, and starts with the first or before.

    Not where the mask itself asks whether a position comes after the grid: then there may be such positions.
    """
    if origin != ZERO and not (position == "q" and linear(origin) == linear(FROM_END)):
        return False
    inside = linear(binary("sub", Index(position, I32), binary("add", origin, const(tokens - 1))))
    outside = linear(unary("neg", binary("sub", to_expr(inside), const(1))))
    return not any(form in (inside, outside) for e in mask for form in at_most_zero(e))


# The origin of queries that are the last tokens of the grid of keys.
FROM_END = binary("sub", Index("q_len", I32), Index("kv_len", I32))


def starts_where(space: Space, position: Position, required: Sequence[Expr]) -> bool:
    """Whether no pair has a query, or key, before the first point of ``space``."""
    origin = space.origin(position)
    if origin == ZERO or _says(required, binary("le", origin, Index(position, I32))):
        return True
    return position == "q" and linear(origin) == linear(_last_rows(space.query[0].stride))


def is_from_end(x: Expr) -> bool:
    """Whether ``x`` is the position of the key that a query meets where the last ones meet."""
    return linear(x) == linear(binary("sub", Index("q", I32), FROM_END))


def first_position(space: Space) -> Expr:
    """``query_origin``, in a form that shows where it is never positive."""
    row = space.query[0].stride
    if linear(space.query_origin) != linear(_last_rows(row)):
        return space.query_origin
    return simplify(unary("neg", binary("mod", unary("neg", FROM_END), const(row))))


def _says(required: Sequence[Expr], comparison: Expr) -> bool:
    """Whether ``comparison`` follows from one of ``required``, because that asks for no more of the same sum."""
    (wanted,) = at_most_zero(comparison)
    return any(x.terms == wanted.terms and x.constant >= wanted.constant for e in required for x in at_most_zero(e))


def origin_of(e: Expr, position: Position) -> Expr | None:
    """``o`` where ``e`` is ``position - o``, and ``o`` is the same for all pairs and heads."""
    form = linear(e)
    terms = dict(form.terms)
    if terms.pop((Index(position, I32),), 0) != 1:
        return None
    rest = to_expr(Linear(-form.constant, tuple((m, -c) for m, c in terms.items())))
    return simplify(rest) if is_uniform(rest) else None


def inferred_space(conditions: Sequence[Expr]) -> Space | None:
    """The space that remainders make: a grid 32 wide of ``q % 32``, and of ``(q // 32 - kv // 32) % 4``."""
    found: list[int] = []
    for condition in conditions:
        for e in walk(condition):
            match e:
                case Binary("mod", a, Const(value=w)) if w > 1 and e.type.is_integer:
                    quotients = [int(x.b.value) for x in walk(a) if _is_quotient(x) and isinstance(x.b, Const)]
                    match [_plain(x) for (x, *_), _ in linear(a).terms if not is_settled(x)]:
                        case [Index()]:
                            found.append(int(w))
                        case [Binary("floordiv") as x] if quotients and x == _plain(a):
                            found += [quotients[0], quotients[0] * int(w)]
                        case _:
                            found += quotients
    grid = _Found(_chain(found))
    return Space(_sides("q", grid), _sides("kv", grid)) if grid.cuts else None


def _is_quotient(e: Expr) -> TypeGuard[Binary]:
    """Whether ``e`` is a position divided by a constant."""
    match e:
        case Binary("floordiv", a, Const(value=v)):
            return v > 1 and isinstance(_plain(a), Index)
        case _:
            return False


def _plain(e: Expr) -> Expr:
    return e.x if isinstance(e, Cast) else e


def _chain(cuts: Sequence[int]) -> tuple[int, ...]:
    """Those of ``cuts`` that divide each other, the first ones first, from the largest."""
    kept: set[int] = set()
    for cut in cuts:
        if cut > 1 and all(cut % x == 0 or x % cut == 0 for x in kept):
            kept.add(cut)
    return tuple(sorted(kept, reverse=True))


def axes_of(position: Position, cuts: tuple[int, ...], tokens: Expr | None = None) -> tuple[Side, ...]:
    """The axes of a grid cut at ``cuts``, of ``tokens`` in whole rows, or of all positions there are."""
    return _sides(position, _Found(cuts), tokens)


def _sides(position: Position, grid: _Found, tokens: Expr | None = None, most: int | None = None) -> tuple[Side, ...]:
    """The axes of a grid of so many tokens in whole rows, or of as many as there are positions, or at most so many."""
    strides = (*grid.cuts, 1)
    length = binary("sub", Index(f"{position}_len", I32), grid.origin) if tokens is None else tokens
    is_cut = tokens is None and strides[0] > 1
    size = binary("floordiv", binary("add", length, const(strides[0] - 1 if is_cut else 0)), const(strides[0]))
    if most is not None:
        size = binary("min", size, const(most // strides[0]))
    inner = (Side(stride, const(wider // stride)) for wider, stride in pairwise(strides))
    return (Side(strides[0], simplify(size), is_cut), *inner)
