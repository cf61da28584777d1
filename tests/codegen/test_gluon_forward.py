"""The forward kernel for sm_90: emulated on the CPU, and compiled without a GPU."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import gluon_barriers
import gluon_emulated
import regard as rg
from generated_gluon import BF16, F16, assert_emulated, bias, module, tensors
from generated_triton import H100, load
from oracle import Part, allowed_pairs, assert_close_to_oracle, eager, oracle
from regard.codegen.binaries import Binary, compile_launches, sample_arguments
from regard.codegen.gluon_forward import KERNEL, default_schedule, unsupported_reason
from regard.codegen.schedule import Problem, Target
from regard.codegen.skeletons import choose
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan


@rg.mask
def first_keys(kv, limit):
    return kv < limit


@rg.mask
def late_keys(kv, begin):
    return kv >= begin


@rg.mask
def sinks_or_window(q, kv, sinks, window):
    return (kv < sinks) | ((q >= kv) & (q - kv < window))


@rg.mask
def window_of_head(q, kv, head, windows):
    return (q >= kv) & (q - kv < windows[head])


@rg.mask
def listed(q, kv, near):
    return near[q, kv]


@rg.mask
def kept_keys(q, kv, keep):
    return (q >= kv) & keep[kv]


@rg.mask
def by_label(q, kv, label):
    return (q >= kv) & (label[kv] == 0) | (label[q] == 1) & (label[kv] == 1)


@rg.mask
def same_start(q, kv, place):
    return (q - kv == place[q] - place[kv]) & (place[q] - place[kv] < 60)


@rg.mask
def narrower(q, kv):
    apart = abs(q // 256 - kv // 256)
    return (abs(q % 256 - kv % 256) <= rg.where(apart >= 1, 30, 100)) | (kv < 128)


@rg.score
def key_bias(s, batch, kv, bias):
    return s + bias[batch, kv]


@rg.score
def capped(s, cap):
    return cap * rg.tanh(s / cap)


@rg.score
def gained(s, gain):
    return gain * rg.tanh(s)


@rg.score
def tempered(s, t):
    return s / t


@rg.score
def row_only(q, row):
    return row[q]


@rg.score
def relative(s, q, kv, kv_len, head, table):
    return s + table[head, q - kv + kv_len]


# What long rows of tiles have at head size 64.
THREE = {"block_m": 192, "num_stages": 4, "ahead": False}
EMULATED: dict[str, tuple[list[Part], tuple[int, int, int, int, int], dict[str, Any]]] = {
    "full": ([], (2, 2, 2, 200, 333), {}),
    "one query": ([], (1, 2, 2, 1, 3), {}),
    "causal": ([rg.causal()], (1, 2, 2, 300, 300), {"sizes": (128, 128)}),
    "causal, float16": ([rg.causal()], (1, 2, 2, 256, 256), {"dtype": F16}),
    "aligned at the end": ([rg.causal()], (1, 2, 2, 130, 400), {"align": "end"}),
    "rows that see nothing": ([rg.causal()], (1, 1, 1, 400, 130), {"align": "end"}),
    "window": ([rg.causal(), rg.sliding_window(150)], (1, 2, 2, 500, 400), {}),
    "prefix": ([rg.prefix_lm(177)], (1, 1, 1, 390, 390), {}),
    "several intervals": ([sinks_or_window(sinks=5, window=140)], (1, 1, 1, 600, 600), {}),
    "nothing": ([first_keys(limit=0)], (1, 1, 1, 200, 200), {}),
    "grouped heads": ([rg.causal()], (2, 6, 2, 140, 140), {}),
    "narrow values": ([rg.causal()], (1, 1, 1, 140, 140), {"sizes": (128, 64)}),
    "wide values": ([rg.causal()], (1, 1, 1, 140, 140), {"sizes": (64, 128)}),
    "heads in two parts": ([rg.causal()], (1, 4, 2, 200, 333), {"sizes": (96, 96)}),
    "outputs leave from where queries were": ([rg.causal()], (1, 2, 2, 300, 300), {"sizes": (192, 128)}),
    "the widest heads": ([rg.sliding_window(70)], (1, 2, 1, 300, 200), {"sizes": (256, 256)}),
    "tiles of queries overlap, odd lengths": ([rg.causal()], (2, 6, 2, 300, 390), {"ahead": True, "align": "end"}),
    "tiles of queries overlap, in a window": ([rg.sliding_window(70, 9)], (1, 2, 1, 500, 400), {"ahead": True}),
    "tiles of queries overlap, rows that see nothing": ([first_keys(limit=0)], (1, 1, 1, 300, 200), {"ahead": True}),
    "tiles of queries overlap, two parts": (
        [rg.causal(), rg.alibi(slopes=bias(2))], (1, 2, 2, 300, 300), {"ahead": True, "sizes": (96, 96)},
    ),
    "three consumers": ([], (2, 2, 1, 500, 333), THREE),
    "three consumers, causal": ([rg.causal()], (1, 4, 2, 400, 470), {**THREE, "align": "end", "dtype": F16}),
    "three consumers, rows that see nothing": ([rg.causal()], (1, 1, 1, 500, 130), {**THREE, "align": "end"}),
    "documents, heads in two parts": (
        [rg.document(torch.arange(300).int()[None] // 97)], (1, 2, 1, 300, 300), {"sizes": (96, 96)},
    ),
    "values wider than keys": ([rg.causal()], (1, 1, 1, 140, 300), {"sizes": (64, 192)}),
    "softcap": ([rg.causal(), rg.softcap(20.0)], (1, 2, 2, 200, 200), {"sizes": (128, 128)}),
    "softcap, in units of its bound": ([rg.causal(), rg.softcap(51.5)], (1, 2, 1, 300, 300), {}),
    "softcap, in units of the largest": ([rg.causal(), rg.softcap(60.0)], (1, 2, 1, 300, 300), {}),
    "softcap, float16": ([rg.causal(), rg.softcap(5.0)], (1, 2, 1, 200, 200), {"dtype": F16}),
    "a cap below 0": ([rg.causal(), capped(cap=-4.0)], (1, 2, 1, 300, 300), {"align": "end"}),
    "scores of 0": ([rg.causal(), gained(gain=0.0)], (1, 1, 1, 200, 200), {}),
    "scores of 0, float16": ([rg.causal(), gained(gain=0.0)], (1, 1, 1, 200, 200), {"dtype": F16}),
    "capped twice": ([capped(cap=9.0), rg.softcap(2.0)], (1, 1, 1, 200, 130), {"ahead": False}),
    "capped, rows that see nothing": ([rg.causal(), rg.softcap(5.0)], (1, 1, 1, 400, 130), {"align": "end"}),
    "capped documents": (
        [rg.causal(), rg.document(torch.arange(300).int() // 37), rg.softcap(5.0)], (1, 2, 1, 300, 300), {},
    ),
    "tempered": ([rg.causal(), rg.temperature(0.5), tempered(t=-3.0)], (1, 1, 1, 200, 200), {"sizes": (128, 128)}),
    "three consumers, capped": ([rg.causal(), rg.softcap(5.0)], (1, 2, 1, 400, 470), {**THREE, "align": "end"}),
    "alibi": ([rg.causal(), rg.alibi(slopes=bias(2))], (1, 2, 2, 200, 200), {}),
    "bias by key": ([key_bias(bias=bias(2, 300))], (2, 1, 1, 130, 300), {}),
    "score that ignores the product": ([rg.causal(), row_only(row=bias(200))], (1, 1, 1, 200, 200), {}),
    "documents": ([rg.causal(), rg.document(torch.arange(500).int()[None] // 97)], (1, 2, 1, 500, 500), {}),
    "documents in no order": (
        [rg.document(torch.arange(900).int()[None] // 65 % 3)], (1, 1, 1, 900, 900), {"sizes": (128, 128)},
    ),
    "a window for each head": (
        [window_of_head(windows=torch.tensor([9, 170]))], (2, 2, 1, 300, 300), {"align": "end"},
    ),
    "pairs in a table": ([listed(near=torch.rand(300, 200) > 0.9)], (1, 2, 1, 300, 200), {}),
    "keys that are kept": ([kept_keys(keep=torch.arange(300) % 7 < 3)], (1, 2, 1, 300, 300), {"sizes": (128, 128)}),
    "conditions of keys": ([by_label(label=torch.arange(300) // 50 % 3)], (1, 2, 2, 300, 300), {}),
    "a difference of data": ([same_start(place=torch.arange(400).int() % 150)], (1, 1, 1, 400, 400), {}),
    "tiles decide all but an interval": ([narrower], (1, 1, 1, 700, 700), {"over_boxes": False}),
    "bias by distance": ([rg.causal(), relative(table=bias(2, 400))], (1, 2, 2, 200, 200), {"sizes": (128, 128)}),
}  # fmt: skip


@pytest.mark.parametrize("name", EMULATED)
def test_emulated(name: str) -> None:
    parts, shape, options = EMULATED[name]
    assert_emulated(gluon_emulated.load, parts, shape, **options)


@pytest.mark.parametrize(
    ("parts", "q_len", "sizes"),
    [
        ([first_keys(limit=137)], 200, (64, 64)),
        ([late_keys(begin=77), rg.causal()], 300, (64, 64)),
        ([rg.causal()], 150, (64, 64)),
        ([rg.causal()], 150, (192, 192)),
        ([rg.prefix_lm(170)], 150, (64, 64)),
        ([rg.document(torch.arange(200).int() // 70, torch.arange(300).int() // 60)], 200, (64, 64)),
        ([rg.causal(), rg.document(torch.arange(300).int() // 70)], 200, (64, 192)),
        ([listed(near=torch.rand(150, 300) > 0.99)], 150, (64, 64)),
        ([kept_keys(keep=torch.arange(300) % 90 < 50)], 200, (64, 64)),
        ([by_label(label=torch.arange(300) // 40 % 3)], 250, (128, 64)),
    ],
    ids=[
        "first keys", "late keys", "fewer queries than keys", "heads in parts",
        "prefix, fewer queries than keys", "documents", "documents, fewer queries than keys", "pairs in a table",
        "keys that are kept", "conditions of keys",
    ],
)
def test_unseen_keys_may_hold_anything(parts: list[Part], q_len: int, sizes: tuple[int, int]) -> None:
    shape = (1, 2, 2, q_len, 300)
    query, key, value = tensors(shape, sizes, BF16)
    unseen = ~allowed_pairs(parts, shape)[0, 0].any(0)
    assert unseen.any()
    generated = module(parts, sizes=sizes)
    clean = gluon_emulated.load(generated.text).run(query, key, value, *generated.values)
    key[:, :, unseen], value[:, :, unseen] = torch.nan, torch.inf
    dirty = gluon_emulated.load(generated.text).run(query, key, value, *generated.values)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])


def test_emulator_notices_a_missing_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gluon_barriers, "SECONDS", 1.0)
    text = module([rg.causal()]).text
    broken = text.replace("        release(STAGES + last)\n", "")
    assert broken != text
    with pytest.raises(TimeoutError):
        gluon_emulated.load(broken).run(*tensors((1, 1, 1, 900, 900), (64, 64), BF16))


def test_emulator_notices_what_must_not_be_seen() -> None:
    parts: list[Part] = [first_keys(limit=137)]
    generated = module(parts)
    text = re.sub(r"(?<!def )clear_unseen\(.*", "pass", generated.text)
    assert text != generated.text
    query, key, value = tensors((1, 1, 1, 200, 300), (64, 64), BF16)
    value[:, :, 137:] = torch.nan
    out, _ = gluon_emulated.load(text).run(query, key, value, *generated.values)
    assert out.isnan().any()


@cache
def compiled(name: str) -> Binary:
    parts, sizes, dtype, *changes = COMPILED[name]
    generated = module(parts, sizes=sizes, dtype=dtype, **dict(*changes))
    values = [x.to("meta") if isinstance(x, Tensor) else x for x in generated.values]
    binaries = compile_launches(load(generated.text), H100, [*sample_arguments(generated.problem), *values])
    return next(binary for binary in binaries if binary.kernel == KERNEL)


COMPILED: dict[str, tuple[Any, ...]] = {
    "causal, three consumers": ([rg.causal()], (64, 64), BF16, THREE),
    "causal": ([rg.causal()], (128, 128), BF16),
    "full": ([], (64, 64), F16),
    "window and alibi": ([rg.causal(), rg.sliding_window(1024), rg.alibi(slopes=bias(16))], (128, 128), BF16),
    "several intervals": ([sinks_or_window(sinks=4, window=1024)], (64, 64), BF16),
    "softcap": ([rg.causal(), rg.softcap(20.0)], (128, 128), BF16),
    "softcap, in units of the largest": ([rg.causal(), rg.softcap(60.0)], (64, 64), BF16),
    "heads in two parts": ([rg.causal()], (192, 192), BF16),
    "documents": ([rg.causal(), rg.document(torch.arange(64).int()[None])], (128, 128), BF16),
    "documents, heads in two parts": ([rg.document(torch.arange(64).int()[None])], (192, 192), BF16),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_for_sm_90(name: str) -> None:
    binary = compiled(name)
    sass = binary.sass()
    assert "HGMMA" in sass, "no products on the tensor cores of sm_90"
    assert "UTMALDG.4D" in sass and "UTMASTG.4D" in sass, "tiles are not moved by the tensor memory accelerator"
    assert binary.spills() == 0
    assert binary.shared <= 227 << 10


@pytest.mark.parametrize(
    ("parts", "sizes", "queries"),
    [
        ([], (64, 64), 192),
        ([rg.prefix_lm(177)], (64, 64), 192),
        ([rg.sliding_window(150)], (64, 64), 128),
        ([rg.causal(), rg.softcap(20.0)], (64, 64), 128),
        ([rg.document(torch.arange(64).int())], (64, 64), 128),
        ([], (64, 128), 128),
        ([], (128, 128), 128),
    ],
    ids=["full", "prefix", "window", "scores", "documents", "wide values", "wide heads"],
)
def test_long_rows_of_narrow_heads_have_three_consumers(
    parts: list[Part], sizes: tuple[int, int], queries: int
) -> None:
    generated = module(parts, sizes=sizes)
    assert default_schedule(generated.plan, generated.problem, long=True).block_m == queries
    assert default_schedule(generated.plan, generated.problem).block_m == 128


def test_a_cap_takes_two_multiplications_and_no_maxima() -> None:
    """Besides tanh, powers and sums."""
    loop = max(re.split(r"\bBRA\b", compiled("softcap").sass()), key=lambda x: x.count("MUFU.TANH"))
    assert loop.count("MUFU.TANH") == 64
    assert loop.count("FMUL") <= 140 and loop.count("FMNMX") <= 4


@pytest.mark.parametrize(
    ("score", "dtype", "bounded", "ahead"),
    [
        (rg.softcap(20.0), BF16, True, True),
        (rg.softcap(20), BF16, True, True),
        (rg.softcap(20.0), F16, False, False),
        (rg.score(lambda s: rg.tanh(s) * s), BF16, False, False),
        (rg.score(lambda s, q: rg.tanh(s) * q), BF16, False, False),
        (rg.score(lambda q: rg.tanh(q)), BF16, False, False),
        (rg.alibi(heads=8), BF16, False, False),
    ],
)
def test_bounded_scores(score: Any, dtype: torch.dtype, bounded: bool, ahead: bool) -> None:
    generated = module([rg.causal(), score], sizes=(128, 128), dtype=dtype)
    assert ("BOUNDED" in generated.text) == bounded
    assert default_schedule(generated.plan, generated.problem).ahead == ahead


@pytest.mark.parametrize("key", [4, 5])
def test_a_key_that_is_not_a_number_spoils_what_sees_it(key: int) -> None:
    """Half of the powers are computed from bits of numbers."""
    generated = module([rg.causal(), rg.softcap(20.0)])
    query, keys, value = tensors((1, 1, 1, 130, 130), (64, 64), BF16)
    keys[:, :, key] = float("nan")
    out, lse = gluon_emulated.load(generated.text).run(query, keys, value, *generated.values)
    assert out[:, :, key:].isnan().all() and lse[:, :, key:].isnan().all()
    assert out[:, :, :key].isfinite().all()


@pytest.mark.parametrize(("cap", "bounded"), [(5.0, True), (-51.0, True), (53.0, False), (float("nan"), False)])
def test_the_host_says_whether_a_cap_is_small(cap: float, bounded: bool) -> None:
    assert load(module([rg.softcap(20.0)], sizes=(128, 128)).text).bounded(9, 9, cap) == bounded


def test_full_tiles_carry_no_mask() -> None:
    text = module([rg.causal(), rg.sliding_window(100)]).text
    loop = text[text.index("# Tiles in which every pair is allowed.") : text.index("mbarrier.arrive(q_empty")]
    assert "start_scores" in loop
    assert "where" not in loop and "kv_index" not in loop and "read(" not in loop


@rg.mask
def same_document(q, kv, ids):
    return ids[q] == ids[kv]


@rg.mask
def even_keys(kv):
    return kv % 2 == 0


@pytest.mark.parametrize(
    ("parts", "changes", "target", "reason"),
    [
        ([], {}, Target("cuda", 80), "sm_80 is not sm_90"),
        ([], {}, Target("hip", "gfx942"), "gfx942 is not sm_90"),
        ([], {"dtype": "f32"}, H100, "float32"),
        ([], {"head_dim": 112}, H100, "head size 112"),
        ([], {"value_dim": 80}, H100, "head size 80"),
        ([], {"aligned": False}, H100, "16 bytes"),
    ],
)
def test_says_why_not(parts: list[Part], changes: dict[str, Any], target: Target, reason: str) -> None:
    plan = make_plan(run_pipeline(assemble(*parts)[0]))
    problem = replace(Problem("bf16", 64, 64, buffers=("int32",) * len(plan.variant.buffers)), **changes)
    found = unsupported_reason(plan, problem, target)
    assert found is not None and reason in found


@pytest.mark.parametrize(
    ("score", "skeletons"),
    [
        (rg.alibi(heads=8), ("triton", "gluon")),  # its exponentials are those of heads, not of pairs
        (rg.softcap(5.0), ("gluon", "gluon")),
        (rg.score(lambda s, q, kv: s + rg.sin(q - kv)), ("triton", "triton")),
    ],
)
def test_only_functions_of_pairs_are_slow(score: Any, skeletons: tuple[str, str]) -> None:
    plan = make_plan(run_pipeline(assemble(rg.causal(), score)[0]))
    found = [choose(plan, Problem("bf16", size, size), H100, "forward", True).skeleton for size in (64, 128)]
    assert tuple(found) == skeletons


def test_users_names_do_not_collide() -> None:
    @rg.mask
    def band(q, kv, tl, gl):
        return (q - kv < tl) & (kv - q < gl)

    parts: list[Part] = [band(tl=60, gl=70)]
    generated = module(parts)
    inputs = tensors((1, 1, 1, 200, 200), (64, 64), BF16)
    out, _ = gluon_emulated.load(generated.text).run(*inputs, *generated.values)
    assert_close_to_oracle(out, oracle(parts, *inputs)[0], eager(parts, *inputs)[0])
