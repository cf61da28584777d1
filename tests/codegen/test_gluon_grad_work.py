"""Gradients whose long rows of tiles are cut into shares: emulated on the CPU, and compiled for sm_90 without a GPU."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import pytest
import torch

import gluon_emulated
import regard as rg
from generated_gluon import BF16, F16, Shape, assert_gradients, bias, module, saved, tensors
from generated_triton import H100, load
from oracle import Part, allowed_pairs
from regard.codegen import gluon_repeatable
from regard.codegen.binaries import compile_launches, sample_arguments
from regard.codegen.schedule import Problem, Schedule
from regard.codegen.skeletons import choose, schedule_for
from uneven_rows import (
    LOCAL_AND_GLOBAL,
    RANDOM,
    emulated,
    late_rows_see_all,
    local_and_global,
    one_head_sees_more,
    passages_and_question,
    some_rows_see_nothing,
)


@rg.mask
def first_keys(kv):
    return kv < 30


@rg.mask
def blocks_behind_the_first(q, kv):
    return (q >= kv) & ((q // 200 == kv // 200) | (kv < 100))


# Parts, (B, H, Hkv, Lq, Lkv), options of the module, whether rows of queries and of keys are cut.
EMULATED: dict[str, tuple[list[Part], Shape, dict[str, Any], tuple[bool, bool]]] = {
    "local and global": (LOCAL_AND_GLOBAL, (1, 1, 1, 1300, 1000), {}, (True, True)),
    "heads that share keys apart": (LOCAL_AND_GLOBAL, (1, 2, 1, 900, 1100), {"sizes": (128, 64)}, (True, True)),
    "heads that share keys": (
        LOCAL_AND_GLOBAL, (2, 2, 1, 1000, 2400), {"dtype": F16}, (True, True),
    ),
    "aligned at the end": (LOCAL_AND_GLOBAL, (2, 1, 1, 1400, 1700), {"align": "end"}, (False, True)),
    "late rows": ([late_rows_see_all(begin=1150), rg.softcap(20.0)], (1, 1, 1, 1300, 900), {}, (True, False)),
    "rows and columns that see nothing": ([first_keys()], (1, 1, 1, 1001, 300), {}, (False, True)),
    "columns alone": ([blocks_behind_the_first()], (1, 1, 1, 999, 999), {"sizes": (128, 128)}, (False, True)),
    "listed tiles": (RANDOM, (1, 1, 1, 1100, 1000), {"sizes": (128, 128)}, (True, True)),
    "heads in two parts": (LOCAL_AND_GLOBAL, (1, 1, 1, 900, 800), {"sizes": (96, 96)}, (True, True)),
    "wide heads": (LOCAL_AND_GLOBAL, (1, 2, 1, 600, 700), {"sizes": (192, 128)}, (True, True)),
    "a kernel for dK and one for dV": (LOCAL_AND_GLOBAL, (1, 1, 1, 700, 600), {"sizes": (256, 256)}, (True, True)),
}  # fmt: skip


@pytest.mark.parametrize("name", EMULATED)
def test_emulated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, shape, options, cut = EMULATED[name]
    call = {key: options[key] for key in ("align",) if key in options}
    generated = module(parts, direction="backward", deterministic=True, **options)
    inputs = tensors(shape, options.get("sizes", (64, 64)), options.get("dtype", BF16))
    rest = saved(parts, inputs, **call)
    found = emulated(generated.text).run(*inputs, *rest, *generated.values)
    assert_gradients(found, parts, inputs, rest, **call)
    lists = emulated(generated.text).names["classify"](*generated.values, *shape, torch.device("cpu"))
    assert tuple(len(x) > 0 and int(x[-1][0, 1]) > 0 for x in lists) == cut
    # Sums of shares do not depend on which of them was there first.
    monkeypatch.setattr(gluon_emulated, "order", lambda count: reversed(range(count)))
    again = emulated(generated.text).run(*inputs, *rest, *generated.values)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_unseen_keys_of_shares_may_hold_anything() -> None:
    parts: list[Part] = [rg.mask(lambda q, kv: ((q < 20) | (abs(q - kv) < 60)) & ((kv < 500) | (kv >= 800)))]
    shape = (1, 1, 1, 500, 1300)
    inputs = tensors(shape, (64, 64), BF16)
    unseen = ~allowed_pairs(parts, shape)[0, 0].any(0)
    assert unseen.any()
    rest = saved(parts, inputs)
    generated = module(parts, direction="backward", deterministic=True)
    assert generated.text.count("own_share(") > 1
    clean = emulated(generated.text).run(*inputs, *rest, *generated.values)
    _, key, value = inputs
    key[:, :, unseen], value[:, :, unseen] = torch.nan, torch.inf
    dirty = emulated(generated.text).run(*inputs, *rest, *generated.values)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def cuts(schedule: Schedule) -> tuple[bool, bool]:
    """Whether long rows of queries, and of keys, are in shares."""
    assert schedule.grad_query is not None
    assert all(x.listed == x.split_keys for x in (schedule, schedule.grad_query))
    return schedule.grad_query.listed, schedule.listed


# Parts, whether the kernels that repeat cut rows of queries and of keys by default, and as candidates.
CUT: dict[str, tuple[list[Part], tuple[bool, bool], set[tuple[bool, bool]]]] = {
    "causal": ([rg.causal()], (False, False), {(False, False)}),
    "window": ([rg.sliding_window(300, 200)], (False, False), {(False, False)}),
    "prefix": ([rg.prefix_lm(500)], (False, False), {(False, False)}),
    "sinks and window": (
        [rg.causal(), rg.sinks(4) | rg.sliding_window(300)], (False, True), {(False, False), (False, True)},
    ),
    "local and global": (LOCAL_AND_GLOBAL, (True, True), {(False, False), (True, True)}),
    "rows that see nothing": ([some_rows_see_nothing()], (True, False), {(False, False), (True, False)}),
    "a head apart": ([one_head_sees_more()], (False, False), {(False, False)}),
    "data": ([passages_and_question(block=torch.arange(9))], (False, False), {(False, False), (True, True)}),
    "listed tiles": (RANDOM, (True, True), {(False, False), (True, True)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_which_rows_are_cut(name: str) -> None:
    parts, default, candidates = CUT[name]
    generated = module(parts, direction="backward", deterministic=True)
    first, *others = gluon_repeatable.candidates(generated.plan, generated.problem)
    assert cuts(first) == default
    assert {cuts(x) for x in (first, *others)} == candidates
    assert ("work_list" in generated.text) == any(default)


def test_gradients_of_captured_tensors_keep_whole_rows() -> None:
    parts = [*LOCAL_AND_GLOBAL, rg.alibi(slopes=bias(2))]
    generated = module(parts, direction="backward", deterministic=True, gradients_of=["slopes"])
    assert {cuts(x) for x in gluon_repeatable.candidates(generated.plan, generated.problem)} == {(False, False)}


@pytest.mark.parametrize(
    ("part", "size", "shared"),
    [
        (local_and_global(reach=40, seen=20), 64, True),
        (local_and_global(reach=40, seen=20), 128, True),
        (rg.random_blocks(64, 1) | local_and_global(reach=10, seen=30), 128, True),
        (rg.random_blocks(64, 1) | local_and_global(reach=10, seen=30), 64, True),
        (rg.random_blocks(64, 1) | first_keys(), 128, False),
        (rg.causal() & (rg.sinks(4) | rg.sliding_window(300)), 64, True),
        (rg.prefix_lm(500), 128, False),
        (rg.random_blocks(64, 1), 128, False),
        (one_head_sees_more(), 128, False),
    ],
)
def test_shares_replace_the_form_with_five_products(part: Part, size: int, shared: bool) -> None:
    plan = module([part]).plan
    problem = Problem("bf16", size, size)
    choice = choose(plan, problem, H100, "backward", fills_gpu=True)
    schedule = schedule_for(choice, plan, problem, H100, "backward")
    assert choice.skeleton == "gluon"
    assert ("into shares" in choice.reason) == (schedule.grad_query is not None and any(cuts(schedule))) == shared


@pytest.mark.parametrize(("sizes", "most"), [((128, 128), 64), ((64, 64), 30)])
def test_compiled_for_sm_90(sizes: tuple[int, int], most: int) -> None:
    generated = module(LOCAL_AND_GLOBAL, sizes=sizes, direction="backward", deterministic=True)
    query, key, value = sample_arguments(generated.problem)
    lse = torch.empty(query.shape[:3], device="meta")
    arguments = [query, key, value, query, lse, query, None, *generated.values]
    found = {x.kernel: x for x in compile_launches(load(generated.text), H100, arguments)}
    lists = {"count_keys", "count_queries", "order_tiles", "add_rows"}
    kernels = {x for x in found if x.startswith("attention_grad_")}
    assert set(found) == {*lists, "row_terms", *kernels}
    for name in kernels:
        assert "HGMMA" in found[name].sass() and found[name].shared <= 227 << 10
        assert found[name].spills() <= most, "more than without shares"
    assert not any(found[name].spills() for name in lists)
