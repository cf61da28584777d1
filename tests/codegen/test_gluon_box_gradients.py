"""The warp-specialised backward kernels over boxes: emulated on the CPU, and compiled without a GPU."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import gluon_barriers
import gluon_emulated
import regard as rg
from box_masks import IMAGE, VIDEO, WIDE, early_keys, far_above
from generated_gluon import BF16, F16, assert_gradients, bias, module, saved, tensors
from generated_triton import H100, load
from oracle import Part, allowed_pairs, assert_close_to_oracle, eager, gradients, oracle
from regard.codegen.binaries import compile_launches
from regard.codegen.gluon_box_backward import unsupported_reason
from regard.codegen.schedule import Problem, Schedule
from regard.codegen.skeletons import alternatives, choose
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan


@rg.score
def key_bias(s, head, kv, bias):
    return s + bias[head, kv]


@rg.score
def gate(s, batch, q, kv, gates):
    return s + gates[batch, q] * (kv - q) * 0.01


@rg.score
def relative(s, head, q, kv, table):
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return s + table[head, c - a + 19, d - b + 26]


# Parts, (B, H, Hkv, Lq, Lkv), options of the module.
EMULATED: dict[str, tuple[list[Part], tuple[int, int, int, int, int], dict[str, Any]]] = {
    "odd grid, grouped heads": ([rg.neighborhood(IMAGE, (5, 7))], (1, 4, 2, 540, 540), {}),
    "few boxes of grouped heads": ([rg.neighborhood(rg.grid(12, 16), 5)], (1, 4, 1, 192, 192), {}),
    "wide window": ([rg.neighborhood(WIDE, 13)], (1, 1, 1, 768, 768), {"sizes": (128, 64)}),
    "three axes": ([rg.neighborhood(VIDEO, (3, 5, 5))], (2, 2, 2, 480, 480), {"sizes": (128, 128), "dtype": F16}),
    "strided": ([rg.neighborhood(WIDE, 12, stride=(4, 8))], (1, 1, 1, 768, 768), {}),
    "dilated image": ([rg.neighborhood(WIDE, (5, 3), dilation=(2, 1))], (1, 1, 1, 768, 768), {}),
    "causal along one axis": ([rg.neighborhood(IMAGE, 5, causal=(True, False))], (1, 1, 1, 540, 540), {}),
    "dilated": ([rg.causal(), rg.dilated(4)], (1, 2, 2, 600, 600), {"sizes": (128, 128)}),
    "classes of two lengths": ([rg.dilated(4), rg.sliding_window(100, 50)], (1, 1, 1, 1037, 1035), {}),
    "fewer tokens than classes": ([rg.dilated(16)], (1, 1, 1, 5, 7), {}),
    "shifted windows": ([rg.windows(rg.grid(24, 40), 16, shift=5)], (1, 1, 1, 960, 960), {}),
    "rows that see nothing": ([far_above()], (1, 1, 1, 540, 540), {}),
    "softcap": ([rg.neighborhood(WIDE, 13), rg.softcap(5.0)], (1, 1, 1, 768, 768), {"sizes": (128, 128)}),
    "bias by distance": ([rg.neighborhood(IMAGE, 5), relative(table=bias(1, 39, 53))], (1, 1, 1, 540, 540), {}),
    "more keys a tile": (
        [rg.neighborhood(WIDE, 13)], (1, 1, 1, 768, 768),
        {"block_m": 128, "grad_query": Schedule(128, 128, num_stages=2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EMULATED)
def test_emulated(name: str) -> None:
    parts, shape, options = EMULATED[name]
    generated = module(parts, direction="backward", **options)
    inputs = tensors(shape, options.get("sizes", (64, 64)), options.get("dtype", BF16))
    rest = saved(parts, inputs)
    found = gluon_emulated.load(generated.text).run(*inputs, *rest, *generated.values)
    assert_gradients(found, parts, inputs, rest)


@pytest.mark.parametrize("make", [lambda: [rg.neighborhood(IMAGE, (5, 7))], lambda: [rg.dilated(4)]])
def test_gradients_of_captured_tensors(make) -> None:
    biases, gates = bias(2, 540).requires_grad_(), bias(1, 540).requires_grad_()
    parts = [*make(), key_bias(bias=biases), gate(gates=gates)]
    names = ["bias", "gates"]
    inputs = tensors((1, 2, 1, 540, 540), (64, 64), BF16)
    generated = module(parts, direction="backward", gradients_of=names)
    values = [x.detach() if isinstance(x, Tensor) else x for x in generated.values]
    rest = saved(parts, inputs)
    found = gluon_emulated.load(generated.text).run(*inputs, *rest, *values)
    of = tuple(x.requires_grad_() for x in inputs)
    exact, usual = (gradients(f, parts, of, *rest[2:], (biases, gates)) for f in (oracle, eager))
    for what, a, b, c in zip(("query", "key", "value", *names), found, exact, usual, strict=True):
        assert_close_to_oracle(a, b, c.to(a.dtype), what)


def test_tensors_with_other_strides() -> None:
    parts: list[Part] = [rg.neighborhood(IMAGE, (5, 7))]
    inputs = tensors((2, 4, 2, 540, 540), (64, 64), BF16)
    rest = saved(parts, inputs)
    run = gluon_emulated.load(module(parts, direction="backward").text).run
    expected = run(*inputs, *rest, 5, 7)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (*inputs, rest[0], rest[2])]
    query, key, value, out, grad_out = strided
    found = run(query, key, value, out, rest[1], grad_out, rest[3], 5, 7)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("parts", "lengths"),
    [([early_keys()], (540, 540)), ([rg.causal(), rg.dilated(4)], (301, 517)), ([rg.dilated(8)], (3, 300))],
    ids=["columns", "fewer queries than keys", "classes without queries"],
)
def test_unseen_keys_may_hold_anything(parts: list[Part], lengths: tuple[int, int]) -> None:
    shape = (1, 1, 1, *lengths)
    inputs = tensors(shape, (64, 64), BF16)
    unseen = ~allowed_pairs(parts, shape)[0, 0].any(0)
    assert unseen.any()
    generated = module(parts, direction="backward")
    rest = *saved(parts, inputs), *generated.values
    clean = gluon_emulated.load(generated.text).run(*inputs, *rest)
    _, key, value = inputs
    key[:, :, unseen], value[:, :, unseen] = torch.nan, torch.inf
    dirty = gluon_emulated.load(generated.text).run(*inputs, *rest)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert not any(x[:, :, unseen].any() for x in clean[1:])


def test_gradients_do_not_depend_on_the_order_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[Part] = [rg.neighborhood(VIDEO, (3, 5, 5))]
    inputs = tensors((1, 2, 1, 480, 480), (64, 64), F16)
    text = module(parts, direction="backward", dtype=F16).text
    runs = []
    for order in (range, lambda n: reversed(range(n))):
        monkeypatch.setattr(gluon_emulated, "order", order)
        runs.append(gluon_emulated.load(text).run(*inputs, *saved(parts, inputs), 3, 5, 5))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("signal", ["release(stage)", "release(last)", "mbarrier.arrive(tile_ready.index(stage))"])
def test_emulator_notices_what_is_missing(signal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gluon_barriers, "SECONDS", 1.0)
    parts: list[Part] = [rg.neighborhood(WIDE, 23)]
    text = module(parts, direction="backward").text
    broken = text.replace(signal, "pass")
    assert broken != text
    inputs = tensors((1, 1, 1, 768, 768), (64, 64), BF16)
    with pytest.raises(TimeoutError):
        gluon_emulated.load(broken).run(*inputs, *saved(parts, inputs), 23, 23)


def test_full_boxes_carry_no_mask() -> None:
    text = module([rg.neighborhood(WIDE, 13)], direction="backward").text
    loops = text.split("# Tiles in which every pair is allowed.")[1:]
    assert len(loops) == 2
    for loop in loops:
        body = loop[: loop.index("\n\n")]
        assert "warpgroup_mma" in body and "where" not in body and "_at_" not in body


# The last number: loads and stores of spilled registers, of both consumers and the producer.
COMPILED: dict[str, tuple[list[Part], int, int, int]] = {
    "two axes": ([rg.neighborhood(rg.grid(128, 128), 13)], 16384, 128, 30),
    "dilated": ([rg.sliding_window(4095) & rg.dilated(4)], 16384, 128, 80),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_for_sm_90(name: str) -> None:
    parts, length, size, most = COMPILED[name]
    generated = module(parts, sizes=(size, size), direction="backward")
    query, key, value = (torch.empty((1, 2, length, size), dtype=BF16, device="meta") for _ in range(3))
    lse = torch.empty((1, 2, length), device="meta")
    arguments = [query, key, value, query, lse, query, None, *generated.values]
    _, *binaries = compile_launches(load(generated.text), H100, arguments)
    assert [x.kernel for x in binaries] == ["attention_grad_query", "attention_grad_key"]
    for binary in binaries:
        sass = binary.sass()
        assert "HGMMA" in sass and re.search(r"UTMALDG\.[45]D", sass)
        assert not re.search(r"\b(UTMAREDG|RED|ATOMG?)\b", sass), "something is added to global memory"
        assert binary.spills() <= most
        assert binary.shared <= 227 << 10


@rg.mask
def circle(q, kv):
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 3) & ((a - c) ** 2 + (b - d) ** 2 <= 9)


def plan_of(parts: list[Part]) -> TilePlan:
    return make_plan(run_pipeline(assemble(*parts)[0]))


@pytest.mark.parametrize(
    ("parts", "sizes", "reason"),
    [
        ([rg.neighborhood(IMAGE, 5)], (64, 128), "head sizes (64, 128)"),
        ([circle()], (64, 64), "no product"),
        ([rg.windows(rg.grid(56, 56), 7)], (64, 64), "fewer than 128 keys"),
    ],
)
def test_says_why_not(parts: list[Part], sizes: tuple[int, int], reason: str) -> None:
    plan, problem = plan_of(parts), Problem("bf16", *sizes)
    found = unsupported_reason(plan, problem, H100)
    assert found is not None and reason in found
    choice = choose(plan, problem, H100, "backward", True)
    assert choice.skeleton == "triton" and reason in choice.reason


def test_chosen_where_calls_fill_the_gpu() -> None:
    plan, problem = plan_of([rg.neighborhood(IMAGE, 5)]), Problem("bf16", 128, 128)
    choice = choose(plan, problem, H100, "backward", True)
    assert choice.skeleton == "gluon" and "seven products" in choice.reason
    assert "too few" in choose(plan, problem, H100, "backward", False).reason
    assert choose(plan, Problem("bf16", 64, 64), H100, "backward", True).skeleton == "gluon"
    assert {x.skeleton for x in alternatives(plan, problem, H100, "backward")} == {"triton", "gluon"}
