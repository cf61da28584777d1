"""Interleaved GPU timing: every contestant is timed in every round, so that drift hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a call: the median over rounds, the fastest and the slowest round."""

    median: float
    low: float
    high: float


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 7, budget_ms: float = 30.0
) -> dict[str, Timing]:
    """Times all contestants in turn, ``rounds`` times; each turn runs for about ``budget_ms``.

    Device events surround many calls at once, so host cost counts only where it exceeds the device's.
    """
    repeats: dict[str, int] = {}
    for name, call in contestants.items():
        for _ in range(3):
            call()
        repeats[name] = max(3, min(200, int(budget_ms / max(_once(call, 3), 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            samples[name].append(_once(call, repeats[name]))
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in samples.items()}


def _once(call: Callable[[], object], repeats: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / repeats
