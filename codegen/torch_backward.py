"""The backward pass as a printed PyTorch program for the CPU.

One loop over the same tiles and runs as the forward pass: probabilities are recomputed from the saved
log-sum-exp (Dao et al., arXiv:2205.14135, appendix B), the gradient of each score goes back through the
score modifications, and sums run in one fixed order, so that results repeat bit by bit.
"""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem, Schedule, Source
from .torch_definitions import Call, emit_float_parameters
from .torch_module import (
    PROGRAM_NAMES,
    Program,
    emit_positions,
    emit_program,
    emit_run_scores,
    emit_sizes,
    emit_tile_positions,
    finish,
)
from .torch_printed import backward_inputs, emit_buffer_gradients, emit_finite, emit_zero_gradients

_TILE_START = """
empty = lse[here, :, first:stop, None] == float("-inf")  # rows that attend to nothing
base = lse[here, :, first:stop, None].masked_fill(empty, 0.0)
grad_rows = grad_out[here, :, first:stop].float()
delta = (grad_rows * out[here, :, first:stop].float()).sum(-1, keepdim=True)
if grad_lse is not None:
    delta -= grad_lse[here, :, first:stop, None]
delta = delta.masked_fill(empty, 0.0)
grad_rows = grad_rows.masked_fill(empty, 0.0).reshape(-1, group * (stop - first), value_dim)
rows = (query[here, :, first:stop].float() * scale).masked_fill(empty, 0.0)
rows = rows.reshape(-1, group * (stop - first), head_dim)
sums = 0.0
"""

_GRADIENT = """
p = exponential({s} - base)
part = torch.bmm(p.reshape(-1, group * (stop - first), end - start).mT, grad_rows)
grad_value[here, :, start:end] += part.view(-1, kv_heads, end - start, value_dim)
values = value[here, :, start:end].float().flatten(0, 1)
grad = torch.bmm(grad_rows, values.mT).view(-1, heads, stop - first, end - start).sub_(delta).mul_(p)
"""


_PRODUCTS = """
grad = grad.reshape(-1, group * (stop - first), end - start)
sums = sums + torch.bmm(grad, keys.flatten(0, 1))
grad_key[here, :, start:end] += torch.bmm(grad.mT, rows).view(-1, kv_heads, end - start, head_dim)
"""


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule) -> Source:
    """A module whose ``run`` computes the gradients; see docs/internals.md, "Generated modules".

    ``problem`` says which captured tensors need one.
    """
    out = Emitter(PROGRAM_NAMES)
    program = emit_program(out, plan, schedule)
    gradients, chain = emit_buffer_gradients(out, program, problem)
    with out.define(f"run({backward_inputs(program)})"):
        _emit_run(out, program, gradients, chain)
    return finish(out, "Attention backward", plan, schedule)


def _emit_run(out: Emitter, program: Program, gradients: dict[str, str], chain: list[Call]) -> None:
    v = program.plan.variant
    out.line('"""Gradients of query, key, value and of captured tensors, from those of out and lse."""')
    emit_sizes(out, v)
    out.line("grad_query = torch.zeros(query.shape, dtype=query.dtype, device=\"cpu\")")
    out.line('grad_key, grad_value = (torch.zeros(x.shape, dtype=torch.float32, device="cpu") for x in (key, value))')
    emit_zero_gradients(out, program, gradients)
    results = ["grad_query", "grad_key.to(key.dtype)", "grad_value.to(value.dtype)"]
    results += [f"{name}.to({program.scope.buffers[buffer]}.dtype)" for buffer, name in gradients.items()]
    with out.block("if lse.numel() == 0 or kv_len == 0:"):
        out.line(f"return {', '.join(results)}")
    emit_float_parameters(out, v, program.scope)
    emit_positions(out, program)
    if program.mask is not None:
        emit_finite(out, program, "key")
        if program.mask_differs_by_head:
            out.line("copies = key.shape[1] // grad_key.shape[1]")
            out.line("grad_key, grad_value = (x.repeat_interleave(copies, 1) for x in (grad_key, grad_value))")
    with out.block(f"for here, first, stop, runs in {program.tile_loop}:"):
        emit_tile_positions(out, program)
        out.lines(_TILE_START)
        with out.block("for start, end, masked in runs:"):
            _emit_visit(out, program, chain)
        out.line("grad_query[here, :, first:stop] = sums.view(-1, heads, stop - first, head_dim) * scale")
    if program.mask_differs_by_head:
        out.line("grad_key, grad_value = (x.unflatten(1, (-1, copies)).sum(2) for x in (grad_key, grad_value))")
    out.line(f"return {', '.join(results)}")


def _emit_visit(out: Emitter, program: Program, chain: list[Call]) -> None:
    stages = emit_run_scores(out, program, keep_stages=True)
    out.lines(_GRADIENT.format(s=stages[-1]))
    if program.mask is not None:
        with out.block("for a, b, stay, _ in spans:"):
            out.line("hide(grad[..., a - start : b - start], stay)")
        with out.block("if spans and not finite:"):
            out.line("keys = cleared(keys, start, spans)")
    for call, stage in reversed(list(zip(chain, stages, strict=False))):
        out.line(f"grad = {call.passing(stage, to='s')}")
    out.lines(_PRODUCTS)
