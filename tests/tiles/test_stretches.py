"""Rows are summed by stretches: the same as row by row, and at a million tokens only a few rows are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regard as rg
from regard.ir import build
from regard.ir.interpret import evaluate
from regard.ir.nodes import BinaryOp, Expr
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan, numeric
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.tiles.plan import Interval
from regard.ir.tiles.stretches import stretches

ROW = build.index("tile_first")
numbers = st.integers(-9, 60).map(build.const)
operations: st.SearchStrategy[BinaryOp] = st.sampled_from(("add", "sub", "min", "max"))
orders: st.SearchStrategy[BinaryOp] = st.sampled_from(("lt", "le", "gt", "ge", "eq", "ne"))


def combined(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    condition = st.builds(build.binary, orders, inner, inner)
    return st.one_of(
        st.builds(build.binary, operations, inner, inner),
        st.builds(lambda a, c: build.binary("mul", a, build.const(c)), inner, st.sampled_from((-3, -1, 2, 4))),
        st.builds(lambda a, c: build.binary("floordiv", a, build.const(c)), inner, st.integers(1, 20)),
        st.builds(lambda a, c: build.binary("mod", a, build.const(c)), inner, st.integers(1, 20)),
        st.builds(build.unary, st.sampled_from(("neg", "abs")), inner),
        st.builds(build.select, condition, inner, inner),
        st.builds(lambda c, d, a, b: build.select(build.binary("and", c, build.unary("not", d)), a, b),
                  condition, condition, inner, inner),
    )  # fmt: skip


expressions = st.recursive(st.one_of(st.just(ROW), numbers), combined, max_leaves=6)
unions = st.lists(st.builds(Interval, expressions, expressions), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(unions, st.integers(0, 30), st.integers(1, 300))
def test_keys_grow_evenly_along_a_stretch(union: list[Interval], first: int, rows: int) -> None:
    starts = stretches(union, 3, 200, first, rows, {})
    if starts is None:
        return
    x = np.arange(first, first + rows)
    keys = numeric.runs(tuple(union), x, x, 200, {}, low=3).total[0, 0]
    for start, stop in zip(starts, [*starts[1:], first + rows], strict=True):
        assert len({*np.diff(keys[start - first : stop - first])}) <= 1
    assert starts[0] == first and (np.diff(starts) > 0).all()


@settings(max_examples=50, deadline=None)
@given(expressions)
def test_most_expressions_have_stretches(e: Expr) -> None:
    """What is not piecewise linear: slopes above a divisor that does not divide them, and steps of few rows."""
    starts = stretches([Interval(build.const(0), e)], 0, 10**6, 0, 10**5, {})
    if starts is None:
        divided = any(op in repr(e) for op in ("floordiv", "mod"))
        assert divided, evaluate(e, {"tile_first": 0})


N = 2**20
IMAGE, VIDEO = rg.grid(1024, 1024), rg.grid(64, 128, 128)
MASKS: dict[str, tuple[Any, int | None]] = {
    "full": (rg.full, N * N),
    "causal": (rg.causal, N * (N + 1) // 2),
    "window": (rg.sliding_window(1023), N * 1024 - 1024 * 1023 // 2),
    "window of a batch": (rg.causal & rg.padding(torch.tensor([N // 2, 1])), None),
    "prefix": (rg.prefix_lm(1000), N * (N + 1) // 2 + 1000 * 999 // 2),
    "longformer": (rg.sliding_window(256, 256) | rg.global_tokens(64), None),
    "streaming": (rg.causal & (rg.sliding_window(1023) | rg.sinks(4)), None),
    "dilated": (rg.causal & rg.dilated(4) & rg.sliding_window(4095), None),
    "strided": (rg.strided(128), None),
    "blocks": (rg.block_diagonal(1024), N * 1024),
    "chunks": (rg.chunked_causal(1024), N * 1025 // 2),
    "staircase": (rg.block_causal(1024), N * 1024 * 1025 // 2),
    "neighborhood": (rg.neighborhood(IMAGE, (13, 24), (2, 1), (1, 8)), N * 13 * 24),
    "video": (rg.neighborhood(VIDEO, (5, 9, 9), causal=(True, False, False)), (64 * 5 - 10) * 128 * 9 * 128 * 9),
    "windows": (rg.windows(IMAGE, 16), N * 256),
    "axial": (rg.axial(IMAGE, 0, causal=True), N * 1025 // 2),
    "halo": (rg.halo(IMAGE, 8, 4), (1024 * 16 - 64) ** 2),
    "tiles": (rg.sliding_tile(VIDEO, 3, (4, 8, 8)), N * 12 * 24 * 24),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_million_tokens_are_counted_by_a_few_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part, expected = MASKS[name]
    attn = rg.attention(part)
    plan = make_plan(run_pipeline(attn.variant))
    values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in attn.binding.items()}
    rows = 0
    real, real_disjoint = numeric.runs, numeric.disjoint

    def counted(union: Any, first: Any, *rest: Any, **options: Any) -> Any:
        nonlocal rows
        rows += len(first)
        return real(union, first, *rest, **options)

    def counted_ends(starts: Any, stops: Any) -> Any:
        nonlocal rows
        rows += starts.shape[-1]
        return real_disjoint(starts, stops)

    for module in ("count", "box_count"):
        monkeypatch.setattr(f"regard.ir.tiles.{module}.runs", counted)
    monkeypatch.setattr("regard.ir.tiles.stretches.disjoint", counted_ends)
    found = pair_count(plan, Sizes(2, 1, 1, N, N), values)
    assert found.exact
    assert expected is None or found.pairs == 2 * expected
    assert 0 < rows <= N // 64
