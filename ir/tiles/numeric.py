"""A plan's ranges as numbers, with numpy: vectorised over tiles, batch and heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ..interpret import evaluate, evaluate_all
from ..nodes import Expr
from .plan import Interval, TilePlan
from .solve import Axis

Array = npt.NDArray[Any]
Values = Mapping[str, Array | bool | int | float]

# Pairs of tiles, or of positions, held in memory at once.
CHUNK = 2**22
# So many batches and heads that differ are looked at one by one.
MOST_COPIES = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shape of one call. ``kv_heads`` divides ``heads``."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int

    def length(self, axis: Axis) -> int:
        return self.q_len if axis == "q" else self.kv_len


def leaves(sizes: Sizes, values: Values) -> dict[str, Array | bool | int | float]:
    """Values of everything but positions; arrays have the axes (batch, head, row, column)."""
    head = np.arange(sizes.heads).reshape(1, -1, 1, 1)
    return {
        **values,
        "batch": np.arange(sizes.batch).reshape(-1, 1, 1, 1),
        "head": head,
        "kv_head": head // max(sizes.heads // max(sizes.kv_heads, 1), 1),
        "q_len": sizes.q_len,
        "kv_len": sizes.kv_len,
    }


def copies_of(names: frozenset[str], sizes: Sizes) -> tuple[int, int]:
    """How many batch items, and heads, may differ in what depends on ``names``."""
    by_head = names & {"head", "kv_head"}
    return sizes.batch if "batch" in names else min(sizes.batch, 1), sizes.heads if by_head else min(sizes.heads, 1)


def each_copy(names: frozenset[str], sizes: Sizes) -> Iterator[dict[str, int]]:
    """The indices of each of these, batch items outermost."""
    group = max(sizes.heads // max(sizes.kv_heads, 1), 1)
    for batch, head in product(*map(range, copies_of(names, sizes))):
        yield {"batch": batch, "head": head, "kv_head": head // group}


@dataclass(frozen=True, slots=True)
class Runs:
    """Disjoint ascending runs ``[starts, stops)``, arrays (k, batch or 1, head or 1, rows); some are empty."""

    starts: Array
    stops: Array

    @property
    def total(self) -> Array:
        """How many positions the runs hold, by row."""
        return np.asarray((self.stops - self.starts).sum(axis=0))


def runs(
    union: tuple[Interval, ...], first: Array, last: Array, length: int | Array, env: Values, low: int | Array = 0
) -> Runs:
    """The positions of ``union`` for tiles ``[first, last]`` (arrays (rows,)), clipped to ``[low, length)``."""
    tiles = {**env, "tile_first": first[:, None], "tile_last": last[:, None]}
    ends = [x.astype(np.int64) for x in read_all([e for i in union for e in (i.start, i.stop)], tiles)]
    shape = np.broadcast_shapes((1, 1, len(first), 1), *(e.shape for e in ends))
    clipped = [np.clip(np.broadcast_to(e, shape)[..., 0], low, length) for e in ends]
    if not clipped:
        nothing = np.zeros((1, *shape[:-1]), np.int64)
        return Runs(nothing, nothing)
    return disjoint(np.stack(clipped[0::2]), np.stack(clipped[1::2]))


def disjoint(starts: Array, stops: Array) -> Runs:
    """Sorts runs along the first axis and joins those that touch."""
    stops = np.maximum(starts, stops)
    if len(starts) == 1:
        return Runs(starts, stops)
    key = np.where(starts < stops, starts, np.iinfo(np.int64).max)
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, axis=0, kind="stable")
        starts, stops = np.take_along_axis(starts, order, 0), np.take_along_axis(stops, order, 0)
    for i in range(1, len(starts)):
        empty = starts[i] >= stops[i]
        touching = (starts[i] <= stops[i - 1]) & ~empty
        starts[i] = np.where(touching, starts[i - 1], starts[i])
        stops[i] = np.where(touching, np.maximum(stops[i - 1], stops[i]), stops[i])
        stops[i - 1] = np.where(touching, starts[i - 1], stops[i - 1])
        # An empty run must not end the chain: the next one would be compared with it.
        starts[i], stops[i] = np.where(empty, stops[i - 1], starts[i]), np.where(empty, stops[i - 1], stops[i])
    return Runs(starts, stops)


def outward(r: Runs, block: int) -> Runs:
    """The tiles that a run touches."""
    used = r.starts < r.stops
    starts = np.where(used, r.starts // block, 0)
    return disjoint(starts, np.where(used, -(-r.stops // block), starts))


def inward(r: Runs, block: int, length: int) -> Runs:
    """The tiles that lie in a run whole, as far as they exist: the last one may be cut short by ``length``."""
    starts = -(-r.starts // block)
    stops = np.where(r.stops == length, -(-length // block), r.stops // block)
    return Runs(starts, np.where(r.starts < r.stops, np.maximum(stops, starts), starts))


def cover(r: Runs, columns: int) -> Array:
    """Booleans (batch or 1, head or 1, rows, columns): what the runs hold."""
    column = np.arange(columns)
    inside = (r.starts[..., None] <= column) & (column < r.stops[..., None])
    return np.asarray(inside.any(axis=0))


def tile_ends(length: int, block: int) -> tuple[Array, Array]:
    """First and last position of every tile, the last one clipped."""
    first = np.arange(0, length, block)
    return first, np.minimum(first + block, length) - 1


def read(e: Expr, env: Values) -> Array:
    """``e`` as kernels evaluate it: masked pairs may index past the end of a tensor, and read its nearest element."""
    return evaluate(e, env, clamp=True)


def read_all(expressions: Sequence[Expr], env: Values) -> list[Array]:
    """:func:`read` of several expressions, of which what they share is evaluated once."""
    return evaluate_all(expressions, env, clamp=True)


def different(every: Sequence[Array], length: int) -> tuple[Array, Array]:
    """Where arrays of ``length`` first have each combination of values, and which of these stands at every place."""
    code = np.zeros(length, np.int64)
    for x in every:
        values, place = np.unique(x, return_inverse=True)
        code = np.unique(code * len(values) + place.ravel(), return_inverse=True)[1].ravel()
    _, which, kind = np.unique(code, return_index=True, return_inverse=True)
    return which, kind.ravel()


def chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` that hold about ``CHUNK`` elements each."""
    step = max(CHUNK // max(width, 1), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def allowed(plan: TilePlan, sizes: Sizes, values: Values, rows_at_once: int) -> Iterator[Array]:
    """The mask itself, ``rows_at_once`` queries at a time (a multiple of it fits): (batch, head, rows, kv_len)."""
    env = {**leaves(sizes, values), "kv": np.arange(sizes.kv_len)}
    step = max(CHUNK // max(sizes.batch * sizes.heads * sizes.kv_len, 1) // rows_at_once, 1) * rows_at_once
    for start in range(0, sizes.q_len, step):
        q = np.arange(start, min(start + step, sizes.q_len))
        keep = read(plan.variant.mask, {**env, "q": q[:, None]})
        yield np.broadcast_to(keep, (sizes.batch, sizes.heads, len(q), sizes.kv_len))
