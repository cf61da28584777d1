"""Counting boxes where axes depend on each other, axis after axis, by what later axes read of those before.

Of the boxes along some axes, with the boxes that each of them visits, later axes read a few numbers only: how far apart
they are, say. All that agree in these are counted as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..nodes import TILE_NAMES, Expr, Index, Value
from ..traverse import taken_apart, walk
from .box_walk import Tiles, along, class_names, full_boxes, is_of_box, names_in, products, walk_boxes
from .narrowing import run_of
from .numeric import CHUNK, Array, Runs, Values, different, read, runs
from .plan import Interval, Ranges
from .token_space import POSITIONS


@dataclass(frozen=True, slots=True)
class _Found:
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
    if any(names_in(ranges[:i]) & set(class_names(i, tiles[i])) for i in range(len(ranges))):
        return _each_apart(ranges, tiles, sides, env, spare)
    found = _Found({}, np.ones(1, np.int64), np.ones(1, bool))
    known = frozenset[str]()
    visited = full = 0
    for axis, (own, side) in enumerate(zip(tiles, sides, strict=True)):
        now, later = ranges[axis], ranges[axis + 1 :]
        of_axis = {*class_names(axis, own), *(name.name for x in POSITIONS for name in run_of(x, axis))}
        ends, parts = taken_apart(_ends(later), {f"axis {axis}": known | of_axis}, _names)
        ranges = [*ranges[: axis + 1], *_with_ends(later, ends)]
        read_later = parts[f"axis {axis}"]
        known = frozenset(x.name for x in read_later.values())
        kinds: list[_Found] = []
        count = len(found.weights) * len(own.first)
        for start in range(0, count, CHUNK // 64):
            kind, place = np.divmod(np.arange(start, min(start + CHUNK // 64, count)), max(len(own.first), 1))
            tile = own[place]
            weights, certain = found.weights[kind] * tile.copies, found.certain[kind]
            at = {**env, **{name: x[kind][:, None] for name, x in found.values.items()}, **class_names(axis, tile)}
            at |= {"block": tile.block[:, None], "residue": tile.residue[:, None]}
            may, must = (runs(u, tile.first, tile.last, tile.high, at, low=tile.low) for u in (now.may, now.must))
            may, must = (Runs(r.starts[:, 0, 0], r.stops[:, 0, 0]) for r in (may, must))
            counts = -(-(may.stops - may.starts) // side)
            if axis and spare:
                counts[-1] += counts.sum(0) == 0
            if not later:
                visited += int((counts.sum(0) * weights).sum())
                full += int((full_boxes(may, must, side) * weights)[certain].sum())
                continue
            run, box = np.nonzero(counts)
            repeats = counts[run, box]
            number = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            run, box = np.repeat(run, repeats), np.repeat(box, repeats)
            first = may.starts[run, box] + number * side
            last = np.minimum(first + side, may.stops[run, box]) - 1
            inside = ((must.starts[:, box] <= first) & (last < must.stops[:, box])).any(0) & (first <= last)
            at = {name: x[box] if isinstance(x, np.ndarray) and name not in env else x for name, x in at.items()}
            at |= along("q", axis, tile.first[box], tile.last[box]) | along("kv", axis, first, last)
            values = {x.name: np.broadcast_to(read(e, at), (len(box), 1)).ravel() for e, x in read_later.items()}
            kinds.append(_merged(values, weights[box], certain[box] & inside))
        if later:
            found = _joined(kinds)
    return visited, full


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


def _merged(values: dict[str, Array], weights: Array, certain: Array) -> _Found:
    """Those that agree in all ``values``, as one."""
    which, kind = different([certain, *values.values()], len(weights))
    total = np.zeros(len(which), np.int64)
    np.add.at(total, kind, weights)
    return _Found({name: x[which] for name, x in values.items()}, total, certain[which])


def _joined(parts: Sequence[_Found]) -> _Found:
    if not parts:
        return _Found({}, np.zeros(0, np.int64), np.zeros(0, bool))
    values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    return _merged(values, np.concatenate([p.weights for p in parts]), np.concatenate([p.certain for p in parts]))


def _names(e: Expr) -> frozenset[str]:
    """What of ``e`` differs from box to box."""
    leaves = (x for x in walk(e) if isinstance(x, Value | Index))
    return frozenset(x.name for x in leaves if isinstance(x, Value) or is_of_box(x.name) or x.name in TILE_NAMES)


def _ends(ranges: Sequence[Ranges]) -> list[Expr]:
    return [e for r in ranges for i in (*r.may, *r.must) for e in (i.start, i.stop)]


def _with_ends(ranges: Sequence[Ranges], ends: list[Expr]) -> list[Ranges]:
    """``ranges`` with other :func:`_ends`."""
    left = iter(ends)
    return [
        Ranges(*(tuple(Interval(next(left), next(left)) for _ in union) for union in (r.may, r.must))) for r in ranges
    ]
