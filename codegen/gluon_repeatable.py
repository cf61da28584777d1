"""The backward pass for sm_90 that repeats bit by bit: two kernels and seven products, nothing is added in turns.

One kernel owns tiles of keys and sums dK and dV, one owns tiles of queries and sums dQ; both compute the scores and
their gradient. Every sum has one program and an order of its own. That is two products more than in
:mod:`.gluon_backward`, but consumers exchange nothing, so that they need not wait for each other, and no float32
gradient of queries is zeroed, added to and converted. Turns in which programs add up one tensor would take five
products; but the turn of a tile would have to be counted from the ranges of all tiles before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.dependence import LoadClass
from ..ir.tiles.plan import TilePlan
from .defaults import heaviest_last
from .emitter import Emitter
from .gluon_backward import (
    KEY_PROGRAMS,
    emit_groups,
    emit_key_kernel,
    key_arguments,
    parameters_of,
    reason_against_sizes,
    run_function,
)
from .gluon_grad_consumer import SUMMED_BY_KEY
from .gluon_grad_key import KeyConsumer
from .gluon_grad_query import KERNEL as QUERY_KERNEL
from .gluon_grad_query import SUMMED_BY_QUERY, QueryConsumer
from .gluon_grad_rows import emit_before, row_kernels
from .gluon_grad_terms import KERNEL as ROW_KERNEL
from .gluon_grad_terms import RowConsumer
from .gluon_module import apart, emit_tables, finish, reason_against_target
from .gluon_names import installed_names
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import emit_helpers
from .triton_gradients import contributions, emit_scatter
from .triton_module import Argument, emit_header, emit_launch
from .triton_program import SIZES, uses_table

KERNEL = "attention_grad_key"


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why these kernels cannot compute the backward pass, in one sentence; None where they can."""
    if any(c.kind not in (*SUMMED_BY_KEY, *SUMMED_BY_QUERY) for c in contributions(plan, problem)):
        return "gradients of tensors that are read by distance or by pair take sums that only the Triton kernels keep"
    return reason_against_sizes(problem) or reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipelines; ``grad_query`` tells this form from that of :mod:`.gluon_backward`."""
    # Registers for the sums of 64 columns, and what masks without scores need, leave room for twice the queries.
    few = problem.head_dim > 64 or bool(plan.variant.scores) or uses_table(plan)
    by_query = Schedule(128, 64, num_warps=4, num_stages=4, reverse=heaviest_last(plan.keys), descriptors=True)
    return Schedule(
        64 if few else 128, 128, num_warps=4, num_stages=3, reverse=heaviest_last(plan.queries), descriptors=True,
        grad_query=by_query,
    )  # fmt: skip


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first: more queries or keys a tile take fewer waits and more registers."""
    default = default_schedule(plan, problem)
    assert default.grad_query is not None
    larger = replace(default.grad_query, block_n=128, num_stages=2)
    queries = (64, 128) if problem.head_dim == 64 else (64,)
    found = (replace(default, block_m=m, grad_query=x) for m in queries for x in (default.grad_query, larger))
    return tuple(dict.fromkeys((default, *found)))


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    by_query = schedule.grad_query
    assert by_query is not None, "a schedule of the other form"
    names = installed_names()
    head, out = Emitter(), Emitter()
    emit_header(head, "Backward kernels", plan, problem, schedule, target)
    parameters = [*parameters_of(plan, "tiles[1]"), *sums_of(plan, problem, SUMMED_BY_KEY)]
    consumer = KeyConsumer(plan, problem, schedule.block_m, parameters, names)
    arguments = key_arguments(schedule, consumer, parameters)
    emit_key_kernel(out, KERNEL, plan, schedule, consumer, arguments, parameters)

    query_parameters = [*parameters_of(plan, "tiles[0]"), *sums_of(plan, problem, SUMMED_BY_QUERY)]
    queries = QueryConsumer(plan, problem, by_query, query_parameters, names, consumer.folded)
    inputs = [
        Argument("grad_query", "", "descriptor(grad_query, ROWS, QUERY_TILE)"),
        Argument("query", "", "descriptor(query, ROWS, QUERY_TILE)"),
        Argument("grad_out", "", "descriptor(grad_out, ROWS, OUT_TILE)"),
        Argument("key", "", "descriptor(key, BLOCK_N, KEY_TILE)"),
        Argument("value", "", "descriptor(value, BLOCK_N, VALUE_TILE)"),
        Argument("terms", "", "terms"),
        *query_parameters,
        *SIZES,
    ]
    rows_of = RowConsumer(queries) if queries.contributions else None
    launched = emit_query_kernels(out, queries, rows_of, inputs)

    blocks = ((s.block_m, s.block_n) for s in (by_query, schedule))
    tables, kernels = emit_tables(plan, *blocks)
    before = len(out.text())
    with run_function(out, plan, problem, consumer.folded):
        emit_launches(out, plan, schedule, consumer, arguments, queries, launched)
    emit_helpers(out, out.text()[before:], queries.contributions)
    rows = row_kernels(problem, consumer.folded, sums=False, exact=bool(queries.contributions))
    return finish(out, plan, [*kernels, *kernels_of(queries)], head, tables + rows)


def emit_query_kernels(
    out: Emitter, queries: QueryConsumer, rows: RowConsumer | None, arguments: Sequence[Argument]
) -> list[Argument]:
    """The kernels that own queries, after that which owns keys: first that for ``rows``, if there is one.

    ``arguments`` of that for dQ begin with its target, which the other lacks; returns them as they are called then.
    """
    own = Emitter()
    queries.emit(own, arguments)
    if rows is not None:
        third = Emitter()
        rows.emit(third, arguments[1:])
        text, _ = apart(third.text(), own.text(), "_of_rows")
        own.section(text.strip("\n"))
    text, renamed = apart(own.text(), out.text(), "_by_query")
    out.section(text.strip("\n"))
    return [replace(a, value=renamed(a.value)) for a in arguments]


def emit_launches(
    out: Emitter, plan: TilePlan, schedule: Schedule, consumer: KeyConsumer, by_key: Sequence[Argument],
    queries: QueryConsumer, by_query: Sequence[Argument],
) -> None:  # fmt: skip
    """The part of ``run`` that launches all kernels, with these arguments, and adds up what they leave."""
    for c in (*queries.here, *consumer.here):
        length = "kv_len" if c in consumer.here else "q_len"
        out.line(f"{c.name}_sums = lse.new_empty((batches, heads, {length}))")
    emit_before(out, queries.problem, max(schedule.block_m, queries.schedule.block_m), sums=False)
    programs = f"({queries.emit_programs(out)} * batches * heads,)"
    if queries.contributions:
        emit_launch(out, ROW_KERNEL, programs, by_query[1:], queries.options)
    emit_launch(out, QUERY_KERNEL, programs, by_query, queries.options)
    emit_groups(out, plan, consumer.emit_programs(out, schedule))
    emit_launch(out, KERNEL, KEY_PROGRAMS, by_key, consumer.options)
    emit_scatter(out, plan, queries.contributions)


def kernels_of(queries: QueryConsumer) -> list[str]:
    """Names of the kernels."""
    return ["row_terms", *([ROW_KERNEL] if queries.contributions else []), QUERY_KERNEL, KERNEL]


def sums_of(plan: TilePlan, problem: Problem, kinds: tuple[LoadClass, ...]) -> list[Argument]:
    """Where a kernel stores sums of its contributions to gradients of captured tensors."""
    names = (f"{c.name}_sums" for c in contributions(plan, problem) if c.kind in kinds)
    return [Argument(x, "", x) for x in names]
