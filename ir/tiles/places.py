"""Where tiles begin: at multiples of their size, or anew where data changes (:mod:`.cuts`).

The kernels find the latter on the device (``cut_tiles``); this is the same for counts, with numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..nodes import Expr, Index, Value
from ..symbolic import TILE_FIRST
from ..traverse import index_names, substitute
from ..types import I32
from .cuts import ROOM, Cuts
from .numeric import Array, Sizes, Values, each_copy, each_position, leaves
from .plan import Classification, TilePlan
from .solve import Axis


@dataclass(frozen=True, slots=True)
class Places:
    """Tiles of up to ``block`` positions along an axis of ``length``: the first position of each, (tiles,).

    ``cut``: of tiles that may begin anew anywhere.
    """

    firsts: Array
    length: int
    block: int
    cut: bool = False

    @staticmethod
    def regular(length: int, block: int) -> Places:
        return Places(np.arange(0, length, block), length, block)

    def __len__(self) -> int:
        return len(self.firsts)

    @property
    def stops(self) -> Array:
        """The position after the last one of each tile."""
        return np.append(self.firsts[1:], self.length)[: len(self)]

    @property
    def whole(self) -> Array:
        """Which tiles are as long as they may be."""
        return np.asarray(self.stops - self.firsts == self.block)

    def positions(self, offsets: Sequence[int]) -> Array:
        """Places in every tile, (tiles, offsets); what lies beyond its last position is taken for it."""
        return np.asarray(np.minimum(self.firsts[:, None] + np.array(offsets), self.stops[:, None] - 1))


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles of queries and of keys, the same for all batch items and heads of a call, or of a part of it."""

    queries: Places
    keys: Places

    @staticmethod
    def regular(sizes: Sizes, block_m: int, block_n: int) -> Tiles:
        return Tiles(Places.regular(sizes.q_len, block_m), Places.regular(sizes.kv_len, block_n))

    def along(self, axis: Axis) -> Places:
        return self.queries if axis == "q" else self.keys

    @property
    def begun_anew(self) -> bool:
        """Whether some tile begins elsewhere than at a multiple of its size."""
        return any((x.firsts % x.block != 0).any() for x in (self.queries, self.keys))


@dataclass(frozen=True, slots=True)
class Part:
    """Batch items and heads of a call whose tiles begin at the same places, as a call of their own."""

    plan: TilePlan
    sizes: Sizes
    values: Values
    tiles: Tiles

    @property
    def pairs_of_tiles(self) -> int:
        return self.sizes.batch * self.sizes.heads * len(self.tiles.queries) * len(self.tiles.keys)


def parts_of_call(
    plan: TilePlan, cuts: Cuts, sizes: Sizes, values: Values, block_m: int, block_n: int
) -> Iterator[Part]:
    """A call whose tiles begin anew where data changes, by the batch items and heads that differ in it.

    Data that changes so often that tables have no :data:`~.cuts.ROOM` for all tiles leaves them at multiples of their
    size: those of queries or of keys, in one batch item and head or another.
    """
    by_axis: dict[Axis, tuple[Expr, ...]] = {"q": cuts.by_query, "kv": cuts.by_key}
    env = leaves(sizes, values)
    of_each = each_position(env)
    changes = {axis: _changes(by, axis, sizes.length(axis), of_each) for axis, by in by_axis.items()}
    names = frozenset[str]().union(*(index_names(e) for by in by_axis.values() for e in by))
    by_batch, by_head = "batch" in names, bool(names & {"head", "kv_head"})
    if by_batch or by_head:
        plan = _of_one(plan, by_batch, by_head)
    own = replace(
        sizes,
        batch=1 if by_batch else sizes.batch,
        heads=1 if by_head else sizes.heads,
        kv_heads=1 if by_head else sizes.kv_heads,
    )
    for at in each_copy(names, sizes):
        queries, keys = (
            _cut(x[min(at["batch"], x.shape[0] - 1), min(at["head"], x.shape[1] - 1), 0], sizes.length(axis), block)
            for (axis, x), block in zip(changes.items(), (block_m, block_n), strict=True)
        )
        yield Part(plan, own, {**values, **{f"this {name}": i for name, i in at.items()}}, Tiles(queries, keys))


def _of_one(plan: TilePlan, by_batch: bool, by_head: bool) -> TilePlan:
    """``plan`` for one batch item, or head, whose number is a value: so its expressions are the same for all."""
    fixed = [*(["batch"] if by_batch else []), *(["head", "kv_head"] if by_head else [])]
    table: dict[Expr, Expr] = {Index(name, I32): Value(f"this {name}", I32) for name in fixed}
    conditions = plan.classification
    assert conditions is not None  # else tiles are not cut
    return replace(
        plan,
        variant=replace(plan.variant, mask=substitute(plan.variant.mask, table)),
        classification=Classification(substitute(conditions.may, table), substitute(conditions.must, table)),
    )


def _changes(by: Sequence[Expr], axis: Axis, length: int, of_each: Callable[[Expr, int], Array]) -> Array:
    """Whether the data at each position but the first differs from that before: (batch or 1, head or 1, 1, …)."""
    changes = np.zeros((1, 1, 1, max(length - 1, 0)), bool)
    for e in by:
        found = of_each(substitute(e, {Index(axis, I32): TILE_FIRST}), length)
        changes = changes | (found[..., 1:] != found[..., :-1])
    return changes


def _cut(changes: Array, length: int, block: int) -> Places:
    """Tiles that begin where data changes, and from there on at multiples of their size, where there is room."""
    regular = Places.regular(length, block)
    begins = np.append(np.zeros(min(length, 1), np.int64), np.flatnonzero(changes) + 1)
    counts = -(-np.diff(begins, append=length) // block)
    if counts.sum() > ROOM * len(regular):
        return replace(regular, cut=True)
    earlier = np.cumsum(counts) - counts
    firsts = np.repeat(begins - block * earlier, counts) + block * np.arange(counts.sum())
    return Places(firsts, length, block, cut=True)

