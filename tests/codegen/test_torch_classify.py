"""Lists of tiles, computed on the tensors' device, against the mask itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regard.dsl as rg
from oracle import allowed_pairs, by_tile
from printed_torch import load
from regard.codegen import torch_classify
from regard.codegen.emitter import Emitter
from regard.codegen.print_torch import helper_functions
from regard.codegen.torch_classify import CLASSIFY_NAMES, emit_classify_functions
from regard.codegen.torch_definitions import emit_mask, module_scope
from regard.dsl.part import MaskPart
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan

B, H, HKV = 2, 4, 2
SIZES = [(96, 128), (101, 77), (77, 101), (5, 3)]


@rg.mask
def from_table(q: Any, kv: Any, head: Any, table: Any) -> Any:
    return table[head, q, kv]


@rg.mask
def narrowing(q: Any, kv: Any) -> Any:
    """A window in frames of 32 that narrows as their distance grows."""
    apart = abs(q // 32 - kv // 32)
    return abs(q % 32 - kv % 32) <= rg.where(apart >= 2, 2, rg.where(apart >= 1, 9, 20))


def documents(length: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 5, (B, length), generator=torch.Generator().manual_seed(0)).to(dtype)


CASES: dict[str, Callable[[int, int], MaskPart]] = {
    "sorted": lambda q, kv: rg.document(documents(max(q, kv), torch.int32).sort().values),
    "sorted, 64 bits": lambda q, kv: rg.document(documents(max(q, kv), torch.int64).sort().values),
    "unsorted": lambda q, kv: rg.document(documents(max(q, kv), torch.int32)),
    "causal": lambda q, kv: rg.causal() & rg.document(documents(max(q, kv), torch.int32).sort().values),
    "blocks": lambda q, kv: rg.tiles(torch.rand(7, 8, generator=torch.Generator().manual_seed(2)) > 0.6, (16, 17)),
    "narrowing": lambda q, kv: narrowing(),
    "table": lambda q, kv: from_table(table=torch.rand(H, q, kv, generator=torch.Generator().manual_seed(1)) > 0.98),
}


def plan_of(part: MaskPart) -> tuple[TilePlan, list[Any]]:
    variant, binding = rg.assemble(part)
    plan = make_plan(run_pipeline(variant))
    names = [p.name for p in plan.variant.buffers] + [p.name for p in plan.variant.scalars]
    return plan, [binding[name] for name in names]


def classifier(plan: TilePlan, blocks: tuple[int, int]) -> Callable[..., Any]:
    out = Emitter(CLASSIFY_NAMES)
    scope = module_scope(plan.variant, out)
    mask = emit_mask(out, plan.variant.mask, scope) if plan.method == "exact" else None
    emit_classify_functions(out, plan, scope, mask, blocks)
    function: Callable[..., Any] = load(f"import torch\n{helper_functions(out.text())}\n{out.text()}")["classify"]
    return function


def check(table: tuple[Tensor, Tensor], some: Tensor, every: Tensor, *, sharp: bool) -> None:
    """``some`` and ``every``: (B, H, rows, columns), columns being what the lists name."""
    indices, counts = table
    assert indices.dtype == counts.dtype == torch.int32
    assert torch.equal(indices.sort(-1).values, torch.arange(some.shape[3], dtype=torch.int32).expand(indices.shape))
    place = torch.arange(some.shape[3])
    full, listed = place < counts[..., :1], place < counts.sum(-1, keepdim=True)
    is_full = torch.zeros_like(indices, dtype=torch.bool).scatter(-1, indices.long(), full).expand(some.shape)
    is_listed = torch.zeros_like(indices, dtype=torch.bool).scatter(-1, indices.long(), listed).expand(some.shape)
    assert not (is_full & ~every).any(), "a tile called full is not"
    assert not (some & ~is_listed).any(), "a tile with pairs is missing"
    if sharp:
        assert torch.equal(is_listed, some)
        assert torch.equal(is_full, every)


@pytest.mark.parametrize("q_len, kv_len", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_tables(case: str, q_len: int, kv_len: int) -> None:
    part = CASES[case](q_len, kv_len)
    plan, values = plan_of(part)
    assert plan.method == ("exact" if case == "table" else "classified")
    table = classifier(plan, (16, 32))(*values, B, H, HKV, q_len, kv_len, torch.device("cpu"))
    keep = allowed_pairs([part], (B, H, HKV, q_len, kv_len))
    check(table, *by_tile(keep, 16, 32), sharp=case in ("sorted", "table", "causal", "blocks", "narrowing"))


@pytest.mark.parametrize("pairs", [1, 5000])
def test_the_mask_is_evaluated_in_chunks(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_classify, "PAIRS", pairs)
    part = CASES["table"](101, 77)
    plan, values = plan_of(part)
    table = classifier(plan, (16, 16))(*values, B, H, HKV, 101, 77, torch.device("cpu"))
    check(table, *by_tile(allowed_pairs([part], (B, H, HKV, 101, 77)), 16, 16), sharp=True)


@pytest.mark.parametrize("case", ["sorted", "table"])
@pytest.mark.parametrize("batch, q_len, kv_len", [(0, 9, 9), (B, 0, 9), (B, 9, 0)])
def test_empty_sizes(case: str, batch: int, q_len: int, kv_len: int) -> None:
    part = CASES[case](q_len, kv_len)
    plan, values = plan_of(part)
    indices, counts = classifier(plan, (4, 4))(*values, batch, H, HKV, q_len, kv_len, torch.device("cpu"))
    q_tiles, kv_tiles = -(-q_len // 4), -(-kv_len // 4)
    assert indices.shape[2:] == (q_tiles, kv_tiles) and counts.shape[2:] == (q_tiles, 2)
    if batch:
        assert not counts.any()


def test_axes_that_do_not_matter_have_size_one() -> None:
    plan, values = plan_of(CASES["sorted"](64, 64))
    indices, counts = classifier(plan, (16, 16))(*values, B, H, HKV, 64, 64, torch.device("cpu"))
    assert indices.shape == (B, 1, 4, 4) and counts.shape == (B, 1, 4, 2)
