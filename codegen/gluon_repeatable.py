"""The backward pass for sm_90 that repeats bit by bit: two kernels and seven products, nothing is added in turns.

One kernel owns tiles of keys and sums dK and dV, one owns tiles of queries and sums dQ; both compute the scores and
their gradient. Every sum has one program and an order of its own. That is two products more than in
:mod:`.gluon_backward`, but consumers exchange nothing, so that they need not wait for each other, and no float32
gradient of queries is zeroed, added to and converted. With wide heads registers hold one sum of a tile of keys: a third
kernel has dV, eight products in all. Turns in which programs add up one tensor would take five
products; but the turn of a tile would have to be counted from the ranges of all tiles before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.dependence import LoadClass
from ..ir.tiles.plan import BoxAxis, TilePlan
from .defaults import later_are_heavier
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
from .gluon_grad_wide import LoneKeyConsumer, LoneValueConsumer
from .gluon_grad_work import (
    SharedKeyConsumer,
    SharedLoneKeyConsumer,
    SharedLoneValueConsumer,
    SharedQueryConsumer,
    emit_key_room,
    emit_lists,
    emit_sums_of_shares,
    in_shares,
    with_shares,
)
from .gluon_module import apart, finish, reason_against_target
from .gluon_names import installed_names
from .gluon_parts import descriptors
from .gluon_seen import UnseenKeys
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import emit_helpers
from .triton_gradients import contributions, emit_scatter
from .triton_module import Argument, emit_header, emit_launch
from .triton_program import SIZES, uses_table

KERNEL, VALUE_KERNEL = "attention_grad_key", "attention_grad_value"
# Sizes of heads and values: powers of two, and sums of two whose parts fit.
_SIZES = ((64, 64), (96, 96), (128, 64), (128, 128), (192, 128), (192, 192), (256, 256))
# Bytes of shared memory for buffers; barriers and small exchanges have the rest of 227 KiB.
_BUFFERS = 225 << 10
# What consumers of queries take to tell each other which keys have weights, where no formula says which are seen.
_EXCHANGED = 3 << 10


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why these kernels cannot compute the backward pass, in one sentence; None where they can."""
    if any(c.kind not in (*SUMMED_BY_KEY, *SUMMED_BY_QUERY) for c in contributions(plan, problem)):
        return "gradients of tensors that are read by distance or by pair take sums that only the Triton kernels keep"
    return reason_against_sizes(problem, _SIZES) or reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipelines; ``grad_query`` tells this form from that of :mod:`.gluon_backward`."""
    return with_shares(plan, problem, plain_schedule(plan, problem))


def plain_schedule(plan: TilePlan, problem: Problem, axes: Sequence[BoxAxis] = ()) -> Schedule:
    """The same without work lists; of boxes with such ``axes``."""
    late_queries, late_keys = later_are_heavier(axes or [plan])
    by_query = Schedule(128, 64, num_warps=4, num_stages=4, reverse=late_queries, descriptors=True)
    # Registers for the sums of 64 columns, and what masks without scores need, leave room for twice the queries; but
    # coordinates take registers: with more queries a tile, which tuning tries, some kernels over boxes spill.
    few = problem.head_dim > 64 or bool(plan.variant.scores) or bool(axes) or uses_table(plan)
    by_key = Schedule(
        64 if few else 128, 128, num_warps=4, num_stages=3, reverse=late_keys, descriptors=True, grad_query=by_query
    )
    sums = problem.head_dim + problem.value_dim
    if sums <= 256:
        return by_key
    apart = _wide(by_key, plan, problem, 64)
    # Fewer queries a step leave room for both sums, which was measured faster.
    return replace(apart, block_m=32, num_stages=3, grad_value=None) if sums <= 320 else apart


def _wide(schedule: Schedule, plan: TilePlan, problem: Problem, step: int) -> Schedule:
    """Three kernels, each of which loads as many tiles ahead as fit, of ``step`` queries or keys if two do."""
    head, value = problem.head_dim, problem.value_dim
    exchanged = 0 if UnseenKeys.of(plan) else _EXCHANGED

    def ahead(step: int, room: int) -> int:
        # One buffer is missing: of what is needed for a shorter time.
        return min((room // 2 - 128 * (head + value) + step * value) // (step * (head + value)), 4)

    by_key = replace(schedule, block_m=step, num_stages=ahead(step, _BUFFERS))
    assert by_key.grad_query is not None
    keys = step if ahead(step, _BUFFERS - exchanged) > 1 else step // 2
    by_query = replace(by_key.grad_query, block_n=keys, num_stages=ahead(keys, _BUFFERS - exchanged))
    stages = min((_BUFFERS // 2 - 128 * head) // (step * (head + value)), 4)
    by_value = replace(by_key, num_stages=stages, grad_query=None)
    return replace(by_key, grad_query=by_query, grad_value=by_value)


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first: its variations, and shares of long rows if it has none, or none."""
    default, plain = default_schedule(plan, problem), plain_schedule(plan, problem)
    return tuple(dict.fromkeys((*variations(plan, problem, default), plain, in_shares(plan, problem, plain))))


def variations(plan: TilePlan, problem: Problem, default: Schedule) -> tuple[Schedule, ...]:
    """``default``, and others: more queries or keys a tile take fewer waits and more registers."""
    assert default.grad_query is not None
    if problem.head_dim + problem.value_dim > 256:
        return tuple(dict.fromkeys((default, *(_wide(default, plan, problem, step) for step in (64, 32)))))
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
    by_value = schedule.grad_value
    consumer = _key_consumer(schedule)(plan, problem, schedule.block_m, parameters, names)
    arguments = key_arguments(schedule, consumer, parameters)
    emit_key_kernel(out, KERNEL, plan, schedule, consumer, arguments, parameters)
    if by_value is not None:
        value_parameters = parameters_of(plan, "tiles[1]")
        kind = SharedLoneValueConsumer if schedule.listed else LoneValueConsumer
        values = kind(plan, problem, by_value.block_m, value_parameters, names, consumer.folded)
        value_arguments = key_arguments(by_value, values, value_parameters)
        fourth = Emitter()
        emit_key_kernel(fourth, VALUE_KERNEL, plan, by_value, values, value_arguments, value_parameters)
        text, renamed = apart(fourth.text(), out.text(), "_by_value")
        out.section(text.strip("\n"))
        value_arguments = [replace(a, value=renamed(a.value)) for a in value_arguments]

    query_parameters = [*parameters_of(plan, "tiles[0]"), *sums_of(plan, problem, SUMMED_BY_QUERY)]
    own = SharedQueryConsumer if by_query.listed else QueryConsumer
    queries = own(plan, problem, by_query, query_parameters, names, consumer.folded)
    targets = descriptors("grad_query", "ROWS", "QUERY_TILE", problem.head_dim)
    inputs = [
        *descriptors("query", "ROWS", "QUERY_TILE", problem.head_dim),
        *descriptors("grad_out", "ROWS", "OUT_TILE", problem.value_dim),
        *descriptors("key", "BLOCK_N", "KEY_TILE", problem.head_dim),
        *descriptors("value", "BLOCK_N", "VALUE_TILE", problem.value_dim),
        Argument("terms", "", "terms"),
        *queries.work,
        *query_parameters,
        *SIZES,
    ]
    rows = RowConsumer(queries) if queries.contributions else None
    targets, inputs = emit_query_kernels(out, queries, rows, targets, inputs)

    tables, table_kernels = emit_lists(plan, schedule, parameters_of(plan, "")[1:])
    before = len(out.text())
    with run_function(out, plan, problem, consumer.folded, listed=schedule.listed or by_query.listed):
        emit_launches(out, plan, schedule, consumer, arguments, queries, targets, inputs)
        if by_value is not None:
            emit_launch(out, VALUE_KERNEL, KEY_PROGRAMS, value_arguments, "**BACKWARD")
        emit_sums_of_shares(out, schedule, problem)
        emit_scatter(out, plan, queries.contributions)
    emit_helpers(out, out.text()[before:], queries.contributions)
    of_rows = row_kernels(problem, consumer.folded, sums=False, exact=rows is not None)
    kernels = [*table_kernels, *kernels_of(queries), *([VALUE_KERNEL] if by_value is not None else [])]
    return finish(out, plan, kernels, head, tables + of_rows, short_tanh=problem.dtype == "bf16")


def _key_consumer(schedule: Schedule) -> type[KeyConsumer]:
    if schedule.grad_value is None:
        return SharedKeyConsumer if schedule.listed else KeyConsumer
    return SharedLoneKeyConsumer if schedule.listed else LoneKeyConsumer


def emit_query_kernels(
    out: Emitter, queries: QueryConsumer, rows: RowConsumer | None, targets: Sequence[Argument],
    inputs: Sequence[Argument],
) -> tuple[list[Argument], list[Argument]]:  # fmt: skip
    """The kernels that own queries, after those that own keys: that for dQ, and that for terms of ``rows``, which has
    no ``targets``; returns both kinds of arguments as ``run`` has to call them then.
    """
    own = Emitter()
    queries.emit(own, [*targets, *inputs])
    if rows is not None:
        third = Emitter()
        rows.emit(third, inputs)
        text, _ = apart(third.text(), own.text(), "_of_rows")
        own.section(text.strip("\n"))
    text, renamed = apart(own.text(), out.text(), "_by_query")
    out.section(text.strip("\n"))
    first, second = ([replace(a, value=renamed(a.value)) for a in x] for x in (targets, inputs))
    return first, second


def emit_launches(
    out: Emitter, plan: TilePlan, schedule: Schedule, consumer: KeyConsumer, by_key: Sequence[Argument],
    queries: QueryConsumer, targets: Sequence[Argument], inputs: Sequence[Argument],
) -> None:  # fmt: skip
    """The part of ``run`` that launches all kernels, with these arguments."""
    for c in (*queries.here, *consumer.here):
        length = "kv_len" if c in consumer.here else "q_len"
        out.line(f"{c.name}_sums = lse.new_empty((batches, heads, {length}))")
    emit_before(out, queries.problem, queries.schedule.block_m, sums=False)
    programs = f"({queries.emit_programs(out)} * batches * heads,)"
    if queries.contributions:
        emit_launch(out, ROW_KERNEL, programs, inputs, queries.options)
    emit_launch(out, QUERY_KERNEL, programs, [*targets, *inputs], queries.options)
    emit_groups(out, plan, consumer.emit_programs(out, schedule))
    if schedule.listed:
        emit_key_room(out, schedule, queries.problem)
    emit_launch(out, KERNEL, KEY_PROGRAMS, by_key, consumer.options)


def kernels_of(queries: QueryConsumer) -> list[str]:
    """Names of the kernels."""
    return ["row_terms", *([ROW_KERNEL] if queries.contributions else []), QUERY_KERNEL, KERNEL]


def sums_of(plan: TilePlan, problem: Problem, kinds: tuple[LoadClass, ...]) -> list[Argument]:
    """Where a kernel stores sums of its contributions to gradients of captured tensors."""
    names = (f"{c.name}_sums" for c in contributions(plan, problem) if c.kind in kinds)
    return [Argument(x, "", x) for x in names]
