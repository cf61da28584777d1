"""Tuned schedules: what is kept, what is asked for, what a search may choose from. tests/gpu has the search itself."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import regard as rg
from regard import UnsupportedError
from regard.codegen.defaults import default_schedule
from regard.codegen.schedule import Problem, Schedule, Target
from regard.codegen.skeletons import Pinned, alternatives, is_long
from regard.runtime import compile, tuned, tuning
from regard.runtime.compile import Request

H100 = Target("cuda", 90)
GPU = torch.device("cuda", 0)
REQUEST = Request(rg.attention(rg.causal()).variant, Problem("bf16", 128, 128), H100, "forward", fills_gpu=True)
FOUND = Pinned(
    "triton", Schedule(32, 64, num_warps=8, grad_query=Schedule(64, 16, reverse=True), grad_value=Schedule(16, 128))
)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The name of one, which is all that keeping schedules asks it for, and an empty cache."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setenv("REGARD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuned, "_found", {})


def test_what_was_found_serves_later_processes(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned.tuned(REQUEST, GPU) is REQUEST
    tuned.remember(REQUEST, GPU, FOUND)
    for _ in range(2):
        assert tuned.lookup(REQUEST, GPU) == FOUND
        monkeypatch.setattr(tuned, "_found", {})  # as in another process
    assert tuned.tuned(REQUEST, GPU) == replace(
        REQUEST, schedule=FOUND.schedule, skeleton=FOUND.skeleton, fills_gpu=False, long=False
    )


def test_a_later_search_replaces_what_was_found(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Pinned("gluon", Schedule(128, 64))
    tuned.remember(REQUEST, GPU, FOUND)
    tuned.remember(REQUEST, GPU, other)
    monkeypatch.setattr(tuned, "_found", {})
    assert tuned.lookup(REQUEST, GPU) == other


def test_what_was_found_is_for_one_program_on_one_kind_of_gpu(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.remember(REQUEST, GPU, FOUND)
    for request in (
        replace(REQUEST, fills_gpu=False),
        replace(REQUEST, problem=Problem("f16", 128, 128)),
        replace(REQUEST, variant=rg.attention(rg.full()).variant),
        replace(REQUEST, schedule=Schedule(64, 64)),  # somebody wants this one
    ):
        assert tuned.tuned(request, GPU) is request
    assert tuned.tuned(REQUEST, torch.device("cpu")) is REQUEST
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another GPU")
    assert tuned.tuned(REQUEST, GPU) is REQUEST


def test_a_pinned_skeleton_is_generated_though_another_would_be_chosen() -> None:
    assert compile.generate(REQUEST).choice.skeleton == "gluon"
    pinned = compile.generate(replace(REQUEST, skeleton="triton", schedule=Schedule(64, 32, descriptors=True)))
    assert (pinned.choice.skeleton, pinned.schedule.block_n) == ("triton", 32)
    assert "gluon" not in pinned.source.text


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_both_skeletons_are_candidates(direction) -> None:
    request = replace(REQUEST, direction=direction)
    plan = compile.plan_for(request)
    found = alternatives(plan, request.problem, H100, direction)
    assert found[0] == Pinned("triton", default_schedule(plan, request.problem, H100, direction))
    assert {x.skeleton for x in found} == {"triton", "gluon"}
    assert len(set(found)) == len(found) > 10
    chosen = compile.generate(request)
    assert Pinned(chosen.choice.skeleton, chosen.schedule) in found


def test_gradients_that_repeat_have_both_skeletons_too() -> None:
    problem = replace(REQUEST.problem, deterministic=True)
    request = replace(REQUEST, direction="backward", problem=problem)
    found = alternatives(compile.plan_for(request), problem, H100, "backward")
    schedules = [x.schedule for x in found if x.skeleton == "gluon"]
    assert schedules and all(x.grad_query is not None for x in schedules)
    chosen = compile.generate(request)
    assert chosen.choice.skeleton == "gluon" and "seven products" in chosen.choice.reason
    assert chosen.schedule == schedules[0]
    assert chosen.source.kernels == ("row_terms", "attention_grad_query", "attention_grad_key")
    # What repeats may be the faster one, so it is a candidate where nobody asks for it.
    either = alternatives(compile.plan_for(request), REQUEST.problem, H100, "backward")
    assert {x.schedule.grad_query is None for x in either if x.skeleton == "gluon"} == {True, False}


def test_gradients_of_wide_heads_have_a_kernel_for_values_alone() -> None:
    problem = replace(REQUEST.problem, head_dim=192, value_dim=192)
    request = replace(REQUEST, direction="backward", problem=problem)
    chosen = compile.generate(request)
    assert chosen.choice.skeleton == "gluon" and "eight products" in chosen.choice.reason
    assert chosen.source.kernels[1:] == ("attention_grad_query", "attention_grad_key", "attention_grad_value")
    # At values of 128 one kernel has both sums, of fewer queries a step.
    problem = replace(problem, value_dim=128)
    found = alternatives(compile.plan_for(request), problem, H100, "backward")
    assert [x.schedule.grad_value is None for x in found if x.skeleton == "gluon"] == [True, False, False]


def test_results_agree_up_to_rounding() -> None:
    torch.manual_seed(0)
    exact = torch.randn(1000).bfloat16()
    lse = torch.tensor([1.0, -torch.inf])
    near = exact * (1 + torch.finfo(torch.bfloat16).eps * torch.randn(1000)).bfloat16()
    assert tuning._agree((near, lse), (exact, lse))
    assert not tuning._agree((near, lse), (exact.roll(1), lse))
    assert not tuning._agree((near, torch.tensor([1.0, 0.0])), (exact, lse))
    assert not tuning._agree((near * 1.1, lse), (exact, lse))


def test_nothing_to_tune_on_a_cpu() -> None:
    x = torch.randn(1, 2, 8, 16)
    for search in (rg.attention(rg.causal()).tune, lambda *x: rg.attention(rg.causal())(*x, tune=True)):
        with pytest.raises(UnsupportedError, match="leave tune out on a CPU"):
            search(x, x, x)


def test_a_table_of_trials() -> None:
    text = str(
        tuning.Tuning(
            (
                tuning.Trial("forward", "triton", Schedule(64, 64), None, failure="out of resource: shared memory"),
                tuning.Trial("forward", "triton", Schedule(64, 32), 0.5, default=True),
                tuning.Trial("forward", "gluon", Schedule(128, 64), 0.25, chosen=True),
            )
        )
    )
    assert text.splitlines()[0].split()[:4] == ["0.2500", "ms", "forward", "gluon"]
    notes = [line.split("  ")[-1] for line in text.splitlines()]
    assert notes == ["chosen", "default", "out of resource: shared memory"]


@rg.mask
def since_start(q: Any, kv: Any, place: Any) -> Any:
    return q - kv == place[q] - place[kv]


def test_long_rows_of_tables_choose_for_themselves_and_others_share_a_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REGARD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile, "_programs", {})
    # Tiles of documents would be cut; those of places that start anew are not.
    places = rg.attention(rg.causal(), since_start(place=torch.arange(64, dtype=torch.int32) % 9)).variant
    problem = Problem("bf16", 64, 64, buffers=("int32",), buffer_gradients=(False,))
    short = Request(places, problem, H100, "backward", fills_gpu=True)
    long = replace(short, long=is_long(16384, 16384, problem, masked=True))
    assert long.long and not is_long(16384, 4096, problem, masked=True)
    assert not is_long(16384, 16384, replace(problem, head_dim=128), masked=True)
    assert compile.generate(short).choice.skeleton == "triton" and "short" in compile.generate(short).choice.reason
    assert compile.generate(long).choice.skeleton == "gluon"
    assert compile.generate(replace(long, direction="forward")).choice.skeleton == "gluon"
    hidden = replace(long, variant=rg.attention(rg.key_mask(torch.ones(1, 64, dtype=torch.bool))).variant)
    hidden = replace(hidden, problem=replace(problem, buffers=("bool",)))
    assert "no query sees" in compile.generate(hidden).choice.reason
    causal = replace(long, variant=REQUEST.variant, problem=Problem("bf16", 64, 64))
    for _ in range(2):
        assert compile.program(causal) is compile.program(replace(causal, long=False))
        assert compile.program(long) is not compile.program(short)
        monkeypatch.setattr(compile, "_programs", {})  # as in another process
