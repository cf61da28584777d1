"""Everything around the kernels: mask set-up, host cost of a call, compilations, process start.

``python -m benchmarks.host [--out FILE]`` needs a GPU; prints lines and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regard as rg

from .cases import document_ids
from .environment import describe

# Microseconds that a warm call without gradients may take (docs/design.md, section 8).
HOST_LIMIT = 30.0
FIRST_CALL = """
import time, torch, triton
import triton.language
torch.zeros(1, device="cuda")
start = time.perf_counter()
import regard as rg
attn = rg.attention(rg.causal(), rg.softcap(30.0))
q = torch.randn(1, 4, 512, 64, device="cuda", dtype=torch.bfloat16)
attn(q, q, q); torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


# The peer looks at every pair of tokens: beyond this it would be all that the run does.
PEER_LENGTH = 1 << 17


def make(length: int, heads: int = 4, dim: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, heads, length, dim, device="cuda", dtype=torch.bfloat16)


def setup_costs() -> list[dict[str, Any]]:
    """Time and memory to prepare a mask: what Regard's call on new mask data pays, against create_block_mask."""
    rows = []
    for name in ("causal", "document"):
        for length in (4096, 32768, 131072, 1 << 20):
            ids = document_ids(length)
            # The kernel itself is kept small: one head of the smallest size.
            x = make(length, heads=1, dim=16)
            kept = rg.attention(_mask(name, ids))
            fresh = partial(_call_with_new_mask, name, ids, x)
            again = partial(kept, x, x, x)
            row: dict[str, Any] = {
                "mask": name,
                "length": length,
                "regard_ms": 1e3 * max(0.0, _seconds(fresh) - _seconds(again)),
                "regard_bytes": _peak_bytes(fresh) - _peak_bytes(again),
            }
            rows.append(row)
            if length > PEER_LENGTH:
                print(row, flush=True)
                continue
            flex = partial(create_block_mask, _flex_mask(name, ids), None, None, length, length, device="cuda")
            torch._dynamo.reset()
            compiled: Any = torch.compile(create_block_mask)
            fast = partial(compiled, _flex_mask(name, ids), None, None, length, length, device="cuda")
            for title, call in (("flex", flex), ("flex_compiled", fast)):
                try:
                    row[f"{title}_ms"], row[f"{title}_bytes"] = 1e3 * _seconds(call), _peak_bytes(call)
                except Exception as error:  # the peer's failure is a result
                    row[f"{title}_error"] = f"{type(error).__name__}: {error}"[:200]
                    torch.cuda.empty_cache()
            print(row, flush=True)
    return rows


def _mask(name: str, ids: torch.Tensor) -> Any:
    return rg.causal() if name == "causal" else rg.causal() & rg.document(ids)


def _flex_mask(name: str, ids: torch.Tensor) -> Callable[..., torch.Tensor]:
    if name == "causal":
        return lambda b, h, q, k: q >= k
    return lambda b, h, q, k: (q >= k) & (ids[q] == ids[k])


def _call_with_new_mask(name: str, ids: torch.Tensor, x: torch.Tensor) -> None:
    rg.attention(_mask(name, ids.clone()))(x, x, x)


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    samples = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _peak_bytes(call: Callable[[], object]) -> int:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def host_cost() -> list[dict[str, Any]]:
    """Microseconds of host time a warm call takes, without gradients, on problems too small to hide it.

    ``met``: Regard's call takes at most ``HOST_LIMIT`` and less than that of compiled FlexAttention with the same mask.
    """
    sdpa: Any = torch.nn.functional.scaled_dot_product_attention
    ids, slopes = document_ids(512), 2.0 ** -torch.arange(1, 5, device="cuda")
    short, long = (partial(make, heads=2, dim=128, length=n) for n in (512, 16384))
    # Twelve times sixteen heads: enough tiles for the warp-specialised kernel. Long keys are split over programs.
    cases: dict[str, tuple[Any, Callable[..., Any] | None, Callable[..., Any] | None, list[torch.Tensor]]] = {
        "causal": (rg.attention(rg.causal()), _flex_mask("causal", ids), None, _three(128, heads=1)),
        "causal, warp-specialised": (
            rg.attention(rg.causal()), _flex_mask("causal", ids), None, _three(128, heads=16, dim=128, batch=12),
        ),
        "window": (
            rg.attention(rg.sliding_window(100)), lambda b, h, q, k: (q >= k) & (q - k <= 100), None, _three(512),
        ),
        "document": (rg.attention(_mask("document", ids)), _flex_mask("document", ids), None, _three(512)),
        "document, passed at the call": (
            partial(rg.attention(rg.causal(), _same_document), ids=ids), _flex_mask("document", ids), None, _three(512),
        ),
        "alibi": (
            rg.attention(rg.causal(), rg.alibi(slopes)), _flex_mask("causal", ids),
            lambda s, b, h, q, k: s + slopes[h] * (k - q), _three(512),
        ),
        "decoding, 512 keys": (rg.attention(), None, None, [make(1, heads=2, dim=128), short(), short()]),
        "decoding, 16384 keys": (rg.attention(), None, None, [make(1, heads=2, dim=128), long(), long()]),
    }  # fmt: skip
    rows = []
    for name, (attn, mask, score, x) in cases.items():
        torch._dynamo.reset()
        flex: Any = torch.compile(flex_attention)
        lengths = x[0].shape[2], x[1].shape[2]
        block_mask = None if mask is None else create_block_mask(mask, None, None, *lengths, device="cuda")
        calls: dict[str, Callable[[], object]] = {
            "regard_us": partial(attn, *x),
            "flex_us": partial(flex, *x, score_mod=score, block_mask=block_mask),
        }
        if mask is None or name.startswith("causal"):
            calls["sdpa_us"] = partial(sdpa, *x, is_causal=mask is not None)
        with torch.no_grad():
            found = _host_us(calls)
        met = found["regard_us"] <= HOST_LIMIT and found["regard_us"] < found["flex_us"]
        rows.append({"case": name, **{k: round(v, 1) for k, v in found.items()}, "met": met})
        print("host µs a call:", rows[-1], flush=True)
    return rows


@rg.mask
def _same_document(q: Any, kv: Any, ids: torch.Tensor) -> Any:
    return ids[q] == ids[kv]


def _three(length: int, heads: int = 4, dim: int = 64, batch: int = 1) -> list[torch.Tensor]:
    return [make(length, heads, dim, batch) for _ in range(3)]


def _host_us(calls: dict[str, Callable[[], object]], repeats: int = 200) -> dict[str, float]:
    """Microseconds of host time of each call, in turn; the queue is empty when a sample begins."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(9):
        for name, call in calls.items():
            for _ in range(20):
                call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            samples[name].append((time.perf_counter() - start) / repeats * 1e6)
            torch.cuda.synchronize()
    return {name: statistics.median(s) for name, s in samples.items()}


def training_cost() -> list[dict[str, Any]]:
    """Microseconds of host time of a warm forward pass that is recorded, of its backward pass, and of both.

    Problems are too small to hide it; autograd's own part is the same for all.
    """
    rows = []
    flex: Any = torch.compile(flex_attention)
    sdpa: Any = torch.nn.functional.scaled_dot_product_attention
    for name, dim, batch in (("causal", 64, 1), ("causal", 128, 12), ("document", 64, 1)):
        # Twelve times sixteen heads: enough tiles for the warp-specialised kernels.
        x = [make(256, heads=16 if batch > 1 else 1, dim=dim, batch=batch).requires_grad_() for _ in range(3)]
        ids = document_ids(256)
        block_mask = create_block_mask(_flex_mask(name, ids), None, None, 256, 256, device="cuda")
        torch._dynamo.reset()
        calls: dict[str, Callable[[], torch.Tensor]] = {
            "regard": partial(rg.attention(_mask(name, ids)), *x),
            "flex": partial(flex, *x, block_mask=block_mask),
        }
        if name == "causal":
            calls["sdpa"] = partial(sdpa, *x, is_causal=True)
        stages: dict[str, Callable[[], object]] = {}
        for title, call in calls.items():
            out = call()
            gradient = torch.randn_like(out)
            stages[f"{title}_forward"] = call
            stages[f"{title}_backward"] = partial(torch.autograd.grad, out, x, gradient, retain_graph=True)
            stages[f"{title}_step"] = partial(_step, call, x, gradient)
        row = {"mask": name, "dim": dim, "batch": batch, **_host_us(stages, 50)}
        rows.append(row)
        print("host µs, training:", {k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def _step(call: Callable[[], torch.Tensor], x: list[torch.Tensor], gradient: torch.Tensor) -> object:
    return torch.autograd.grad(call(), x, gradient)


def compilations() -> dict[str, Any]:
    """Compile times of all kernels of several variants from empty caches, and compilations over 50 shapes."""
    import triton

    seconds: list[float] = []

    def listen(src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        if not cache_hit:
            seconds.append(times.total / 1e6)

    previous = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = listen
    try:
        for dim in (64, 128):
            for part in (rg.causal(), rg.sliding_window(1023), rg.prefix_lm(100), rg.document(document_ids(512))):
                x = make(512, dim=dim).requires_grad_()
                rg.attention(part, rg.softcap(20.0))(x, x, x).sum().backward()
        cold = sorted(seconds)
        # One call of each schedule: keys of a row split over programs, and not.
        for length, batch in ((300, 1), (2100, 4)):
            x = make(length, batch=batch)
            rg.attention(rg.sliding_window(1000))(x, x, x)
        seconds.clear()
        for i in range(50):
            length = 257 + 37 * i
            rg.attention(rg.sliding_window(700 + i))(*(make(length, heads=2 + i % 3, batch=1 + i % 2),) * 3)
        over_shapes = len(seconds)
    finally:
        triton.knobs.compilation.listener = previous
    found = {"kernels": len(cold), "median_s": statistics.median(cold), "max_s": cold[-1], "recompiles": over_shapes}
    print("compilations:", found, flush=True)
    return found


def process_start() -> dict[str, float]:
    """Seconds from ``import regard`` (torch and triton imported) to the first result, cold and warm disk cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "REGARD_CACHE_DIR": f"{folder}/regard", "TRITON_CACHE_DIR": f"{folder}/triton",
        }  # fmt: skip

        def run() -> float:
            done = subprocess.run(
                [sys.executable, "-c", FIRST_CALL], env=environment, capture_output=True, text=True, check=True
            )
            return float(done.stdout.split()[-1])

        cold = run()
        found = {"cold_s": cold, "warm_s": statistics.median(run() for _ in range(3))}
    print("process start:", found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host.json"))
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "compilations": compilations,
        "host_us": host_cost,
        "training_host_us": training_cost,
        "process_start": process_start,
        "mask_setup": setup_costs,
    }
    report: dict[str, Any] = {"environment": describe()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REGARD_CACHE_DIR"] = f"{folder}/regard"
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        for name, measure in parts.items():
            report[name] = measure()
            arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
