"""Which boxes a tile should be: sides, powers of two, that visit the fewest tiles of a mask at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from .box_count import axes_of_heads, count_boxes, counter_along, tiles_along
from .numeric import Sizes, Values
from .plan import BoxAxis, BoxTerm

# Shapes whose boxes are counted one by one, where axes depend on each other.
_COUNTED = 16


@dataclass(frozen=True, slots=True)
class Boxes:
    """Sides of the boxes of queries and keys along every axis, and how many pairs of them are visited.

    A side counts coordinates inside of a class; ``visited`` is for one batch item and head, the most of any.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    visited: int

    def __str__(self) -> str:
        return f"{_sides(self.queries)} queries by {_sides(self.keys)} keys"


def _sides(sides: tuple[int, ...]) -> str:
    return " × ".join(map(str, sides))


def choose_boxes(term: BoxTerm, sizes: Sizes, values: Values, block_m: int, block_n: int) -> Boxes:
    """The boxes of at most ``block_m`` queries and ``block_n`` keys (powers of two) that visit the fewest tiles.

    Boxes of keys start where the first key is that a box of queries sees. Of equal choices the one with the largest
    innermost sides is taken, whose rows lie together in memory.
    """
    sides = [_useful_sides(axis, sizes, values, max(block_m, block_n)) for axis in term.axes]

    counters = [counter_along(axis, sizes, values) for axis in term.axes]

    @cache
    def visited(axis: int, m: int, n: int) -> int:
        return int(np.max(counters[axis](m, n).visited, initial=0))

    def rank(b: Boxes) -> tuple[int, list[int]]:
        return b.visited, [-side for side in (*b.queries[::-1], *b.keys[::-1])]

    choices = (
        Boxes(queries, keys, prod(visited(i, m, n) for i, (m, n) in enumerate(zip(queries, keys, strict=True))))
        for queries in _boxes(sides, block_m)
        for keys in _boxes(sides, block_n)
    )
    if term.is_nested:
        return min((_counted(term, b, sizes, values) for b in _compared(sorted(choices, key=rank))), key=rank)
    return min(choices, key=rank)


def _compared(choices: list[Boxes]) -> list[Boxes]:
    """Of ``choices``, the best by what axes allow one by one first, some whose boxes are to be counted one by one."""
    alike = [b for b in choices if all(max(x) <= 2 * min(x) for x in zip(b.queries, b.keys, strict=True))]
    return (alike or choices)[:_COUNTED]


def _counted(term: BoxTerm, b: Boxes, sizes: Sizes, values: Values) -> Boxes:
    visited, _ = count_boxes(term, b.queries, b.keys, sizes, values)
    return Boxes(b.queries, b.keys, visited // max(sizes.batch * sizes.heads, 1))


def _useful_sides(axis: BoxAxis, sizes: Sizes, values: Values, most: int) -> list[int]:
    """Powers of two up to the first that holds a whole class."""
    every = [tiles_along(one, 2**28, sizes, values) for one, _ in axes_of_heads(axis, sizes, values)]
    longest = max(int(np.max([*(t.last - t.first + 1), *(t.high - t.low)], initial=1)) for t in every)
    return [1 << i for i in range(min((longest - 1).bit_length(), most.bit_length() - 1) + 1)]


def _boxes(sides: list[list[int]], count: int) -> Iterator[tuple[int, ...]]:
    """All boxes of ``count`` coordinates, or of as many as the axes have if those are fewer."""
    if not sides:
        yield ()
        return
    most = prod(s[-1] for s in sides[1:])
    for side in sides[0]:
        if side <= count and (side * most >= count or side == sides[0][-1]):
            for rest in _boxes(sides[1:], count // side):
                yield (side, *rest)
