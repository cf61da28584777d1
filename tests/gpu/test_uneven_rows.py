"""Rows of tiles that are uneven, on a GPU that calls fill: work lists and shares against the float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from on_gpu import check, tensors
from oracle import assert_close_to_oracle, eager, oracle

pytestmark = pytest.mark.gpu


@rg.mask
def local_or_late(q: Any, kv: Any, q_len: Any) -> Any:
    """The last queries see all keys, and those before see nothing around the middle."""
    return ((abs(q - kv) < 200) & (abs(q - q_len // 2) > 300)) | (q >= q_len - 20)


def documents(length: int) -> Tensor:
    return (torch.arange(length, device="cuda").float() ** 0.35).int()


CASES: dict[str, tuple[Callable[[], tuple[Any, ...]], tuple[int, ...]]] = {
    "local and global": (lambda: (rg.sliding_window(256, 256) | rg.global_tokens(64),), (1, 8, 8, 4096, 4096, 128)),
    "ragged, grouped": (lambda: (rg.sliding_window(99, 99) | rg.global_tokens(7),), (2, 6, 2, 2001, 2777, 128, 64)),
    "random blocks": (
        lambda: (rg.random_blocks(128, 2) | rg.sliding_window(100, 100) | rg.global_tokens(70),),
        (1, 8, 4, 3001, 3001, 128),
    ),
    "late rows": (lambda: (local_or_late(),), (1, 9, 3, 2999, 2999, 128)),
    "wide heads": (
        lambda: (rg.sliding_window(99, 99) | rg.global_tokens(7), rg.softcap(9.0)), (1, 8, 8, 2500, 2500, 192),
    ),
    "documents": (lambda: (rg.causal(), rg.document(documents(4001))), (1, 8, 8, 4001, 4001, 128)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name: str) -> None:
    make, shape = CASES[name]
    parts, x = make(), [t.detach() for t in tensors(torch.bfloat16, *shape)]
    attn = rg.attention(*parts)
    explained = str(attn.explain(*x))
    assert "gluon_forward" in explained
    # Of documents a tensor says how long rows are: those lists are left to tuning.
    assert ("from a list, the heaviest first, long rows shared" in explained) == (name != "documents")
    out, aux = attn(*x, aux=("lse",))
    exact, usual = oracle(parts, *x), eager(parts, *x)
    assert_close_to_oracle(out, exact[0], usual[0], "output")
    assert_close_to_oracle(aux.lse, exact[1], usual[1], "lse")
    for _ in range(20):
        again, aux_again = attn(*x, aux=("lse",))
        assert torch.equal(out, again) and torch.equal(aux.lse, aux_again.lse)


# Parts, shapes, whether rows of queries and of keys are cut in the backward pass.
GRADIENTS: dict[str, tuple[Callable[[], tuple[Any, ...]], tuple[int, ...], tuple[bool, bool]]] = {
    "local and global": (*CASES["local and global"], (True, True)),
    "ragged, grouped": (*CASES["ragged, grouped"], (True, True)),
    "random blocks": (*CASES["random blocks"], (True, True)),
    "late rows": (*CASES["late rows"], (True, False)),
    "sinks": (lambda: (rg.causal(), rg.sinks(9) | rg.sliding_window(150)), (1, 16, 2, 3001, 3001, 64), (False, True)),
    "heads of 64": (*CASES["local and global"][:1], (2, 12, 3, 2999, 3333, 64), (True, True)),
    "two kernels for dK and dV": (CASES["wide heads"][0], (1, 8, 8, 2500, 2500, 192), (True, True)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_against_the_oracle(name: str) -> None:
    make, shape, cut = GRADIENTS[name]
    parts, x = make(), tensors(torch.bfloat16, *shape)
    attn = rg.attention(*parts)
    kernel = attn.explain(*x).kernels[1]
    assert kernel.skeleton == "gluon_backward" and kernel.deterministic
    assert kernel.schedule.grad_query is not None
    assert (kernel.schedule.grad_query.split_keys, kernel.schedule.split_keys) == cut
    check(parts, x)
    out = attn(*x)
    grad_out = torch.randn_like(out)
    first, *others = (torch.autograd.grad(out, x, grad_out, retain_graph=True) for _ in range(10))
    assert all(torch.equal(a, b) for again in others for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["local and global", "documents"])
def test_captured_in_a_graph(name: str) -> None:
    make, shape = CASES[name]
    attn, x = rg.attention(*make()), [t.detach() for t in tensors(torch.bfloat16, *shape)]
    for _ in range(3):
        attn(*x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attn(*x)
    for _ in range(3):
        for t in x:
            t.normal_()
        graph.replay()
        assert torch.equal(out, attn(*x))


def test_other_lengths_and_numbers_of_queries_that_see_all() -> None:
    x = [t.detach() for t in tensors(torch.bfloat16, 1, 8, 8, 4096, 4096, 128)]
    for length in (4096, 2900, 4095):
        part = [t[:, :, :length] for t in x]
        for seen in (1, 200):
            parts = (rg.sliding_window(128, 128) | rg.global_tokens(seen),)
            out = rg.attention(*parts)(*part)
            assert_close_to_oracle(out, oracle(parts, *part)[0], eager(parts, *part)[0], "output")
