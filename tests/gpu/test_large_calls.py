"""Calls that fill the GPU, which other kernels serve than small ones, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from on_gpu import VARIANTS, check, tensors
from oracle import oracle

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", VARIANTS)
def test_stock_library(name: str, dim: int) -> None:
    check(VARIANTS[name](4, 16, 301), tensors(torch.bfloat16, 4, 16, 16, 301, 301, dim))


@pytest.mark.parametrize(("dim", "value_dim"), [(128, 64), (64, 128), (96, 96), (128, 128)])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 513), (300, 127), (511, 513)])
@pytest.mark.parametrize("align", ["start", "end"])
def test_odd_sizes(dim: int, value_dim: int, q_len: int, kv_len: int, align: str) -> None:
    x = tensors(torch.float16, 4, 36, 36, q_len, kv_len, dim, value_dim)
    check((rg.causal(), rg.softcap(3.0)), x, align=align)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("cap", [2.0, 30.0, 51.0, 60.0, -5.0])
def test_capped_scores(dim: int, cap: float) -> None:
    """Caps below 52 take other code, and caps of either sign the same."""

    @rg.score
    def capped(s: Any, cap: Any) -> Any:
        return cap * rg.tanh(s / cap)

    check((rg.causal(), capped(cap=cap)), tensors(torch.bfloat16, 4, 16, 4, 513, 600, dim), align="end")


@pytest.mark.parametrize("dim", [64, 128])
def test_scores_at_their_bounds(dim: int) -> None:
    """Rows whose scores are all near one end, and rows of which one score is far from all others."""
    query, key, value = (x.detach() for x in tensors(torch.bfloat16, 4, 16, 16, 400, 400, dim))
    key = key.abs() * 3
    query = query.abs() * torch.where(torch.arange(400, device="cuda") % 2 == 0, 3.0, -3.0)[:, None]
    key[:, :, 7] *= -1
    x = query.bfloat16(), key.bfloat16(), value
    out, aux = rg.attention(rg.causal(), rg.softcap(50.0))(*x, aux=("lse",))
    exact = oracle((rg.causal(), rg.softcap(50.0)), *x)
    assert out.isfinite().all()
    torch.testing.assert_close(out.double(), exact[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(aux.lse.double(), exact[1], atol=0.05, rtol=1e-3)


@pytest.mark.parametrize("kv_heads", [1, 4, 16])
def test_shared_heads(kv_heads: int) -> None:
    for parts in ((rg.causal(),), (rg.sliding_window(70, 20),)):
        check(parts, tensors(torch.bfloat16, 6, 16, kv_heads, 333, 290, 128))
    check((rg.causal(),), tensors(torch.bfloat16, 40, 8, kv_heads // 2 or 1, 600, 600, 64))


def test_a_window_for_each_head() -> None:
    @rg.mask
    def window(q: Any, kv: Any, head: Any, windows: Any) -> Any:
        return (q >= kv) & (q - kv < windows[head])

    windows = torch.arange(1, 17, device="cuda") * 19
    check((window(windows=windows),), tensors(torch.bfloat16, 4, 16, 4, 301, 301, 128))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("dim", [64, 128])
def test_what_nobody_sees_does_not_matter(dim: int, poison: float) -> None:
    @rg.mask
    def first_keys(kv: Any, limit: Any) -> Any:
        return kv < limit

    @rg.mask
    def kept(q: Any, kv: Any, keep: Any) -> Any:
        return (q >= kv) & keep[kv]

    x = tensors(torch.bfloat16, 4, 16, 16, 300, 290, dim)
    # Keys past 137 are of a document that no query belongs to.
    documents = torch.zeros(300, dtype=torch.int32, device="cuda")
    of_keys = (torch.arange(290, device="cuda") >= 137).int() * 9
    keep = torch.arange(290, device="cuda") < 137
    for parts in ((first_keys(limit=137),), (rg.document(documents, of_keys),), (kept(keep=keep),)):

        def attended(leaves: tuple[Tensor, ...], attn: rg.Attention) -> tuple[Tensor, ...]:
            out = attn(*leaves)
            return out, *torch.autograd.grad(out.sum(), leaves)

        attn = rg.attention(*parts)
        clean = attended(x, attn)
        query, key, value = (t.detach().clone() for t in x)
        for t in (key, value):
            t[:, :, 137:] = poison
        dirty = attended(tuple(t.requires_grad_() for t in (query, key, value)), attn)
        for a, b in zip(clean, dirty, strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_repeat_if_asked_to() -> None:
    x = tensors(torch.bfloat16, 4, 16, 4, 700, 700, 128)
    attn = rg.attention(rg.causal())
    runs = [torch.autograd.grad(attn(*x, deterministic=True).sum(), x) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
    # The fast form sums gradients of keys and values in one order too, but not those of queries.
    fast = [torch.autograd.grad(attn(*x, deterministic=False).sum(), x) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(fast[0][1:], fast[1][1:], strict=True))
