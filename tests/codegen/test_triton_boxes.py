"""Kernels over boxes: their results under the interpreter, and what they compile to without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import regard as rg
from generated_boxes import generated
from generated_triton import H100, load
from oracle import Part
from regard.codegen.binaries import Binary, compile_launches, sample_arguments
from regard.codegen.box_sides import box_shapes
from regard.codegen.schedule import Target
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.plan import BoxTerm


def test_under_the_interpreter() -> None:
    cases = Path(__file__).with_name("triton_boxes_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=cases.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


def compiled(parts: list[Part], size: int, target: Target = H100, *, default: bool = True) -> dict[str, Binary]:
    """The kernels of both directions for a call on 1024 positions, by the default schedules."""
    module = generated(parts, sizes=(size, size), target=target, blocks=None if default else (64, 64))
    query, key, value = sample_arguments(module.problem)
    lse = torch.empty(query.shape[:3], device="meta")
    values = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in module.values]
    forward = compile_launches(load(module.sources[0]), target, [query, key, value, *values])
    backward = compile_launches(load(module.sources[1]), target, [query, key, value, query, lse, query, None, *values])
    return {x.kernel: x for x in (*forward, *backward) if x.kernel != "row_terms"}


@pytest.mark.parametrize("size", [64, 128])
def test_boxes_on_sm_90_come_by_the_tensor_memory_accelerator(size: int) -> None:
    kernels = compiled([rg.neighborhood(rg.grid(32, 32), 13)], size)
    for name, binary in kernels.items():
        sass = binary.sass()
        assert "HGMMA" in sass and sass.count("UTMALDG") >= 4
        # Triton 3.6 miscompiles products whose left operand stays in registers through a loop.
        assert not re.search(r"tt\.reshape .*dot_op", binary.assembly["ttgir"])
        assert binary.spills() <= (0 if name == "attention_forward" else 176)
        assert binary.shared <= 227 * 1024
    for name in ("attention_forward", "attention_grad_query"):
        loops = re.finditer(r"^( *)\S+ = scf\.for.*?^\1\}", kernels[name].assembly["ttgir"], re.MULTILINE | re.DOTALL)
        loop = next(loops).group()
        assert loop.count("async_tma_copy") == 2  # of a box to come, while this one is computed
        assert "local_alloc" not in loop  # no box passes through registers on its way to the tensor cores


@pytest.mark.parametrize(
    "parts",
    [
        [rg.causal(), rg.dilated(4), rg.sliding_window(400)],
        [rg.neighborhood(rg.grid(4, 16, 16), 3)],
        [rg.windows(rg.grid(32, 32), 8, shift=4), rg.softcap(20.0)],
    ],
    ids=["dilated", "three axes", "windows"],
)
def test_classes_and_grids_on_sm_90(parts: list[Part]) -> None:
    for binary in compiled(parts, 64).values():
        assert "HGMMA" in binary.sass() and "UTMALDG" in binary.sass()


@rg.mask
def circle(q: Any, kv: Any, radius: Any) -> Any:
    (a, b), (c, d) = rg.grid(32, 32)(q), rg.grid(32, 32)(kv)
    return (a - c) ** 2 + (b - d) ** 2 < radius**2


def test_boxes_that_depend_on_each_other_are_loaded_ahead() -> None:
    """The loop that walks them has loads of boxes to come, although scalars say where each is."""
    kernels = compiled([circle(radius=9)], 64)
    for name in ("attention_forward", "attention_grad_query"):
        assert "HGMMA" in kernels[name].sass() and kernels[name].spills() <= 16
        text = kernels[name].assembly["ttgir"]
        loops = re.finditer(r"^( *)\S+ = scf\.for.*?^\1\}", text, re.MULTILINE | re.DOTALL)
        counting, walking, *_ = (loop.group() for loop in loops)
        assert "async_tma_copy" not in counting and walking.count("async_tma_copy") == 2


@pytest.mark.parametrize(("target", "code"), [(Target("cuda", 80), "ptx"), (Target("hip", "gfx942"), "amdgcn")])
def test_other_targets(target: Target, code: str) -> None:
    for binary in compiled([rg.windows(rg.grid(32, 32), 8)], 64, target).values():
        assert ("mma.sync" if code == "ptx" else "mfma") in binary.assembly[code]


def term_of(*parts: Part) -> BoxTerm:
    (term,) = make_plan(run_pipeline(assemble(*parts)[0])).boxes
    return term


def test_shapes_of_boxes() -> None:
    """Powers of two, at most four, no larger than classes, and square first where nothing speaks for another."""
    shapes = box_shapes(term_of(rg.neighborhood(rg.grid(128, 128), 13)).axes, "q", 64, 64)
    assert 1 < len(shapes) <= 4 and shapes[0].queries == (8, 8)
    (only,) = box_shapes(term_of(rg.windows(rg.grid(56, 56), 7)).axes, "q", 128, 128)
    assert only.queries == only.keys == (8, 8)
    (only,) = box_shapes(term_of(rg.causal(), rg.dilated(4)).axes, "q", 128, 64)
    assert (only.queries, only.keys) == ((128,), (64,))
    for shape in box_shapes(term_of(rg.windows(rg.grid(8, 8), 2)).axes, "q", 64, 64):
        assert torch.Size(shape.queries).numel() == 16  # as few as a product takes


def test_shapes_suit_all_of_a_large_grid() -> None:
    """Published cases: tiles of a strided neighbourhood fill, and over half of the others' pairs are allowed."""
    grid, window = rg.grid(30, 48, 80), (18, 24, 24)
    for stride, least in ((1, 0.55), ((16, 8, 8), 1.0)):
        attn = rg.attention(rg.neighborhood(grid, window, stride=stride))
        counts = attn.explain((1, 1, 30 * 48 * 80, 128), target="sm_90").counts
        assert counts is not None and counts.pairs.pairs >= least * counts.tiles.tile_pairs


@rg.mask
def near_on_rows(q: Any, kv: Any) -> Any:
    return (abs(q // 128 - kv // 128) <= 10) & (abs(q % 128 - kv % 128) <= 10)


def test_shapes_where_only_a_call_says_how_many_rows_there_are() -> None:
    """One for few rows and one for many."""
    few, many = box_shapes(term_of(near_on_rows()).axes, "q", 128, 128)
    assert (few.queries, few.keys) == ((32, 4), (32, 4)) and (many.queries, many.keys) == ((8, 16), (32, 4))


def test_golden(update_golden: bool) -> None:
    sources = generated([rg.causal(), rg.dilated(4), rg.sliding_window(100)], blocks=None).sources
    for direction, text in zip(("forward", "backward"), sources, strict=True):
        path = Path(__file__).parent / "golden" / f"triton_{direction}_boxes.py.txt"
        if update_golden:
            path.write_text(text)
        assert text == path.read_text(), f"run pytest with --update-golden and read the change of {path.name}"


def test_the_same_variant_gives_the_same_text() -> None:
    first, second = (generated([rg.neighborhood(rg.grid(32, 32), (5, 9))]).sources for _ in range(2))
    assert first == second
