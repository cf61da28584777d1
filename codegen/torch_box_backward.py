"""The backward pass over boxes of a token space as a printed PyTorch program for the CPU.

The same sums as :mod:`.torch_backward`, in the order of the boxes, so that results repeat bit by bit.
"""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem, Schedule, Source
from .torch_box_program import (
    BOX_PROGRAM_NAMES,
    BoxProgram,
    emit_alike,
    emit_box_program,
    emit_box_scores,
    emit_vectors,
    finish_boxes,
)
from .torch_definitions import Call, emit_float_parameters
from .torch_module import emit_sizes
from .torch_printed import backward_inputs, emit_buffer_gradients, emit_finite, emit_zero_gradients

_START = """
empty = (lse == float("-inf")).unsqueeze(-1)  # rows that attend to nothing
base = lse.unsqueeze(-1).masked_fill(empty, 0.0)
delta = (grad_out.float() * out.float()).sum(-1, keepdim=True)
if grad_lse is not None:
    delta -= grad_lse.unsqueeze(-1)
delta = delta.masked_fill(empty, 0.0)
"""

_ROWS = """
x = grouped((query[:, :, rows].float() * scale).masked_fill(empty[:, :, rows], 0.0), kv_heads)
grad_rows = grouped(grad_out[:, :, rows].float().masked_fill(empty[:, :, rows], 0.0), kv_heads)
"""

_GRADIENT = """
p = exponential({s} - base[:, :, rows])
add_at(grad_value, columns, torch.bmm(grouped(p, kv_heads).mT, grad_rows))
values = grouped(value[:, :, columns].float(), kv_heads)
grad = (ungrouped(torch.bmm(grad_rows, values.mT), kv_heads, rows) - delta[:, :, rows]) * p
if stay is not None:
    hide(grad, stay)
    if not finite:
        keys = cleared(keys, stay, kv_heads, columns)
"""

_PRODUCTS = """
grad = grouped(grad, kv_heads)
add_at(grad_query, rows, ungrouped(torch.bmm(grad, keys), kv_heads, rows))
add_at(grad_key, columns, torch.bmm(grad.mT, x))
"""

_SOME = """
kv_head = head // (heads // kv_heads)
some = [x[batch, head][None] for x in (query, out, lse, grad_out)]
some[1:1] = [x[batch, kv_head][None] for x in (key, value)]
which = (x[:, None, None, None] for x in (batch, head, kv_head))
part_lse = None if grad_lse is None else grad_lse[batch, head][None]
found = run_alike(*some, part_lse, {parameters}*which, scale)
grad_query[batch, head] = found[0][0]
for total, part in zip((grad_key, grad_value), found[1:3]):
    total.flatten(0, 1).index_add_(0, batch * kv_heads + kv_head, part[0])
"""

_ADD_AT = '''
def add_at(total, places, x):
    """Adds x, whose rows go to ``places`` (g, M), to total (B, H, L, D); a place may occur more than once."""
    total.index_add_(2, places.flatten(), x.reshape(*total.shape[:2], -1, total.shape[3]))
'''


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule) -> Source:
    """A module whose ``run`` computes the gradients; see docs/internals.md, "Generated modules".

    ``problem`` says which captured tensors need one.
    """
    out = Emitter(BOX_PROGRAM_NAMES | {"add_at"})
    program = emit_box_program(out, plan)
    gradients, chain = emit_buffer_gradients(out, program, problem)
    out.definition(_ADD_AT)
    if program.by_head:
        call = emit_alike(out, program)
        with out.define(f"run_alike({backward_inputs(program, 'batch, head, kv_head, scale')})"):
            _emit_run(out, program, gradients, chain)
    with out.define(f"run({backward_inputs(program)})"):
        if program.by_head:
            _emit_each(out, program, gradients, call)
        else:
            _emit_run(out, program, gradients, chain)
    return finish_boxes(out, "Attention backward", plan, schedule)


def _emit_run(out: Emitter, program: BoxProgram, gradients: dict[str, str], chain: list[Call]) -> None:
    v = program.plan.variant
    out.line('"""Gradients of query, key, value and of captured tensors, from those of out and lse."""')
    emit_sizes(out, v)
    _emit_zeros(out, program, gradients)
    with out.block("if lse.numel() and kv_len:"):
        emit_float_parameters(out, v, program.scope)
        emit_vectors(out, program)
        emit_finite(out, program, "key")
        if program.mask_differs_by_head:
            out.line("copies = key.shape[1] // grad_key.shape[1]")
            out.line("grad_key, grad_value = (x.repeat_interleave(copies, 1) for x in (grad_key, grad_value))")
        out.lines(_START)
        with out.block(f"for number, rows, columns, full in {program.loop}:"):
            out.lines(_ROWS)
            stages = emit_box_scores(out, program, keep_stages=True)
            out.lines(_GRADIENT.format(s=stages[-1]))
            for call, stage in reversed(list(zip(chain, stages, strict=False))):
                out.line(f"grad = {call.passing(stage, to='s')}")
            out.lines(_PRODUCTS)
        if program.mask_differs_by_head:
            out.line("grad_key, grad_value = (x.unflatten(1, (-1, copies)).sum(2) for x in (grad_key, grad_value))")
    if program.by_head:
        out.line(f"return {', '.join(['grad_query * scale', 'grad_key', 'grad_value', *gradients.values()])}")
    else:
        _emit_results(out, program, gradients, "grad_query * scale")


def _emit_results(out: Emitter, program: BoxProgram, gradients: dict[str, str], of_query: str) -> None:
    results = [f"({of_query}).to(query.dtype)", "grad_key.to(key.dtype)", "grad_value.to(value.dtype)"]
    results += [f"{name}.to({program.scope.buffers[buffer]}.dtype)" for buffer, name in gradients.items()]
    out.line(f"return {', '.join(results)}")


def _emit_zeros(out: Emitter, program: BoxProgram, gradients: dict[str, str]) -> None:
    zeros = 'torch.zeros(x.shape, dtype=torch.float32, device="cpu")'
    out.line(f"grad_query, grad_key, grad_value = ({zeros} for x in (query, key, value))")
    emit_zero_gradients(out, program, gradients)


def _emit_each(out: Emitter, program: BoxProgram, gradients: dict[str, str], call: str) -> None:
    """The sums over heads with the same classes at a time, each such group as one batch item."""
    out.line('"""Gradients of query, key, value and of captured tensors, from those of out and lse."""')
    out.line("batch_size, heads, q_len = query.shape[:3]")
    out.line("kv_heads, kv_len = key.shape[1:3]")
    _emit_zeros(out, program, gradients)
    with out.block(f"for batch, head in {call}:"):
        out.lines(_SOME.format(parameters="".join(f"{x}, " for x in program.parameters)))
        for i, name in enumerate(gradients.values()):
            out.line(f"{name} += found[{3 + i}]")
    _emit_results(out, program, gradients, "grad_query")
