"""The forward pass as a printed PyTorch program: what runs where there is no GPU.

For each tile of queries one matrix product per run of keys, and online softmax across runs (Milakov and
Gimelshein, arXiv:1805.02867; Rabe and Staats, arXiv:2112.05682). Scores and sums are float32.
"""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem, Schedule, Source
from .torch_definitions import emit_float_parameters
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
from .torch_printed import emit_finite


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule) -> Source:
    """A module whose ``run`` computes ``(out, lse)``; see docs/internals.md, "Generated modules".

    The program serves every dtype and head size, so nothing of ``problem`` is baked in.
    """
    out = Emitter(PROGRAM_NAMES)
    program = emit_program(out, plan, schedule)
    inputs = ["query", "key", "value", *program.parameters, "scale=None", "tiles=None"]
    with out.define(f"run({', '.join(inputs)})"):
        _emit_run(out, program)
    return finish(out, "Attention forward", plan, schedule)


_SOFTMAX = """
peak = s.amax(-1, keepdim=True)
if top is not None:
    peak = torch.maximum(peak, top)
base = peak.clamp(min=LOWEST)  # finite for rows without any pair so far
p = exponential(s.sub_(base))
part = torch.bmm(p.reshape(-1, group * (stop - first), end - start), values.flatten(0, 1))
part = part.view(-1, heads, stop - first, value_dim)
if top is None:
    total, sums = p.sum(-1, keepdim=True), part
else:
    decay = torch.exp(top - base)
    total = total.mul_(decay).add_(p.sum(-1, keepdim=True))
    sums = sums.mul_(decay).add_(part)
top = peak
"""


def _emit_run(out: Emitter, program: Program) -> None:
    v = program.plan.variant
    out.line('"""Output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq); Lq queries, Lkv keys, H a multiple of Hkv."""')
    emit_sizes(out, v)
    out.line("out = query.new_zeros(batch_size, heads, q_len, value_dim)")
    out.line('lse = torch.full((batch_size, heads, q_len), float("-inf"), dtype=torch.float32, device="cpu")')
    with out.block("if lse.numel() == 0 or kv_len == 0:"):
        out.line("return out, lse")
    emit_float_parameters(out, v, program.scope)
    emit_positions(out, program)
    if program.mask is not None:
        emit_finite(out, program, "value")
    with out.block(f"for here, first, stop, runs in {program.tile_loop}:"):
        emit_tile_positions(out, program)
        out.line("rows = query[here, :, first:stop].float() * scale")
        out.line("rows = rows.reshape(-1, group * (stop - first), head_dim)")
        out.line("top = None")
        with out.block("for start, end, masked in runs:"):
            emit_run_scores(out, program)
            out.line("values = value[here, :, start:end].float()")
            if program.mask is not None:
                with out.block("if spans and not finite:"):
                    out.line("values = cleared(values, start, spans)")
            out.lines(_SOFTMAX)
        out.comment("The largest score of a row adds 1 to its total, so that only the total of an empty row is less.")
        out.line("out[here, :, first:stop] = sums.div_(total.clamp(min=1.0))")
        out.line("lse[here, :, first:stop, None] = top + total.log()")
    out.line("return out, lse")
