"""What is traced computes the same as the Python function does on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import regard as rg
from regard.ir.interpret import evaluate

Q = torch.arange(-7, 8)[:, None]
KV = torch.arange(-4, 5)[None, :]
S = torch.linspace(-2.0, 2.0, 15 * 9, dtype=torch.float64).reshape(15, 9)
TABLE = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, q, kv: s + (q - 3 * kv) // 4 + (q * kv) % 5 - (q - kv) % -3 + q // -2,
        lambda s, q, kv: s * q / (abs(kv) + 1) - 7 / (q * q + 2),
        lambda s, q, kv: q**2 - kv**3 + s**2 + 2.0**kv,
        lambda s, q, kv: s + (q & 6 | kv & 3 ^ 5) + ((q & 7) << 2) - (q >> 1),
        lambda s, q, kv: rg.where((q > kv) & (s < 1) | ~(q != 2) ^ (kv <= 0), s, -s) * rg.where(q >= kv, 2, 0.5),
        lambda s, q, kv: rg.minimum(s, kv) - rg.maximum(q, kv) + rg.clamp(q, -2, 3) + torch.clamp(s, min=0.5),
        lambda s, q, kv: rg.to_int(3 * s) + rg.floor(s) + rg.to_float(q) - (s * 4).long(),
        lambda s, q, kv: torch.exp(s) + torch.log(s * s + 1) * torch.tanh(s),
        lambda s, q, kv: torch.sigmoid(s).sqrt() + (s.abs() + 1).rsqrt(),
        lambda s, q, kv: torch.sin(s) * torch.cos(s) + torch.exp2(s) - torch.log2(s.abs() + 1),
        lambda s, q, kv: s + TABLE[q % 3, kv % 4] + TABLE[q % 3 - 3, -1],
        lambda s, q, kv: torch.where(torch.logical_and(q, kv > 0), s, torch.logical_not(q).float()),
        lambda s, q, kv: s + torch.logical_or(q, kv) - torch.logical_xor(q, kv > 0).int(),
        lambda s, q, kv: s + torch.remainder(q, 4) * torch.floor_divide(kv, 3) - torch.true_divide(q, 3),
    ],
)  # fmt: skip
def test_traced_expression(function: Callable[..., Any]) -> None:
    part = rg.score(function)()
    env = {"s": S.numpy(), "q": Q.numpy(), "kv": KV.numpy(), "TABLE": TABLE.numpy()}
    traced = evaluate(part.traced.expr, env, floats=numpy.float64)
    torch.set_default_dtype(torch.float64)
    try:
        expected = function(S, Q, KV)
    finally:
        torch.set_default_dtype(torch.float32)
    assert numpy.allclose(traced, expected.double().numpy(), rtol=1e-12, atol=1e-12)
