"""Warp-specialised gradients that repeat, also where calls are too small for that choice, against the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from on_gpu import VARIANTS, check, pin_repeatable, tensors
from regard.runtime import tuned

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def own_schedules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is pinned here serves no other test."""
    monkeypatch.setenv("REGARD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuned, "_found", {})


def check_repeatable(parts: tuple[Any, ...], x: tuple[Tensor, Tensor, Tensor], **options: Any) -> None:
    attn = pin_repeatable(parts, x, **options)
    kernel = attn.explain(*x, deterministic=True).kernels[1]
    assert kernel.skeleton == "gluon_backward" and kernel.deterministic
    check(parts, x, deterministic=True, **options)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", VARIANTS)
def test_stock_library(name: str, dim: int) -> None:
    check_repeatable(VARIANTS[name](4, 16, 301), tensors(torch.bfloat16, 4, 16, 16, 301, 301, dim))


WIDE = [(96, 96), (192, 128), (192, 192), (256, 256)]


@pytest.mark.parametrize(("dim", "value_dim"), WIDE)
@pytest.mark.parametrize("name", ["full", "window", "documents", "longformer", "kept keys", "softcap"])
def test_wide_heads(name: str, dim: int, value_dim: int) -> None:
    check_repeatable(VARIANTS[name](4, 16, 301), tensors(torch.bfloat16, 4, 16, 16, 301, 301, dim, value_dim))


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (128, 64), (128, 128), *WIDE])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 513), (300, 127), (511, 513)])
@pytest.mark.parametrize("align", ["start", "end"])
def test_odd_sizes(dim: int, value_dim: int, q_len: int, kv_len: int, align: str) -> None:
    x = tensors(torch.float16, 4, 36, 36, q_len, kv_len, dim, value_dim)
    check_repeatable((rg.causal(), rg.softcap(3.0)), x, align=align)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_shared_heads(kv_heads: int) -> None:
    check_repeatable((rg.sliding_window(70, 20),), tensors(torch.bfloat16, 6, 16, kv_heads, 333, 290, 128))
    check_repeatable((rg.causal(),), tensors(torch.bfloat16, 40, 8, kv_heads, 600, 600, 64))
    check_repeatable((rg.causal(),), tensors(torch.bfloat16, 6, 16, kv_heads, 333, 290, 256))


@rg.mask
def first_keys(kv: Any, limit: Any) -> Any:
    return kv < limit


@pytest.mark.parametrize("dim", [64, 128, 192, 256])
@pytest.mark.parametrize("of", ["positions", "documents"])
def test_what_nobody_sees_does_not_matter(of: str, dim: int) -> None:
    x = tensors(torch.bfloat16, 4, 16, 16, 300, 290, dim)
    # Keys past 137 are of a document that no query belongs to.
    documents = torch.zeros(300, dtype=torch.int32, device="cuda")
    of_keys = (torch.arange(290, device="cuda") >= 137).int() * 9
    attn = pin_repeatable((first_keys(limit=137),) if of == "positions" else (rg.document(documents, of_keys),), x)
    query, key, value = (t.detach().clone() for t in x)
    key[:, :, 137:] = value[:, :, 137:] = torch.nan
    poisoned = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    clean, dirty = (torch.autograd.grad(attn(*leaves, deterministic=True).sum(), leaves) for leaves in (x, poisoned))
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b)


@rg.score
def biased(s: Any, batch: Any, head: Any, q: Any, kv: Any, slopes: Any, gates: Any, bias: Any) -> Any:
    return s * (1 + slopes[head]) + gates[batch, q] * (kv - q) * 0.01 + bias[head, kv]


@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_captured_tensors(dim: int) -> None:
    x = tensors(torch.bfloat16, 4, 16, 4, 301, 333, dim)
    captured = tuple(torch.randn(*n, device="cuda", requires_grad=True) for n in ((16,), (4, 301), (16, 333)))
    parts = (rg.causal(), biased(slopes=captured[0], gates=captured[1], bias=captured[2]))
    pin_repeatable(parts, x)
    check(parts, x, captured, deterministic=True)


@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_gradients_repeat(dim: int) -> None:
    x = tensors(torch.bfloat16, 4, 16, 4, 700, 700, dim)
    attn = pin_repeatable((rg.causal(),), x)
    grad_out = torch.randn_like(attn(*x))
    first = torch.autograd.grad(attn(*x, deterministic=True), x, grad_out)
    for _ in range(200):
        again = torch.autograd.grad(attn(*x, deterministic=True), x, grad_out)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
