"""Kernels over boxes: their results under the interpreter, and what they compile to without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
