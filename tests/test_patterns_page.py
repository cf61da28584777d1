"""docs/patterns.md: every mask runs, means what its function says, and has exactly the tiles that brute force finds."""

from __future__ import annotations

import doctest
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regard as rg
from boxes import Call, misjudged
from oracle import allowed_pairs, assert_close_to_oracle, eager, oracle
from regard.codegen.schedule import Target
from regard.codegen.skeletons import walks_boxes
from regard.dsl import Part
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.count import pair_count, tile_map
from regard.ir.tiles.numeric import Sizes

PAGE = Path(__file__).parents[1] / "docs" / "patterns.md"
TEXT = PAGE.read_text()
LENGTH, HEADS = 256, 4
SIZES = Sizes(1, HEADS, HEADS, LENGTH, LENGTH)
# Where some tiles are called partial that are empty or full, and why.
VAGUE = {
    "retrieval": "two parts of the disjunction may fill a tile together",
}


@cache
def page() -> dict[str, Any]:
    """What the page defines, after all its snippets ran."""
    torch.manual_seed(0)
    test = doctest.DocTestParser().get_doctest(TEXT, {}, PAGE.name, str(PAGE), 0)
    assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
    return test.globs


def mask(name: str) -> Part:
    found: Part = page()[name]
    return found


ROWS = [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| (?!system|---)", line)]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])})


def test_systems_are_counted() -> None:
    systems = [system.strip() for row in ROWS for system in row[0].split(";")]
    assert len(systems) == len(set(systems))
    assert f"{len(systems)} published systems" in TEXT


def test_no_mask_is_left_out() -> None:
    parts = {name for name, x in page().items() if isinstance(x, (rg.MaskPart, rg.MaskFunction))}
    assert parts - {"first_two"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_mask_means_what_it_says(name: str) -> None:
    inputs = tuple(page()[x] for x in ("query", "key", "value"))
    out = rg.attention(mask(name))(*inputs)
    assert_close_to_oracle(out, oracle([mask(name)], *inputs)[0], eager([mask(name)], *inputs)[0], name)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_exactly_the_true_ones(name: str) -> None:
    attn = rg.attention(mask(name))
    plan = make_plan(run_pipeline(attn.variant))
    values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in attn.binding.items()}
    pairs = pair_count(plan, SIZES, values)
    true_pairs = int(allowed_pairs([mask(name)], (1, HEADS, HEADS, LENGTH, LENGTH)).sum())
    assert pairs.pairs == true_pairs if pairs.exact else pairs.pairs >= true_pairs
    vague = False
    if walks_boxes(plan, Target("cpu")):
        call = Call(LENGTH, LENGTH, values)
        vague = any(misjudged(term, call, side, by) for term in plan.boxes for side in (1, 4) for by in ("q", "kv"))
    else:
        for block_m, block_n in ((32, 16), (64, 64)):
            true = tile_map(plan, SIZES, values, block_m, block_n, exact=True)
            found = np.broadcast_to(tile_map(plan, SIZES, values, block_m, block_n), true.shape)
            assert ((found == true) | (found == 1)).all()
            vague = vague or bool((found != true).any())
    assert vague == (name in VAGUE)
