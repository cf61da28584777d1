"""Lengths of a call against the grids that a mask reads positions in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache

from .errors import ArgumentError
from .grids import read_in_grids, shape
from .nodes import ZERO, Binary, Coordinate, Index
from .passes import after_pipeline
from .tiles.boxes import is_checked
from .tiles.divided import DividedGrid, divided_grids, fit_of
from .tiles.plan import Fit
from .tiles.token_space import FROM_END, Position, is_from_end
from .traverse import index_names, walk
from .types import I32
from .variant import Variant


def check_lengths(v: Variant, q_len: int, kv_len: int) -> None:
    """Raises :class:`ArgumentError` where queries or keys are not as many as the tokens of their grid.

    Where the mask asks whether a position comes after the grid (``q < 512``), any length will do.
    """
    for name, e in _read(v):
        # Where the last positions meet, queries are the last tokens of the grid of keys, and may be fewer.
        last = name == "q" and (v.align == "end" or not isinstance(e.x, Index))
        what, length = ("queries", q_len) if name == "q" and not last else ("keys", kv_len)
        tokens = math.prod(e.sizes)
        if length != tokens and not _asks_for_its_end(v, e, last):
            raise ArgumentError(
                f"there are {length} {what}, but the grid {shape(e.sizes)} of `{name}` has {tokens} tokens",
                location=e.loc,
                hint=f"pass {tokens} {what}, or build the mask for a grid of {length} tokens; where others come after "
                f"it, the mask must ask for them: `{name} < {tokens}`",
            )
        if last and q_len > kv_len:
            raise ArgumentError(
                f"there are {q_len} queries, which should be the last of {kv_len} tokens of a grid",
                location=e.loc,
                hint="pass as many keys as queries at least",
            )


def fit_of_lengths(v: Variant, q_len: int, kv_len: int) -> Fit:
    """How lengths fit the grids that the mask of ``v`` divides positions into."""
    return fit_of(_divided_by(v), q_len, kv_len)


@lru_cache(maxsize=64)
def _divided_by(v: Variant) -> Mapping[Position, DividedGrid]:
    divides = any(isinstance(e, Binary) and e.op == "mod" for whole in (v.mask, *v.scores) for e in walk(whole))
    return divided_grids(after_pipeline(v).mask) if divides else {}


def _asks_for_its_end(v: Variant, e: Coordinate, last: bool) -> bool:
    """Whether the mask compares the position that ``e`` reads with the number of tokens of its grid."""
    position: Position = "kv" if e.x == Index("kv", I32) else "q"
    return not is_checked(after_pipeline(v).mask, position, FROM_END if last else ZERO, math.prod(e.sizes))


def _read(v: Variant) -> Iterator[tuple[str, Coordinate]]:
    """Positions that are read in grids as they are, or counted from where the last ones meet."""
    yield from read_in_grids(v)
    for whole in (v.mask, *v.scores):
        for e in walk(whole):
            if isinstance(e, Coordinate) and index_names(e.x) == {"q", "q_len", "kv_len"} and is_from_end(e.x):
                yield "q", e
