"""Counting over boxes: pairs and tiles of one call in closed form, axis by axis.

Where axes do not depend on each other, what is counted along each multiplies: nothing grows with the number of tokens,
only with the lengths of the axes. Else boxes are counted one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ..build import const
from ..interpret import evaluate
from ..nodes import Const
from .box_walk import Tiles, class_names, full_boxes, names_in, ranges_within
from .nested_count import Kinds, count_last, count_within, kinds_outside, reads_later_classes
from .numeric import Array, Runs, Sizes, Values, copies_of, each_copy, leaves, runs
from .plan import BoxAxis, BoxTerm, Interval, Ranges
from .stretches import positions_of_rows

# Classes that differ are looked at one by one as long as they are so few.
_FEW_CLASSES = 64
# An axis no longer than this is counted coordinate by coordinate.
_FEW_ROWS = 2**12
# Where axes depend on each other: pairs of coordinates along all axes but the last that are looked at, at most, and
# queries along the last with what they read of these.
_MOST_LINES = 2**20


@dataclass(frozen=True, slots=True)
class AxisCount:
    """Along one axis, (batch or 1, head or 1): what may be visited, and what of it is full."""

    visited: Array
    full: Array


def axes_of_heads(axis: BoxAxis, sizes: Sizes, values: Values) -> Iterator[tuple[BoxAxis, Array]]:
    """``axis`` with numbers for what makes its classes differ, and who has those: bool (batch or 1, head or 1)."""
    if isinstance(axis.offset, Const) and isinstance(axis.shift, Const):
        yield axis, np.ones((1, 1), bool)
        return
    env = leaves(sizes, values)
    facts = np.broadcast_arrays(evaluate(axis.offset, env), evaluate(axis.shift, env), np.zeros((1, 1, 1, 1)))
    numbers = np.stack(facts[:2])[..., 0, 0].astype(np.int64)
    for offset, shift in np.unique(numbers.reshape(2, -1), axis=1).T:
        alike = (numbers == np.array([offset, shift])[:, None, None]).all(0)
        yield replace(axis, offset=const(int(offset)), shift=const(int(shift))), alike


def term_of_head(term: BoxTerm, batch: int, head: int, sizes: Sizes, values: Values) -> BoxTerm:
    """``term`` with the classes that this head has."""
    axes = tuple(
        next(one for one, alike in axes_of_heads(a, sizes, values) if alike[batch % len(alike), head % alike.shape[1]])
        for a in term.axes
    )
    return replace(term, axes=axes)


def tiles_along(axis: BoxAxis, box: int, sizes: Sizes, values: Values, *, each: bool = False) -> Tiles:
    """All runs of ``box`` coordinates of queries inside of their classes; the last of a class may be shorter.

    With ``each``, classes that are alike are listed apart. They are the same for all heads: see :func:`axes_of_heads`.
    """
    env = leaves(sizes, values)
    size, keys, offset, shift = (
        int(evaluate(e, env)) for e in (axis.query.size, axis.key.size, axis.offset, axis.shift)
    )
    blocks = np.arange(-(-(size + offset) // axis.block) if axis.block else 1)
    block, residue = (x.ravel() for x in np.meshgrid(blocks, np.arange(axis.residue), indexing="ij"))
    first, end = _class_ends(axis, offset, size, block, residue)
    low, high = _class_ends(axis, offset, keys, block, (residue + shift) % axis.residue)
    facts = np.stack([first, end, low, np.maximum(high, low)])
    if each or names_in([axis.keys]) & {"block", "residue"}:
        copies = np.ones_like(first)
    else:
        facts, some, copies = np.unique(facts, axis=1, return_index=True, return_counts=True)
        block, residue = block[some], residue[some]
    first, end, low, high = facts
    count = np.maximum(-(-(end - first) // box), 0)
    which = np.repeat(np.arange(len(count)), count)
    start = first[which] + box * (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count))
    last = np.minimum(start + box, end[which]) - 1
    return Tiles(block[which], residue[which], start, last, low[which], high[which], copies[which])


def _class_ends(axis: BoxAxis, offset: int, size: int, block: Array, residue: Array) -> tuple[Array, Array]:
    """First coordinate inside of each class that exists, and the end of them."""
    before = offset - axis.block * block - residue  # coordinate + before is a multiple of the residue
    first = np.maximum(-(-before // axis.residue), 0)
    end = (size - 1 + before) // axis.residue + 1
    return first, np.minimum(end, axis.block // axis.residue) if axis.block else end


def ranges_of(tiles: Tiles, union: tuple[Interval, ...], sizes: Sizes, values: Values) -> Runs:
    """The coordinates of keys, inside of their class, that each tile of queries sees."""
    env = {**leaves(sizes, values), "block": tiles.block[:, None], "residue": tiles.residue[:, None]}
    return runs(union, tiles.first, tiles.last, tiles.high, env, low=tiles.low)


def count_along(axis: BoxAxis, boxes: tuple[int, int], sizes: Sizes, values: Values) -> AxisCount:
    """Tiles of ``boxes`` (coordinates of queries, of keys) along one axis; with (1, 1) it counts pairs.

    Tiles of keys start where the first key is that a tile of queries sees.
    """
    return counter_along(axis, sizes, values)(*boxes)


def counter_along(axis: BoxAxis, sizes: Sizes, values: Values) -> Callable[[int, int], AxisCount]:
    """:func:`count_along` for several boxes: what those of queries see is looked up once, whatever boxes of keys."""
    each = list(axes_of_heads(axis, sizes, values))

    @cache
    def seen(which: int, box: int) -> tuple[Tiles, Runs, Runs]:
        one, _ = each[which]
        tiles = tiles_along(one, box, sizes, values)
        may, must = (ranges_of(tiles, union, sizes, values) for union in (one.keys.may, one.keys.must))
        return tiles, may, must

    @cache
    def count(box: int, n: int) -> AxisCount:
        found = AxisCount(*np.zeros((2, 1, 1), np.int64))
        for which, (_, alike) in enumerate(each):
            tiles, may, must = seen(which, box)
            visited = ((-(-(may.stops - may.starts) // n)).sum(axis=0) * tiles.copies).sum(axis=-1)
            full = (full_boxes(may, must, n) * tiles.copies).sum(axis=-1)
            found = AxisCount(np.where(alike, visited, found.visited), np.where(alike, full, found.full))
        return found

    return count


def count_boxes(
    term: BoxTerm, queries: tuple[int, ...], keys: tuple[int, ...], sizes: Sizes, values: Values
) -> tuple[int, int]:
    """Visited and full tiles of a term, over all batches and heads, for boxes of such sides."""
    return box_counter(term, sizes, values)(queries, keys)


def box_counter(
    term: BoxTerm, sizes: Sizes, values: Values
) -> Callable[[tuple[int, ...], tuple[int, ...]], tuple[int, int]]:
    """:func:`count_boxes` for boxes of several sides."""
    if term.is_nested:
        return lambda queries, keys: _count_nested(term, queries, keys, sizes, values)
    counters = [counter_along(axis, sizes, values) for axis in term.axes]

    def count(queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[int, int]:
        along = [of_axis(m, n) for of_axis, m, n in zip(counters, queries, keys, strict=True)]
        return _product([a.visited for a in along], sizes), _product([a.full for a in along], sizes)

    return count


def _count_nested(
    term: BoxTerm, queries: tuple[int, ...], keys: tuple[int, ...], sizes: Sizes, values: Values
) -> tuple[int, int]:
    """:func:`count_boxes` where axes depend on each other."""
    ranges = ranges_within(term)
    each = _reads_classes(ranges)
    visited = full = 0
    for env, copies in environments(term, sizes, values):
        axes = term_of_head(term, int(env["batch"]), int(env["head"]), sizes, values).axes
        tiles = [tiles_along(a, m, sizes, values, each=each) for a, m in zip(axes, queries, strict=True)]
        found = count_within(ranges, tiles, keys, env)
        visited, full = visited + copies * found[0], full + copies * found[1]
    return visited, full


def _reads_classes(ranges: Sequence[Ranges]) -> bool:
    return any(name.startswith(("block", "residue")) for name in names_in(ranges))


def environments(term: BoxTerm, sizes: Sizes, values: Values) -> Iterator[tuple[dict[str, Any], int]]:
    """What the ranges of a term read, for each batch item and head that may differ, and how many are the same."""
    names = names_in(ranges_within(term))
    if any(a.by_head for a in term.axes):
        names |= {"batch", "head"}
    alike = sizes.batch * sizes.heads // max(prod(copies_of(names, sizes)), 1)
    for at in each_copy(names, sizes):
        yield {**leaves(sizes, values), **at}, alike


def count_pairs(term: BoxTerm, sizes: Sizes, values: Values) -> tuple[int, int]:
    """At most, and at least so many pairs belong to ``term``: equal where its axes are the whole mask.

    The least is a bound only where :func:`is_countable`.
    """
    nested = _nested_pairs(term, sizes, values) if term.is_nested else None
    if nested is not None:
        return nested
    along = [_pairs_along(axis, sizes, values) or count_along(axis, (1, 1), sizes, values) for axis in term.axes]
    return _product([a.visited for a in along], sizes), _product([a.full for a in along], sizes)


def _nested_pairs(term: BoxTerm, sizes: Sizes, values: Values) -> tuple[int, int] | None:
    """:func:`count_pairs` where axes depend on each other; None where what the last one sees are too many kinds.

    Along the last axis by stretches where these are few, else coordinate by coordinate.
    """
    ranges = ranges_within(term)
    along = [int(count_along(a, (1, 1), sizes, values).visited.max(initial=0)) for a in term.axes[:-1]]
    if prod(along) > _MOST_LINES or reads_later_classes(ranges):
        return None
    each = _reads_classes(ranges)
    most = least = 0
    for env, copies in environments(term, sizes, values):
        *outer, last = term_of_head(term, int(env["batch"]), int(env["head"]), sizes, values).axes
        tiles = [tiles_along(a, 1, sizes, values, each=each) for a in outer]
        whole = tiles_along(last, 2**28, sizes, values, each=each)
        found, within = kinds_outside(ranges, tiles, (1,) * len(outer), whole, env, spare=False)
        pairs = None
        if len(found.weights) * len(whole.first) <= _FEW_CLASSES:
            pairs = _pairs_of_kinds(found, within, whole, len(outer), env)
        if pairs is None and len(found.weights) * int((whole.last - whole.first + 1).sum()) <= _MOST_LINES:
            pairs = count_last(found, within, tiles_along(last, 1, sizes, values, each=each), 1, len(outer), env)
        if pairs is None:
            return None
        most, least = most + copies * pairs[0], least + copies * pairs[1]
    return most, least


def _pairs_of_kinds(found: Kinds, ranges: Ranges, whole: Tiles, axis: int, env: Values) -> tuple[int, int] | None:
    """At most, and at least so many pairs along the last axis, whose classes are one run each."""
    most = least = 0
    for kind in np.flatnonzero(found.weights):
        unions = (ranges.may, ranges.must) if found.certain[kind] else (ranges.may,)
        pairs = _pairs_of(whole, axis, unions, {**env, **{name: x[kind] for name, x in found.values.items()}})
        if pairs is None:
            return None
        most += pairs[0] * int(found.weights[kind])
        least += pairs[1] * int(found.weights[kind]) if found.certain[kind] else 0
    return most, least


def _pairs_along(axis: BoxAxis, sizes: Sizes, values: Values) -> AxisCount | None:
    """Pairs along one axis by stretches of coordinates; None where that is not possible, or not worth it."""
    if axis.by_head or names_in([axis.keys]) & {"batch", "head", "kv_head"}:
        return None
    whole = tiles_along(axis, 2**28, sizes, values)
    if len(whole.first) > _FEW_CLASSES or int((whole.last - whole.first + 1).sum()) <= _FEW_ROWS:
        return None
    pairs = _pairs_of(whole, 0, (axis.keys.may, axis.keys.must), leaves(sizes, values))
    return None if pairs is None else AxisCount(*(np.full((1, 1), n) for n in pairs))


def _pairs_of(whole: Tiles, axis: int, unions: Sequence[tuple[Interval, ...]], env: Values) -> list[int] | None:
    """Pairs of each union in classes, of which each is one run, by stretches; None where that is not possible."""
    totals = [0] * len(unions)
    for i in range(len(whole.first)):
        one = whole[np.array([i])]
        first, rows = int(one.first[0]), int(one.last[0] - one.first[0]) + 1
        of_class = {name: int(x[0, 0]) for name, x in class_names(axis, one).items()}
        at = {**env, **of_class, "block": int(one.block[0]), "residue": int(one.residue[0])}
        keys = positions_of_rows(unions, int(one.low[0]), int(one.high[0]), first, rows, at)
        if keys is None:
            return None
        totals = [total + n * int(one.copies[0]) for total, n in zip(totals, keys, strict=True)]
    return totals


def is_countable(term: BoxTerm, sizes: Sizes, values: Values) -> bool:
    """Whether the grid has as many tokens as there are positions: a grid told from divisions may end in a part."""
    env = leaves(sizes, values)
    outermost = term.axes[0]
    queries = (outermost.query, term.query_origin, term.query_end, sizes.q_len)
    keys = (outermost.key, term.key_origin, term.key_end, sizes.kv_len)
    for side, origin, end, length in (queries, keys):
        first, last = int(evaluate(origin, env)), length if end is None else min(int(evaluate(end, env)), length)
        if first < 0 or int(evaluate(side.size, env)) * side.stride != last - first:
            return False
    return True


def _product(counts: list[Array], sizes: Sizes) -> int:
    """The product over axes, summed over batches and heads; Python's integers, which do not wrap."""
    totals = np.broadcast_arrays(np.zeros((1, 1)), *counts)[1:]
    batches, heads = totals[0].shape
    each: list[int] = [prod(int(x[b, h]) for x in totals) for b in range(batches) for h in range(heads)]
    return int(sum(each) * (sizes.batch // batches) * (sizes.heads // heads))
