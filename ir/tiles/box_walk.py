"""Boxes that boxes visit, one by one, where axes depend on each other: axis after axis, as kernels do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import prod

import numpy as np

from ..traverse import index_names
from .narrowing import is_run, run_of
from .numeric import CHUNK, Array, Runs, Values, runs
from .plan import BoxTerm, Ranges
from .solve import Axis


@dataclass(frozen=True, slots=True)
class Tiles:
    """Runs of at most so many coordinates of one class of an axis: arrays (tiles,), ends included.

    ``low`` and ``high`` are the keys that the class has, first and end; ``copies`` says for how many classes a run
    stands, where these differ in nothing that ranges depend on.
    """

    block: Array
    residue: Array
    first: Array
    last: Array
    low: Array
    high: Array
    copies: Array

    def __getitem__(self, which: Array) -> Tiles:
        return Tiles(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Visited:
    """How many boxes each box visits, and how many of them are full: arrays (boxes,)."""

    visited: Array
    full: Array


def ranges_within(term: BoxTerm) -> list[Ranges]:
    """What runs of queries see along each axis, within boxes along the axes before it."""
    return [axis.keys_within or axis.keys for axis in term.axes]


def names_in(ranges: Sequence[Ranges]) -> frozenset[str]:
    """Names that ends of ``ranges`` depend on."""
    ends = (e for r in ranges for i in (*r.may, *r.must) for e in (i.start, i.stop))
    return frozenset[str]().union(*map(index_names, ends))


def products(tiles: Sequence[Tiles]) -> Iterator[list[Tiles]]:
    """All boxes that runs along the axes make, some at a time: along each axis the run of every box."""
    counts = [len(t.first) for t in tiles]
    for start in range(0, prod(counts), CHUNK // 64):
        numbers = np.arange(start, min(start + CHUNK // 64, prod(counts)))
        places = np.unravel_index(numbers, counts)
        yield [t[place] for t, place in zip(tiles, places, strict=True)]


def full_boxes(may: Runs, must: Runs, side: int | Array) -> Array:
    """How many boxes of ``side`` coordinates, from the start of each run that may be seen on, lie in a full run whole.

    The last one may be cut short with the run.
    """
    # Only one of both may differ from head to head.
    found = np.zeros(np.broadcast_shapes(may.starts.shape[1:], must.starts.shape[1:]), np.int64)
    for start, stop in zip(may.starts, may.stops, strict=True):
        for a, b in zip(must.starts, must.stops, strict=True):
            low, high = np.maximum(a, start), np.minimum(b, stop)
            to_box = np.where(high == stop, -(-(high - start) // side), (high - start) // side)
            found += np.where(low < high, np.maximum(to_box - -(-(low - start) // side), 0), 0)
    return found


def walk_boxes(
    ranges: Sequence[Ranges], own: Sequence[Tiles], sides: Sequence[Array], env: Values, by: Axis = "q",
    spare: bool = True,
) -> Visited:  # fmt: skip
    """What boxes visit; ``own`` has the run of every box along each axis, ``sides`` those of what it visits, (boxes,).

    ``by``: whether the boxes are of queries or of keys; ``env`` is of one batch item and head. Visited boxes start
    where the first coordinate is that the box sees. Where an axis inside is left without any, one ``spare`` box is
    visited, as kernels do.
    """
    visited = np.zeros(len(own[0].first), np.int64)
    full = np.zeros_like(visited)
    for start in range(0, len(visited), CHUNK // 64):
        which = np.arange(start, min(start + CHUNK // 64, len(visited)))
        _walk(ranges, own, sides, dict(env), by, spare, 0, which, np.ones(len(which), bool), visited, full)
    return Visited(visited, full)


def _walk(
    ranges: Sequence[Ranges], own: Sequence[Tiles], sides: Sequence[Array], env: dict[str, Array | bool | int | float],
    by: Axis, spare: bool, axis: int, which: Array, certain: Array, visited: Array, full: Array,
) -> None:  # fmt: skip
    """Adds what is visited from ``axis`` on by the boxes ``which``, each with a box along the axes before.

    ``certain``: whether these are full as far as they are known.
    """
    tiles, side = own[axis][which], sides[axis][which]
    for i, runs_along in enumerate(own if axis == 0 else ()):
        env |= class_names(i, runs_along[which])
    env |= {"block": tiles.block[:, None], "residue": tiles.residue[:, None]}
    may, must = (
        runs(union, tiles.first, tiles.last, tiles.high, env, low=tiles.low)
        for union in (ranges[axis].may, ranges[axis].must)
    )
    may, must = (Runs(r.starts[:, 0, 0], r.stops[:, 0, 0]) for r in (may, must))
    counts = -(-(may.stops - may.starts) // side)
    if axis and spare:
        counts[-1] += counts.sum(0) == 0
    if axis == len(ranges) - 1:
        np.add.at(visited, which, counts.sum(0))
        np.add.at(full, which, np.where(certain, full_boxes(may, must, side), 0))
        return
    run, box = np.nonzero(counts)
    repeats = counts[run, box]
    number = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    run, box = np.repeat(run, repeats), np.repeat(box, repeats)
    first = may.starts[run, box] + number * side[box]
    last = np.minimum(first + side[box], may.stops[run, box]) - 1
    inside = ((must.starts[:, box] <= first) & (last < must.stops[:, box])).any(0) & (first <= last)
    certain = certain[box] & inside
    which = which[box]
    env = {k: x[box] if isinstance(x, np.ndarray) and is_of_box(k) else x for k, x in env.items()}
    env |= along(by, axis, tiles.first[box], tiles.last[box])
    env |= along("kv" if by == "q" else "q", axis, first, last)
    for start in range(0, len(which), CHUNK // 16):
        part = slice(start, start + CHUNK // 16)
        some = {k: x[part] if isinstance(x, np.ndarray) and is_of_box(k) else x for k, x in env.items()}
        _walk(ranges, own, sides, some, by, spare, axis + 1, which[part], certain[part], visited, full)


def along(position: Axis, axis: int, first: Array, last: Array) -> dict[str, Array]:
    """The ends of runs along one axis, as names that ranges along later ones have."""
    return {name.name: x[:, None] for name, x in zip(run_of(position, axis), (first, last), strict=True)}


def class_names(axis: int, tiles: Tiles) -> dict[str, Array]:
    """The class along one axis, as names that ranges along others have."""
    return {f"block {axis}": tiles.block[:, None], f"residue {axis}": tiles.residue[:, None]}


def is_of_box(name: str) -> bool:
    """Whether ``name`` is one that boxes differ in."""
    return is_run(name) or name.partition(" ")[0] in ("block", "residue")
