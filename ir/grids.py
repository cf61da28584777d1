"""What makes a grid of tokens valid: its sizes, and other grids of the same position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .errors import ParameterError
from .location import Location
from .nodes import Coordinate, Index
from .traverse import walk
from .variant import Variant

MOST_TOKENS = 2**28 - 1  # as many positions as there can be


def shape(sizes: Sequence[int]) -> str:
    """Sizes as people write them.

    >>> shape((4, 16, 32))
    '4 × 16 × 32'
    """
    return " × ".join(map(str, sizes))


def check_grid_sizes(sizes: Sequence[int], location: Location | None) -> None:
    """Raises :class:`ParameterError` unless every size is positive and the tokens can be counted."""
    if not sizes:
        raise ParameterError("a grid has at least one axis", location=location, hint="write rg.grid(height, width)")
    for axis, size in enumerate(sizes):
        if size < 1:
            raise ParameterError(
                f"axis {axis} of the grid {shape(sizes)} has size {size}; sizes are at least 1", location=location
            )
    if math.prod(sizes) > MOST_TOKENS:
        raise ParameterError(
            f"the grid {shape(sizes)} has {math.prod(sizes)} tokens; lengths are below 2**28", location=location
        )


def check_grids(v: Variant) -> None:
    """Raises :class:`ParameterError` where one position is read in grids of different numbers of tokens."""
    first: dict[str, Coordinate] = {}
    for name, e in read_in_grids(v):
        other = first.setdefault(name, e)
        if math.prod(other.sizes) != math.prod(e.sizes):
            raise ParameterError(
                f"`{name}` is read in a grid of {shape(other.sizes)} = {math.prod(other.sizes)} tokens and in one of "
                f"{shape(e.sizes)} = {math.prod(e.sizes)}: no length is both",
                location=e.loc,
                hint="use one grid for both, or one for `q` and another for `kv`",
            )


def read_in_grids(v: Variant) -> Iterator[tuple[str, Coordinate]]:
    """The positions that are read in grids as they are: names and coordinates."""
    for whole in (v.mask, *v.scores):
        for e in walk(whole):
            match e:
                case Coordinate(Index("q" | "kv" as name)):
                    yield name, e
