"""Both forms of the backward pass for sm_90: emulated on the CPU, and compiled without a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import gluon_barriers
import gluon_emulated
import regard as rg
from generated_gluon import BF16, F16, Module, assert_gradients, bias, module, saved, tensors
from generated_triton import H100, load
from oracle import Part, allowed_pairs, assert_close_to_oracle, eager, gradients, oracle
from regard.codegen import gluon_repeatable
from regard.codegen.binaries import Binary, compile_launches, sample_arguments
from regard.codegen.gluon_backward import unsupported_reason
from regard.codegen.schedule import Problem, Schedule
from regard.ir.tiles import TilePlan

Shape = tuple[int, int, int, int, int]


@rg.mask
def first_keys(kv: Any, limit: Any) -> Any:
    return kv < limit


@rg.mask
def window_of_head(q: Any, kv: Any, head: Any, windows: Any) -> Any:
    return (q >= kv) & (q - kv < windows[head])


@rg.mask
def sinks_or_window(q: Any, kv: Any, sinks: Any, window: Any) -> Any:
    return (kv < sinks) | ((q >= kv) & (q - kv < window))


@rg.score
def capped(s: Any, cap: Any) -> Any:
    return cap * rg.tanh(s / cap)


@rg.score
def gained(s: Any, gain: Any) -> Any:
    return gain * rg.tanh(s)


@rg.score
def tempered(s: Any, t: Any) -> Any:
    return s / t


@rg.score
def query_bias(s: Any, batch: Any, q: Any, bias: Any) -> Any:
    return s * bias[batch, q]


@rg.score
def relative(s: Any, q: Any, kv: Any, kv_len: Any, head: Any, table: Any) -> Any:
    return s + table[head, q - kv + kv_len]


@rg.score
def undefined_past_the_end(s: Any, q: Any, q_len: Any) -> Any:
    return s + rg.log((q_len - q) * 1.0)


EMULATED: dict[str, tuple[list[Part], Shape, dict[str, Any]]] = {
    "full": ([], (2, 2, 2, 200, 333), {}),
    "full, wide heads": ([], (1, 2, 1, 200, 333), {"sizes": (128, 128)}),
    "many full tiles": ([], (1, 1, 1, 700, 400), {}),
    "one query": ([], (1, 2, 2, 1, 3), {}),
    "causal": ([rg.causal()], (1, 2, 2, 300, 300), {"sizes": (128, 128)}),
    "a negative scale": ([rg.prefix_lm(50)], (1, 1, 1, 140, 140), {"sizes": (128, 128), "scale": -0.3}),
    "a scale of 0": ([rg.causal()], (1, 2, 1, 140, 140), {"sizes": (128, 128), "scale": 0.0}),
    "causal, float16": ([rg.causal()], (1, 2, 2, 256, 256), {"dtype": F16}),
    "aligned at the end": ([rg.causal()], (1, 2, 2, 130, 400), {"align": "end"}),
    "rows that see nothing": ([rg.causal()], (1, 1, 1, 400, 130), {"align": "end", "sizes": (128, 128)}),
    "window": ([rg.causal(), rg.sliding_window(150)], (1, 2, 2, 500, 400), {}),
    "prefix": ([rg.prefix_lm(177)], (1, 1, 1, 390, 390), {"sizes": (128, 128)}),
    "several intervals": ([sinks_or_window(sinks=5, window=140)], (1, 1, 1, 600, 600), {}),
    "nothing": ([first_keys(limit=0)], (1, 1, 1, 200, 200), {}),
    "grouped heads": ([rg.causal()], (4, 6, 2, 140, 140), {}),
    "a window for each head": (
        [window_of_head(windows=torch.tensor([9, 70, 20, 150]))], (1, 4, 2, 140, 140), {"sizes": (128, 128)},
    ),
    "narrow values": ([rg.causal()], (1, 1, 1, 140, 140), {"sizes": (128, 64)}),
    "softcap": ([rg.causal(), rg.softcap(20.0)], (1, 2, 2, 200, 200), {"sizes": (128, 128)}),
    "softcap, narrow heads": ([rg.causal(), rg.softcap(5.0)], (1, 2, 1, 200, 200), {"align": "end"}),
    "softcap, float16": ([rg.causal(), rg.softcap(5.0)], (1, 2, 1, 200, 130), {"dtype": F16}),
    "a cap below 0, twice": ([capped(cap=-4.0), capped(cap=7.0)], (1, 1, 1, 200, 130), {}),
    "scores of 0": ([rg.causal(), gained(gain=0.0)], (1, 1, 1, 200, 200), {}),
    "tempered": ([rg.temperature(0.5), tempered(t=-3.0)], (1, 1, 1, 130, 200), {"sizes": (128, 128)}),
    "alibi": ([rg.causal(), rg.alibi(slopes=bias(2))], (1, 2, 2, 200, 200), {}),
    "factor by query": ([query_bias(bias=bias(2, 300))], (2, 1, 1, 300, 130), {}),
    "bias by distance": ([rg.causal(), relative(table=bias(2, 400))], (1, 2, 2, 200, 200), {"sizes": (128, 128)}),
    "documents": ([rg.causal(), rg.document(torch.arange(300).int()[None] // 37)], (1, 2, 1, 300, 300), {}),
    "dilated": ([rg.causal(), rg.dilated(3)], (1, 2, 2, 200, 200), {"sizes": (128, 128), "over_boxes": False}),
    "undefined past the end": ([undefined_past_the_end], (1, 1, 1, 150, 90), {}),
}  # fmt: skip


FORMS = pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "repeatable"])


@FORMS
@pytest.mark.parametrize("name", EMULATED)
def test_emulated(name: str, deterministic: bool) -> None:
    check(name, deterministic=deterministic)


@pytest.mark.parametrize("name", ["grouped heads", "window", "bias by distance", "factor by query", "documents"])
def test_tiles_of_fewer_queries(name: str) -> None:
    check(name, sizes=(64, 64), block_m=64)


WIDE = [(96, 96), (192, 128), (192, 192), (256, 256)]


@pytest.mark.parametrize("sizes", WIDE)
@pytest.mark.parametrize(
    "name", ["grouped heads", "several intervals", "aligned at the end", "softcap", "documents", "a scale of 0"]
)
def test_wide_heads(name: str, sizes: tuple[int, int]) -> None:
    check(name, sizes=sizes, deterministic=True)


@pytest.mark.parametrize("sizes", WIDE)
def test_other_schedules_of_wide_heads(sizes: tuple[int, int]) -> None:
    made = module([rg.causal()], sizes=sizes, direction="backward", deterministic=True)
    _, *others = gluon_repeatable.candidates(made.plan, made.problem)
    assert others
    for schedule in others:
        check("aligned at the end", sizes=sizes, deterministic=True, **changes_to(schedule))


def changes_to(schedule: Schedule) -> dict[str, Any]:
    return {x.name: getattr(schedule, x.name) for x in fields(schedule)}


@pytest.mark.parametrize("sizes", [(64, 64), (128, 128)])
def test_tiles_of_more_keys(sizes: tuple[int, int]) -> None:
    larger = Schedule(128, 128, num_stages=2)
    check("documents", sizes=sizes, deterministic=True, grad_query=larger)
    check("aligned at the end", sizes=sizes, deterministic=True, grad_query=larger)


def check(name: str, **changes: Any) -> None:
    """Gradients of a case of ``EMULATED`` against the oracle; ``changes`` are of the module."""
    parts, shape, options = EMULATED[name]
    options = {**options, **changes}
    call = {key: options[key] for key in ("align", "scale") if key in options}
    inputs = tensors(shape, options.get("sizes", (64, 64)), options.get("dtype", BF16))
    rest = {k: v for k, v in options.items() if k != "scale"}
    generated = module(parts, direction="backward", **rest)
    rest_of_call = saved(parts, inputs, **call)
    run = gluon_emulated.load(generated.text).run
    found = run(*inputs, *rest_of_call, *generated.values, scale=call.get("scale"))
    assert_gradients(found, parts, inputs, rest_of_call, **call)


@rg.score
def key_bias(s: Any, head: Any, kv: Any, bias: Any) -> Any:
    return s + bias[head, kv]


@rg.score
def slope(s: Any, head: Any, slopes: Any) -> Any:
    return s * (1.0 + slopes[head])


@rg.score
def gate(s: Any, batch: Any, q: Any, kv: Any, gates: Any) -> Any:
    return s + gates[batch, q] * (kv - q) * 0.01


@rg.score
def steps(s: Any, head: Any, heights: Any) -> Any:
    return s + rg.floor(heights[head])


# Parts from what makes a tensor of some size, names of these tensors in order, sizes.
CAPTURED: dict[str, tuple[Callable[[Callable[..., Tensor]], list[Part]], list[str], Shape, tuple[int, int]]] = {
    "of a head": (lambda x: [rg.causal(), slope(slopes=x(4))], ["slopes"], (2, 4, 2, 300, 300), (64, 64)),
    "of a key": (lambda x: [rg.causal(), key_bias(bias=x(4, 333))], ["bias"], (2, 4, 2, 200, 333), (128, 128)),
    "of a query": (lambda x: [gate(gates=x(2, 200))], ["gates"], (2, 2, 2, 200, 333), (128, 64)),
    "of each": (
        lambda x: [
            rg.document(torch.arange(300).int()[None] // 90),
            key_bias(bias=x(4, 300)), slope(slopes=x(4)), gate(gates=x(1, 300)), rg.softcap(5.0),
        ],
        ["bias", "slopes", "gates"], (1, 4, 2, 300, 300), (64, 64),
    ),
    "of none, as steps are flat": (lambda x: [steps(heights=x(2))], ["heights"], (1, 2, 2, 90, 90), (64, 64)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sizes"), [*((name, x[3]) for name, x in CAPTURED.items()), *(("of each", sizes) for sizes in WIDE)]
)
def test_gradients_of_captured_tensors(name: str, sizes: tuple[int, int]) -> None:
    make, names, shape, _ = CAPTURED[name]
    leaves: list[Tensor] = []

    def leaf(*size: int) -> Tensor:
        leaves.append(bias(*size).requires_grad_())
        return leaves[-1]

    parts = make(leaf)
    inputs = tensors(shape, sizes, BF16)
    generated = module(parts, sizes=sizes, direction="backward", deterministic=True, gradients_of=names)
    values = [x.detach() if isinstance(x, Tensor) else x for x in generated.values]
    out, lse, grad_out, grad_lse = (x.detach() for x in saved(parts, inputs))
    found = gluon_emulated.load(generated.text).run(*inputs, out, lse, grad_out, grad_lse, *values)
    of = tuple(x.requires_grad_() for x in inputs)
    exact, usual = (gradients(f, parts, of, grad_out, grad_lse, tuple(leaves)) for f in (oracle, eager))
    for what, a, b, c in zip(("query", "key", "value", *names), found, exact, usual, strict=True):
        assert_close_to_oracle(a, b, c.to(a.dtype), what)


def test_a_tensor_that_changes_nothing_has_a_gradient_of_zero() -> None:
    heights = torch.tensor([0.5, 1.5])
    text = module([steps(heights=heights)], direction="backward", gradients_of=["heights"]).text
    inputs = tensors((1, 2, 2, 90, 90), (64, 64), BF16)
    *_, grad = gluon_emulated.load(text).run(*inputs, *saved([steps(heights=heights)], inputs), heights)
    assert grad.shape == (2,) and not grad.any()


@pytest.mark.parametrize(
    ("parts", "q_len"),
    [
        ([first_keys(limit=137)], 200),
        ([rg.causal()], 150),
        ([rg.prefix_lm(170)], 150),
        ([rg.document(torch.arange(200).int() // 70, torch.arange(300).int() // 60)], 200),
    ],
    ids=["first keys", "fewer queries than keys", "prefix, fewer queries than keys", "documents"],
)
@pytest.mark.parametrize(
    ("deterministic", "sizes"), [(False, (64, 64)), (True, (64, 64)), (True, (192, 128)), (True, (256, 256))]
)
def test_unseen_keys_may_hold_anything(
    parts: list[Part], q_len: int, deterministic: bool, sizes: tuple[int, int]
) -> None:
    shape = (1, 2, 2, q_len, 300)
    inputs = tensors(shape, sizes, BF16)
    unseen = ~allowed_pairs(parts, shape)[0, 0].any(0)
    assert unseen.any()
    generated = module(parts, direction="backward", deterministic=deterministic, sizes=sizes)
    rest = *saved(parts, inputs), *generated.values
    clean = gluon_emulated.load(generated.text).run(*inputs, *rest)
    _, key, value = inputs
    key[:, :, unseen], value[:, :, unseen] = torch.nan, torch.inf
    dirty = gluon_emulated.load(generated.text).run(*inputs, *rest)
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("deterministic", "size", "release"),
    [
        (False, 64, "mbarrier.arrive(tile_empty.index(stage))"), (True, 64, "release(stage)"),
        (True, 64, "release(last)"), (True, 192, "release(STAGES + other)"), (True, 256, "release(stage)"),
    ],
)  # fmt: skip
def test_emulator_notices_a_missing_release(
    deterministic: bool, size: int, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gluon_barriers, "SECONDS", 1.0)
    text = module([], direction="backward", deterministic=deterministic, sizes=(size, size)).text
    broken = text.replace(release, "pass")
    assert broken != text
    inputs = tensors((1, 1, 1, 900, 600), (size, size), BF16)
    with pytest.raises(TimeoutError):
        gluon_emulated.load(broken).run(*inputs, *saved([], inputs))


def test_gradients_do_not_depend_on_the_order_of_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors((1, 4, 2, 400, 700), (64, 64), F16)
    rest = saved([rg.causal()], inputs, align="end")

    def repeats(deterministic: bool) -> bool:
        text = module([rg.causal()], direction="backward", dtype=F16, align="end", deterministic=deterministic).text
        runs = []
        for order in (range, lambda n: reversed(range(n))):
            monkeypatch.setattr(gluon_emulated, "order", order)
            runs.append(gluon_emulated.load(text).run(*inputs, *rest))
        return all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    assert repeats(True)
    assert not repeats(False), "additions in another order round in the same way: the test shows nothing"


def test_what_it_refuses() -> None:
    def reason(made: Module, **changes: Any) -> str | None:
        plan: TilePlan = made.plan
        return unsupported_reason(plan, Problem(**{"dtype": "bf16", "head_dim": 64, "value_dim": 64, **changes}), H100)

    causal = module([rg.causal()], direction="backward")
    assert reason(causal) is None
    assert "repeat bit by bit" in str(reason(causal, deterministic=True))
    assert "head sizes (96, 96)" in str(reason(causal, head_dim=96, value_dim=96))
    sloped = module([rg.causal(), rg.alibi(slopes=bias(2))], direction="backward")
    captured = {"buffers": ("float32",), "buffer_gradients": (True,)}
    assert "captured tensors" in str(reason(sloped, **captured))
    problem = Problem("bf16", 64, 64, buffers=("float32",), buffer_gradients=(True,), deterministic=True)
    assert gluon_repeatable.unsupported_reason(sloped.plan, problem, H100) is None
    by_distance = module([relative(table=bias(2, 400))], direction="backward")
    assert "read by distance" in str(gluon_repeatable.unsupported_reason(by_distance.plan, problem, H100))


COMPILED: dict[str, tuple[list[Part], tuple[int, int], torch.dtype, int]] = {
    # The last number: loads and stores of spilled registers, in two loops of two consumers together.
    "causal": ([rg.causal()], (128, 128), BF16, 150),
    "full": ([], (64, 64), F16, 200),
    "softcap": ([rg.causal(), rg.softcap(20.0)], (128, 128), BF16, 150),
    "softcap, narrow heads": ([rg.causal(), rg.softcap(20.0)], (64, 64), BF16, 0),
    "causal, repeatable": ([rg.causal()], (128, 128), BF16, 30),
    "documents, repeatable": ([rg.document(torch.zeros(1024).int())], (64, 64), BF16, 30),
    "causal at 96, repeatable": ([rg.causal()], (96, 96), F16, 32),
    "causal at 192 and 128, repeatable": ([rg.causal()], (192, 128), BF16, 16),
    "causal at 256, repeatable": ([rg.causal()], (256, 256), BF16, 16),
    "documents at 256, repeatable": ([rg.document(torch.zeros(1024).int())], (256, 256), BF16, 64),
}


@cache
def compiled(name: str) -> dict[str, Binary]:
    parts, sizes, dtype, _ = COMPILED[name]
    repeatable = name.endswith("repeatable")
    generated = module(parts, sizes=sizes, dtype=dtype, direction="backward", deterministic=repeatable)
    query, key, value = sample_arguments(generated.problem)
    out = torch.empty((*query.shape[:3], sizes[1]), dtype=dtype, device="meta")
    lse = torch.empty(query.shape[:3], device="meta")
    captured = (x.to("meta") if isinstance(x, Tensor) else x for x in generated.values)
    arguments = [query, key, value, out, lse, out, None, *captured]
    return {x.kernel: x for x in compile_launches(load(generated.text), H100, arguments)}


FAST = [x for x in COMPILED if not x.endswith("repeatable")]


@pytest.mark.parametrize("name", FAST)
def test_compiled_for_sm_90(name: str) -> None:
    binaries = compiled(name)
    assert list(binaries) == ["row_terms", "attention_backward", "convert_sums"]
    binary = binaries["attention_backward"]
    sass = binary.sass()
    assert "HGMMA" in sass, "no products on the tensor cores of sm_90"
    assert "UTMALDG.4D" in sass and "UTMAREDG.4D.ADD" in sass, "the tensor memory accelerator does not load and add"
    assert binary.spills() <= COMPILED[name][3]
    assert binary.shared <= 227 << 10
    for other in ("row_terms", "convert_sums"):
        assert "LDG.E.128" in binaries[other].sass(), "rows are not loaded in groups of 16 bytes"


@pytest.mark.parametrize("name", [x for x in COMPILED if x not in FAST])
def test_repeatable_form_compiled_for_sm_90(name: str) -> None:
    binaries = compiled(name)
    _, sizes, _, most = COMPILED[name]
    kernels = ["attention_grad_query", "attention_grad_key", *(["attention_grad_value"] if sum(sizes) > 320 else [])]
    start = list(binaries).index("row_terms")
    assert list(binaries)[start:] == ["row_terms", *kernels]
    for kernel in kernels:
        binary = binaries[kernel]
        sass = binary.sass()
        assert "HGMMA" in sass and "UTMALDG.4D" in sass and "UTMASTG.4D" in sass
        assert not re.search(r"\b(UTMAREDG|RED|ATOMG?)\b", sass), "something is added to global memory"
        assert binary.spills() <= (0 if kernel == "attention_grad_query" and max(sizes) <= 128 else most)
        assert binary.shared <= 227 << 10


@pytest.mark.parametrize(("part", "least"), [(rg.causal(), 4), (rg.sliding_window(100), 2), (rg.full(), 2)])
def test_heads_of_a_group_have_programs_of_their_own_where_there_are_few(part: Part, least: int) -> None:
    text = module([part], direction="backward").text
    assert f"spread = group > 1 and tiles_of_keys * batches * kv_heads < {least} * multiprocessors" in text
    assert ("2 * multiprocessors // (tiles_of_keys + 1)" in text) == (least == 4)
