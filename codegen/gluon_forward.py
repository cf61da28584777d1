"""The forward kernel for sm_90: one warp loads, two or three groups of four warps compute.

The producer walks through the tiles of keys of one tile of queries after the other and fills two rings of
buffers, for K and for V, through the tensor memory accelerator. Each consumer owns 64 queries: it starts the
product of Q with the next tile of K, then that of the last weights with their tile of V, and computes the
softmax of the one while the other runs. Tiles of queries come from a counter, the heaviest first, in sections
of heads whose keys and values fit in the L2 cache. The structure is that of FlashAttention-3 (Shah et al.,
2024, https://arxiv.org/abs/2407.08608).

The tiles of keys of one tile of queries form one sequence: first the partial ones, then the full ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..ir.tiles.plan import TilePlan
from .defaults import heaviest_last, sees_few_keys, takes_registers
from .emitter import Emitter
from .gluon_consumer import Consumer
from .gluon_cut_consumer import CutConsumer
from .gluon_cuts import RAGGED, STARTS, cut_loads, emit_cut_place, emit_cut_visits, may_be_cut
from .gluon_forward_body import emit_body, emit_constants
from .gluon_loader import emit_load_tiles, emit_place_function, run_loads
from .gluon_module import DESCRIPTOR, finish, reason_against_target
from .gluon_names import installed_names
from .gluon_parts import descriptors
from .gluon_scores import FoldedScores, are_bounded
from .gluon_seen import UnseenByWeights, UnseenKeys
from .gluon_tiles import CELLS, KEYS, emit_visits
from .gluon_work import (
    MERGE,
    emit_lists,
    emit_merge_launch,
    emit_room,
    emit_work,
    emit_work_functions,
    is_uneven,
    other_lists,
    with_list,
    work_arguments,
)
from .schedule import Problem, Schedule, Source, Target
from .triton_box_options import host_inputs
from .triton_cuts import cut_arguments, cuts_of
from .triton_module import (
    Argument,
    buffer_arguments,
    emit_header,
    emit_launch,
    head_parts,
    kernel,
    scalar_arguments,
    user_names,
)
from .triton_program import SIZES, emit_classify_call, emit_shape_check, table_arguments, uses_table

KERNEL = "attention_forward"
_HEAD_SIZES = (64, 96, 128, 192, 256)
# Bytes of shared memory for buffers; barriers and small exchanges have the rest of 227 KiB.
_BUFFERS = 225 << 10


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot compute the forward pass, in one sentence; None where it can."""
    for size in (problem.head_dim, problem.value_dim):
        if size not in _HEAD_SIZES:
            return f"head size {size} is not one of {', '.join(map(str, _HEAD_SIZES))}"
    return reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem, long: bool = False) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against.

    ``long``: whether most rows of tiles are long, which three consumers gain from at head size 64: products of one run
    beside the softmax of two. Each row costs them more.
    """
    if long and _gains_third_consumer(plan, problem):
        return _with_three_consumers(plan)
    wide = max(problem.head_dim, problem.value_dim) > 64
    cut = may_be_cut(plan)
    # Tables are mostly of short rows, which smaller tiles cut closer, unless they begin where data changes.
    fewer = (wide and (takes_registers(plan) or (uses_table(plan) and not cut))) or problem.value_dim > 192
    for keys in (64,) if fewer else (128, 64):
        for stages in (2,) if wide and keys == 128 else (4, 3, 2):
            reverse = heaviest_last(plan.keys)
            schedule = Schedule(128, keys, num_warps=4, num_stages=stages, reverse=reverse, descriptors=True)
            least = _buffer_bytes(problem, schedule, apart=not _may_share_query(problem))
            if least <= _BUFFERS and (stages == 2 or _buffer_bytes(problem, schedule, apart=True) <= _BUFFERS):
                apart = _buffer_bytes(problem, schedule, apart=True) <= _BUFFERS
                ahead = _gains_ahead(plan, problem)
                return with_list(plan, replace(schedule, ahead=ahead, cut=cut and apart))
    raise AssertionError(f"no schedule for head sizes {problem.head_dim} and {problem.value_dim}")


def _gains_third_consumer(plan: TilePlan, problem: Problem) -> bool:
    if plan.variant.scores or is_uneven(plan) or UnseenKeys.of(plan) is None or sees_few_keys(plan):
        return False
    return (problem.head_dim, problem.value_dim) == (64, 64)


def _with_three_consumers(plan: TilePlan) -> Schedule:
    return Schedule(192, 128, num_warps=4, num_stages=4, reverse=heaviest_last(plan.keys), descriptors=True)


def _gains_ahead(plan: TilePlan, problem: Problem) -> bool:
    """Whether tiles of queries overlap: where that was measured faster."""
    unseen, few = UnseenKeys.of(plan), sees_few_keys(plan)
    sizes = (problem.head_dim, problem.value_dim)
    if may_be_cut(plan) and not plan.variant.scores:
        return sizes == (64, 64)
    if uses_table(plan) or unseen is None:
        return False
    if plan.variant.scores and not are_bounded(plan.variant.scores, problem):
        return False
    if sizes != (128, 128):
        return sizes == (64, 64)
    return unseen.asked_on_host if few else unseen.all_seen or heaviest_last(plan.keys)


def _buffer_bytes(problem: Problem, schedule: Schedule, *, apart: bool) -> int:
    """Shared memory for tiles; ``apart``: outputs have buffers besides those of queries."""
    rows = problem.head_dim * (2 if schedule.ahead else 1) + (problem.value_dim if apart else 0)
    return 2 * (
        schedule.block_m * rows + schedule.num_stages * schedule.block_n * (problem.head_dim + problem.value_dim)
    )


def _may_share_query(problem: Problem) -> bool:
    """Whether tiles of outputs fit where those of queries were, part by part."""
    head, value = ([p.width for p in head_parts(x)] for x in (problem.head_dim, problem.value_dim))
    return head[: len(value)] == value


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first."""
    default = default_schedule(plan, problem)
    found = variations(default)
    if is_uneven(plan):
        return *found, *other_lists(plan, default)
    ahead = replace(default, ahead=True)
    if default.cut:
        found += (replace(default, cut=False),)
    if not default.ahead and UnseenKeys.of(plan) and _buffer_bytes(problem, ahead, apart=True) <= _BUFFERS:
        found += (ahead,)
    if _gains_third_consumer(plan, problem):
        found += (_with_three_consumers(plan),)
    return found


def variations(default: Schedule) -> tuple[Schedule, ...]:
    """``default``, and other numbers of keys and stages; some may not fit into shared memory."""
    shapes = ((128, 2), (128, 3), (64, 2), (64, 3), (64, 4))
    others = (replace(default, block_n=n, num_stages=s, ahead=False) for n, s in shapes)
    return tuple(dict.fromkeys((default, *others)))


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    unseen = UnseenKeys.of(plan) or UnseenByWeights.of(plan, problem.dtype, told=True)
    names = installed_names()
    cuts = cuts_of(plan) if schedule.cut else None
    table = table_arguments("tiles") if uses_table(plan) else []
    table += cut_arguments("tiles") if cuts else []
    parameters = [Argument("scale", "fp32", "scale"), *table, *buffer_arguments(plan), *scalar_arguments(plan)]
    arguments = [
        Argument("lse", "", "lse"),
        Argument("counter", "", "counter"),
        *descriptors("query", "ROWS", "QUERY_TILE", problem.head_dim),
        *descriptors("key", "BLOCK_N", "KEY_TILE", problem.head_dim),
        *descriptors("value", "BLOCK_N", "VALUE_TILE", problem.value_dim),
        *descriptors("out", "ROWS", "OUT_TILE", problem.value_dim, kind="ragged" if cuts else "descriptor"),
        *(work := work_arguments(schedule) if schedule.listed else []),
        *parameters,
        *SIZES,
    ]
    head, out = Emitter(), Emitter()
    emit_header(head, "Forward kernel", plan, problem, schedule, target)
    emit_constants(out, problem, schedule)
    out.definition(CELLS)
    shares_query = _buffer_bytes(problem, schedule, apart=True) > _BUFFERS
    loads = run_loads(names, problem, schedule, from_table=uses_table(plan), tells_hidden=unseen.told)
    if cuts:
        emit_cut_place(out, KEYS, SIZES, parameters, schedule.reverse)
        loops = emit_cut_visits(out, KEYS, SIZES, parameters)
        consumer: Consumer = CutConsumer(plan, problem, schedule, parameters, unseen, names, cuts)
        loads = cut_loads(loads, parameters)
    else:
        if schedule.listed:
            emit_work_functions(out, schedule)
        else:
            emit_place_function(out, schedule.reverse)
        loops = emit_visits(out, plan, KEYS, SIZES, parameters)
        consumer = Consumer(plan, problem, schedule, parameters, unseen, names, shares_query)
    consumer.emit(out, loops)
    constants = ["ALL_SEEN"] * unseen.asked_on_host + ["BOUNDED"] * consumer.asks_bound
    emit_load_tiles(out, loads, schedule.ahead)
    out.line("\n")
    with kernel(out, KERNEL, arguments, tuple(constants)):
        if shares_query:
            out.comment("Outputs leave from where queries were.")
        emit_work(out, work)
        emit_body(
            out, problem, schedule, SIZES, parameters, own_out_tiles=not shares_query,
            starts=STARTS if cuts else 1, asks=isinstance(unseen, UnseenByWeights),
            constants=", work" if schedule.listed else "",
            constants_of_consumers="".join(f", {x}" for x in constants),
        )  # fmt: skip
    tables, kernels = emit_lists(out, plan, schedule, parameters[1:], cuts)
    _emit_run(out, plan, problem, schedule, arguments, unseen, consumer.gathers if consumer.asks_bound else None)
    return finish(out, plan, [*kernels, KERNEL], head, tables, short_tanh=True)


@contextmanager
def run_function(out: Emitter, plan: TilePlan, problem: Problem) -> Iterator[None]:
    """``run``: what is written meanwhile launches the kernel for ``out`` and ``lse``."""
    v = plan.variant
    with out.define(f"run({', '.join(['query', 'key', 'value', *user_names(v), 'scale=None', 'tiles=None'])})"):
        shapes = "(B, H, Lq, D), (B, Hkv, Lkv, D), (B, Hkv, Lkv, Dv) -> outputs (B, H, Lq, Dv), lse (B, H, Lq)."
        out.line(f'"""{shapes}"""')
        out.line("batches, heads, q_len, _ = query.shape")
        out.line("kv_heads, kv_len = key.shape[1], key.shape[2]")
        emit_shape_check(out, problem)
        out.line(f"scale = {v.scale if v.scale is not None else problem.head_dim**-0.5!r} if scale is None else scale")
        if not v.scores:
            out.comment("The running maximum needs a positive scale.")
            with out.block("if scale < 0:"):
                out.line("query, scale = -query, -scale")
            out.line("scale = max(scale, 1e-30)")
        shape = f"(batches, heads, q_len, {problem.value_dim})"
        out.line(f"out = torch.empty({shape}, dtype=query.dtype, device=query.device)")
        out.line("lse = torch.empty((batches, heads, q_len), dtype=torch.float32, device=query.device)")
        with out.block("if lse.numel() == 0 or kv_len == 0:"):
            out.line('return out.zero_(), lse.fill_(float("-inf"))')
        yield
        out.line("return out, lse")


def emit_start(
    out: Emitter, programs: str, arguments: Sequence[Argument], options: str = "**FORWARD"
) -> None:
    """The launch of as many programs as fit, which share ``programs`` tiles of queries."""
    out.line("multiprocessors, _ = device_limits(query.device)")
    out.comment("How many tiles of queries were taken after the first one of each program.")
    out.line("counter = torch.zeros(1, dtype=torch.int32, device=query.device)")
    emit_launch(out, KERNEL, f"(min(multiprocessors, {programs}),)", arguments, options)


def _emit_run(
    out: Emitter, plan: TilePlan, problem: Problem, schedule: Schedule, arguments: list[Argument],
    unseen: UnseenKeys | UnseenByWeights, bounded: FoldedScores | None,
) -> None:  # fmt: skip
    out.definition(DESCRIPTOR)
    if schedule.cut:
        out.definition(RAGGED)
    options = "**FORWARD"
    if unseen.asked_on_host:
        unseen.emit_all_seen(out, plan)
        options = f"ALL_SEEN=all_seen({', '.join(host_inputs(plan))}), {options}"
    if bounded is not None:
        options = f"BOUNDED={bounded.emit_bounded(out, plan)}, {options}"
    with run_function(out, plan, problem):
        if uses_table(plan) or schedule.listed:
            emit_classify_call(out, user_names(plan.variant))
        tiles = f"{'most_tiles' if schedule.cut else 'triton.cdiv'}(q_len, {schedule.block_m})"
        if split := schedule.listed and schedule.split_keys:
            partials = {"partial_out": "BLOCK_M.value, VALUE.value", "partial_sums": "2, BLOCK_M.value"}
            emit_room(out, "tiles[-1]", tiles, "batches * heads", partials)
            tiles = f"({tiles} + parts)"
        emit_start(out, f"{tiles} * batches * heads", arguments, options)
        if split:
            sizes = problem.value_dim, schedule.block_m
            emit_merge_launch(out, MERGE, ("out", "lse", *partials), "tiles[-1]", "batches * heads", "q_len", *sizes)
