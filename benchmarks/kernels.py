"""Kernel speed, forward and backward, beside FlexAttention and SDPA in the same run.

``python -m benchmarks.kernels [--out FILE] [--cases SUBSTRING]`` needs a GPU; prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from .case import Case
from .cases import CASES, build
from .environment import describe, matmul_peak
from .timing import Timing, interleaved


def tensors(case: Case) -> tuple[torch.Tensor, ...]:
    """Random query, key, value and output gradient in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)

    def make(heads: int) -> torch.Tensor:
        shape = (case.batch, heads, case.length, case.head_dim)
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)

    return make(case.heads), make(case.kv_heads), make(case.kv_heads), make(case.heads)


def callables(case: Case) -> dict[str, Callable[..., torch.Tensor]]:
    """name → attention(query, key, value)."""
    made = build(case)
    gqa = case.heads != case.kv_heads
    torch._dynamo.reset()
    compiled: Any = torch.compile(flex_attention)
    block_mask = None
    if made.flex_mask is not None:
        block_mask = create_block_mask(made.flex_mask, None, None, case.length, case.length, device="cuda")

    def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = compiled(q, k, v, score_mod=made.flex_score, block_mask=block_mask, enable_gqa=gqa)
        return result

    found: dict[str, Callable[..., torch.Tensor]] = {"regard": made.regard, "flex": flex}
    if made.sdpa_causal is not None:

        def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return scaled_dot_product_attention(q, k, v, is_causal=bool(made.sdpa_causal), enable_gqa=gqa)

        found["cudnn"] = cudnn
    return found


def measure(case: Case) -> dict[str, Any]:
    """One row: times in ms, TFLOP/s over allowed pairs, the largest deviation from FlexAttention."""
    query, key, value, grad = tensors(case)
    calls = callables(case)
    pairs = build(case).regard.explain(query, key, value, exact=case.variant == "document").counts.pairs.pairs
    flops = 4 * pairs * case.head_dim
    forward = interleaved({name: partial(f, query, key, value) for name, f in calls.items()})
    reference = calls["flex"](query, key, value).float()
    deviation = float((calls["regard"](query, key, value).float() - reference).norm() / reference.norm())
    backward_calls: dict[str, Callable[[], object]] = {}
    gradients: dict[str, tuple[torch.Tensor, ...]] = {}
    for name, f in calls.items():
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        out = f(*leaves)
        gradients[name] = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        backward_calls[name] = partial(torch.autograd.grad, out, leaves, grad, retain_graph=True)
    backward = interleaved(backward_calls)
    gradient_deviation = max(
        float((a.float() - b.float()).norm() / b.float().norm())
        for a, b in zip(gradients["regard"], gradients["flex"], strict=True)
    )
    return {
        "case": case.title,
        "pairs": int(pairs),
        "forward": _rows(forward, flops),
        "backward": _rows(backward, 2.5 * flops),
        "deviation_from_flex": {"out": deviation, "gradients": gradient_deviation},
    }


def _rows(timings: dict[str, Timing], flops: float) -> dict[str, dict[str, float]]:
    return {
        name: {"ms": t.median, "low": t.low, "high": t.high, "tflops": flops / t.median / 1e9}
        for name, t in timings.items()
    }


def _line(row: dict[str, Any]) -> str:
    cells = [f"{row['case']:34s}"]
    for direction in ("forward", "backward"):
        times = row[direction]
        rates = " ".join(f"{name} {r['tflops']:5.0f}" for name, r in times.items())
        cells.append(f"{direction}: {rates}  ×{times['flex']['ms'] / times['regard']['ms']:.2f} flex")
    deviation = row["deviation_from_flex"]
    cells.append(f"dev {deviation['out']:.1e} {deviation['gradients']:.1e}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kernels.json"))
    parser.add_argument("--cases", default="", help="only cases whose title contains this")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"environment": describe(), "matmul_tflops": matmul_peak(), "rows": []}
    print(f"{report['environment']['device']}, bf16 matmul {report['matmul_tflops']:.0f} TFLOP/s", flush=True)
    for case in CASES:
        if arguments.cases not in case.title:
            continue
        try:
            row = measure(case)
            print(_line(row), flush=True)
        except Exception as error:  # a failing case is a result: it is reported, and the others still run
            row = {"case": case.title, "error": f"{type(error).__name__}: {error}"[:2000]}
            print(f"{case.title}: {row['error'][:300]}", flush=True)
        report["rows"].append(row)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
