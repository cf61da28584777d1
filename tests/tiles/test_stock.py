"""The stock library's own masks: the analysis finds exactly the true tiles, whatever the dtype of the data."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import regard as rg
from boxes import Call, misjudged
from regard.dsl import stock
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.count import tile_map
from regard.ir.tiles.numeric import Sizes

LENGTH = 150
IDS = (torch.arange(LENGTH) // 37).expand(2, -1)
# A prefix of 40 tokens and three continuations; chains of 30.
CHAINS = (torch.arange(LENGTH) // 30 + 1) * 30
ENDS = torch.stack([CHAINS, torch.tensor([150] * 40 + [83] * 43 + [91] * 8 + [150] * 59)])

BLOCKS = torch.rand(2, 2, 5, 10, generator=torch.Generator().manual_seed(0)) > 0.6

MASKS: dict[str, dict[str, Any]] = {
    "full": {"everything": rg.full},
    "causal": {"a triangle": rg.causal},
    "sliding_window": {"one side": rg.sliding_window(40), "both sides": rg.sliding_window(9, 30)},
    "prefix_lm": {"one for all": rg.prefix_lm(50), "one a batch": rg.prefix_lm(torch.tensor([0, 70]))},
    "document": {
        "of a batch": rg.document(IDS),
        "for all": rg.document(IDS[0]),
        "other keys": rg.document(IDS, IDS.flip(1)),
    },
    "padding": {"lengths": rg.padding(torch.tensor([131, 20]))},
    "key_mask": {"marked": rg.key_mask(IDS < 2)},
    "global_tokens": {"with a window": rg.global_tokens(20) | rg.sliding_window(16, 16)},
    "sinks": {"with a window": rg.causal & (rg.sinks(4) | rg.sliding_window(33))},
    "dilated": {"in a window": rg.dilated(4) & rg.sliding_window(64)},
    "strided": {"summaries": rg.strided(24)},
    "block_diagonal": {"blocks": rg.block_diagonal(24)},
    "chunked_causal": {"blocks": rg.chunked_causal(40)},
    "checkerboard": {"blocks": rg.checkerboard(32)},
    "block_causal": {"a staircase": rg.block_causal(24)},
    "tree": {"of a batch": rg.tree(ENDS), "for all": rg.tree(ENDS[1])},
    "tiles": {
        "for all": rg.tiles(BLOCKS[0, 0], (32, 16)),
        "by head, cut short": rg.causal & rg.tiles(BLOCKS[:1, :, :4], (40, 16)),
        "by batch and head": rg.tiles(BLOCKS, (32, 16)),
    },
}
# What was drawn for two blocks of queries lies anywhere: tiles must not cross their borders.
IN_BLOCKS: dict[str, dict[str, Any]] = {
    "random_blocks": {
        "alone": rg.random_blocks(32, 2),
        "bigbird": rg.random_blocks(32, 2) | rg.sliding_window(9, 9) | rg.global_tokens(7),
    },
}


@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize(("name", "case"), [(name, case) for name in MASKS for case in MASKS[name]])
def test_tiles_are_exactly_the_true_ones(name: str, case: str, align: Any) -> None:
    attn = rg.attention(MASKS[name][case], align=align)
    plan = make_plan(run_pipeline(attn.variant))
    values = {p: x.numpy() if isinstance(x, torch.Tensor) else x for p, x in attn.binding.items()}
    for sizes in (Sizes(2, 2, 1, LENGTH, LENGTH), Sizes(2, 2, 1, 67, LENGTH)):
        for block_m, block_n in ((32, 16), (17, 23)):
            check_tiles(plan, sizes, values, block_m, block_n)


def check_tiles(plan: TilePlan, sizes: Sizes, values: dict[str, Any], block_m: int, block_n: int) -> None:
    true = tile_map(plan, sizes, values, block_m, block_n, exact=True)
    found = tile_map(plan, sizes, values, block_m, block_n)
    np.testing.assert_array_equal(np.broadcast_to(found, true.shape), true)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in IN_BLOCKS for case in IN_BLOCKS[name]])
def test_tiles_in_blocks_are_exactly_the_true_ones(name: str, case: str) -> None:
    attn = rg.attention(IN_BLOCKS[name][case])
    plan = make_plan(run_pipeline(attn.variant))
    for block_m, block_n in ((32, 16), (16, 32), (8, 4)):
        check_tiles(plan, Sizes(1, 2, 2, LENGTH, LENGTH + 3), dict(attn.binding), block_m, block_n)


GRID = rg.grid(13, 10)
CLASSES: dict[str, dict[str, Any]] = {
    "neighborhood": {
        "shifted inwards": rg.neighborhood(GRID, (5, 4)),
        "dilated": rg.neighborhood(GRID, 3, (2, 3)),
        "per axis": rg.neighborhood(GRID, (4, 5), (3, 2), (2, 3), (True, False)),
        "strided": rg.neighborhood(GRID, 6, 1, (4, 6)),
    },
    "windows": {"plain": rg.windows(GRID, (4, 3)), "shifted": rg.windows(GRID, (4, 3), (1, 2))},
    "axial": {"columns": rg.axial(GRID, 0), "causal rows": rg.axial(GRID, 1, causal=True)},
    "halo": {"ragged blocks": rg.halo(GRID, (4, 3), (1, 2))},
    "sliding_tile": {"ragged tiles": rg.sliding_tile(GRID, 3, (2, 3))},
    "dilated": {"causal window": rg.causal & rg.sliding_window(30) & rg.dilated(4)},
    "strided": {"summaries": rg.strided(8)},
    "block_diagonal": {"blocks": rg.block_diagonal(24)},
    "chunked_causal": {"blocks": rg.chunked_causal(40)},
    "checkerboard": {"blocks": rg.checkerboard(16)},
}


@pytest.mark.parametrize("by", ["q", "kv"])
@pytest.mark.parametrize(("name", "case"), [(name, case) for name in CLASSES for case in CLASSES[name]])
def test_boxes_are_exactly_the_true_ones(name: str, case: str, by: Any) -> None:
    attn = rg.attention(CLASSES[name][case])
    plan = make_plan(run_pipeline(attn.variant))
    assert plan.boxes
    for term in plan.boxes:
        assert not term.remaining
        for side in (1, 2, 4):
            assert misjudged(term, Call(130, 130, dict(attn.binding)), side, by) == 0


def test_classes_and_axes_are_told_in_the_proofs() -> None:
    (term,) = make_plan(run_pipeline(rg.attention(CLASSES["dilated"]["causal window"]).variant)).boxes
    assert [p.verdict for p in term.proofs] == ["closed form"] * 3 + ["class"]
    assert term.proofs[-1].reason == "queries see keys of the same residue modulo 4 along axis 0"


def test_no_stock_mask_is_left_out() -> None:
    parts = {name: getattr(stock, name) for name in stock.__all__}
    makers = {name for name, part in parts.items() if "MaskPart" in str(inspect.signature(part).return_annotation)}
    tested = set(MASKS) | set(CLASSES) | set(IN_BLOCKS)
    assert makers | {name for name, part in parts.items() if isinstance(part, rg.MaskFunction)} == tested
