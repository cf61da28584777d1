"""A small speed table on a GPU: Regard, FlexAttention (compiled) and SDPA, in one process. See benchmarks/ for more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from triton.testing import do_bench

import regard as rg


def speed_table(length: int = 4096, heads: int = 64, head_dim: int = 64, window: int = 1024) -> str:
    """Milliseconds (median) for bfloat16, batch 1: forward, and forward with backward."""
    query, key, value = torch.randn(3, 1, heads, length, head_dim, device="cuda", dtype=torch.bfloat16).unbind()
    inputs = [x.requires_grad_() for x in (query, key, value)]
    flex = torch.compile(flex_attention, dynamic=False)
    i = torch.arange(length, device="cuda")
    dense = (i[:, None] >= i) & (i[:, None] - i < window)
    blocks = create_block_mask(
        lambda b, h, q, kv: (q >= kv) & (q - kv < window), None, None, length, length, device="cuda"
    )
    causal_blocks = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, length, length, device="cuda")
    rows: dict[str, Callable[..., Tensor]] = {
        "causal         Regard": rg.attention(rg.causal),
        "causal         FlexAttention": lambda q, k, v: flex(q, k, v, block_mask=causal_blocks),
        "causal         SDPA": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
        "window         Regard": rg.attention(rg.sliding_window(left=window - 1, right=0)),
        "window         FlexAttention": lambda q, k, v: flex(q, k, v, block_mask=blocks),
        "window         SDPA, dense mask": lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=dense),
    }
    lines = [f"  {'milliseconds':32} {'forward':>9} {'with backward':>14}"]
    for name, attend in rows.items():

        def step(attend: Callable[..., Tensor] = attend) -> None:
            attend(*inputs).sum().backward()

        def forward(attend: Callable[..., Tensor] = attend) -> None:
            with torch.no_grad():
                attend(*inputs)

        times = [do_bench(run, return_mode="median", grad_to_none=inputs) for run in (forward, step)]
        lines.append(f"  {name:32} {times[0]:9.3f} {times[1]:14.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(speed_table())
