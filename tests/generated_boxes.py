"""Generating and loading Triton modules over boxes, without the runtime around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from generated_triton import H100, Generated
from oracle import Part
from regard.codegen.defaults import default_schedule
from regard.codegen.schedule import DType, Problem, Schedule, Target
from regard.codegen.triton_box_backward import emit_backward
from regard.codegen.triton_box_forward import emit_forward
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan

_DTYPES: dict[torch.dtype, DType] = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}


def generated(
    parts: Sequence[Part],
    *,
    sizes: tuple[int, int] = (64, 64),
    dtype: torch.dtype = torch.bfloat16,
    target: Target = H100,
    blocks: tuple[int, int] | None = (64, 64),
    descriptors: bool = True,
    warps: int = 4,
    stages: int = 2,
    align: Literal["start", "end"] = "start",
    **parameters: Any,
) -> Generated:
    """Modules whose boxes have at most ``blocks`` queries and keys, or by the default schedules."""
    variant, binding = assemble(*parts, align=align)
    values = {**binding, **parameters}
    plan = make_plan(run_pipeline(variant))
    buffers = tuple(str(values[p.name].dtype).removeprefix("torch.") for p in plan.variant.buffers)
    wanted = tuple(values[p.name].requires_grad for p in plan.variant.buffers)
    captured = tuple(values[p.name] for p in plan.variant.buffers if values[p.name].requires_grad)
    problem = Problem(_DTYPES[dtype], *sizes, True, buffers, wanted)
    if blocks:
        forward = Schedule(*blocks, warps, stages, descriptors=descriptors)
        turned = Schedule(*blocks[::-1], warps, stages, descriptors=descriptors, grad_query=forward)
    else:
        forward = default_schedule(plan, problem, target, "forward")
        turned = default_schedule(plan, problem, target, "backward")
    names = [p.name for p in plan.variant.buffers] + [p.name for p in plan.variant.scalars]
    detached = tuple(x.detach() if isinstance(x, Tensor) else x for x in map(values.__getitem__, names))
    sources = (emit_forward(plan, problem, forward, target).text, emit_backward(plan, problem, turned, target).text)
    return Generated(plan, problem, sources, detached, captured)
