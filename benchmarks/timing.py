"""Interleaved timing: every contestant is timed in every round, so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds a call: the median over rounds, the fastest and the slowest round."""

    median: float
    low: float
    high: float


class ContestantFailed(Exception):
    """A contestant raised while it was timed; the cause is its exception."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    budget_ms: float = 30.0,
    before: Callable[[], object] | None = None,
    entering: Callable[[str], object] = lambda name: None,
) -> dict[str, Timing]:
    """Times all contestants in turn, ``rounds`` times; each turn runs for about ``budget_ms``.

    Each round starts with another contestant, so that none always runs after the same one. ``before`` runs, untimed,
    before every call (to flush a cache, say), and calls are then timed one by one; without it device events surround
    many calls at once. Either way calls are queued, so host cost counts only where it exceeds the device's.
    ``entering`` is told whose turn it is. Raises :class:`ContestantFailed`.
    """
    order = list(contestants)
    repeats: dict[str, int] = {}

    def turn(name: str, count: int) -> float:
        entering(name)
        try:
            return _once(contestants[name], count, before)
        except Exception as error:
            raise ContestantFailed(name) from error

    for name in order:
        turn(name, 3)
        repeats[name] = max(3, min(200, int(budget_ms / max(turn(name, 3), 1e-3))))
    samples: dict[str, list[float]] = {name: [] for name in order}
    for i in range(rounds):
        first = i % len(order)
        for name in order[first:] + order[:first]:
            samples[name].append(turn(name, repeats[name]))
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in samples.items()}


def wait() -> None:
    """Until the GPU has done what was queued; without one nothing is queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def l2_flush(device: str = "cuda") -> Callable[[], object]:
    """Overwrites the second-level cache twenty times over, long enough for the host to queue the call that follows."""
    if device == "cpu":
        return lambda: None
    size = 20 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(size, dtype=torch.int8, device=device).zero_


def _once(call: Callable[[], object], repeats: int, before: Callable[[], object] | None) -> float:
    """Milliseconds a call: the mean of calls in a row, or the median of calls with ``before`` between them."""
    if not torch.cuda.is_available():
        return _once_on_host(call, repeats, before)
    events = [(_event(), _event()) for _ in range(repeats if before else 1)]
    torch.cuda.synchronize()
    for start, stop in events:
        if before:
            before()
        start.record()
        for _ in range(1 if before else repeats):
            call()
        stop.record()
    torch.cuda.synchronize()
    times = [float(start.elapsed_time(stop)) for start, stop in events]
    return statistics.median(times) if before else times[0] / repeats


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _once_on_host(call: Callable[[], object], repeats: int, before: Callable[[], object] | None) -> float:
    times = []
    for _ in range(repeats):
        if before:
            before()
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
