"""Counting boxes where axes depend on each other, axis after axis, by what later axes read of those before.

Of the boxes along some axes, with the boxes that each of them visits, later axes read a few numbers only: how far apart
they are, say. All that agree in these are counted as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..nodes import TILE_NAMES, Expr, Value
from ..traverse import index_names, taken_apart, value_names
from .box_walk import Tiles, along, class_names, full_boxes, is_of_box, names_in, products, walk_boxes
from .narrowing import run_of
from .numeric import CHUNK, Array, Runs, Values, different, read, runs
from .plan import Interval, Ranges
from .token_space import POSITIONS


@dataclass(frozen=True, slots=True)
class Kinds:
    """Boxes with a box that each visits, along all axes so far, as later axes see them: arrays (kinds,).

    ``weights``: how many there are of a kind; ``certain``: whether these are full as far as they are known.
    """

    values: dict[str, Array]
    weights: Array
    certain: Array


def count_within(
    ranges: Sequence[Ranges], tiles: Sequence[Tiles], sides: Sequence[int], env: Values, spare: bool = True
) -> tuple[int, int]:
    """How many boxes of such ``sides`` all boxes of queries visit, and how many of them are full.

    ``tiles``: all runs of queries along each axis; ``env`` is of one batch item and head. As in
    :func:`~.box_walk.walk_boxes`, which says what of one box each.
    """
    if reads_later_classes(ranges):
        return _each_apart(ranges, tiles, sides, env, spare)
    *outer, last = tiles
    found, within = kinds_outside(ranges, outer, sides[:-1], last, env, spare)
    return count_last(found, within, last, sides[-1], len(outer), env, spare)


def count_last(
    found: Kinds, ranges: Ranges, own: Tiles, side: int, axis: int, env: Values, spare: bool = False
) -> tuple[int, int]:
    """:func:`count_within` from what the last axis sees of those before it."""
    visited = full = 0
    for kind, tile, at in _with_tiles(found, own, axis):
        may, must = _runs(ranges, tile, {**env, **at})
        weights = found.weights[kind] * tile.copies
        visited += int((_counts(may, side, axis > 0 and spare).sum(0) * weights).sum())
        full += int((full_boxes(may, must, side) * weights)[found.certain[kind]].sum())
    return visited, full


def reads_later_classes(ranges: Sequence[Ranges]) -> bool:
    """Whether axes read classes of later ones: then these cannot come after them."""
    later = [{f"block {i}", f"residue {i}"} for i in range(len(ranges))]
    return any(names_in(ranges[:i]) & later[i] for i in range(len(ranges)))


def kinds_outside(
    ranges: Sequence[Ranges], tiles: Sequence[Tiles], sides: Sequence[int], last: Tiles, env: Values, spare: bool
) -> tuple[Kinds, Ranges]:
    """What the ``last`` axis sees of those before it, whose ``tiles`` are given, and its ranges over these values."""
    found = Kinds({}, np.ones(1, np.int64), np.ones(1, bool))
    known = frozenset[str]()
    for axis, (own, side) in enumerate(zip(tiles, sides, strict=True)):
        now, later = ranges[axis], ranges[axis + 1 :]
        of_axis = {*class_names(axis, own), *(name.name for x in POSITIONS for name in run_of(x, axis))}
        ends, parts = taken_apart(_ends(later), {f"axis {axis}": known | of_axis}, _names)
        ranges = [*ranges[: axis + 1], *_with_ends(later, ends)]
        read_later = parts[f"axis {axis}"]
        known = frozenset(x.name for x in read_later.values())
        # Ends of ranges beyond all coordinates are alike.
        alone = {e.name for e in ends if isinstance(e, Value)} if len(later) == 1 else set()
        alone -= frozenset().union(*(value_names(e) for e in ends if not isinstance(e, Value)))
        within = last.low.min(initial=0), last.high.max(initial=0)
        kinds = []
        for kind, tile, of_tiles in _with_tiles(found, own, axis):
            may, must = _runs(now, tile, {**env, **of_tiles})
            counts = _counts(may, side, axis > 0 and spare)
            run, box = np.nonzero(counts)
            repeats = counts[run, box]
            number = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            run, box = np.repeat(run, repeats), np.repeat(box, repeats)
            first = may.starts[run, box] + number * side
            end = np.minimum(first + side, may.stops[run, box])
            inside = ((must.starts[:, box] <= first) & (end <= must.stops[:, box])).any(0) & (first < end)
            at = {name: x[box] for name, x in of_tiles.items()}
            at |= along("q", axis, tile.first[box], tile.last[box]) | along("kv", axis, first, end - 1)
            values = {x.name: _of_each(read(e, {**env, **at}), len(box)) for e, x in read_later.items()}
            values |= {name: np.clip(values[name], *within) for name in alone & values.keys()}
            kinds.append(_merged(values, (found.weights[kind] * tile.copies)[box], found.certain[kind][box] & inside))
        found = _joined(kinds)
    return found, ranges[-1]


def _with_tiles(found: Kinds, own: Tiles, axis: int) -> Iterator[tuple[Array, Tiles, dict[str, Array]]]:
    """Every kind with every run along the next axis, some at a time, and what ranges along it read of both."""
    tiles = len(own.first)
    count = len(found.weights) * tiles
    for start in range(0, count, CHUNK // 64):
        kind, place = np.divmod(np.arange(start, min(start + CHUNK // 64, count)), tiles)
        tile = own[place]
        at = {name: x[kind][:, None] for name, x in found.values.items()} | class_names(axis, tile)
        yield kind, tile, at | {"block": tile.block[:, None], "residue": tile.residue[:, None]}


def _each_apart(
    ranges: Sequence[Ranges], tiles: Sequence[Tiles], sides: Sequence[int], env: Values, spare: bool
) -> tuple[int, int]:
    """The same box by box, where axes read classes of later ones."""
    visited = full = 0
    for own in products(tiles):
        alike = np.prod([t.copies for t in own], axis=0)
        found = walk_boxes(ranges, own, [np.full(len(alike), n) for n in sides], env, spare=spare)
        visited, full = visited + int((found.visited * alike).sum()), full + int((found.full * alike).sum())
    return visited, full


def _runs(ranges: Ranges, tile: Tiles, at: Values) -> tuple[Runs, Runs]:
    """What each run of queries may see along an axis, and what all of it sees: (k, runs)."""
    may, must = (runs(union, tile.first, tile.last, tile.high, at, low=tile.low) for union in (ranges.may, ranges.must))
    return Runs(may.starts[:, 0, 0], may.stops[:, 0, 0]), Runs(must.starts[:, 0, 0], must.stops[:, 0, 0])


def _counts(may: Runs, side: int, spare: bool) -> Array:
    """How many boxes of ``side`` coordinates lie in each run that may be seen."""
    counts = -(-(may.stops - may.starts) // side)
    if spare:
        counts[-1] += counts.sum(0) == 0
    return np.asarray(counts)


def _of_each(x: Array, count: int) -> Array:
    return np.broadcast_to(x, (1, 1, count, 1)).ravel()


def _merged(values: dict[str, Array], weights: Array, certain: Array) -> Kinds:
    """Those that agree in all ``values``, as one."""
    which, kind = different([certain, *values.values()], len(weights))
    total = np.zeros(len(which), np.int64)
    np.add.at(total, kind, weights)
    return Kinds({name: x[which] for name, x in values.items()}, total, certain[which])


def _joined(parts: Sequence[Kinds]) -> Kinds:
    if not parts:
        return Kinds({}, np.zeros(0, np.int64), np.zeros(0, bool))
    values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    return _merged(values, np.concatenate([p.weights for p in parts]), np.concatenate([p.certain for p in parts]))


def _names(e: Expr) -> frozenset[str]:
    """What of ``e`` differs from box to box."""
    return value_names(e) | {name for name in index_names(e) if is_of_box(name) or name in TILE_NAMES}


def _ends(ranges: Sequence[Ranges]) -> list[Expr]:
    return [e for r in ranges for i in (*r.may, *r.must) for e in (i.start, i.stop)]


def _with_ends(ranges: Sequence[Ranges], ends: list[Expr]) -> list[Ranges]:
    """``ranges`` with other :func:`_ends`."""
    left = iter(ends)
    return [
        Ranges(*(tuple(Interval(next(left), next(left)) for _ in union) for union in (r.may, r.must))) for r in ranges
    ]
