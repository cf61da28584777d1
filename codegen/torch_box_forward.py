"""The forward pass over boxes of a token space as a printed PyTorch program for the CPU.

The same sums as :mod:`.torch_program`; queries and keys are gathered box by box, and the running maximum, total and
sum of every row are kept for all boxes that it is in.
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
from .torch_definitions import emit_float_parameters
from .torch_module import emit_sizes
from .torch_printed import emit_finite


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule) -> Source:
    """A module whose ``run`` computes ``(out, lse)``; see docs/internals.md, "Generated modules"."""
    out = Emitter(BOX_PROGRAM_NAMES)
    program = emit_box_program(out, plan)
    inputs = ["query", "key", "value", *program.parameters]
    if program.by_head:
        call = emit_alike(out, program)
        with out.define(f"run_alike({', '.join([*inputs, 'batch', 'head', 'kv_head', 'scale'])})"):
            _emit_run(out, program)
    with out.define(f"run({', '.join([*inputs, 'scale=None', 'tiles=None'])})"):
        if program.by_head:
            out.lines(_EACH.format(call=call, parameters="".join(f"{x}, " for x in program.parameters)))
        else:
            _emit_run(out, program)
    return finish_boxes(out, "Attention forward", plan, schedule)


_SOFTMAX = """
before = top[:, :, rows]
peak = torch.maximum(before, s.amax(-1, keepdim=True))
base = peak.clamp(min=LOWEST)  # finite for rows without any pair so far
p = exponential(s - base)
decay = torch.exp(before - base)
part = ungrouped(torch.bmm(grouped(p, kv_heads), values), kv_heads, rows)
total[:, :, rows] = total[:, :, rows] * decay + p.sum(-1, keepdim=True)
sums[:, :, rows] = sums[:, :, rows] * decay + part
top[:, :, rows] = peak
"""


_EACH = """
\"\"\"Output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq): heads with the same classes at a time, as one batch item.\"\"\"
batch_size, heads, q_len = query.shape[:3]
kv_heads, kv_len = key.shape[1:3]
out = query.new_zeros(batch_size, heads, q_len, value.shape[3])
lse = torch.full(out.shape[:3], float("-inf"), dtype=torch.float32, device="cpu")
for batch, head in {call}:
    kv_head = head // (heads // kv_heads)
    some = query[batch, head][None], key[batch, kv_head][None], value[batch, kv_head][None]
    which = (x[:, None, None, None] for x in (batch, head, kv_head))
    part, part_lse = run_alike(*some, {parameters}*which, scale)
    out[batch, head], lse[batch, head] = part[0], part_lse[0]
return out, lse
"""


def _emit_run(out: Emitter, program: BoxProgram) -> None:
    v = program.plan.variant
    out.line('"""Output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq); Lq queries, Lkv keys, H a multiple of Hkv."""')
    emit_sizes(out, v)
    out.line('top = torch.full((batch_size, heads, q_len, 1), float("-inf"), dtype=torch.float32, device="cpu")')
    out.line("total, sums = torch.zeros_like(top), torch.zeros(*top.shape[:3], value_dim, device=\"cpu\")")
    with out.block("if top.numel() == 0 or kv_len == 0:"):
        out.line("return sums.to(query.dtype), top.squeeze(-1)")
    emit_float_parameters(out, v, program.scope)
    emit_vectors(out, program)
    emit_finite(out, program, "value")
    with out.block(f"for number, rows, columns, full in {program.loop}:"):
        out.line("x = grouped(query[:, :, rows].float() * scale, kv_heads)")
        emit_box_scores(out, program)
        out.line("values = grouped(value[:, :, columns].float(), kv_heads)")
        with out.block("if stay is not None and not finite:"):
            out.line("values = cleared(values, stay, kv_heads, columns)")
        out.lines(_SOFTMAX)
    out.comment("The largest score of a row adds 1 to its total, so that only the total of an empty row is less.")
    out.line("return (sums / total.clamp(min=1.0)).to(query.dtype), (top + total.log()).squeeze(-1)")
