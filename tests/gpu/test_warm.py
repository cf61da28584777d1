"""Calls like a recent one, on a GPU: what tells them apart from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg

pytestmark = pytest.mark.gpu


def tensors(dtype: torch.dtype = torch.bfloat16, batch: int = 2, length: int = 300, dim: int = 64) -> list[Tensor]:
    return [torch.randn(batch, 16, length, dim, device="cuda", dtype=dtype) for _ in range(3)]


def warmed(attn: rg.Attention, x: list[Tensor]) -> Tensor:
    """The output of a call that the engine knows."""
    with torch.no_grad():
        for _ in range(4):
            out: Tensor = attn(*x)
    assert attn._engine._recent._calls
    return out


@pytest.mark.parametrize("batch", [1, 8])  # few tiles, and enough to fill the GPU
def test_gradients_turned_on_and_off(batch: int) -> None:
    attn, x = rg.attention(rg.causal()), [t.requires_grad_() for t in tensors(batch=batch, dim=128)]
    expected = warmed(attn, x)
    for _ in range(3):
        out = attn(*x)
        assert out.requires_grad and torch.equal(out, expected)
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.float().square().sum(), x))
        with torch.no_grad():
            again = attn(*x)
        assert not again.requires_grad and torch.equal(again, expected)
        with torch.inference_mode():
            assert torch.equal(attn(*x), expected)
    plain = [t.detach() for t in x]
    assert not attn(*plain).requires_grad and torch.equal(attn(*plain), expected)


def test_values_that_change_in_place() -> None:
    attn, x = rg.attention(rg.causal()), tensors(batch=8, dim=128)
    warmed(attn, x)
    for i in range(10):
        for t in x:
            t.normal_()
        if i % 3 == 2:
            x = [t.clone() for t in x]
        fresh = rg.attention(rg.causal(), rg.temperature(1.0))  # another variant, which knows no call
        torch.testing.assert_close(attn(*x), fresh(*x), rtol=2e-2, atol=2e-2)


def test_precision_that_is_allowed_meanwhile() -> None:
    attn, x = rg.attention(rg.causal()), tensors(torch.float32)
    exactly = warmed(attn, x)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        roughly = warmed(attn, x)
        torch.set_float32_matmul_precision("highest")
        assert torch.equal(attn(*x), exactly)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not torch.equal(roughly, exactly)
    torch.testing.assert_close(roughly, exactly, rtol=2e-2, atol=2e-2)


def test_autocast_meanwhile() -> None:
    attn, x = rg.attention(rg.causal()), tensors(torch.float32)
    expected = warmed(attn, x)
    for _ in range(3):
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
            assert attn(*x).dtype == torch.bfloat16
        assert torch.equal(attn(*x), expected)


def test_other_strides_lengths_and_scalars() -> None:
    """Each is another call; none is taken for the first."""

    @rg.mask
    def window(q: Any, kv: Any, size: int) -> Any:
        return (q >= kv) & (q - kv < size)

    attn, x = rg.attention(window), tensors(batch=8)
    token_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in x]
    with torch.no_grad():
        by_size = {size: attn(*x, size=size) for size in (1, 50, 300)}
        shorter = attn(*(t[:, :, :200] for t in x), size=50)
        for _ in range(6):
            for size, expected in by_size.items():
                assert torch.equal(attn(*x, size=size), expected)
                torch.testing.assert_close(attn(*token_first, size=size), expected, rtol=2e-2, atol=2e-2)
            assert torch.equal(attn(*(t[:, :, :200] for t in x), size=50), shorter)
    assert not torch.equal(by_size[1], by_size[300])
