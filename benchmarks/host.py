"""Everything around the kernels: mask set-up, host cost of a call, compilations, process start.

``python -m benchmarks.host [--minutes N] [--out PATH] [parts…]`` needs a GPU. It prints a line for each figure and
writes PATH.json after it; a failure is reported in its place, and what was not reached is listed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regard as rg

from . import report
from . import setup_cost as setup
from .cases import document_ids
from .environment import describe
from .setup_cost import flex_mask, regard_mask
from .timing import wait

# Microseconds that a warm call without gradients may take (docs/design.md, section 8).
HOST_LIMIT = 30.0
FIRST_CALL = """
import time, torch, triton
import triton.language
torch.zeros(1, device="{device}")
start = time.perf_counter()
import regard as rg
attn = rg.attention(rg.causal(), rg.softcap(30.0))
q = torch.randn(1, 4, 512, 64, device="{device}", dtype=torch.bfloat16)
attn(q, q, q)
if q.is_cuda:
    torch.cuda.synchronize()
print(time.perf_counter() - start)
"""
# The device of everything that is measured; tests take another one.
device = "cuda"


def compiled_flex() -> Any:
    return torch.compile(flex_attention)


def make(length: int, heads: int = 4, dim: int = 64, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, heads, length, dim, device=device, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Inputs:
    """A case of :func:`host_cost`: an attention, its arguments, the same for FlexAttention, and for SDPA if it can."""

    regard: Any
    mask: Callable[..., torch.Tensor] | None
    x: list[torch.Tensor]
    score: Callable[..., torch.Tensor] | None = None
    sdpa_causal: bool | None = None


def _causal() -> Inputs:
    return Inputs(rg.attention(rg.causal()), flex_mask("causal", _ids()), _three(128, heads=1), sdpa_causal=True)


def _warp_specialised() -> Inputs:
    # Twelve times sixteen heads: enough tiles for the warp-specialised kernel.
    x = _three(128, heads=16, dim=128, batch=12)
    return Inputs(rg.attention(rg.causal()), flex_mask("causal", _ids()), x, sdpa_causal=True)


def _window() -> Inputs:
    return Inputs(
        rg.attention(rg.sliding_window(100)), lambda b, h, q, k: (q >= k) & (q - k <= 100), _three(512)
    )  # fmt: skip


def _documents() -> Inputs:
    ids = _ids()
    return Inputs(rg.attention(regard_mask("document", ids)), flex_mask("document", ids), _three(512))


def _documents_at_the_call() -> Inputs:
    ids = _ids()
    return Inputs(
        partial(rg.attention(rg.causal(), _same_document), ids=ids), flex_mask("document", ids), _three(512)
    )  # fmt: skip


def _alibi() -> Inputs:
    slopes = 2.0 ** -torch.arange(1, 5, device=device)
    return Inputs(
        rg.attention(rg.causal(), rg.alibi(slopes)), flex_mask("causal", _ids()), _three(512),
        score=lambda s, b, h, q, k: s + slopes[h] * (k - q),
    )  # fmt: skip


def _decoding(length: int) -> Inputs:
    x = [make(n, heads=2, dim=128) for n in (1, length, length)]
    return Inputs(rg.attention(), None, x, sdpa_causal=False)


HOST_CASES: dict[str, Callable[[], Inputs]] = {
    "causal": _causal,
    "causal, warp-specialised": _warp_specialised,
    "window": _window,
    "document": _documents,
    "document, passed at the call": _documents_at_the_call,
    "alibi": _alibi,
    "decoding, 512 keys": partial(_decoding, 512),
    # Long keys are split over programs.
    "decoding, 16384 keys": partial(_decoding, 16384),
}


def host_cost(name: str) -> dict[str, Any]:
    """Microseconds of host time a warm call takes, without gradients, on a problem too small to hide it.

    ``met``: Regard's call takes at most ``HOST_LIMIT`` and less than that of compiled FlexAttention with the same mask.
    """
    sdpa: Any = torch.nn.functional.scaled_dot_product_attention
    torch._dynamo.reset()
    case = HOST_CASES[name]()
    lengths = case.x[0].shape[2], case.x[1].shape[2]
    blocks = None if case.mask is None else create_block_mask(case.mask, None, None, *lengths, device=device)
    calls: dict[str, Callable[[], object]] = {
        "regard_us": partial(case.regard, *case.x),
        "flex_us": partial(compiled_flex(), *case.x, score_mod=case.score, block_mask=blocks),
    }
    if case.sdpa_causal is not None:
        calls["sdpa_us"] = partial(sdpa, *case.x, is_causal=case.sdpa_causal)
    with torch.no_grad():
        errors = _failing(calls)
        found = _host_us(calls)
    met = found["regard_us"] <= min(HOST_LIMIT, found.get("flex_us", HOST_LIMIT))
    return {"case": name, **found, **errors, "met": met}


@rg.mask
def _same_document(q: Any, kv: Any, ids: torch.Tensor) -> Any:
    return ids[q] == ids[kv]


def _ids() -> torch.Tensor:
    return document_ids(512, device=device)


def _three(length: int, heads: int = 4, dim: int = 64, batch: int = 1) -> list[torch.Tensor]:
    return [make(length, heads, dim, batch) for _ in range(3)]


def _failing(calls: dict[str, Callable[[], object]]) -> dict[str, str]:
    """Runs each peer once; takes out those that fail, and says how."""
    errors = {}
    for name, call in list(calls.items()):
        try:
            call()
        except Exception as error:
            if name.startswith("regard"):
                raise
            del calls[name]
            errors[f"{name}_error"] = f"{type(error).__name__}: {error}"[:200]
    return errors


def _host_us(calls: dict[str, Callable[[], object]], repeats: int = 200, rounds: int = 9) -> dict[str, float]:
    """Microseconds of host time of each call, in turn; the queue is empty when a sample begins."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(20):
                call()
            wait()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            samples[name].append((time.perf_counter() - start) / repeats * 1e6)
            wait()
    return {name: round(statistics.median(s), 1) for name, s in samples.items()}


def training_cost(name: str, dim: int, batch: int) -> dict[str, Any]:
    """Microseconds of host time of a warm forward pass that is recorded, of its backward pass, and of both.

    Problems are too small to hide it; autograd's own part is the same for all.
    """
    sdpa: Any = torch.nn.functional.scaled_dot_product_attention
    # Twelve times sixteen heads: enough tiles for the warp-specialised kernels.
    x = [make(256, heads=16 if batch > 1 else 1, dim=dim, batch=batch).requires_grad_() for _ in range(3)]
    ids = document_ids(256, device=device)
    blocks = create_block_mask(flex_mask(name, ids), None, None, 256, 256, device=device)
    torch._dynamo.reset()
    # Each graph runs backward many times.
    torch._functorch.config.donated_buffer = False
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "regard": partial(rg.attention(regard_mask(name, ids)), *x),
        "flex": partial(compiled_flex(), *x, block_mask=blocks),
    }
    if name == "causal":
        calls["sdpa"] = partial(sdpa, *x, is_causal=True)
    steps: dict[str, Callable[[], object]] = {
        title: partial(_step, call, x, torch.randn_like(x[0])) for title, call in calls.items()
    }
    errors = _failing(steps)
    stages: dict[str, Callable[[], object]] = {}
    for title, step in steps.items():
        call = calls[title]
        out = call()
        stages[f"{title}_forward"] = call
        stages[f"{title}_backward"] = partial(torch.autograd.grad, out, x, torch.randn_like(out), retain_graph=True)
        stages[f"{title}_step"] = step
    return {"mask": name, "dim": dim, "batch": batch, **_host_us(stages, 50), **errors}


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
            for part in (
                rg.causal(),
                rg.sliding_window(1023),
                rg.prefix_lm(100),
                rg.document(document_ids(512, device=device)),
            ):
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
    return {"kernels": len(cold), "median_s": statistics.median(cold), "max_s": cold[-1], "recompiles": over_shapes}


def process_start() -> dict[str, Any]:
    """Seconds from ``import regard`` (torch and triton imported) to the first result, cold and warm disk cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "REGARD_CACHE_DIR": f"{folder}/regard", "TRITON_CACHE_DIR": f"{folder}/triton",
        }  # fmt: skip

        def run() -> float:
            command = [sys.executable, "-c", FIRST_CALL.format(device=device)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise RuntimeError(f"a new process failed: {done.stderr[-1000:]}")
            return float(done.stdout.split()[-1])

        return {"cold_s": run(), "warm_s": statistics.median(run() for _ in range(3))}


def _setup_cost(name: str, length: int) -> dict[str, Any]:
    return setup.setup_cost(name, length, device)


# Each figure is a job of its own; those that say most come first.
PARTS: dict[str, Sequence[Callable[[], dict[str, Any]]]] = {
    "host_us": [partial(host_cost, name) for name in HOST_CASES],
    "process_start": [process_start],
    "compilations": [compilations],
    "mask_setup": [partial(_setup_cost, name, length) for length in setup.LENGTHS for name in ("document", "causal")],
    "training_host_us": [
        partial(training_cost, *case) for case in (("causal", 64, 1), ("causal", 128, 12), ("document", 64, 1))
    ],
}


def measure(parts: Sequence[str], minutes: float, out: Path) -> dict[str, Any]:
    """Runs the jobs of these parts in order until the time is over; saves after each of them."""
    deadline = time.monotonic() + 60 * minutes
    results: dict[str, Any] = {"environment": describe(), "not_run": []}
    for name in parts:
        for job in PARTS[name]:
            title = f"{name} {', '.join(map(str, getattr(job, 'args', ())))}".strip()
            if time.monotonic() > deadline:
                results["not_run"].append(title)
                continue
            try:
                row = job()
            except Exception as error:  # a failure is a result, and the others still run
                row = {"job": title, "error": f"{type(error).__name__}: {error}"[:2000]}
            results.setdefault(name, []).append(row)
            report.save(results, out)
            print(f"{title}:", {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    report.save(results, out)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="stop after so long; the rest is listed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host"), help="without suffix")
    options = parser.parse_args(arguments)
    if wrong := set(options.parts) - set(PARTS):
        raise SystemExit(f"no part is called {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REGARD_CACHE_DIR"] = f"{folder}/regard"
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        results = measure(options.parts or tuple(PARTS), options.minutes, options.out)
    if any("error" in row for name in PARTS for row in results.get(name, ())):
        raise SystemExit("some jobs failed")


if __name__ == "__main__":
    main()
