"""Generated Gluon modules of both directions, with the values of their parameters, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from generated_triton import H100
from oracle import Part, assert_close_to_oracle, eager, gradients, oracle
from regard.codegen import gluon_backward, gluon_box_backward, gluon_box_forward, gluon_forward, gluon_repeatable
from regard.codegen.box_support import walks_boxes
from regard.codegen.schedule import Problem
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import TilePlan, make_plan
from regard.ir.tiles.plan import Fit

BF16, F16 = torch.bfloat16, torch.float16
Shape = tuple[int, int, int, int, int]  # B, H, Hkv, Lq, Lkv


@dataclass(frozen=True)
class Module:
    text: str
    plan: TilePlan
    problem: Problem
    values: tuple[Any, ...]


def module(
    parts: Sequence[Part],
    *,
    sizes: tuple[int, int] = (64, 64),
    dtype: torch.dtype = BF16,
    align: Literal["start", "end"] = "start",
    direction: Literal["forward", "backward"] = "forward",
    deterministic: bool = False,
    gradients_of: Sequence[str] = (),
    over_boxes: bool = True,
    fit: Fit = "any",
    **schedule_changes: Any,
) -> Module:
    """The module for ``parts``, which the skeleton must support; ``deterministic``: gradients repeat bit by bit;
    ``gradients_of``: names of captured tensors; ``over_boxes``: of a token space, where these decide more;
    ``fit``: what is known of lengths.
    """
    variant, binding = assemble(*parts, align=align)
    plan = make_plan(run_pipeline(variant), fit)
    values: dict[str, Any] = dict(binding)
    buffers = tuple(str(values[p.name].dtype).removeprefix("torch.") for p in plan.variant.buffers)
    problem = Problem(
        "bf16" if dtype is BF16 else "f16", *sizes, buffers=buffers, deterministic=deterministic,
        buffer_gradients=tuple(p.name in gradients_of for p in plan.variant.buffers), fit=fit,
    )  # fmt: skip
    boxes = over_boxes and walks_boxes(plan, H100)
    forward = gluon_box_forward if boxes else gluon_forward
    backward = gluon_box_backward if boxes else gluon_repeatable if deterministic else gluon_backward
    skeleton = forward if direction == "forward" else backward
    assert skeleton.unsupported_reason(plan, problem, H100) is None
    schedule = replace(skeleton.default_schedule(plan, problem), **schedule_changes)
    emit = forward.emit_forward if direction == "forward" else backward.emit_backward
    text = emit(plan, problem, schedule, H100).text
    names = [p.name for p in plan.variant.buffers] + [p.name for p in plan.variant.scalars]
    return Module(text, plan, problem, tuple(values[x] for x in names))


def tensors(shape: tuple[int, int, int, int, int], sizes: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value for ``shape`` = (B, H, Hkv, Lq, Lkv)."""
    batch, heads, kv_heads, q_len, kv_len = shape
    generator = torch.Generator().manual_seed(0)
    wanted = ((heads, q_len, sizes[0]), (kv_heads, kv_len, sizes[0]), (kv_heads, kv_len, sizes[1]))
    return [torch.randn((batch, *s), generator=generator).to(dtype) for s in wanted]


def bias(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_emulated(load: Callable[[str], Any], parts: Sequence[Part], shape: Shape, **options: Any) -> None:
    """What ``load`` makes of the forward module is as good as eager PyTorch; ``options`` as for :func:`module`."""
    generated = module(parts, **options)
    inputs = tensors(shape, options.get("sizes", (64, 64)), options.get("dtype", BF16))
    align = options.get("align", "start")
    out, lse = load(generated.text).run(*inputs, *generated.values)
    expected, expected_lse = oracle(parts, *inputs, align=align)
    assert_close_to_oracle(out, expected, eager(parts, *inputs, align=align)[0])
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-4)
    assert bool((out[expected_lse.isneginf()] == 0).all())


def saved(parts: Sequence[Part], inputs: Sequence[Tensor], **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the forward pass leaves, and gradients of both its results; ``options`` as for the oracle."""
    out, lse = (x.detach() for x in oracle(parts, *inputs, **options))
    generator = torch.Generator().manual_seed(2)
    grad_out, grad_lse = (torch.randn(x.shape, generator=generator) for x in (out, lse))
    grad_lse = grad_lse.masked_fill(lse.isneginf(), 0.0)
    return out.to(inputs[0].dtype), lse.float(), grad_out.to(inputs[0].dtype), grad_lse


def assert_gradients(
    found: Sequence[Tensor], parts: Sequence[Part], inputs: Sequence[Tensor], rest: Sequence[Tensor], **options: Any
) -> None:
    """``found``, from ``inputs`` and the ``rest`` as :func:`saved` has it, are as good as eager PyTorch's."""
    *_, grad_out, grad_lse = rest
    exact, usual = (gradients(f, parts, inputs, grad_out, grad_lse, **options) for f in (oracle, eager))
    for what, a, b, c in zip(("query", "key", "value"), found, exact, usual, strict=True):
        assert_close_to_oracle(a, b, c.to(a.dtype), what)
