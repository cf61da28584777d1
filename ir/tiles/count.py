"""Counting before running: pairs, tiles, FLOPs and bytes of one call, from its plan, without torch or a GPU.

A tile cut short by a length counts as full where all its existing pairs are allowed. (A kernel masks such a
tile nevertheless, because it must not read beyond the length.) Only where tiles begin anew where data changes, short
tiles of keys are what they are to kernels: never full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ..traverse import index_names
from .box_choice import Boxes, choose_boxes
from .box_count import count_boxes, count_pairs, is_countable
from .class_count import count_classes
from .cuts import Cuts
from .decide import decide
from .numeric import (
    MOST_COPIES,
    Array,
    Runs,
    Sizes,
    Values,
    allowed,
    copies_of,
    cover,
    each_copy,
    inward,
    leaves,
    outward,
    runs,
    tile_ends,
)
from .places import Part, Tiles, parts_of_call
from .plan import Interval, TilePlan
from .stretches import stretches

# Rows whose intervals are evaluated at once when pairs are counted row by row.
ROWS = 2**16


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Pairs of tiles over all batches and heads, as the plan decides them.

    ``exact`` is False where the mask can only be decided pair by pair and that was not asked for: then
    ``partial`` may hold tiles that are empty or full. ``boxes`` are the shapes of tiles that are boxes, one for
    each term of the plan, and may hold fewer pairs than ``block_m * block_n``; empty ones are not counted then.
    ``tile_pairs`` are those of all visited tiles, ``dense_pairs`` those of all tiles that dense attention has.
    ``begun_anew``: some tiles begin where data changes, so that there are more of them, and short ones. Kernels compute
    these whole, and short ones of keys with the mask.
    """

    empty: int
    partial: int
    full: int
    block_m: int
    block_n: int
    exact: bool
    tile_pairs: int
    dense_pairs: int
    boxes: tuple[Boxes, ...] = ()
    begun_anew: bool = False

    @property
    def speedup_bound(self) -> float:
        """How much faster than dense attention of the same speed this can be."""
        return self.dense_pairs / self.tile_pairs if self.tile_pairs else float("inf")

    @property
    def visited(self) -> int:
        return self.partial + self.full

    def __str__(self) -> str:
        if self.boxes:
            shapes = ", and of ".join(map(str, self.boxes))
            return f"boxes of {shapes}: {self.full:,} full, {self.partial:,} partial"
        total = max(self.visited + self.empty, 1)
        label = "" if self.exact else " (before the exact pass)"
        size = f"{self.block_m} × {self.block_n}"
        tiles = f"tiles of up to {size}, begun anew where data changes" if self.begun_anew else f"tiles of {size}"
        return (
            f"{tiles}: {self.full:,} full, {self.partial:,} partial, "
            f"{self.empty:,} empty ({self.visited / total:.1%} visited){label}"
        )


@dataclass(frozen=True, slots=True)
class PairCount:
    """Allowed pairs over all batches and heads; an upper bound where not ``exact``."""

    pairs: int
    total: int
    exact: bool

    def __str__(self) -> str:
        share = self.pairs / max(self.total, 1)
        return f"{'' if self.exact else 'at most '}{self.pairs:,} of {self.total:,} pairs ({share:.2%})"


@dataclass(frozen=True, slots=True)
class Work:
    """What one call costs at least, and what the tiles make of it.

    FLOPs count multiply and add apart, matrix products only: 2·D + 2·Dv a pair forward, 2.5 times that
    backward. ``tile_flops`` is the same over all pairs of all visited tiles. Bytes are those of inputs and
    outputs, each moved once.
    """

    forward_flops: int
    backward_flops: int
    tile_flops: int
    forward_bytes: int
    backward_bytes: int
    exact: bool

    def __str__(self) -> str:
        bound = "" if self.exact else "at most "
        return (
            f"forward {bound}{_si(self.forward_flops)}FLOP ({_si(self.tile_flops)}FLOP in tiles), "
            f"{_si(self.forward_bytes)}B moved; backward {bound}{_si(self.backward_flops)}FLOP, "
            f"{_si(self.backward_bytes)}B moved"
        )


def _si(x: float) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if x < 1000:
            return f"{x:.3g} {prefix}"
        x /= 1000
    return f"{x:.3g} P"


def tile_map(plan: TilePlan, sizes: Sizes, values: Values, block_m: int, block_n: int, exact: bool = False) -> Array:
    """Class of every pair of tiles: 0 empty, 1 partial, 2 full.

    int8 (B or 1, H or 1, tiles of queries, tiles of keys); an axis is 1 where the mask does not depend on it.
    ``values`` gives scalars and buffers (numpy) by name. ``exact`` evaluates the mask on all pairs, in
    bounded memory.
    """
    part = Part(plan, sizes, values, Tiles.regular(sizes, block_m, block_n))
    return np.concatenate(list(_classes(part, exact)), axis=2)


def tile_counts(
    plan: TilePlan, sizes: Sizes, values: Values, block_m: int, block_n: int, exact: bool = False,
    cuts: Cuts | None = None,
) -> TileCounts:  # fmt: skip
    """How many pairs of tiles are empty, partial and full.

    Without looking at each unless ``exact`` is set, or a ``classified`` plan reads data in no order: see
    :func:`tile_map`. ``cuts``: where tiles begin anew, for plans and kernels that do so.
    """
    regular = Tiles.regular(sizes, block_m, block_n)
    if cuts is None:
        parts = iter([Part(plan, sizes, values, regular)])
    else:
        parts = parts_of_call(plan, cuts, sizes, values, block_m, block_n)
    partial = full = total = 0
    begun_anew = False
    for part in parts:
        some, every = _counted(part, exact)
        partial, full, total = partial + some, full + every, total + part.pairs_of_tiles
        begun_anew |= part.tiles.begun_anew
    area = block_m * block_n
    dense = sizes.batch * sizes.heads * len(regular.queries) * len(regular.keys) * area
    return TileCounts(
        total - partial - full, partial, full, block_m, block_n,
        exact=exact or plan.method != "exact",
        tile_pairs=(partial + full) * area,
        dense_pairs=dense,
        begun_anew=begun_anew,
    )  # fmt: skip


def _counted(part: Part, exact: bool) -> tuple[int, int]:
    """Partial and full pairs of tiles."""
    plan, sizes, values, tiles = part.plan, part.sizes, part.values, part.tiles
    counted = None
    if plan.classification is not None and not exact:
        counted = count_classes(plan.classification, sizes, values, tiles)
    if counted is not None:
        return counted
    visited = full = 0
    if exact or plan.classification is not None:
        for classes in _classes(part, exact):
            copies = _copies(classes, sizes)
            visited += int(np.count_nonzero(classes)) * copies
            full += int(np.count_nonzero(classes == 2)) * copies
    else:
        may, must = _runs_of_tiles(part)
        visited, full = (int(x.total.sum()) * _copies(x.total, sizes) for x in (may, must))
    return visited - full, full


def box_counts(
    plan: TilePlan, sizes: Sizes, values: Values, block_m: int, block_n: int, chosen: tuple[Boxes, ...] = ()
) -> TileCounts:
    """The same for tiles that are boxes (``plan.boxes``), in closed form.

    Of the shapes ``chosen`` for each term, or of those that visit the fewest.
    """
    boxes = chosen or tuple(choose_boxes(term, sizes, values, block_m, block_n) for term in plan.boxes)
    counts = [count_boxes(term, b.queries, b.keys, sizes, values) for term, b in zip(plan.boxes, boxes, strict=True)]
    visited, full = (sum(x) for x in zip(*counts, strict=True))
    pairs = sum(n * prod(b.queries) * prod(b.keys) for (n, _), b in zip(counts, boxes, strict=True))
    tiles = sizes.batch * sizes.heads * -(-sizes.q_len // block_m) * -(-sizes.kv_len // block_n)
    return TileCounts(0, visited - full, full, block_m, block_n, True, pairs, tiles * block_m * block_n, boxes)


def pair_count(plan: TilePlan, sizes: Sizes, values: Values, exact: bool = False) -> PairCount:
    """How many pairs are allowed.

    Exact, without looking at any pair, where the keys of every row, or of every row of a class, have a closed form;
    else an upper bound,
    unless ``exact`` asks to evaluate the mask on all pairs, in bounded memory.
    """
    total = sizes.batch * sizes.heads * sizes.q_len * sizes.kv_len
    if exact:
        every = allowed(plan, sizes, values, np.arange(sizes.q_len))
        return PairCount(sum(int(keep.sum()) for _, keep in every), total, True)
    if plan.boxes and all(is_countable(term, sizes, values) for term in plan.boxes):
        most, least = (sum(x) for x in zip(*(count_pairs(term, sizes, values) for term in plan.boxes), strict=True))
        if most == least:
            return PairCount(most, total, True)
    env = leaves(sizes, values)
    most, least = (_rows_sum(union, sizes, env) for union in (plan.keys.may, plan.keys.must))
    return PairCount(most, total, most == least)


def _rows_sum(union: tuple[Interval, ...], sizes: Sizes, env: Values) -> int:
    """Positions in ``union``, over all rows, batches and heads: by stretches of rows, or row by row."""
    total = 0
    for first, count in _stretches(union, sizes, env):
        least, most = (runs(union, q, q, sizes.kv_len, env).total for q in (first, first + count - 1))
        keys = least + most
        total += int((keys * count).sum()) // 2 * _copies(keys, sizes)
    return total


def _stretches(union: tuple[Interval, ...], sizes: Sizes, env: Values) -> Iterator[tuple[Array, Array]]:
    """First rows of stretches along which the number of keys grows evenly, and how many rows each has."""
    ends = [e for i in union for e in (i.start, i.stop)]
    names = frozenset[str]().union(*map(index_names, ends))
    found = []
    if prod(copies_of(names, sizes)) <= MOST_COPIES:
        for at in each_copy(names, sizes):
            found.append(stretches(union, 0, sizes.kv_len, 0, sizes.q_len, {**env, **at}))
    if found and all(x is not None for x in found):
        starts = np.unique(np.concatenate([x for x in found if x is not None]))
        starts = starts[starts < sizes.q_len]
        yield starts, np.diff(starts, append=sizes.q_len)
        return
    for start in range(0, sizes.q_len, ROWS):
        rows = np.arange(start, min(start + ROWS, sizes.q_len))
        yield rows, np.ones_like(rows)


def work(
    pairs: PairCount, sizes: Sizes, values: Values, tiles: TileCounts, head_dim: int, value_dim: int, itemsize: int
) -> Work:
    """FLOPs and bytes of one call, for elements of ``itemsize`` bytes."""
    per_pair = 2 * head_dim + 2 * value_dim
    queries, keys = sizes.batch * sizes.heads * sizes.q_len, sizes.batch * sizes.kv_heads * sizes.kv_len
    inputs = (queries * head_dim + keys * (head_dim + value_dim)) * itemsize
    captured = sum(x.nbytes for x in values.values() if isinstance(x, np.ndarray))
    outputs = queries * value_dim * itemsize + 4 * queries  # and the log-sum-exp, float32
    return Work(
        forward_flops=pairs.pairs * per_pair,
        backward_flops=pairs.pairs * per_pair * 5 // 2,
        tile_flops=tiles.tile_pairs * per_pair,
        forward_bytes=inputs + captured + outputs,
        # Reads inputs, outputs and the gradient of the output; writes gradients of the inputs.
        backward_bytes=2 * inputs + captured + outputs + queries * value_dim * itemsize,
        exact=pairs.exact,
    )


def _classes(part: Part, exact: bool) -> list[Array]:
    """Classes of tiles, in chunks of rows."""
    plan, sizes, values, tiles = part.plan, part.sizes, part.values, part.tiles
    columns = len(tiles.keys)
    if not sizes.q_len or not columns:
        return [np.zeros((1, 1, len(tiles.queries), columns), np.int8)]
    if exact:
        return [_from_pairs(keep, rows, tiles) for rows, keep in allowed(plan, sizes, values, tiles.queries.firsts)]
    if plan.classification is not None:
        return list(decide(plan.classification, sizes, values, tiles))
    may, must = (cover(x, columns) for x in _runs_of_tiles(part))
    return [may.astype(np.int8) + (may & must)]


def _runs_of_tiles(part: Part) -> tuple[Runs, Runs]:
    """Tiles of keys that each tile of queries may and must see, where these begin at multiples of their size."""
    sizes, block_n = part.sizes, part.tiles.keys.block
    first, last = tile_ends(sizes.q_len, part.tiles.queries.block)
    env = leaves(sizes, part.values)
    may, must = (runs(x, first, last, sizes.kv_len, env) for x in (part.plan.keys.may, part.plan.keys.must))
    return outward(may, block_n), inward(must, block_n, sizes.kv_len)


def _from_pairs(keep: Array, rows: slice, tiles: Tiles) -> Array:
    """Classes of the tiles of some rows of the mask."""
    firsts, columns = tiles.queries.firsts, tiles.keys.firsts
    own = firsts[(firsts >= rows.start) & (firsts < rows.stop)] - rows.start
    some = np.logical_or.reduceat(np.logical_or.reduceat(keep, own, -2), columns, -1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(keep, own, -2), columns, -1)
    if tiles.keys.cut:
        every = every & tiles.keys.whole
    return np.asarray(some.astype(np.int8) + every)


def _copies(x: Array, sizes: Sizes) -> int:
    """How many batches and heads each element of ``x`` (batch or 1, head or 1, …) stands for."""
    return (sizes.batch // x.shape[0] if x.shape[0] else 0) * (sizes.heads // x.shape[1] if x.shape[1] else 0)
