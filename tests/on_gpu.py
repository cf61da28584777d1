"""The stock library, inputs and checks for tests on a GPU, against the float64 oracle by its rule for errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from oracle import assert_close_to_oracle, eager, gradients, oracle
from regard.codegen.skeletons import alternatives
from regard.runtime import tuned
from regard.runtime.compile import plan_for

Parts = Callable[[int, int, int], tuple[Any, ...]]  # from batch, heads and length


def cuda(*values: float) -> Tensor:
    return torch.tensor(values, device="cuda")


def documents(batch: int, length: int) -> Tensor:
    return (torch.arange(length, device="cuda") // 37).int().expand(batch, -1) + torch.arange(
        batch, device="cuda", dtype=torch.int32
    ).unsqueeze(1)


def blocks_of_heads(heads: int, across: int) -> Tensor:
    """A block in three, other ones for every head; some rows are empty."""
    head, row, column = (torch.arange(n, device="cuda") for n in (heads, across, across))
    return ((head[:, None, None] + row[:, None] + column) % 3 == 0) & (row[:, None] % 4 != 3)


VARIANTS: dict[str, Parts] = {
    "full": lambda b, h, n: (rg.full(),),
    "causal": lambda b, h, n: (rg.causal(),),
    "window": lambda b, h, n: (rg.sliding_window(33, 5),),
    "prefix": lambda b, h, n: (rg.prefix_lm(n // 3),),
    "documents": lambda b, h, n: (rg.causal(), rg.document(documents(b, n))),
    "padding": lambda b, h, n: (rg.padding(torch.arange(1, b + 1, device="cuda", dtype=torch.int32) * (n // (b + 1))),),
    "longformer": lambda b, h, n: (rg.global_tokens(3) | rg.sliding_window(17, 17),),
    "streaming": lambda b, h, n: (rg.causal(), rg.sinks(4) | rg.sliding_window(64)),
    "dilated": lambda b, h, n: (rg.causal(), rg.dilated(3)),
    "strided": lambda b, h, n: (rg.causal(), rg.strided(16)),
    "blocks": lambda b, h, n: (rg.block_diagonal(48),),
    "chunks": lambda b, h, n: (rg.chunked_causal(50),),
    "checkerboard": lambda b, h, n: (rg.checkerboard(32),),
    "staircase": lambda b, h, n: (rg.block_causal(50),),
    "bigbird": lambda b, h, n: (rg.random_blocks(64, 2) | rg.sliding_window(20, 20) | rg.global_tokens(5),),
    "tree": lambda b, h, n: (rg.tree(((documents(b, n) + 1) * 37).clamp(max=n)),),
    "block list": lambda b, h, n: (rg.causal(), rg.tiles(blocks_of_heads(h, -(-n // 32)), 32)),
    "alibi": lambda b, h, n: (rg.causal(), rg.alibi(heads=h)),
    "softcap": lambda b, h, n: (rg.causal(), rg.softcap(2.0)),
    "kept keys": lambda b, h, n: (rg.causal(), rg.key_mask((torch.arange(b * n, device="cuda") % 7 < 4).view(b, n))),
    "temperature": lambda b, h, n: (rg.causal(), rg.temperature(1.7)),
    "buckets": lambda b, h, n: (rg.t5_bias(torch.rand(32, h, device="cuda")),),
    "decay by token": lambda b, h, n: (rg.causal(), rg.token_decay(-torch.rand(b, h, n, device="cuda").cumsum(2))),
    "log_n": lambda b, h, n: (rg.log_n(64),),
    "decay": lambda b, h, n: (rg.causal(), rg.decay(torch.rand(h, device="cuda"))),
    "distance decay": lambda b, h, n: (rg.causal(), rg.distance_decay(0.5, 3.0)),
}


def tensors(
    dtype: torch.dtype, batch: int, heads: int, kv_heads: int, q_len: int, kv_len: int, dim: int, value_dim: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query = torch.randn(batch, heads, q_len, dim, device="cuda", dtype=dtype)
    key = torch.randn(batch, kv_heads, kv_len, dim, device="cuda", dtype=dtype)
    value = torch.randn(batch, kv_heads, kv_len, value_dim or dim, device="cuda", dtype=dtype)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def check(
    parts: tuple[Any, ...], x: tuple[Tensor, Tensor, Tensor], captured: tuple[Tensor, ...] = (), *,
    deterministic: bool | None = None, **options: Any,
) -> None:  # fmt: skip
    """Output, lse and all gradients; ``x`` are leaves that require one, as are the captured tensors."""
    out, aux = rg.attention(*parts, **options)(*x, aux=("lse",), deterministic=deterministic)
    exact, usual = (f(parts, *x, **options) for f in (oracle, eager))
    for name, a, b, c in zip(("output", "lse"), (out, aux.lse), exact, usual, strict=True):
        assert_close_to_oracle(a, b, c, name)
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(aux.lse)
    grad_lse = grad_lse.masked_fill(aux.lse.isneginf(), 0.0)
    actual = torch.autograd.grad((out, aux.lse), (*x, *captured), (grad_out, grad_lse))
    exact_grads, usual_grads = (
        gradients(f, parts, x, grad_out, grad_lse, captured, **options) for f in (oracle, eager)
    )
    names = ("grad_query", "grad_key", "grad_value", *(f"captured {i}" for i in range(len(captured))))
    for name, a, b, c in zip(names, actual, exact_grads, usual_grads, strict=True):
        assert_close_to_oracle(a, b, c.to(a.dtype), name)


def pin_repeatable(parts: tuple[Any, ...], x: tuple[Tensor, Tensor, Tensor], **options: Any) -> rg.Attention:
    """From now on gradients of such calls with ``deterministic=True`` come from the warp-specialised kernels.

    The test is skipped where there are none.
    """
    attn = rg.attention(*parts, **options)
    engine, (buffers, scalars) = attn._engine, attn._with_open({})
    with torch.no_grad():
        out = attn(*x)
    wanted = tuple(engine.buffer_gradients(buffers))
    request, _ = engine.request("backward", (*x, out, out), buffers, scalars, wanted, True)
    assert request is not None
    every = alternatives(plan_for(request), request.problem, request.target, "backward")
    found = [pinned for pinned in every if pinned.skeleton == "gluon"]
    if not found:
        pytest.skip("no warp-specialised kernels for these gradients")
    tuned.remember(request, out.device, found[0])
    return attn
