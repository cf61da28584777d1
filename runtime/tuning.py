"""Tuning: times the schedules that could run a variant, on the tensors at hand, and keeps the fastest.

Every candidate computes the result first, which must agree with that of the default schedule: a compiler that gets one
schedule wrong is not worth a faster kernel. Launches are timed as CUDA graphs, so that host time does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codegen.defaults import Direction
from ..codegen.schedule import Schedule
from ..codegen.skeletons import Pinned, Skeleton, alternatives
from ..ir.errors import UnsupportedError
from .arguments import Sizes
from .compile import Program, Request, generate, plan_for, program
from .engine import Engine
from .tuned import lookup, on_pinned, remember

# Timed again, in turn, at the end: single measurements differ by a few percent.
_FINALISTS = 4
_ROUNDS = 7
_ROUND_SECONDS = 0.01
# A candidate's result may differ from the default's by this many units in the last place of the dtype, in RMS.
_UNITS = 4.0

Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: its time, or why it has none."""

    direction: Direction
    skeleton: Skeleton
    schedule: Schedule
    milliseconds: float | None
    failure: str | None = None
    default: bool = False
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was tried, and what is used from now on (``chosen``). ``str()`` is a table, the fastest first."""

    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        lines = []
        for x in sorted(self.trials, key=lambda x: (x.direction == "backward", x.milliseconds or float("inf"))):
            took = f"{x.milliseconds:9.4f} ms" if x.milliseconds is not None else f"{'–':>12}"
            marks = [text for text, holds in (("default", x.default), ("chosen", x.chosen)) if holds]
            notes = x.failure or ", ".join(marks)
            lines.append(
                f"{took}  {x.direction:8}  {x.skeleton:6}  {_shape(x.schedule)}{f'  {notes}' if notes else ''}"
            )
        return "\n".join(lines)


def tune(
    engine: Engine,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    buffers: Sequence[Tensor],
    scalars: Sequence[int | float],
    *,
    backward: bool,
    deterministic: bool,
    seconds: float,
    again: bool = True,
) -> Tuning:
    """Times the candidates on these tensors; at most about ``seconds`` go by for each direction.

    ``again``: also where a schedule was found before.
    """
    if query.device.type != "cuda":
        raise UnsupportedError(
            "only kernels on a GPU are tuned", hint="leave tune out on a CPU: the program there has one schedule"
        )
    wanted = tuple(engine.buffer_gradients(buffers))
    buffers = [b.detach() for b in buffers]
    tensors = query.detach(), key.detach(), value.detach()
    device, trials = query.device, list[Trial]()
    with torch.no_grad(), torch.cuda.device(device):
        request, sizes = engine.request("forward", tensors, buffers, scalars)
        if request is None:
            return Tuning(())

        def made(request: Request, *given: Tensor | None) -> Call:
            return _call(program(request), (*given, *buffers, *scalars), buffers, scalars, sizes, engine.variant.scale)

        if again or lookup(request, device) is None:
            trials += _search(request, device, lambda x: made(x, *tensors), seconds)
        if backward:
            out, lse = made(request, *tensors)()
            grad_out = torch.randn_like(out)
            with_out = (*tensors, out, grad_out)
            request, _ = engine.request("backward", with_out, buffers, scalars, wanted, deterministic)
            assert request is not None  # the forward pass has something to compute
            if again or lookup(request, device) is None:
                given = (*tensors, out, lse, grad_out, None)
                trials += _search(request, device, lambda x: made(x, *given), seconds)
    if trials:
        engine.forget_programs()
    return Tuning(tuple(trials))


def _call(
    program: Program,
    arguments: tuple[object, ...],
    buffers: Sequence[Tensor],
    scalars: Sequence[int | float],
    sizes: Sizes,
    scale: float | None,
) -> Call:
    """``program`` on ``arguments``, its tiles classified beforehand: that is done once for many calls."""
    tiles = None
    if program.classify is not None:
        tiles = program.classify(*buffers, *scalars, *sizes[:5], torch.device("cuda", torch.cuda.current_device()))
    return lambda: program.run(*arguments, scale=scale, tiles=tiles)


def _search(request: Request, device: torch.device, made: Callable[[Request], Call], seconds: float) -> list[Trial]:
    """Times every candidate for ``request`` and remembers the fastest."""
    until = time.monotonic() + seconds
    usual = generate(request)
    default = Pinned(usual.choice.skeleton, usual.schedule)  # "triton" or "gluon": this is a GPU
    others = alternatives(plan_for(request), request.problem, request.target, request.direction)
    expected: tuple[Tensor, ...] | None = None
    # Each with the call that it repeats, which holds the tiles that the graph knows by their addresses only.
    graphs: dict[Pinned, tuple[torch.cuda.CUDAGraph, Call]] = {}
    times: dict[Pinned, float] = {}
    failures: dict[Pinned, str] = {}
    for pinned in dict.fromkeys((default, *others)):
        if time.monotonic() > until:
            failures[pinned] = "not tried: the time was over"
            continue
        try:
            call = made(on_pinned(request, pinned))
            found = call()
            torch.cuda.synchronize()
        except Exception as error:  # schedules that do not fit: Triton has many exceptions for it
            torch.cuda.synchronize()  # raises where the device itself is lost
            if pinned == default:
                raise
            failures[pinned] = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
            continue
        if expected is None:
            expected = found
        elif not _agree(found, expected):
            failures[pinned] = "left out: its result differs from the default's"
            continue
        graph = _captured(call)
        graphs[pinned], times[pinned] = (graph, call), _milliseconds(graph, 1)
    finalists = sorted(times, key=times.__getitem__)[:_FINALISTS]
    rounds: dict[Pinned, list[float]] = {x: [] for x in dict.fromkeys((default, *finalists))}
    for _ in range(_ROUNDS):
        for pinned, samples in rounds.items():
            replays = max(1, int(1e3 * _ROUND_SECONDS / max(times[pinned], 1e-3)))
            samples.append(_milliseconds(graphs[pinned][0], replays))
    times |= {pinned: statistics.median(samples) for pinned, samples in rounds.items()}
    best = min(rounds, key=times.__getitem__)
    remember(request, device, best)
    return [
        Trial(request.direction, x.skeleton, x.schedule, times.get(x), failures.get(x), x == default, x == best)
        for x in (*graphs, *failures)
    ]


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Whether two results are the same but for rounding; infinities and NaNs in the same places."""
    for a, b in zip(found, expected, strict=True):
        finite = b.isfinite()
        if not torch.equal(finite, a.isfinite()):
            return False
        exact = torch.where(finite, b, 0).double()
        error = torch.where(finite, a, 0).double() - exact
        if error.square().mean().sqrt() > _UNITS * torch.finfo(b.dtype).eps * exact.square().mean().sqrt():
            return False
    return True


def _captured(call: Call) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _milliseconds(graph: torch.cuda.CUDAGraph, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        graph.replay()
    end.record()
    end.synchronize()
    took: float = start.elapsed_time(end)
    return took / count


def _shape(x: Schedule) -> str:
    text = f"{x.block_m}×{x.block_n}, {x.num_warps} warps, {x.num_stages} stages"
    others = (("values", x.grad_value), ("queries", x.grad_query))
    return "; ".join([text, *(f"{name} {_shape(inner)}" for name, inner in others if inner is not None)])
