"""One case, all its contenders: built, checked against dense attention, timed in turn. Runs in a worker process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from . import reference
from .case import TIMED, TIMING, Task
from .cases import Contestants, build
from .contenders import AbsentError, Contender, Layout, contender, permutation
from .environment import describe, matmul_peak
from .timing import ContestantFailed, interleaved, l2_flush
from .worker import ProcessLost

# Multiply-adds of the five products of a backward pass over the two of a forward pass.
WORK = {"forward": 1.0, "backward": 2.5, "both": 3.5}
# Relative root-mean-square deviations from float32 that bfloat16 does not explain.
LIMIT = 0.03


class _Inputs:
    """Query, key, value and the output's gradient, once in each layout, and the way back from it."""

    def __init__(self, task: Task, made: Contestants) -> None:
        case, self.made, self.device = task.case, made, task.device
        generator = torch.Generator(task.device).manual_seed(0)

        def make(heads: int) -> Tensor:
            shape = (case.batch, heads, case.length, case.head_dim)
            return torch.randn(shape, device=task.device, dtype=torch.bfloat16, generator=generator)

        self.query, self.key, self.value, self.grad = (
            make(heads) for heads in (case.heads, case.kv_heads, case.kv_heads, case.heads)
        )
        self._kept: dict[Layout, tuple[Tensor, ...]] = {}

    def of(self, layout: Layout) -> tuple[Tensor, ...]:
        if layout not in self._kept:
            tensors = (self.query, self.key, self.value, self.grad)
            arranged = [self._arranged(x, layout) for x in tensors]
            self._kept[layout] = (*(x.clone().requires_grad_() for x in arranged[:3]), arranged[3])
        return self._kept[layout]

    def plain(self, layout: Layout) -> list[Tensor]:
        """Query, key and value that ask for no gradient."""
        return [x.detach() for x in self.of(layout)[:3]]

    def _arranged(self, x: Tensor, layout: Layout) -> Tensor:
        match layout:
            case "heads":
                return x
            case "tokens":
                return x.transpose(1, 2).contiguous()
            case "ordered":
                return x[:, :, permutation(self.made, x.shape[2], self.device)]

    def first(self, x: Tensor, layout: Layout, heads: int) -> Tensor:
        """The first heads of batch 0 of a tensor in ``layout``, as (heads, length, size)."""
        match layout:
            case "heads":
                return x[0, :heads]
            case "tokens":
                return x[0, :, :heads].transpose(0, 1)
            case "ordered":
                return x[0, :heads, permutation(self.made, x.shape[2], self.device).argsort()]


def measure(task: Task, entering: Callable[[str], object]) -> dict[str, Any]:
    """The row of one case; ``entering`` is told which contender runs, in case it takes the process along.

    Raises :class:`ProcessLost` where a contender leaves the device unusable.
    """
    started = time.perf_counter()
    made, inputs, row, ready = _ready(task, entering)
    entering("pairs")
    pairs = reference.count_pairs(task.case, made, task.device)
    _check(task, made, inputs, row, ready, entering)
    flush = l2_flush(task.device) if task.flush else None
    entering(TIMING)
    for direction in task.directions:
        flops = 4 * pairs * task.case.head_dim * WORK[direction]
        _time(task, direction, _calls(direction, inputs, row, ready), flops, row, flush, entering)
    entering(TIMED)
    return {
        "case": asdict(task.case),
        "pairs": pairs,
        "contenders": row,
        "seconds": round(time.perf_counter() - started, 1),
    }


def measure_sparse(task: Task, entering: Callable[[str], object]) -> dict[str, Any]:
    """A row of :func:`measure`, and the pairs in the tiles that our kernels visit, with the mask and without.

    ``full_tiles``: the share of these tiles, with the mask, in which every pair is allowed.
    """
    row, case = measure(task, entering), task.case
    entering("tiles")
    made = build(case, task.device)
    shapes = [(case.batch, heads, case.length, case.head_dim) for heads in (case.heads, case.kv_heads, case.kv_heads)]
    dense: Any = contender("regard-dense", case, made, task.device).call
    for name, attn in (("tile_pairs", made.regard), ("dense_tile_pairs", dense)):
        explained = attn.explain(*shapes, dtype="bf16", target="cpu" if task.device == "cpu" else None)
        tiles = explained.counts.tiles
        row[name] = tiles.tile_pairs
        if attn is made.regard:
            row["full_tiles"] = tiles.full / max(tiles.visited, 1)
        row[f"{name}_of"] = [str(kernel).splitlines()[0] for kernel in explained.kernels]
    return row


def warm(task: Task, entering: Callable[[str], object]) -> None:
    """Runs every contender once, so that what it compiles is on disk when it is measured."""
    _ready(task, entering)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine(device: str, entering: Callable[[str], object]) -> dict[str, Any]:
    """The environment and the matrix-product peak of this run."""
    entering("matmul")
    return {"environment": describe(), "matmul_tflops": matmul_peak(device, 8192 if device == "cuda" else 64)}


def _ready(
    task: Task, entering: Callable[[str], object]
) -> tuple[Contestants, _Inputs, dict[str, Any], dict[str, Contender]]:
    """Contenders that ran once, forward and backward; what became of the others is in the row."""
    torch._dynamo.reset()
    # Each graph runs backward many times.
    torch._functorch.config.donated_buffer = False
    made = build(task.case, task.device)
    inputs = _Inputs(task, made)
    row: dict[str, Any] = {}
    ready: dict[str, Contender] = {}
    for name in task.names:
        if name in task.excluded:
            row[name] = {"error": task.excluded[name]}
            continue
        entering(name)
        row[name] = {}
        try:
            one = contender(name, task.case, made, task.device)
            if task.directions == ("forward",):
                one = replace(one, differentiable=False)
            one.call(*inputs.plain(one.layout))
            ready[name] = one
        except Exception as error:  # a failing contender is a result, and the others still run
            row[name] |= _failure(name, error)
            continue
        if not one.differentiable:
            continue
        try:
            *leaves, grad = inputs.of(one.layout)
            torch.autograd.grad(one.call(*leaves), leaves, grad)
        except Exception as error:
            row[name]["backward_error"] = _failure(name, error)["error"]
            ready[name] = Contender(one.call, one.layout, differentiable=False)
    return made, inputs, row, ready


def _check(
    task: Task,
    made: Contestants,
    inputs: _Inputs,
    row: dict[str, Any],
    ready: dict[str, Contender],
    entering: Callable[[str], object],
) -> None:
    """Deviations from float32 on key head 0 of batch 0; where they are too large, the figures are marked wrong."""
    group = task.case.heads // task.case.kv_heads
    expected = reference.attention(
        made, inputs.query[0, :group], inputs.key[0, 0], inputs.value[0, 0], inputs.grad[0, :group]
    )
    for name, one in list(ready.items()):
        if not one.same:
            continue
        entering(name)
        try:
            deviation = _deviation(one, inputs, expected, group)
        except Exception as error:
            row[name] |= _failure(name, error)
            del ready[name]
        else:
            # JSON has no NaN.
            row[name]["deviation"] = {what: x if math.isfinite(x) else None for what, x in deviation.items()}
            row[name]["wrong"] = not all(x <= LIMIT for x in deviation.values())


def _deviation(one: Contender, inputs: _Inputs, expected: dict[str, Tensor], group: int) -> dict[str, float]:
    found = {"out": one.call(*inputs.plain(one.layout))}
    if one.differentiable:
        *leaves, grad = inputs.of(one.layout)
        gradients = torch.autograd.grad(one.call(*leaves), leaves, grad)
        found |= dict(zip(("query", "key", "value"), gradients, strict=True))
    deviation = {}
    for what, x in found.items():
        heads = group if what in ("out", "query") else 1
        right = expected[what].view(heads, *expected[what].shape[-2:])
        error = inputs.first(x.detach(), one.layout, heads).float() - right
        deviation[what] = float(error.norm() / right.norm())
    return deviation


def _calls(
    direction: str, inputs: _Inputs, row: dict[str, Any], ready: dict[str, Contender]
) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for name, one in ready.items():
        if direction == "forward":
            calls[name] = partial(one.call, *inputs.plain(one.layout))
        elif one.differentiable:
            *leaves, grad = inputs.of(one.layout)
            try:
                calls[name] = (_backward if direction == "backward" else _both)(one.call, leaves, grad)
            except Exception as error:  # of memory, most likely: all graphs are held at once
                row[name][f"{direction}_error"] = _failure(name, error)["error"]
    return calls


def _backward(call: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    return partial(torch.autograd.grad, call(*leaves), leaves, grad, retain_graph=True)


def _both(call: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(call(*leaves), leaves, grad)


def _time(
    task: Task,
    direction: str,
    calls: dict[str, Callable[[], object]],
    flops: float,
    row: dict[str, Any],
    flush: Callable[[], object] | None,
    entering: Callable[[str], object],
) -> None:
    """Times one direction; whoever fails there is left out, and the others are timed anew."""
    while calls:
        try:
            timings = interleaved(calls, task.rounds, task.budget_ms, flush, entering)
        except ContestantFailed as failed:
            cause = failed.__cause__
            assert isinstance(cause, Exception)
            row[failed.name][f"{direction}_error"] = _failure(failed.name, cause)["error"]
            del calls[failed.name]
            continue
        for name, t in timings.items():
            row[name][direction] = {
                "ms": t.median, "low": t.low, "high": t.high, "tflops": flops / t.median / 1e9,
            }  # fmt: skip
        return


def _failure(name: str, error: Exception) -> dict[str, str]:
    """What to report. Raises :class:`ProcessLost` if nothing more can run on the device in this process."""
    text = f"{type(error).__name__}: {error}"[:1000]
    # The traceback holds the frames that hold the tensors.
    error.__traceback__ = None
    match error:
        case AbsentError():
            return {"absent": str(error)}
        case ImportError():
            return {"absent": f"cannot be imported: {error}"[:300]}
        case torch.cuda.OutOfMemoryError():
            text = "out of memory"
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as lost:
            raise ProcessLost(name, text) from lost
    return {"error": text}
