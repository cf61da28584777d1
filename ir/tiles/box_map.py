"""The class of every pair of boxes, for pictures: class after class of the token space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod

import numpy as np

from ..build import const
from ..interpret import evaluate
from .box_count import Tiles, ranges_of, tiles_along
from .numeric import Array, Sizes, Values, leaves
from .plan import BoxTerm


@dataclass(frozen=True, slots=True)
class BoxMap:
    """``tiles``: 0 empty, 1 partial, 2 full; int8 (batch or 1, head or 1, boxes of queries, boxes of keys).

    Boxes come class by class, in each of them axis by axis, the last fastest. Those of keys start where their class
    does. ``row_ends`` and ``column_ends``: the box after each class; ``shown`` of ``total`` classes are there.
    """

    tiles: Array
    row_ends: Array
    column_ends: Array
    shown: int
    total: int


def box_map(
    term: BoxTerm, queries: tuple[int, ...], keys: tuple[int, ...], sizes: Sizes, values: Values, most: int
) -> BoxMap:
    """The map for boxes of such sides: of all classes, or of the first along every axis that make ``most`` rows.

    All heads have the same classes: see :func:`~.box_count.term_of_head`.
    """
    every_row = [tiles_along(a, m, sizes, values, each=True) for a, m in zip(term.axes, queries, strict=True)]
    total = prod(len(_classes(rows)) for rows in every_row)
    every_row = _first_classes(every_row, most)
    may = must = np.ones((1, 1, 1, 1), bool)
    every_column: list[Tiles] = []
    for axis, rows, n in zip(term.axes, every_row, keys, strict=True):
        mirrored = replace(axis, query=axis.key, key=axis.query, shift=const(0))
        columns = tiles_along(mirrored, n, sizes, values, each=True)
        shift = int(evaluate(axis.shift, leaves(sizes, values)))
        same = (rows.block[:, None] == columns.block) & (
            (rows.residue[:, None] + shift) % axis.residue == columns.residue
        )
        columns, same = _picked(columns, same.any(0)), same[:, same.any(0)]
        some, every = (ranges_of(rows, union, sizes, values) for union in (axis.keys.may, axis.keys.must))
        start, stop = (x[..., None] for x in (some.starts, some.stops))
        touched = ((start <= columns.last) & (stop > columns.first) & (start < stop)).any(0) & same
        start, stop = (x[..., None] for x in (every.starts, every.stops))
        covered = ((start <= columns.first) & (stop > columns.last)).any(0) & same
        may, must = _outer(may, touched), _outer(must, covered)
        every_column.append(columns)
    tiles = may.astype(np.int8) + (may & must)
    (row_order, row_ends), (column_order, column_ends) = map(_class_by_class, (every_row, every_column))
    return BoxMap(tiles[:, :, row_order][..., column_order], row_ends, column_ends, len(row_ends), total)


def _first_classes(every: Sequence[Tiles], most: int) -> list[Tiles]:
    """The tiles of so many classes along each axis that their product has about ``most`` tiles, or one class each."""
    classes = [_classes(t) for t in every]
    kept = [len(x) for x in classes]
    while prod(len(t.first) * k // len(c) for t, k, c in zip(every, kept, classes, strict=True)) > most < prod(kept):
        widest = int(np.argmax(kept))
        kept[widest] = -(-kept[widest] // 2)
    found = []
    for tiles, all_of_them, count in zip(every, classes, kept, strict=True):
        name = np.stack([tiles.block, tiles.residue], -1)
        found.append(_picked(tiles, (name[:, None] == all_of_them[:count]).all(-1).any(1)))
    return found


def _classes(tiles: Tiles) -> Array:
    """Block and residue of each class, (classes, 2)."""
    return np.unique(np.stack([tiles.block, tiles.residue], -1), axis=0)


def _picked(tiles: Tiles, which: Array) -> Tiles:
    return Tiles(**{f.name: getattr(tiles, f.name)[which] for f in fields(Tiles)})


def _class_by_class(tiles: Sequence[Tiles]) -> tuple[Array, Array]:
    """The order of the products of ``tiles`` in which those of one class stand together, and where classes end."""
    counts = [len(t.first) for t in tiles]
    places = np.unravel_index(np.arange(prod(counts)), counts)
    names = [x[place] for t, place in zip(tiles, places, strict=True) for x in (t.block, t.residue)]
    order = np.lexsort((np.arange(prod(counts)), *reversed(names)))
    last = (np.diff(np.stack(names)[:, order], axis=1) != 0).any(0)
    return order, np.append(np.flatnonzero(last) + 1, len(order)) if len(order) else np.zeros(0, np.int64)


def _outer(a: Array, b: Array) -> Array:
    """All pairs of rows of ``a`` and ``b`` as rows, and of columns as columns."""
    product = a[:, :, :, None, :, None] & b[:, :, None, :, None, :]
    return product.reshape(*product.shape[:2], a.shape[2] * b.shape[2], a.shape[3] * b.shape[3])
