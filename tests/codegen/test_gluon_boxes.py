"""The warp-specialised forward kernel over boxes: emulated on the CPU, and compiled without a GPU."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch

import gluon_emulated
import regard as rg
from box_masks import IMAGE, VIDEO, WIDE, early_keys, far_above
from generated_gluon import BF16, F16, assert_emulated, bias, module, tensors
from generated_triton import H100, load
from oracle import Part, allowed_pairs, assert_close_to_oracle, eager, oracle
from regard.codegen.binaries import compile_launches
from regard.codegen.box_support import walks_boxes
from regard.codegen.gluon_box_forward import unsupported_reason
from regard.codegen.schedule import Problem, Target
from regard.codegen.skeletons import choose
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan


@rg.mask
def by_division(q, kv):
    """Rows of 27, as many as there are."""
    return (abs(q // 27 - kv // 27) <= 2) & (abs(q % 27 - kv % 27) <= 3)


@rg.mask
def by_remainder(q, kv):
    """A cube whose outermost axis is a remainder too, the window shifted inwards along it."""
    first = rg.clamp(q // 96 % 5 - 1, 0, 2)
    frame = kv // 96 % 5
    near = (abs(q // 12 % 8 - kv // 12 % 8) <= 2) & (abs(q % 12 - kv % 12) <= 2)
    return (frame >= first) & (frame < first + 3) & near


@rg.mask
def in_every_image(q, kv):
    return (abs(q // 12 % 20 - kv // 12 % 20) <= 3) & (abs(q % 12 - kv % 12) <= 2)


@rg.score
def key_bias(s, batch, kv, bias):
    return s + bias[batch, kv]


@rg.score
def relative(s, head, q, kv, table):
    (a, b), (c, d) = WIDE(q), WIDE(kv)
    return s + table[head, c - a + 31, d - b + 23]


# Parts, (B, H, Hkv, Lq, Lkv), options of the module.
EMULATED: dict[str, tuple[list[Part], tuple[int, int, int, int, int], dict[str, Any]]] = {
    "odd grid": ([rg.neighborhood(IMAGE, (5, 7))], (1, 2, 1, 540, 540), {}),
    "wide window": ([rg.neighborhood(WIDE, 13)], (1, 1, 1, 768, 768), {"sizes": (128, 64)}),
    "three axes": ([rg.neighborhood(VIDEO, (3, 5, 5))], (2, 2, 2, 480, 480), {"sizes": (64, 128), "dtype": F16}),
    "strided": ([rg.neighborhood(WIDE, 12, stride=(4, 8))], (1, 1, 1, 768, 768), {}),
    "dilated image": ([rg.neighborhood(WIDE, (5, 3), dilation=(2, 1))], (1, 1, 1, 768, 768), {}),
    "causal along one axis": ([rg.neighborhood(IMAGE, 5, causal=(True, False))], (1, 1, 1, 540, 540), {}),
    "dilated": ([rg.causal(), rg.dilated(4)], (1, 2, 2, 600, 600), {}),
    "classes of two lengths": ([rg.dilated(4), rg.sliding_window(100, 50)], (1, 1, 1, 1037, 1035), {}),
    "fewer tokens than classes": ([rg.dilated(16)], (1, 1, 1, 5, 7), {}),
    "shifted windows": ([rg.windows(rg.grid(24, 40), 16, shift=5)], (1, 1, 1, 960, 960), {}),
    "rows of divisions": ([by_division()], (1, 2, 1, 540, 540), {"fit": "grid"}),
    "rows of divisions, more of keys": ([by_division()], (1, 1, 1, 189, 405), {"fit": "grid"}),
    "cube of divisions": ([by_remainder()], (1, 1, 1, 480, 480), {"fit": "grid"}),
    "several images of divisions": ([in_every_image()], (1, 1, 1, 480, 960), {"fit": "repeats"}),
    "rows that see nothing": ([far_above()], (1, 1, 1, 540, 540), {}),
    "softcap": ([rg.neighborhood(WIDE, 13), rg.softcap(5.0)], (1, 1, 1, 768, 768), {"sizes": (128, 128)}),
    "bias by key": ([rg.neighborhood(IMAGE, 5), key_bias(bias=bias(2, 540))], (2, 1, 1, 540, 540), {}),
    "bias by distance": ([rg.neighborhood(WIDE, 7), relative(table=bias(1, 63, 47))], (1, 1, 1, 768, 768), {}),
}


@pytest.mark.parametrize("name", EMULATED)
def test_emulated(name: str) -> None:
    parts, shape, options = EMULATED[name]
    assert_emulated(gluon_emulated.load, parts, shape, **options)


def test_tensors_with_other_strides() -> None:
    parts = EMULATED["odd grid"][0]
    inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors((2, 4, 2, 540, 540), (64, 64), BF16)]
    out, _ = gluon_emulated.load(module(parts).text).run(*inputs, 5, 7)
    assert_close_to_oracle(out, oracle(parts, *inputs)[0], eager(parts, *inputs)[0])


@pytest.mark.parametrize(
    ("parts", "lengths"),
    [([early_keys()], (540, 540)), ([rg.causal(), rg.dilated(4)], (301, 517)), ([rg.dilated(8)], (3, 300))],
    ids=["columns", "fewer queries than keys", "classes without queries"],
)
def test_unseen_keys_may_hold_anything(parts: list[Part], lengths: tuple[int, int]) -> None:
    shape = (1, 1, 1, *lengths)
    query, key, value = tensors(shape, (64, 64), BF16)
    unseen = ~allowed_pairs(parts, shape)[0, 0].any(0)
    assert unseen.any()
    generated = module(parts)
    clean = gluon_emulated.load(generated.text).run(query, key, value, *generated.values)
    key[:, :, unseen], value[:, :, unseen] = torch.nan, torch.inf
    dirty = gluon_emulated.load(generated.text).run(query, key, value, *generated.values)
    assert torch.equal(clean[0], dirty[0]) and torch.equal(clean[1], dirty[1])


def test_boxes_that_need_no_mask_come_last() -> None:
    """Every box once, for boxes of which some run along each axis is full; 16 × 16 keys a box, from (3, 5) on."""
    visited_box = gluon_emulated.load(module([rg.neighborhood(WIDE, 13)]).text).names["visited_box"]
    runs = [(4, 1, 2), (3, 0, 3), (2, 1, 0), (1, 0, 1), (5, 3, 2)]
    for (rows, top, inner), (columns, left, between) in product(runs, runs):
        partial = rows * columns - inner * between
        visits = (partial, rows * columns, 3, rows, top, inner, 5, columns, left, between)
        numbers = [torch.tensor(x) for x in visits]
        found = [visited_box(torch.tensor(t), numbers, (8, 16, 16, 16)) for t in range(rows * columns)]
        places = [((int(y) - 3) // 16, (int(x) - 5) // 16) for y, x in found]
        assert sorted(places) == list(product(range(rows), range(columns)))
        full = [top <= y < top + inner and left <= x < left + between for y, x in places]
        assert full == [False] * partial + [True] * (inner * between)


def test_full_boxes_carry_no_mask() -> None:
    text = module([rg.neighborhood(WIDE, 13)]).text
    loop = text[text.index("# Tiles in which every pair is allowed.") : text.index("mbarrier.arrive(q_empty")]
    assert "start_scores" in loop
    assert "where" not in loop and "k_at" not in loop and "read(" not in loop


@pytest.mark.parametrize(
    ("parts", "length", "size"),
    [
        ([rg.neighborhood(rg.grid(128, 128), 33)], 16384, 128),
        ([rg.neighborhood(rg.grid(16, 32, 32), (5, 9, 9)), rg.alibi(slopes=bias(2))], 16384, 128),
        ([rg.causal(), rg.dilated(16)], 4096, 64),
    ],
    ids=["two axes", "three axes and alibi", "dilated"],
)
def test_compiled_for_sm_90(parts: list[Part], length: int, size: int) -> None:
    generated = module(parts, sizes=(size, size))
    inputs = [torch.empty((1, 2, length, size), dtype=BF16, device="meta") for _ in range(3)]
    values = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in generated.values]
    (binary,) = compile_launches(load(generated.text), H100, [*inputs, *values])
    sass = binary.sass()
    assert "HGMMA" in sass and re.search(r"UTMALDG\.[45]D", sass)
    assert binary.spills() == 0
    assert binary.shared <= 227 << 10


@rg.mask
def within_widths(q, kv, head, widths):
    return (abs(IMAGE(q)[1] - IMAGE(kv)[1]) <= widths[head]) & (IMAGE(q)[0] >= IMAGE(kv)[0])


@rg.mask
def circle(q, kv):
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 3) & ((a - c) ** 2 + (b - d) ** 2 <= 9)


@pytest.mark.parametrize(
    ("parts", "size", "reason"),
    [
        ([rg.neighborhood(IMAGE, 5)], 80, "head size 80"),
        ([circle()], 64, "no product"),
        ([within_widths(widths=torch.zeros(4, dtype=torch.int32))], 64, "captured tensors"),
        ([rg.neighborhood(IMAGE, (5, 3), dilation=(3, 2))], 64, "equally long"),
        ([rg.windows(rg.grid(56, 56), 7)], 64, "fewer than 128 queries"),
    ],
)
def test_says_why_not(parts: list[Part], size: int, reason: str) -> None:
    plan = make_plan(run_pipeline(assemble(*parts)[0]))
    problem = Problem("bf16", size, size, buffers=("int32",) * len(plan.variant.buffers))
    found = unsupported_reason(plan, problem, H100)
    assert found is not None and reason in found
    choice = choose(plan, problem, H100, "forward", True)
    assert choice.skeleton == "triton" and reason in choice.reason


def test_chosen_where_calls_fill_the_gpu() -> None:
    plan = make_plan(run_pipeline(assemble(rg.neighborhood(IMAGE, 5))[0]))
    problem = Problem("bf16", 128, 128)
    assert choose(plan, problem, H100, "forward", True).skeleton == "gluon"
    assert "too few" in choose(plan, problem, H100, "forward", False).reason
    assert "sm_80" in choose(plan, problem, Target("cuda", 80), "forward", True).reason
    assert choose(plan, Problem("bf16", 64, 64), H100, "forward", True).skeleton == "gluon"


@pytest.mark.parametrize(("tokens", "walks"), [(1024, False), (200, True)])
def test_boxes_along_rows_of_whole_tiles_are_left_to_tables(tokens: int, walks: bool) -> None:
    """A window that narrows with the distance of frames: where tiles cross frames, boxes hold far fewer pairs."""

    @rg.mask
    def narrowing(q, kv):
        apart = abs(q // tokens - kv // tokens)
        reach = rg.where(apart >= 4, tokens // 16, rg.where(apart >= 1, tokens // 8, tokens // 4))
        return abs(q % tokens - kv % tokens) <= reach

    plan = make_plan(run_pipeline(assemble(narrowing())[0]), "grid")
    assert walks_boxes(plan, H100) == walks and walks_boxes(plan, Target("cuda", 80))
    choice = choose(plan, Problem("bf16", 128, 128, fit="grid"), H100, "forward", True)
    assert choice.skeleton == ("triton" if walks else "gluon")
    assert ("hardly fewer pairs" in choice.reason) != walks


@pytest.mark.parametrize(("frames", "walks"), [(rg.grid(16, 1024), False), (rg.grid(128, 128), True)])
def test_gradients_run_by_tiles_where_boxes_of_keys_lie_across_what_all_see(frames: Any, walks: bool) -> None:
    """The first tokens are seen by all: as a run of positions, a box of keys in all frames is among them."""

    @rg.mask
    def near_or_first(q, kv, first):
        (t, x), (s, y) = frames(q), frames(kv)
        return (abs(t - s) <= 16) & (abs(x - y) <= 16) | (kv < first)

    plan = make_plan(run_pipeline(assemble(near_or_first(first=1024))[0]))
    problem = Problem("bf16", 128, 128)
    forward, backward = (choose(plan, problem, H100, direction, True) for direction in ("forward", "backward"))
    assert "several" in forward.reason and ("hardly fewer pairs" in backward.reason) != walks
    assert backward.skeleton == ("triton" if walks else "gluon")
    # At head size 64 tiles of the warp-specialised kernel are larger, and were measured slower.
    assert choose(plan, Problem("bf16", 64, 64), H100, "backward", True, long=True).skeleton == "triton"
