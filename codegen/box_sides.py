"""Shapes of boxes: the few of which every kernel is compiled for one, before lengths and parameters are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

from ..ir.nodes import TILE_NAMES, Const
from ..ir.tiles.plan import BoxAxis
from ..ir.traverse import index_names

# Shapes that one module may be compiled for, and the smallest box that products take.
SHAPES = 4
_SMALLEST = 16
# Keys that a query may see along an axis, as far as they are guessed here; and the length of an axis of no fixed one.
_WIDTHS = (3, 5, 7, 9, 11, 13, 17, 21, 27, 33)
_LONG = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """Sides of boxes of queries and keys along every axis."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]


def box_shapes(axes: Sequence[BoxAxis], own: Literal["q", "k"], block_m: int, block_n: int) -> tuple[Shape, ...]:
    """Up to four shapes of at most ``block_m`` queries by ``block_n`` keys, of which one suits any window.

    Boxes of ``own`` visit those of the other. The first shape is the best for most; classes that are smaller make
    boxes smaller.
    """
    extents = [_extent(a) for a in axes]
    shapes = [Shape(q, k) for q in _boxes(extents, block_m) for k in _boxes(extents, block_n)]
    windows = _windows(axes, extents)

    @cache
    def boxes_along(axis: int, own: int, other: int, width: int) -> int:
        return -(-extents[axis] // own) * -(-min(own + width - 1, extents[axis]) // other)

    costs = {}
    for s in shapes:
        pairs = list(zip(s.queries, s.keys, strict=True) if own == "q" else zip(s.keys, s.queries, strict=True))
        costs[s] = [prod(boxes_along(i, *sides, w[i]) for i, sides in enumerate(pairs)) for w in windows]
    best = [min(c[i] for c in costs.values()) for i in range(len(windows))]
    chosen: list[Shape] = []
    reached = [float("inf")] * len(windows)
    while len(chosen) < SHAPES:
        loss = {s: sum(min(r, c / b) for r, c, b in zip(reached, costs[s], best, strict=True)) for s in shapes}
        found = min(shapes, key=lambda s: (round(loss[s], 6), [-x for x in (*s.queries[::-1], *s.keys[::-1])]))
        if chosen and loss[found] >= sum(reached) * 0.999:
            break
        chosen.append(found)
        reached = [min(r, c / b) for r, c, b in zip(reached, costs[found], best, strict=True)]
    return tuple(chosen)


def _extent(axis: BoxAxis) -> int:
    if axis.block:
        return axis.block // axis.residue
    sizes = [s.size.value if isinstance(s.size, Const) else _LONG * axis.residue for s in (axis.query, axis.key)]
    return max(-(-int(max(sizes)) // axis.residue), 1)


def _follows(axis: BoxAxis) -> bool:
    """Whether what is seen along an axis moves with the query, so that it may be narrow."""
    return any(index_names(i.start) & set(TILE_NAMES) and index_names(i.stop) & set(TILE_NAMES) for i in axis.keys.may)


def _windows(axes: Sequence[BoxAxis], extents: list[int]) -> list[tuple[int, ...]]:
    """Windows to suit: as wide along every axis, up to half of it, or half as wide along one of them."""
    moving = [i for i, a in enumerate(axes) if _follows(a)]
    found = []
    for width in _WIDTHS if moving else (_LONG,):
        for narrow in (None, *moving) if len(moving) > 1 else (None,):
            chosen = {i: min(width // 2 + 1 if i == narrow else width, extents[i] // 2 + 1) for i in moving}
            found.append(tuple(chosen.get(i, e) for i, e in enumerate(extents)))
    return found


def _boxes(extents: list[int], count: int) -> list[tuple[int, ...]]:
    """All boxes of ``count`` tokens, or of as many as the axes have, but no fewer than products take."""
    most = [1 << (e - 1).bit_length() for e in extents]
    count = min(count, max(prod(most), _SMALLEST))
    if prod(most) < count:
        most[0] *= count // prod(most)
    return list(_sides(most, count))


def _sides(most: list[int], count: int) -> Iterator[tuple[int, ...]]:
    if not most:
        yield from ((),) if count == 1 else ()
        return
    side = 1
    while side <= min(most[0], count):
        yield from ((side, *rest) for rest in _sides(most[1:], count // side))
        side *= 2
