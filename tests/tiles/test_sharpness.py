"""Common masks written as plain predicates: the plan finds exactly the true tiles, however they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from regard.ir.nodes import Expr
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.count import pair_count, tile_counts, tile_map
from regard.ir.tiles.numeric import Sizes, Values, cover, inward, leaves, outward, runs, tile_ends
from regard.ir.tiles.plan import Method
from regard.ir.traverse import rewrite
from regard.ir.variant import Variant
from spellings import SPELLINGS, renamed

SIZES = [Sizes(2, 4, 2, 200, 200), Sizes(2, 4, 2, 131, 203), Sizes(2, 4, 2, 203, 131), Sizes(2, 4, 2, 64, 64)]
BLOCKS = [(32, 16), (16, 32), (17, 23)]


@dataclass(frozen=True)
class Mask:
    """A mask in the text language, how its tiles are decided, and whether its rows have closed forms."""

    parameters: str
    keep: str
    method: Method = "closed"
    rows: bool = True

    @property
    def variant(self) -> Variant:
        return parse_variant(f"attention mask({self.parameters}) {{ keep {self.keep} normalize softmax }}")[0]


BAND = "q >= kv and q - kv < window"
MASKS = {
    "full": Mask("", "true"),
    "causal": Mask("", "q >= kv"),
    "causal, aligned at the end": Mask("", "q + (kv_len - q_len) >= kv"),
    "sliding window": Mask("window: int", BAND),
    "sliding window, both sides": Mask("left: int, right: int", "q - kv <= left and kv - q <= right"),
    "sliding window of each head": Mask("windows: i32[head]", "q >= kv and q - kv < windows[head]"),
    "sliding window, aligned at the end": Mask(
        "window: int", "q + kv_len - q_len >= kv and q + kv_len - q_len - kv < window"
    ),
    "symmetric window": Mask("window: int", "abs(q - kv) <= window"),
    "outside a window": Mask("window: int", "abs(q - kv) > window"),
    "prefix": Mask("prefix: int", "q >= kv or kv < prefix"),
    "prefix of each batch": Mask("prefixes: i32[batch]", "q >= kv or kv < prefixes[batch]"),
    "sinks": Mask("window: int", f"{BAND} or kv < 4 and q >= kv"),
    "global tokens": Mask("window: int, tokens: int", "abs(q - kv) <= window or q < tokens or kv < tokens"),
    "dilated": Mask("window: int", "q >= kv and q - kv < window * 4 and (q - kv) % 4 == 0", rows=False),
    "strided": Mask("", "q >= kv and (q - kv < 8 or (q - kv) % 8 == 0)", rows=False),
    "blocks": Mask("", "q // 24 == kv // 24"),
    "chunked": Mask("", "q >= kv and q // 40 == kv // 40"),
    "chunked, by remainder": Mask("", "q >= kv and kv >= q - q % 40"),
    "coarse checkerboard": Mask("", "(q // 32 + kv // 32) % 2 == 0", "classified", rows=False),
    "padding": Mask("lengths: i32[batch]", "kv < lengths[batch]"),
    "padding of both": Mask("lengths: i32[batch]", "kv < lengths[batch] and q < lengths[batch] and q >= kv"),
    "document": Mask("ids: i32[batch, _]", "ids[batch, q] == ids[batch, kv]", "classified", rows=False),
    "causal document": Mask(
        "ids: i32[batch, _]", "q >= kv and ids[batch, q] == ids[batch, kv]", "classified", rows=False
    ),
    "keep vector": Mask("kept: bool[batch, _]", "kept[batch, kv]", "classified", rows=False),
    "window in blocks": Mask("window: int", f"{BAND} and q // 48 == kv // 48"),
    "not causal": Mask("", "not (q >= kv)"),
    "everything, said twice": Mask("", "q >= kv or q < kv"),
    "nothing": Mask("", "q > kv and q <= kv"),
    "late queries see early keys": Mask("tokens: int", "q >= tokens and kv < tokens"),
}
EVEN = {"window": 40, "left": 30, "right": 12, "prefix": 50, "tokens": 21}
ODD = {"window": 1, "left": 70, "right": -5, "prefix": -3, "tokens": 64}
NEGATIVE = {"window": -7, "left": -1, "right": 0, "prefix": 1000, "tokens": 0}
BUFFERS = {
    "windows": np.array([1, 17, 64, 300]),
    "prefixes": np.array([0, 75]),
    "lengths": np.array([131, 20]),
    "ids": np.sort(np.random.default_rng(0).integers(0, 7, (2, 203)), axis=1),
    "kept": np.arange(203) < np.array([[99], [0]]),
}


def plan_of(variant: Variant) -> TilePlan:
    return make_plan(run_pipeline(variant, check=True))


def values_of(variant: Variant, scalars: Mapping[str, int]) -> dict[str, Any]:
    return {p.name: {**scalars, **BUFFERS}[p.name] for p in variant.parameters}


def map_by_keys(plan: TilePlan, sizes: Sizes, values: Values, block_m: int, block_n: int) -> np.ndarray[Any, Any]:
    """Classes of tiles as tiles of keys see them, transposed to (…, tiles of queries, tiles of keys)."""
    first, last = tile_ends(sizes.kv_len, block_n)
    env, rows = leaves(sizes, values), -(-sizes.q_len // block_m)
    may = cover(outward(runs(plan.queries.may, first, last, sizes.q_len, env), block_m), rows)
    must = cover(inward(runs(plan.queries.must, first, last, sizes.q_len, env), block_m, sizes.q_len), rows)
    return np.swapaxes(may.astype(np.int8) + (may & must), -1, -2)


@pytest.mark.parametrize("scalars", [EVEN, ODD, NEGATIVE], ids=["even", "odd", "negative"])
@pytest.mark.parametrize("name", MASKS)
def test_tiles_are_exactly_the_true_ones(name: str, scalars: Mapping[str, int]) -> None:
    mask = MASKS[name]
    plan = plan_of(mask.variant)
    assert plan.method == mask.method
    values = values_of(mask.variant, scalars)
    for sizes in SIZES:
        for block_m, block_n in BLOCKS:
            true = tile_map(plan, sizes, values, block_m, block_n, exact=True)
            found = tile_map(plan, sizes, values, block_m, block_n)
            np.testing.assert_array_equal(np.broadcast_to(found, true.shape), true)
            if plan.method == "closed":
                found = map_by_keys(plan, sizes, values, block_m, block_n)
                np.testing.assert_array_equal(np.broadcast_to(found, true.shape), true)


@pytest.mark.parametrize("name", MASKS)
def test_counts_agree_with_enumeration(name: str) -> None:
    mask = MASKS[name]
    plan = plan_of(mask.variant)
    values = values_of(mask.variant, EVEN)
    for sizes in SIZES[:3]:
        assert tile_counts(plan, sizes, values, 32, 16) == tile_counts(plan, sizes, values, 32, 16, exact=True)
        true, found = pair_count(plan, sizes, values, exact=True), pair_count(plan, sizes, values)
        assert found.exact >= mask.rows
        assert found == true if found.exact else found.pairs >= true.pairs


# --- the same mask, written otherwise --------------------------------------------------------------------------

@pytest.mark.parametrize("change", SPELLINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MASKS)
def test_another_spelling_gives_the_same_tiles(name: str, change: Callable[[Expr], Expr]) -> None:
    variant = MASKS[name].variant
    original, changed = make_plan(variant), make_plan(Variant(mask=rewrite(variant.mask, change)))
    assert changed.method == original.method
    values = values_of(variant, EVEN)
    clone = {f"my_{k}" if change is renamed else k: v for k, v in values.items()}
    for sizes in SIZES[1:3]:
        for read in (tile_map, map_by_keys):
            np.testing.assert_array_equal(read(changed, sizes, clone, 32, 16), read(original, sizes, values, 32, 16))
