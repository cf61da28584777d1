"""The cases of tests that need a GPU, built without one: masks that exist, shapes that fit, skeletons as expected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.overrides import TorchFunctionMode

import on_gpu
import regard as rg
from gpu import test_boxes as boxes
from gpu import test_correctness
from gpu import test_skeletons as skeletons
from regard.dsl import stock

# Only parts of them are cases.
for module in (boxes, skeletons, test_correctness):
    module.__test__ = False  # type: ignore[attr-defined]


class OnTheCpu(TorchFunctionMode):
    """Tensors that are asked for on a GPU are made on the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if str(given.get("device", "")) == "cuda":
            given["device"] = "cpu"
        return function(*args, **given)


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with OnTheCpu():
        yield


def skeleton(attn: rg.Attention, batch: int, heads: int, kv_heads: int, length: int, dim: int) -> str:
    shapes = [(batch, n, length, dim) for n in (heads, kv_heads, kv_heads)]
    explained = attn.explain(*shapes, dtype="bf16", target="sm_90")
    assert explained.counts is not None
    name: str = explained.kernels[0].skeleton
    return name


@pytest.mark.parametrize("name", boxes.VARIANTS | boxes.TERMS)
def test_boxes(name: str) -> None:
    length, make = (boxes.VARIANTS | boxes.TERMS)[name]
    for dim in (64, 128):
        assert skeleton(rg.attention(*make()), 2, 4, 2, length, dim) == "triton_forward"


@pytest.mark.parametrize("name", boxes.WARP_SPECIALISED)
def test_boxes_that_fill_the_gpu(name: str) -> None:
    length, make = boxes.WARP_SPECIALISED[name]
    assert skeleton(rg.attention(*make()), 2, 32, 8, length, 128) == "gluon_forward"


@pytest.mark.parametrize("name", on_gpu.VARIANTS)
def test_stock_library(name: str) -> None:
    for batch, heads in ((2, 4), (4, 16)):
        assert skeleton(rg.attention(*on_gpu.VARIANTS[name](batch, heads, 301)), batch, heads, heads, 301, 64)


@pytest.mark.parametrize("name", skeletons.CALLS)
def test_calls_that_are_repeated(name: str) -> None:
    parts, sizes = skeletons.CALLS[name]
    found = skeleton(rg.attention(*parts()), *sizes)
    assert found == ("triton_forward" if name == "few tiles" else "gluon_forward")


def test_every_stock_mask_runs_on_a_gpu() -> None:
    """Scores too, by their names in some test's source."""
    files = [Path(module.__file__ or "") for module in (boxes, skeletons, test_correctness, on_gpu)]
    text = "".join(file.read_text() for file in files)
    assert [name for name in stock.__all__ if f"rg.{name}(" not in text] == []
