"""The patterns: the same mask for everybody, one measured on the CPU, and what is said about times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import patterns, published
from benchmarks.arithmetic import quotient, remainder
from benchmarks.block_masks import block_mask
from benchmarks.case import Case, Task
from benchmarks.cases import build
from benchmarks.command import main
from benchmarks.contenders import in_order, permutation
from benchmarks.measure import measure_sparse
from benchmarks.pattern_table import PATTERNS
from benchmarks.suite import Entry
from torch.nn.attention.flex_attention import create_block_mask

from regard.ir.interpret import evaluate
from regard.ir.passes import run_pipeline

# The first of each name.
CASES = {case.variant: case for case in reversed([*patterns.suite(), *published.CASES])}


def test_all_are_listed() -> None:
    assert set(PATTERNS) <= set(CASES)
    assert {(c.length, c.head_dim) for c in patterns.suite() if c.variant == "longformer"} == {
        (16384, 128), (16384, 64), (65536, 128), (65536, 64),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_masks_agree(name: str) -> None:
    """On some rows, the first and the last among them, and on the last head."""
    case = CASES[name]
    made = build(case, "cpu")
    rows = torch.cat([torch.tensor([0, 1, case.length - 1]), torch.randperm(case.length)[:13]])[:, None]
    keys, head = torch.arange(case.length), case.heads - 1
    assert made.flex_mask is not None
    expected = made.flex_mask(0, torch.tensor(head), rows, keys)
    values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in made.regard.binding.items()}
    env = values | {
        "q": rows.numpy(), "kv": keys.numpy(), "head": head, "batch": 0, "q_len": case.length, "kv_len": case.length,
    }  # fmt: skip
    found = evaluate(run_pipeline(made.regard.variant).mask, env)
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected.numpy())
    assert expected.any(1).all()
    if made.causal:
        assert not expected[keys > rows].any()


@pytest.mark.parametrize("name", [name for name in CASES if build(CASES[name], "cpu").position is not None])
def test_other_orders_hold_every_token_once(name: str) -> None:
    order = permutation(build(CASES[name], "cpu"), CASES[name].length, "cpu")
    assert torch.equal(order.sort().values, torch.arange(CASES[name].length))


@pytest.mark.parametrize(
    "name, length, ordered",
    [("neighbourhood2d", 1024, True), ("window", 1999, False), ("shards", 1500, False), ("circle2d", 4096, True)],
)
def test_block_masks_are_those_of_flex_attention(name: str, length: int, ordered: bool) -> None:
    case = Case(name, 1, 4, 4, length, 16)
    made = build(case, "cpu")
    if ordered:
        made = in_order(made, length, "cpu")
    heads = case.heads if made.per_head else 1
    assert made.flex_mask is not None
    found = block_mask(made.flex_mask, heads, length, "cpu")
    expected = create_block_mask(made.flex_mask, None, heads, length, length, device="cpu")
    for field in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(found, field), getattr(expected, field))
    assert found.shape == expected.shape


@pytest.mark.parametrize("by", [1, 8, 12])
def test_divisions_round_down(by: int) -> None:
    x = torch.arange(-40, 41, dtype=torch.int32)
    assert torch.equal(quotient(x, by), x // by) and torch.equal(remainder(x, by), x % by)


def told(place: str) -> None:
    """Nobody needs to know."""


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    case = Case("shards", 1, 4, 4, 700, 16)
    task = Task(case, ("regard", "regard-dense"), rounds=1, budget_ms=0.1, device="cpu", directions=("forward", "both"))
    return {"title": case.title} | measure_sparse(task, told)


def test_a_row(row: dict[str, Any]) -> None:
    q, k = torch.arange(700)[:, None], torch.arange(700)
    pairs = sum(int(((q >= k) & ((q // 128 - k // 128 < 4) | ((k // 128 - h) % 8 == 0))).sum()) for h in range(4))
    assert row["pairs"] == pairs <= row["tile_pairs"] < row["dense_tile_pairs"] < 4 * 700 * 700
    assert not row["contenders"]["regard"]["wrong"] and "backward" not in row["contenders"]["regard"]
    said = patterns.ratios(row, "both")
    assert said["of_bound"] * said["bound"] == pytest.approx(said["x_dense"])
    assert "x_flex" not in said


def results(*rows: dict[str, Any], not_run: tuple[str, ...] = ()) -> dict[str, Any]:
    environment = {"device": "GPU", "date": "today", "torch": "2.11"}
    return {
        "environment": environment, "matmul_tflops": 700.0, "l2": "overwritten", "rows": rows, "not_run": not_run,
    }  # fmt: skip


def test_report(row: dict[str, Any]) -> None:
    times = {"forward": {"ms": 2.0, "tflops": 200.0}, "both_error": "RuntimeError: odd\nshape"}
    flex = {"flex": times, "flex-ordered": {"forward": {"ms": 1.5, "tflops": 1.0}, "wrong": True, "deviation": 0.5}}
    made = row | {"contenders": {"regard": {"forward": {"ms": 0.5, "tflops": 800.0}}, **flex}}
    said = patterns.ratios(made, "forward")
    assert said["x_flex"] == said["x_flex_natural"] == 4
    right = {"flex-ordered": {"forward": {"ms": 1.5}, "wrong": False}}
    said = patterns.ratios(made | {"contenders": made["contenders"] | right}, "forward")
    assert said["x_flex"] == 3 and said["x_flex_natural"] == 4
    failed = {"title": "kept", "error": "ValueError: odd"}
    text = patterns.markdown(results(made, failed, not_run=("x",)))
    assert f"| {row['title']} | forward | 0.5 | 800 | 4 | 4 |" in text
    assert "- kept: ValueError: odd" in text and "- x" in text
    # What fails beside a figure is said too.
    assert f"- {row['title']}: flex both_error: RuntimeError: odd shape | WRONG flex-ordered: 0.5" in text
    assert patterns.line(made).endswith("WRONG flex-ordered: 0.5")


def test_report_of_published_cases(row: dict[str, Any]) -> None:
    facts = {"pairs": 600, "tile_pairs": 1000, "full_tiles": 0.25, "title": "natten2d_blocked"}
    times = {"regard": {"forward": {"ms": 0.5, "tflops": 800.0}}, "regard-triton": {"forward": {"ms": 2.0}}}
    made = row | facts | {"case": {"variant": "natten2d_blocked"}, "contenders": times}
    said = published.figures(made)
    assert said["× published"] == pytest.approx(800 / 651) and said["on visited"] == pytest.approx(800 / 0.6)
    assert "| natten2d_blocked | 0.5 | 2 | – | 800 | 1.33e+03 | 0.6 | 0.25 | 1.23 |" in published.markdown(
        results(made)
    )
    lost = made | {"contenders": {"regard-triton": {"error": "out of memory"}}}
    assert published.line(lost) == "natten2d_blocked: regard-triton error: out of memory"


def test_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(patterns.BENCHMARK, ["--list", "bigbird", "kept"])
    assert capsys.readouterr().out.splitlines()[:2] == ["bigbird B1 H8 S16384 D128", "bigbird B1 H16 S16384 D64"]
    assert "flex-ordered" in patterns.task_of(Entry(CASES["kept"])).names
    assert {*published.PUBLISHED, *published.PUBLISHED_RATES} < {case.variant for case in published.CASES}
    with pytest.raises(SystemExit, match="no case is called nonesuch"):
        main(patterns.BENCHMARK, ["nonesuch"])
