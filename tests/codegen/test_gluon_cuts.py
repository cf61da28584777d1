"""Tiles that begin anew where data changes: both directions emulated, and compiled for sm_90."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gluon_emulated
import regard as rg
from generated_gluon import BF16, F16, Shape, assert_emulated, assert_gradients, bias, module, saved, tensors
from generated_triton import H100, load
from oracle import Part
from regard.codegen.binaries import compile_launches, sample_arguments
from regard.codegen.gluon_backward import KERNEL as GRADIENTS


def ids(*lengths: int) -> Tensor:
    """Numbers of documents of these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()


# Of 400 tokens: longer and shorter than a tile, and one token alone.
LENGTHS = (100, 37, 162, 1, 100)
CASES: dict[str, tuple[list[Part], Shape, dict[str, Any]]] = {
    "causal": ([rg.causal(), rg.document(ids(*LENGTHS))], (1, 4, 2, 400, 400), {"sizes": (128, 128)}),
    "both ways": ([rg.document(ids(*LENGTHS))], (1, 2, 2, 400, 400), {}),
    "in a window": ([rg.document(ids(*LENGTHS)), rg.sliding_window(40, 9)], (1, 2, 1, 400, 400), {"dtype": F16}),
    "with a bias": ([rg.causal(), rg.document(ids(*LENGTHS)), rg.alibi(slopes=bias(2))], (1, 2, 2, 400, 400), {}),
    "in another order": ([rg.document(ids(*LENGTHS).flip(0) % 3)], (1, 1, 1, 400, 400), {"sizes": (128, 64)}),
    "in no order, so tiles are not cut": (
        [rg.causal(), rg.document((torch.arange(400) * 7 % 5).int())], (1, 1, 1, 400, 400), {},
    ),
    "other ones in each batch, not cut in one": (
        [rg.causal(), rg.document(torch.stack([ids(*LENGTHS), ids(10, 200, 190), torch.arange(400).int() % 2]))],
        (3, 2, 1, 400, 400), {"sizes": (128, 128)},
    ),
    "fewer queries than keys": (
        [rg.document(ids(*LENGTHS)[:150], ids(*LENGTHS)), rg.causal()], (1, 1, 1, 150, 400), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [x for x in CASES if x != "fewer queries than keys"])
def test_forward(name: str) -> None:
    parts, shape, options = CASES[name]
    assert_emulated(gluon_emulated.load, parts, shape, cut=True, **options)


@pytest.mark.parametrize("name", ["causal", "in no order, so tiles are not cut"])
@pytest.mark.parametrize("ahead", [False, True])
def test_tiles_of_queries_overlap(name: str, ahead: bool) -> None:
    parts, shape, options = CASES[name]
    assert_emulated(gluon_emulated.load, parts, shape, **{**options, "sizes": (64, 64), "cut": True, "ahead": ahead})


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    parts, shape, options = CASES[name]
    inputs = tensors(shape, options.get("sizes", (64, 64)), options.get("dtype", BF16))
    rest = saved(parts, inputs)
    generated = module(parts, direction="backward", cut=True, **options)
    found = gluon_emulated.load(generated.text).run(*inputs, *rest, *generated.values)
    assert_gradients(found, parts, inputs, rest)


def test_documents_are_cut_unless_keys_may_be_hidden() -> None:
    parts: list[Part] = [rg.causal(), rg.document(ids(*LENGTHS))]
    for direction in ("forward", "backward"):
        assert "begin anew where data changes" in module(parts, direction=direction).text
    hidden = module([rg.document(ids(*LENGTHS)[:150], ids(*LENGTHS))])
    assert "begin anew where data changes" not in hidden.text


@pytest.mark.parametrize(
    ("sizes", "more"), [((64, 64), []), ((128, 128), []), ((128, 64), [rg.alibi(slopes=bias(16))])],
    ids=["64", "128", "128, a bias"],
)  # fmt: skip
def test_compiled_for_sm_90(sizes: tuple[int, int], more: list[Part]) -> None:
    generated = module([rg.causal(), rg.document(torch.arange(64).int()), *more], sizes=sizes)
    values = [x.to("meta") for x in generated.values]
    binaries = compile_launches(load(generated.text), H100, [*sample_arguments(generated.problem), *values])
    forward = binaries[-1]
    assert "HGMMA" in forward.sass() and forward.spills() == 0 and forward.shared <= 227 << 10


def test_gradients_compiled_for_sm_90() -> None:
    # With a bias, whose expressions have names too.
    parts: list[Part] = [rg.causal(), rg.document(torch.arange(64).int()), rg.alibi(slopes=bias(16))]
    generated = module(parts, sizes=(128, 128), direction="backward")
    values = [x.to("meta") for x in generated.values]
    query, key, value = sample_arguments(generated.problem)
    lse = torch.empty(query.shape[:3], device="meta")
    arguments = [query, key, value, query, lse, query, None, *values]
    kernel = next(b for b in compile_launches(load(generated.text), H100, arguments) if b.kernel == GRADIENTS)
    assert "HGMMA" in kernel.sass() and kernel.shared <= 227 << 10
