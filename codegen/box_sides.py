"""Shapes of boxes: the few of which every kernel is compiled for one, before lengths and parameters are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import Literal

import numpy as np

from ..ir.bounds import POSITION, interval
from ..ir.nodes import Expr, Load, Param
from ..ir.tiles.box_walk import Tiles, walk_boxes
from ..ir.tiles.numeric import Array, Sizes, leaves, runs
from ..ir.tiles.plan import BoxAxis, Interval, Ranges
from ..ir.traverse import loads, parameter_names, rewrite

# Shapes that one module may be compiled for, and the smallest box that products take.
SHAPES = 4
_SMALLEST = 16
# What integer parameters of ranges are taken to be where shapes are chosen; and how many positions an axis of no
# fixed length spans, and how many times as many where these are rows.
_GUESSES = (5, 7, 9, 11, 13, 17, 21, 24, 33, 48, 64, 80)
_LONG, _MORE = 4096, 4
# The same where axes depend on each other, and where along an axis boxes are looked at, as shares of it.
_NESTED_GUESSES = (5, 9, 16, 28)
_PLACES = (0.5, 0.0, 0.25, 0.75)
# How many shapes are compared at all of these places, after all that are not oblong were at one.
_COMPARED = 16
# Boxes of an axis that are looked at, at most.
_SAMPLES = 32
# What a pair of boxes costs, with the mask and without it.
PARTIAL, FULL = 4, 3


@dataclass(frozen=True, slots=True)
class Shape:
    """Sides of boxes of queries and keys along every axis."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]


@cache
def box_shapes(axes: tuple[BoxAxis, ...], own: Literal["q", "k"], block_m: int, block_n: int) -> tuple[Shape, ...]:
    """Up to four shapes of at most ``block_m`` queries by ``block_n`` keys, of which one suits any parameters.

    Boxes of ``own`` visit those of the other. The first shape is the best for most; classes that are smaller make
    boxes smaller. Where axes depend on each other, boxes are counted here, and a host chooses by each axis alone.
    """
    extents, *longer = _extents(axes)
    of_keys = _boxes(extents, block_n)
    shapes = [Shape(q, k) for q in _boxes(extents, block_m) for k in of_keys]
    # Equal ones are told apart by their innermost sides: tokens that lie together in memory.
    shapes.sort(key=lambda s: [-x for x in (*s.queries[::-1], *s.keys[::-1])])
    if any((a.keys_within if own == "q" else a.queries_within) is not None for a in axes):
        return _nested_shapes(axes, own, [extents, *longer][-1], shapes)
    sides = np.array([(s.queries, s.keys) if own == "q" else (s.keys, s.queries) for s in shapes])
    costs = [_costs(axes, own, lengths, sides) for lengths in (extents, *longer)]
    table = np.concatenate(costs).T.clip(min=1)
    return tuple(shapes[i] for i in _chosen((table / table.min(0)) ** 2))


def box_tokens(axes: Sequence[BoxAxis], block_m: int, block_n: int) -> tuple[int, int]:
    """How many queries, and keys, the boxes of all such shapes hold: fewer than asked for where classes are smaller."""
    few, *_ = _extents(axes)
    return _tokens(few, block_m), _tokens(few, block_n)


def _costs(axes: Sequence[BoxAxis], own: Literal["q", "k"], extents: list[int], sides: Array) -> Array:
    """What shapes of such sides, (shapes, 2, axes), cost with each guess of the parameters: (guesses, shapes)."""
    guesses = np.array(_guesses(axes, own, extents))
    found = np.ones((2, len(guesses), len(sides)))
    for i, (axis, extent) in enumerate(zip(axes, extents, strict=True)):
        # The same values, and the same pairs of sides, come back in many guesses and shapes.
        values, guess = np.unique(guesses[:, i], return_inverse=True)
        pairs, shape = np.unique(sides[:, :, i], axis=0, return_inverse=True)
        counts = _counts(axis.keys if own == "q" else axis.queries, axis, extent, values, pairs)
        found *= counts[:, guess.ravel()].take(shape.ravel(), 2)
    return np.asarray(PARTIAL * found[0] - (PARTIAL - FULL) * found[1])


def _counts(ranges: Ranges, axis: BoxAxis, extent: int, values: Array, pairs: Array) -> Array:
    """Boxes visited, and full ones, along an axis whose classes have ``extent`` coordinates: (2, values, pairs).

    ``values``: what every parameter, and what is read from a tensor, is taken to be. ``pairs``: sides of a box and of
    those that it visits.
    """
    sides = np.unique(pairs[:, 0]).tolist()
    firsts = [np.arange(0, extent, side * max(extent // side // _SAMPLES, 1)) for side in sides]
    first = np.concatenate(firsts)
    last = np.concatenate([np.minimum(x + side, extent) - 1 for x, side in zip(firsts, sides, strict=True)])
    lengths = (extent * axis.residue * s.stride for s in (axis.query, axis.key))
    ranges, guessed = _guessed_ranges(ranges), values.reshape(-1, 1, 1, 1)
    names = frozenset[str]().union(*map(parameter_names, _ends(ranges)))
    env = {**leaves(Sizes(1, 1, 1, *lengths), {}), "block": 0, "residue": 0, **dict.fromkeys(names, guessed)}
    some, every = (runs(union, first, last, extent, env) for union in (ranges.may, ranges.must))
    ends = np.cumsum([len(x) for x in firsts])[:-1]
    cut = [np.split(x[:, :, 0], ends, 2) for x in (some.starts, some.stops, every.starts[:1], every.stops[:1])]
    found = np.zeros((2, len(values), len(pairs)))
    for side, places, start, stop, low, high in zip(sides, firsts, *cut, strict=True):
        which = pairs[:, 0] == side
        others = pairs[which, 1].reshape(-1, 1, 1, 1)
        count = -(-(stop - start) // others)
        before = -(-(np.maximum(low, start) - start) // others)
        full = np.maximum(np.minimum((np.minimum(high, stop) - start) // others, count) - before, 0)
        weight = -(-extent // side) / len(places)  # boxes that each of these stands for
        for i, x in enumerate((count, full)):
            found[i][:, which] = x.sum((1, 3)).T * weight
    return found


def _nested_shapes(
    axes: tuple[BoxAxis, ...], own: Literal["q", "k"], extents: list[int], shapes: list[Shape]
) -> tuple[Shape, ...]:
    """:func:`box_shapes` where axes depend on each other."""
    alike = [s for s in shapes if all(max(x) <= 4 * min(x) for x in zip(s.queries, s.keys, strict=True))] or shapes
    ranges = [
        _guessed_ranges(a.keys_within or a.keys if own == "q" else a.queries_within or a.queries) for a in axes
    ]
    guesses = _NESTED_GUESSES if any(map(_is_guessed, ranges)) else (0,)
    middle = guesses[len(guesses) // 2]
    first = _nested_costs(axes, ranges, own, extents, alike, _PLACES[:1], middle)
    best = [alike[i] for i in sorted(np.argsort(first, kind="stable")[:_COMPARED])]
    places = _PLACES if len(axes) < 3 else _PLACES[:2]
    table = np.stack([_nested_costs(axes, ranges, own, extents, best, places, guess) for guess in guesses], 1)
    return tuple(best[i] for i in _chosen((table / table.min(0)) ** 2))


def _nested_costs(
    axes: Sequence[BoxAxis], ranges: Sequence[Ranges], own: Literal["q", "k"], extents: list[int],
    shapes: Sequence[Shape], places: Sequence[float], value: int,
) -> Array:  # fmt: skip
    """What shapes cost, (shapes,), from boxes at ``places`` along every axis, as shares of it.

    ``value``: what every parameter of ``ranges`` is taken to be.
    """
    sides = np.array([(s.queries, s.keys) if own == "q" else (s.keys, s.queries) for s in shapes])
    starts = np.array(list(product(places, repeat=len(axes))))
    which = np.repeat(np.arange(len(shapes)), len(starts))
    tiles = []
    for i, extent in enumerate(extents):
        side = np.minimum(sides[which, 0, i], extent)
        first = (np.tile(starts[:, i], len(shapes)) * -(-extent // side)).astype(np.int64) * side
        zero, last = np.zeros_like(first), np.minimum(first + side, extent) - 1
        tiles.append(Tiles(zero, zero, first, last, zero, zero + extent, zero + 1))
    length = prod(e * a.residue for e, a in zip(extents, axes, strict=True))
    names = frozenset[str]().union(*(parameter_names(e) for r in ranges for e in _ends(r)))
    env = leaves(Sizes(1, 1, 1, length, length), dict.fromkeys(names, value))
    found = walk_boxes(ranges, tiles, [sides[which, 1, i] for i in range(len(axes))], env, "q" if own == "q" else "kv")
    each = (PARTIAL * found.visited - (PARTIAL - FULL) * found.full).reshape(len(shapes), -1).sum(1)
    boxes = np.prod([-(-e // sides[:, 0, i]) for i, e in enumerate(extents)], axis=0)
    return np.asarray(np.maximum(each, 1) * boxes)


def _chosen(losses: Array) -> list[int]:
    """Up to :data:`SHAPES` rows, of which in every column one is small: one after the other, then exchanged."""
    chosen: list[int] = []
    reached = np.full(losses.shape[1], np.inf)
    while len(chosen) < SHAPES:
        found = _best(losses, reached)
        better = np.minimum(reached, losses[found])
        if chosen and better.sum() >= reached.sum() * 0.999:
            break
        chosen.append(found)
        reached = better
    for _ in range(SHAPES):
        for place in range(len(chosen)):
            others = losses[chosen[:place] + chosen[place + 1 :]].min(0, initial=np.inf)
            chosen[place] = _best(losses, others)
    return sorted(dict.fromkeys(chosen), key=lambda i: float(losses[i].sum()))


def _best(losses: Array, reached: Array) -> int:
    """The first row that lowers what is ``reached`` most."""
    return int(np.minimum(losses, reached).sum(1).round(6).argmin())


def _extents(axes: Sequence[BoxAxis]) -> list[list[int]]:
    """How long axes may be: where the length of a call alone says how many rows there are, few or more of them."""
    few = [_extent(a) for a in axes]
    more = [_extent(a, _MORE if a.key.stride > 1 else 1) for a in axes]
    return [few] if more == few else [few, more]


def _extent(axis: BoxAxis, times: int = 1) -> int:
    if axis.block:
        return axis.block // axis.residue
    # Queries that are the last tokens of a grid have no more rows than it.
    most = [(s.stride, int(min(interval(s.size, {})[1], POSITION[1]))) for s in (axis.query, axis.key)]
    known = [size for stride, size in most if size < POSITION[1] // stride]
    long = max(_LONG // axis.key.stride, 1) * times * axis.residue
    return max(-(-max(known, default=long) // axis.residue), 1)


def _guessed_ranges(ranges: Ranges) -> Ranges:
    """``ranges`` with parameters in place of what is read from tensors."""
    if not any(map(loads, _ends(ranges))):
        return ranges

    def rule(x: Expr) -> Expr:
        return Param(f"element of {x.buffer}", x.type) if isinstance(x, Load) else x

    may, must = (
        tuple(Interval(rewrite(i.start, rule), rewrite(i.stop, rule)) for i in union)
        for union in (ranges.may, ranges.must)
    )
    return Ranges(may, must)


def _ends(ranges: Ranges) -> list[Expr]:
    return [e for i in (*ranges.may, *ranges.must) for e in (i.start, i.stop)]


def _is_guessed(ranges: Ranges) -> bool:
    return any(parameter_names(e) or loads(e) for e in _ends(ranges))


def _guesses(axes: Sequence[BoxAxis], own: Literal["q", "k"], extents: list[int]) -> list[tuple[int, ...]]:
    """Values of the parameters along every axis: the same, up to half of the axis, or half of it along one of them."""
    open_axes = [i for i, a in enumerate(axes) if _is_guessed(a.keys if own == "q" else a.queries)]
    found: dict[tuple[int, ...], None] = {}
    for value in _GUESSES if open_axes else (0,):
        for narrow in (None, *open_axes) if len(open_axes) > 1 else (None,):
            halves = {i: min(value // 2 + 1 if i == narrow else value, extents[i] // 2 + 1) for i in open_axes}
            found[tuple(halves.get(i, 0) for i in range(len(axes)))] = None
    return list(found)


def _boxes(extents: list[int], count: int) -> list[tuple[int, ...]]:
    """All boxes of so many tokens as :func:`_tokens` says."""
    most, count = _most(extents), _tokens(extents, count)
    if prod(most) < count:
        most[0] *= count // prod(most)
    return list(_sides(most, count))


def _tokens(extents: list[int], count: int) -> int:
    """``count``, or as many as the axes have, but no fewer than products take."""
    return min(count, max(prod(_most(extents)), _SMALLEST))


def _most(extents: list[int]) -> list[int]:
    return [1 << (e - 1).bit_length() for e in extents]


def _sides(most: list[int], count: int) -> Iterator[tuple[int, ...]]:
    if not most:
        yield from ((),) if count == 1 else ()
        return
    others, side = prod(most[1:]), 1
    while side <= min(most[0], count):
        if count // side < 2 * others:  # else no sides of the other axes are long enough
            yield from ((side, *rest) for rest in _sides(most[1:], count // side))
        side *= 2
