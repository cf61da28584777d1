"""Tiles that begin anew where data changes, in calls that fill the GPU, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from on_gpu import check, tensors

pytestmark = pytest.mark.gpu


def ids(length: int, mean: int, seed: int = 0) -> Tensor:
    """Sorted numbers of documents of uneven lengths, some of them a single token."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randperm(length - 1, generator=generator)[: length // mean] + 1
    starts = torch.zeros(length, dtype=torch.int32)
    starts[cuts] = 1
    starts[length // 2 : length // 2 + 2] = 1
    return starts.cumsum(0).to(torch.int32).cuda()


# Lengths are odd; documents of 9 tokens are too many to begin tiles with.
DATA: dict[str, Any] = {
    "long": lambda n: ids(n, 300),
    "short": lambda n: ids(n, 150),
    "too short": lambda n: ids(n, 9),
    "in another order": lambda n: ids(n, 200).flip(0) * 7 % 5,
    "one": lambda n: torch.zeros(n, dtype=torch.int32, device="cuda"),
    "by batch": lambda n: torch.stack([ids(n, 200, 1), ids(n, 90, 2), ids(n, 8, 3), ids(n, 700, 4)]),
}


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("data", DATA)
def test_causal(data: str, dim: int) -> None:
    check((rg.causal(), rg.document(DATA[data](1021))), tensors(torch.bfloat16, 4, 16, 4, 1021, 1021, dim))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("data", ["long", "too short", "by batch"])
def test_both_ways(data: str, dim: int) -> None:
    check((rg.document(DATA[data](777)),), tensors(torch.float16, 4, 16, 16, 777, 777, dim))


@pytest.mark.parametrize(
    "parts",
    [(rg.sliding_window(50, 7),), (rg.causal(), rg.alibi(heads=16)), (rg.causal(), rg.softcap(5.0))],
    ids=["window", "alibi", "softcap"],
)
@pytest.mark.parametrize(("dim", "value_dim"), [(128, 64), (128, 128), (96, 96), (64, 64)])
def test_with_other_parts(parts: tuple[Any, ...], dim: int, value_dim: int) -> None:
    x = tensors(torch.bfloat16, 4, 16, 16, 901, 901, dim, value_dim)
    check((*parts, rg.document(ids(901, 170))), x)


@pytest.mark.parametrize("dim", [64, 128])
def test_a_graph_follows_its_data(dim: int) -> None:
    documents = ids(1021, 300)
    attn = rg.attention(rg.causal(), rg.document(documents))
    x = tensors(torch.bfloat16, 4, 16, 16, 1021, 1021, dim)
    grad = torch.randn(4, 16, 1021, dim, device="cuda", dtype=torch.bfloat16)

    def step() -> tuple[Tensor, ...]:
        out = attn(*x)
        return out, *torch.autograd.grad(out, x, grad)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for other in (ids(1021, 300), ids(1021, 120, 5), ids(1021, 7, 6), torch.zeros_like(documents)):
        documents.copy_(other)
        graph.replay()
        for a, b in zip(found, step(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
