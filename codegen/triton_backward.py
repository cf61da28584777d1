"""The backward module, repeatable bit by bit: seven products, no atomics except where its header says so.

P is recomputed from the log-sum-exp of the forward pass. One kernel owns a tile of keys and walks the queries
that see it (dK, dV), one owns a tile of queries and walks its keys (dQ); gradients of captured tensors are
summed along rows, columns or diagonals and then scattered. The equations are those of FlashAttention-2 (Dao,
arXiv:2307.08691, section 3.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .print_torch import helper_functions
from .schedule import Problem, Schedule, Source, Target
from .triton_grad_diagonal import KERNEL as DIAGONAL_KERNEL
from .triton_grad_diagonal import GradDiagonal
from .triton_grad_key import KERNEL as KEY_KERNEL
from .triton_grad_key import GradKey
from .triton_grad_query import KERNEL as QUERY_KERNEL
from .triton_grad_query import GradQuery
from .triton_gradients import SCATTER, Contribution, emit_scatter
from .triton_module import emit_header, emit_options, finish, user_names
from .triton_program import BROADCAST_STRIDE, DESCRIPTOR, emit_classify_call, emit_sizes, uses_table
from .triton_row_terms import KERNEL as ROW_KERNEL
from .triton_row_terms import RowTerms, emit_from_outputs, emit_launch_from_outputs
from .triton_tiles import TABLE_TILE
from .triton_values import user_name

TIDY = '''
def tidy(x):
    """A gradient may come in any layout; the kernels need a contiguous, aligned last axis."""
    group = 16 // x.element_size()
    tidy = x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(s > 0 and s % group == 0 for s in x.stride()[:3])
    return x if tidy else x.contiguous()
'''



def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``.

    ``schedule`` is that of the kernel for keys and values, ``schedule.grad_query`` that of the one for queries.
    """
    by_query = schedule.grad_query or schedule
    grad_key = GradKey(plan, problem, schedule.descriptors)
    grad_query = GradQuery(plan, problem, by_query.descriptors)
    row_terms = RowTerms(plan, problem, by_query.descriptors)
    found = grad_key.contributions
    grad_diagonal = GradDiagonal(plan, problem, False) if grad_key.of_kinds("diagonal") else None

    head, out = Emitter(), Emitter()
    emit_header(head, "Backward kernels", plan, problem, schedule, target, atomic_notes(found))
    emit_options(out, "GRAD_KEY", schedule)
    emit_options(out, "GRAD_QUERY", by_query)
    if grad_diagonal:
        emit_options(out, "GRAD_DIAGONAL", grad_diagonal.schedule)
    if schedule.descriptors or by_query.descriptors:
        out.section(DESCRIPTOR)
    if uses_table(plan):
        from .triton_classify import emit_classify

        out.section(BROADCAST_STRIDE)
        out.section(TABLE_TILE)
        sizes = [(s.block_m, s.block_n) for s in (by_query, schedule)]
        emit_classify(out, plan, *sizes)
    out.section(TIDY)
    if row_terms.exact_rows:
        out.section()
        row_terms.emit(out, by_query)
    else:
        emit_from_outputs(out, problem)
    out.section()
    grad_key.emit(out, schedule)
    out.section()
    grad_query.emit(out, by_query)
    kernels = [ROW_KERNEL, KEY_KERNEL, QUERY_KERNEL]
    if grad_diagonal:
        kernels.append(DIAGONAL_KERNEL)
        out.section()
        grad_diagonal.emit(out)
    run = Emitter()
    emit_run(run, plan, problem, row_terms, grad_key, grad_query, grad_diagonal)
    emit_helpers(out, run.text(), found)
    out.section(run.text())
    return finish(out, plan, kernels, head)


def atomic_notes(found: Sequence[Contribution]) -> list[str]:
    """Which gradients of captured tensors do not repeat bit by bit."""
    return [
        f"Gradient of `{c.load.buffer}`: by atomic additions in an order that varies; its index has no structure."
        for c in found
        if c.kind == "pair" and not c.injective
    ]


def emit_helpers(out: Emitter, run: str, found: Sequence[Contribution]) -> None:
    """The functions that ``run`` calls to add up gradients of captured tensors."""
    if any(c.kind != "pair" for c in found):
        for helper in helper_functions(run), SCATTER:
            if helper and helper not in out.text():
                out.section(helper)


def emit_run(
    out: Emitter, plan: TilePlan, problem: Problem, row_terms: RowTerms, grad_key: GradKey, grad_query: GradQuery,
    grad_diagonal: GradDiagonal | None = None,
) -> None:  # fmt: skip
    """The function that launches the kernels."""
    v = plan.variant
    names = user_names(v)
    wanted = [user_name(p.name) for p, w in zip(v.buffers, problem.buffer_gradients, strict=False) if w]
    ours = (("query", grad_query), ("key", grad_key), ("value", grad_key))
    found = [f"grad_{x}" + ("" if by.sum_type == "query.dtype" else ".to(query.dtype)") for x, by in ours]
    answer = ", ".join([*found, *(f"grad_{x}.to({x}.dtype)" for x in wanted)])
    inputs = ["query", "key", "value", "out", "lse", "grad_out", "grad_lse", *names, "scale=None", "tiles=None"]
    with out.block(f"def run({', '.join(inputs)}):"):
        out.line('"""Gradients of query, key, value and captured tensors; ``grad_lse`` may be None."""')
        emit_sizes(out, plan, problem)
        for name, by in ours:
            out.line(f"grad_{name} = torch.{by.fresh}({name}.shape, dtype={by.sum_type}, device=query.device)")
        for name in wanted:
            out.line(f"grad_{name} = torch.zeros({name}.shape, dtype=torch.float32, device={name}.device)")
        with out.block("if lse.numel() == 0 or kv_len == 0:"):
            with out.block("for x in (grad_query, grad_key, grad_value):"):
                out.line("x.zero_()")
            out.line(f"return {answer}")
        if uses_table(plan):
            emit_classify_call(out, names)
        out.line("grad_out = tidy(grad_out)")
        if row_terms.exact_rows:
            row_terms.emit_launch(out)
        else:
            emit_launch_from_outputs(out, problem)
        grad_key.emit_launch(out)
        grad_query.emit_launch(out)
        if grad_diagonal:
            grad_diagonal.emit_launch(out)
        emit_scatter(out, plan, grad_key.contributions)
        out.line(f"return {answer}")
