"""Attention on the CPU: Regard's printed program against dense attention and compiled FlexAttention.

``python -m benchmarks.cpu [--threads 2] [--repetitions 15]``, where nothing else runs. Every repetition runs
all contestants once, in turn, so that a noisy machine is noisy for all. Times are medians in milliseconds;
only their ratios are the claim. Writes benchmarks/results/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import regard as rg

from .environment import describe

RESULTS = Path(__file__).parent / "results" / "cpu.json"
SHAPE = (1, 8, 4096, 64)
WINDOW = 256


@rg.mask
def sliding_window(q: Any, kv: Any, window: Any) -> Any:
    return (q >= kv) & (q - kv < window)


def contestants(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Forward passes of one sliding window; whatever does not depend on the values is prepared here."""
    length = query.shape[2]
    position = torch.arange(length)
    keep = (position[:, None] >= position) & (position[:, None] - position < WINDOW)
    bias = torch.zeros(length, length).masked_fill(~keep, float("-inf"))

    def predicate(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (q >= kv) & (q - kv < WINDOW)

    blocks = create_block_mask(predicate, None, None, length, length, device="cpu")
    flex = torch.compile(flex_attention)
    attention = rg.attention(sliding_window(window=WINDOW))
    scale = query.shape[3] ** -0.5
    return {
        "regard": lambda: attention(query, key, value),
        "dense": lambda: torch.softmax(query @ key.mT * scale + bias, -1) @ value,
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=keep),
        "flex": lambda: flex(query, key, value, block_mask=blocks),
    }


def measure(runs: dict[str, Callable[[], Tensor]], repetitions: int) -> dict[str, float]:
    """Median milliseconds of each."""
    expected = runs["dense"]()
    for name, run in runs.items():
        torch.testing.assert_close(run(), expected, atol=2e-5, rtol=1e-4, msg=f"{name} is wrong")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    query, key, value = (torch.randn(SHAPE) for _ in range(3))
    with torch.no_grad():
        milliseconds = measure(contestants(query, key, value), options.repetitions)
    result = {
        "what": f"forward, float32, shape {SHAPE}, sliding window {WINDOW}",
        "milliseconds": {name: round(x, 2) for name, x in milliseconds.items()},
        "times as fast as": {
            name: round(x / milliseconds["regard"], 2) for name, x in milliseconds.items() if name != "regard"
        },
        "threads": options.threads,
        "repetitions": options.repetitions,
        **describe(),
        "device": processor(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
