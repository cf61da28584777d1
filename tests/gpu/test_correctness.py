"""The stock library on a GPU against the float64 oracle, forward and backward, by the oracle's rule for errors."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import pytest
import torch

import regard as rg
from on_gpu import VARIANTS, check, tensors
from oracle import assert_close_to_oracle, eager, oracle

pytestmark = pytest.mark.gpu


@rg.mask
def early_and_causal(q, kv):
    return (q >= kv) & (kv < 8000)


DTYPES = [torch.float16, torch.bfloat16, torch.float32]


# All in bfloat16, and every second one in each of the others: compilation takes most of the time.
IN_DTYPES = [
    (name, dtype)
    for i, name in enumerate(VARIANTS)
    for dtype in (torch.bfloat16, torch.float16 if i % 2 else torch.float32)
]


@pytest.mark.parametrize(("name", "dtype"), IN_DTYPES, ids=str)
def test_stock_library(name: str, dtype: torch.dtype) -> None:
    check(VARIANTS[name](2, 4, 301), tensors(dtype, 2, 4, 2, 301, 301, 64))


@pytest.mark.parametrize("dim", [16, 40, 64, 80, 96, 128, 192, 240, 256])
def test_head_sizes(dim: int) -> None:
    check((rg.sliding_window(70),), tensors(torch.bfloat16, 1, 2, 1, 257, 257, dim))


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 128), (128, 64), (192, 128), (17, 33)])
def test_value_sizes(dim: int, value_dim: int) -> None:
    check((rg.causal(),), tensors(torch.float16, 1, 2, 2, 130, 130, dim, value_dim))


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 129), (65, 64), (127, 300), (300, 127), (513, 511)])
@pytest.mark.parametrize("align", ["start", "end"])
def test_odd_lengths(q_len: int, kv_len: int, align: str) -> None:
    check((rg.causal(),), tensors(torch.bfloat16, 2, 3, 3, q_len, kv_len, 64), align=align)


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_shared_heads(kv_heads: int) -> None:
    check((rg.causal(), rg.alibi(heads=8)), tensors(torch.bfloat16, 2, 8, kv_heads, 200, 200, 64))


@pytest.mark.parametrize("kv_len", [4099, 33333])
@pytest.mark.parametrize(("q_len", "kv_heads"), [(1, 2), (7, 2), (1, 8), (16, 1)])
def test_decoding_splits_keys(q_len: int, kv_heads: int, kv_len: int) -> None:
    query, key, value = (x.detach() for x in tensors(torch.bfloat16, 1, 8, kv_heads, q_len, kv_len, 128))
    for parts in ((rg.causal(),), (rg.sliding_window(1000), rg.softcap(10.0)), (rg.causal(), rg.alibi(heads=8))):
        out, aux = rg.attention(*parts, align="end")(query, key, value, aux=("lse",))
        exact, usual = (f(parts, query, key, value, align="end") for f in (oracle, eager))
        assert_close_to_oracle(out, exact[0], usual[0])
        assert_close_to_oracle(aux.lse, exact[1], usual[1], "lse")


def test_strides_and_alignment() -> None:
    torch.manual_seed(0)
    base = torch.randn(2, 150, 3, 4, 72, device="cuda", dtype=torch.bfloat16)
    for first in (0, 1, 8):  # columns 1 to 64 start 2 bytes into a 16-byte unit
        query, key, value = (
            base[:, :, i, :, first : first + 64].transpose(1, 2).detach().requires_grad_() for i in range(3)
        )
        check((rg.causal(),), (query, key, value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_captured_gradients(dtype: torch.dtype) -> None:
    heads, length = 4, 205
    x = tensors(dtype, 2, heads, 2, length, length, 64)
    torch.manual_seed(1)
    slopes = torch.rand(heads, device="cuda", requires_grad=True)
    check((rg.causal(), rg.alibi(slopes)), x, (slopes,))
    table = torch.randn(heads, 2 * length - 1, device="cuda", requires_grad=True)
    check((rg.relative_bias(table),), x, (table,))
    per_key = torch.randn(2, length, device="cuda", requires_grad=True)
    check((rg.causal(), rg.key_bias(per_key)), x, (per_key,))


def test_gradient_of_a_tensor_for_every_pair() -> None:
    @rg.score
    def biased(s: Any, q: Any, kv: Any, head: Any, bias: Any) -> Any:
        return s + bias[head, q, kv]

    bias = torch.randn(4, 70, 90, device="cuda", requires_grad=True)
    check((biased(bias=bias),), tensors(torch.float16, 2, 4, 4, 70, 90, 32), (bias,))


@pytest.mark.parametrize(
    ("parts", "q_len", "kv_len", "dtype"),
    [
        ((), 2111, 2050, torch.bfloat16),
        ((rg.causal(),), 8193, 8200, torch.float16),
        ((early_and_causal,), 8300, 8192, torch.bfloat16),
    ],
    ids=["full", "causal", "keys that nobody sees"],
)
def test_long_rows_of_narrow_heads(parts: tuple[Any, ...], q_len: int, kv_len: int, dtype: torch.dtype) -> None:
    """With three consumers."""
    heads = 3 if q_len > 8000 else 8
    check(parts, tensors(dtype, 1, heads, 1, q_len, kv_len, 64), align="end")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_nobody_sees_does_not_matter(poison: float) -> None:
    x = tensors(torch.bfloat16, 2, 4, 2, 100, 190, 64)
    parts = (rg.padding(torch.tensor([150, 97], device="cuda", dtype=torch.int32)),)
    clean = rg.attention(*parts)(*x)
    clean_grads = torch.autograd.grad(clean.sum(), x)
    query, key, value = (t.detach().clone() for t in x)
    for t in (key, value):
        t[0, :, 150:] = poison
        t[1, :, 97:] = poison
    y = tuple(t.requires_grad_() for t in (query, key, value))
    out = rg.attention(*parts)(*y)
    assert torch.equal(out, clean)
    for a, b in zip(torch.autograd.grad(out.sum(), y), clean_grads, strict=True):
        assert torch.equal(a, b)


def test_rows_that_see_nothing() -> None:
    @rg.mask
    def later_half(q: Any, kv: Any, kv_len: Any) -> Any:
        return (kv >= kv_len // 2) & (q >= kv)

    x = tensors(torch.bfloat16, 1, 2, 2, 200, 200, 64)
    out, aux = rg.attention(later_half)(*x, aux=("lse",))
    assert not out[:, :, :100].any() and aux.lse[:, :, :100].isneginf().all()
    check((later_half,), x)


def test_gradients_repeat_bit_for_bit() -> None:
    x = tensors(torch.bfloat16, 2, 8, 2, 700, 700, 128)
    slopes = torch.rand(8, device="cuda", requires_grad=True)
    attn = rg.attention(rg.causal(), rg.alibi(slopes))
    runs = [torch.autograd.grad(attn(*x, deterministic=True).sum(), (*x, slopes)) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("length", [1024, 1337])
def test_gradients_at_training_size(dim: int, length: int) -> None:
    """Guards against miscompiled pipelines, which small shapes do not reach."""
    for parts in ((rg.causal(),), (rg.sliding_window(255),), (rg.causal(), rg.softcap(20.0))):
        check(parts, tensors(torch.bfloat16, 1, 4, 2, length, length, dim))
