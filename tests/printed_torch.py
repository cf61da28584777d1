"""Printing and loading the CPU's programs, without the runtime around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from oracle import Part
from regard.codegen.defaults import Direction
from regard.codegen.schedule import DType, Problem, Schedule, Target
from regard.codegen.skeletons import Choice, emit
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan

_DTYPES: dict[torch.dtype, DType] = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}


def load(source: str) -> dict[str, Any]:
    """The names that a generated module defines."""
    names: dict[str, Any] = {}
    exec(compile(source, "<generated>", "exec"), names)
    return names


@dataclass(frozen=True)
class Printed:
    """Forward and backward modules of a variant, with the values of its parameters."""

    plan: TilePlan
    sources: tuple[str, str]
    forward: dict[str, Any]
    backward: dict[str, Any]
    values: tuple[Any, ...]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = self.forward["run"](*tensors, *self.values)
        return out, lse

    def gradients(self, *tensors: Tensor, grad_lse: Tensor | None = None) -> tuple[Tensor, ...]:
        """Gradients from ``tensors`` = query, key, value, out, lse, grad_out."""
        return tuple(self.backward["run"](*tensors, grad_lse, *self.values))


def printed(
    parts: Sequence[Part],
    *,
    align: Literal["start", "end"] = "start",
    blocks: tuple[int, int] = (32, 16),
    scores_at_a_time: int = 1 << 13,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, int] = (16, 16),
    **parameters: Any,
) -> Printed:
    """Programs with tiles so small that short sequences have many, and runs of keys that end in between."""
    variant, binding = assemble(*parts, align=align)
    values = {**binding, **parameters}
    plan = make_plan(run_pipeline(variant))
    names = [p.name for p in plan.variant.buffers] + [p.name for p in plan.variant.scalars]
    ordered = tuple(values[name] for name in names)
    wanted = tuple(values[p.name].requires_grad for p in plan.variant.buffers)
    buffers = tuple(str(values[p.name].dtype).removeprefix("torch.") for p in plan.variant.buffers)
    problem = Problem(_DTYPES[dtype], *sizes, buffers=buffers, buffer_gradients=wanted)
    directions: tuple[Direction, ...] = ("forward", "backward")
    cpu = Choice("torch", "")
    sources = tuple(emit(cpu, plan, problem, Schedule(*blocks), Target("cpu"), d).text for d in directions)
    forward, backward = (load(source) for source in sources)
    for module in (forward, backward):
        module["TILE"] = scores_at_a_time
        module["PLAIN"] = 24  # so that some parts have no mask
    detached = tuple(x.detach() if isinstance(x, Tensor) else x for x in ordered)
    return Printed(plan, (sources[0], sources[1]), forward, backward, detached)
