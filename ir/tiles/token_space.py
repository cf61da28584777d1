"""The axes of a token space: which grids a mask reads positions in, declared or told from its divisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

from ..bounds import POSITION, Range
from ..build import binary, const
from ..nodes import Binary, Cast, Const, Coordinate, Expr, Index
from ..symbolic import simplify
from ..traverse import walk
from ..types import I32
from .digits import digit
from .plan import Side

Position = Literal["q", "kv"]


@dataclass(frozen=True, slots=True)
class Space:
    """Queries and keys as points of grids of equally many axes, outermost first."""

    query: tuple[Side, ...]
    key: tuple[Side, ...]

    def sides(self, position: Position) -> tuple[Side, ...]:
        return self.query if position == "q" else self.key

    def table(self) -> dict[Index, Expr]:
        """Positions as sums of the coordinates ``q0``, ``q1`` … and ``kv0``, ``kv1`` …"""
        return {
            Index(position, I32): total(
                binary("mul", const(side.stride), digit(f"{position}{i}"))
                for i, side in enumerate(self.sides(position))
            )
            for position in ("q", "kv")
        }

    def ranges(self) -> dict[str, Range]:
        """The values that the coordinates can take."""
        return {
            f"{position}{i}": (0, side.size.value - 1 if isinstance(side.size, Const) else POSITION[1])
            for position in ("q", "kv")
            for i, side in enumerate(self.sides(position))
        }


def total(terms: Iterable[Expr]) -> Expr:
    """The sum of ``terms`` in normal form."""
    result: Expr = const(0)
    for x in terms:
        result = binary("add", result, x)
    return simplify(result)


def declared_space(mask: Expr) -> Space | None:
    """The space of the grids that ``mask`` reads its positions in; one axis where there is none.

    None where the grids of queries and keys have different numbers of axes.
    """
    cuts: dict[Position, tuple[int, ...]] = {}
    tokens: dict[Position, int] = {}
    for e in walk(mask):
        match e:
            case Coordinate(Index("q" | "kv" as name), _, sizes):
                position: Position = "q" if name == "q" else "kv"
                strides = [prod(sizes[i:]) for i in range(1, len(sizes))]
                cuts[position] = _chain((*cuts.get(position, ()), *strides))
                tokens[position] = prod(sizes)
    return _space(cuts, tokens)


def inferred_space(conditions: Sequence[Expr]) -> Space | None:
    """The space that remainders of single positions make: ``q % 32`` is a coordinate of a grid 32 wide."""
    found: list[int] = []
    for condition in conditions:
        for e in walk(condition):
            match e:
                case Binary("mod", a, Const(value=w)) if w > 1 and e.type.is_integer:
                    match _plain(a):
                        case Index("q0" | "kv0"):
                            found.append(int(w))
                        case Binary("floordiv", b, Const(value=v)) if v > 0 and isinstance(_plain(b), Index):
                            found += [int(v), int(v * w)]
    cuts = _chain(found)
    return _space({"q": cuts, "kv": cuts}, {}) if cuts else None


def _plain(e: Expr) -> Expr:
    return e.x if isinstance(e, Cast) else e


def _chain(cuts: Sequence[int]) -> tuple[int, ...]:
    """Those of ``cuts`` that divide each other, the first ones first, from the largest."""
    kept: set[int] = set()
    for cut in cuts:
        if cut > 1 and all(cut % x == 0 or x % cut == 0 for x in kept):
            kept.add(cut)
    return tuple(sorted(kept, reverse=True))


def _space(cuts: dict[Position, tuple[int, ...]], tokens: dict[Position, int]) -> Space | None:
    # A position that is read in no grid is cut as the other one.
    query = cuts.get("q", cuts.get("kv", ()))
    key = cuts.get("kv", query)
    if len(query) != len(key):
        return None
    return Space(_sides("q", query, tokens.get("q")), _sides("kv", key, tokens.get("kv")))


def _sides(position: Position, cuts: tuple[int, ...], tokens: int | None) -> tuple[Side, ...]:
    strides = (*cuts, 1)
    length = binary("add", Index(f"{position}_len", I32), const(strides[0] - 1))
    size = simplify(binary("floordiv", length, const(strides[0]))) if tokens is None else const(tokens // strides[0])
    inner = (Side(stride, const(wider // stride)) for wider, stride in pairwise(strides))
    return (Side(strides[0], size), *inner)
