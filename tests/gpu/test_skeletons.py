"""Which skeleton large calls run on, at the head sizes of the warp-specialised one, and that results repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from on_gpu import documents, tensors
from oracle import assert_close_to_oracle, eager, oracle

pytestmark = pytest.mark.gpu

RUNS = 200


@pytest.mark.parametrize("sizes", [(96, 96), (192, 192), (256, 256), (192, 128)])
@pytest.mark.parametrize("kv_heads", [16, 2])
def test_wide_heads_are_warp_specialised(sizes: tuple[int, int], kv_heads: int) -> None:
    x = tuple(t.detach() for t in tensors(torch.bfloat16, 4, 16, kv_heads, 301, 333, *sizes))
    for parts in ((rg.causal(),), (rg.sliding_window(70, 20),)):
        attn = rg.attention(*parts)
        assert attn.explain(*x).kernels[0].skeleton == "gluon_forward"
        exact, usual = (f(parts, *x) for f in (oracle, eager))
        for _ in range(3):  # the later ones are replayed
            out, aux = attn(*x, aux=("lse",))
            assert_close_to_oracle(out, exact[0], usual[0])
            assert_close_to_oracle(aux.lse, exact[1], usual[1], "lse")


CALLS: dict[str, tuple[Callable[[], tuple[Any, ...]], tuple[int, int, int, int, int]]] = {
    # Parts; batch, heads, key heads, length, head size
    "closed ranges": (lambda: (rg.causal(),), (4, 16, 4, 701, 128)),
    "closed ranges, D 64": (lambda: (rg.causal(), rg.softcap(5.0)), (4, 16, 16, 701, 64)),
    "few tiles": (lambda: (rg.sliding_window(100),), (1, 2, 1, 301, 64)),
    "tables": (lambda: (rg.causal(), rg.document(documents(4, 701))), (4, 16, 16, 701, 128)),
    "boxes": (lambda: (rg.neighborhood(rg.grid(20, 27), (5, 7)),), (4, 16, 16, 540, 128)),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_repeat_bit_for_bit(name: str) -> None:
    """Forward, and backward where that is asked for."""
    parts, (batch, heads, kv_heads, length, dim) = CALLS[name]
    attn = rg.attention(*parts())
    x = tensors(torch.bfloat16, batch, heads, kv_heads, length, length, dim)
    grad_out = torch.randn(batch, heads, length, dim, device="cuda", dtype=torch.bfloat16)

    def run() -> tuple[Tensor, ...]:
        out, aux = attn(*x, aux=("lse",), deterministic=True)
        return out, aux.lse, *torch.autograd.grad(out, x, grad_out)

    first, differing = run(), torch.zeros((), device="cuda", dtype=torch.int64)
    for _ in range(RUNS - 1):
        for a, b in zip(first, run(), strict=True):
            differing += (a != b).sum()
    assert not any(t.isnan().any() for t in first)
    assert differing.item() == 0


@pytest.mark.parametrize("length", [4099, 33333])
def test_merged_keys_repeat_bit_for_bit(length: int) -> None:
    query, key, value = (t.detach() for t in tensors(torch.bfloat16, 1, 8, 2, 1, length, 128))
    attn = rg.attention(rg.causal(), align="end")
    first = attn(query, key, value)
    assert all(torch.equal(first, attn(query, key, value)) for _ in range(RUNS - 1))
