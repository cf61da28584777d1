"""Generating and loading Triton modules, without the runtime around them."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from oracle import Part
from regard.codegen.defaults import default_schedule
from regard.codegen.schedule import DType, Problem, Schedule, Target
from regard.codegen.triton_backward import emit_backward
from regard.codegen.triton_forward import emit_forward
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan

H100 = Target("cuda", 90)
_DTYPES: dict[torch.dtype, DType] = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
_numbers = count()


def load(text: str) -> ModuleType:
    """A generated module; its source lines are there for Triton, which asks for them."""
    path = f"<generated {next(_numbers)}>"
    module = ModuleType("generated")
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
    return module


@dataclass(frozen=True)
class Generated:
    """Forward and backward modules of a variant, with the values of its parameters."""

    plan: TilePlan
    problem: Problem
    sources: tuple[str, str]
    values: tuple[Any, ...]
    captured: tuple[Tensor, ...]  # those that want gradients

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = load(self.sources[0]).run(*tensors, *self.values)
        return out, lse

    def backward(self, *tensors: Tensor, grad_lse: Tensor | None = None) -> tuple[Tensor, ...]:
        """Gradients from ``tensors`` = query, key, value, out, lse, grad_out."""
        return tuple(load(self.sources[1]).run(*tensors, grad_lse, *self.values))


def generated(
    parts: Sequence[Part],
    *,
    sizes: tuple[int, int] = (64, 64),
    dtype: torch.dtype = torch.bfloat16,
    target: Target = H100,
    blocks: tuple[int, int] | None = None,
    descriptors: bool | None = None,
    align: Literal["start", "end"] = "start",
    aligned: bool = True,
    debug: bool = False,
    **parameters: Any,
) -> Generated:
    """Modules by the default schedule, or with ``blocks`` so small that short sequences have many tiles."""
    variant, binding = assemble(*parts, align=align)
    values = {**binding, **parameters}
    plan = make_plan(run_pipeline(variant))
    buffers = tuple(str(values[p.name].dtype).removeprefix("torch.") for p in plan.variant.buffers)
    wanted = tuple(values[p.name].requires_grad for p in plan.variant.buffers)
    problem = Problem(_DTYPES[dtype], *sizes, aligned, buffers, wanted, debug=debug)
    forward = default_schedule(plan, problem, target, "forward")
    backward = default_schedule(plan, problem, target, "backward")
    if blocks:
        small = Schedule(blocks[0], blocks[1], num_stages=1)
        turned = Schedule(blocks[1], blocks[0], num_stages=1)
        forward, backward = replace(small, split_keys=True), replace(turned, grad_query=small)
    if descriptors is not None:
        forward, backward = _loading(forward, descriptors), _loading(backward, descriptors)
    names = [p.name for p in plan.variant.buffers] + [p.name for p in plan.variant.scalars]
    captured = tuple(values[p.name] for p in plan.variant.buffers if values[p.name].requires_grad)
    detached = tuple(x.detach() if isinstance(x, Tensor) else x for x in map(values.__getitem__, names))
    sources = (emit_forward(plan, problem, forward, target).text, emit_backward(plan, problem, backward, target).text)
    return Generated(plan, problem, sources, detached, captured)


def _loading(schedule: Schedule, descriptors: bool) -> Schedule:
    inner = schedule.grad_query and _loading(schedule.grad_query, descriptors)
    return replace(schedule, descriptors=descriptors, grad_query=inner)
