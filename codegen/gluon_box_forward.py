"""The forward kernel for sm_90 over boxes of a token space: that of :mod:`.gluon_forward` with other tiles.

A tile of queries, and one of keys, is a box that one copy of the tensor memory accelerator moves. The boxes that a
tile visits start at the edge of its window; those with pairs that the mask forbids come first, the others need no mask.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.tiles.plan import TilePlan
from .box_sides import box_tokens
from .defaults import heaviest_last, takes_registers
from .emitter import Emitter
from .gluon_box_consumer import BoxConsumer
from .gluon_box_seen import emit_clean, emit_seen_keys
from .gluon_box_support import reason_against_boxes
from .gluon_box_tiles import BOXES, boxes, copies, emit_axes, is_whole, load_box, next_start
from .gluon_box_visits import BOX_SIZES, GluonBoxVisits, units_of
from .gluon_forward import KERNEL, emit_start, run_function, variations
from .gluon_forward_body import emit_body, emit_constants
from .gluon_loader import TileLoads, emit_load_tiles
from .gluon_module import finish, reason_against_target
from .gluon_names import Names, installed_names
from .gluon_tiles import CELLS
from .schedule import Problem, Schedule, Source, Target
from .triton_box_options import emit_choice, emit_chosen, emit_sides, note_of, programs, shapes_of
from .triton_box_skeleton import plan_of_boxes
from .triton_box_space import BoxSpace
from .triton_module import Argument, buffer_arguments, emit_header, kernel, scalar_arguments
from .triton_tiles import TileLoops

_ROWS = 128
_HEAD_SIZES = (64, 128)


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot walk the boxes of a plan, in one sentence; None where it can.

    The plan's boxes are some that kernels walk: see :mod:`.box_support`.
    """
    for size in (problem.head_dim, problem.value_dim):
        if size not in _HEAD_SIZES:
            return f"head size {size} is not one of {', '.join(map(str, _HEAD_SIZES))}"
    reason = reason_against_boxes(plan)
    if reason is not None:
        return reason
    if box_tokens(plan.boxes[0].axes, _ROWS, _ROWS)[0] < _ROWS:
        return f"classes hold fewer than {_ROWS} queries"
    return reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against."""
    wide = max(problem.head_dim, problem.value_dim) > 64
    keys = 64 if wide and takes_registers(plan) else 128
    stages = 2 if wide and keys == 128 else 4
    (term,) = plan.boxes
    late = any(heaviest_last(axis.keys) for axis in term.axes)
    schedule = Schedule(_ROWS, keys, num_warps=4, num_stages=stages, reverse=late, descriptors=True)
    # At head size 128 rows of few boxes gained, others lost: left to tuning.
    return replace(schedule, ahead=not wide and not plan.variant.scores and _leave_whole(plan, schedule))


def _leave_whole(plan: TilePlan, schedule: Schedule) -> bool:
    """Whether outputs leave by descriptor, which tiles of queries that overlap need."""
    space = BoxSpace(plan.boxes[0], "q")
    return is_whole(space, [shape.queries for shape in shapes_of(space, schedule)])


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first."""
    default = default_schedule(plan, problem)
    found = variations(default)
    return (*found, replace(default, ahead=not default.ahead)) if _leave_whole(plan, default) else found


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    plan = plan_of_boxes(plan)
    (term,) = plan.boxes
    names = installed_names()
    parameters = [Argument("scale", "fp32", "scale"), *buffer_arguments(plan), *scalar_arguments(plan)]
    carried = [*parameters, *units_of("query", "key", "value")]
    visits = GluonBoxVisits(term, "q", BOX_SIZES, carried, reverse=schedule.reverse)
    shapes = shapes_of(visits, schedule)
    whole = is_whole(visits, [shape.queries for shape in shapes])
    assert whole or not schedule.ahead, "outputs by pointers would take the place of the next tile"
    inputs = copies(visits, [("query", "q", "QUERY_TILE"), ("key", "k", "KEY_TILE"), ("value", "k", "VALUE_TILE")])
    target_of = boxes(visits, ("out", "q", "OUT_TILE")) if whole else "out"
    arguments = [
        Argument("lse", "", "lse"),
        Argument("counter", "", "counter"),
        *inputs,
        Argument("out", "", target_of, aligned=not whole),
        *carried,
        *BOX_SIZES,
    ]
    head, out = Emitter(), Emitter()
    emit_header(head, "Forward kernel", plan, problem, schedule, target, tiles=note_of(plan))
    emit_constants(out, problem, schedule, axes=len(visits.view("q")[0]))
    emit_sides(out, "FORWARD", shapes)
    out.definition(CELLS)
    visits.emit_functions(out)
    loops = TileLoops("full_count" if visits.has_full_boxes else "", "", "partial_count", "")
    BoxConsumer(plan, problem, schedule, carried, names, visits, whole=whole).emit(out, loops)
    descriptors = "".join(f"{a.name}, " for a in inputs[3:])
    emit_load_tiles(out, _loads(names, visits, schedule, descriptors), schedule.ahead)
    out.line("\n")
    with kernel(out, KERNEL, arguments, ("BOX",)):
        emit_body(
            out, problem, schedule, BOX_SIZES, carried, descriptors, ", BOX", len(term.axes), own_out_tiles=whole
        )
    _emit_run(out, plan, problem, schedule, visits, arguments)
    return finish(out, plan, [KERNEL], head, short_tanh=True)


def _loads(names: Names, visits: GluonBoxVisits, schedule: Schedule, descriptors: str) -> TileLoads:
    """The loads of boxes."""
    ready, tile = ("q_ready.index(slot)", "slot * CONSUMERS + i") if schedule.ahead else ("q_ready", "i")
    prologue, own = Emitter(), Emitter()
    visits.emit_unpacked(prologue)
    own.line(f"own = {visits.own_box('program')}")
    visits.emit_names(own)
    visits.emit_places(own, "q")
    visits.emit_places(own, "k")
    own.line("visits = visited_boxes(own, sizes, parameters, BOX)")
    start, write_start = next_start(visits)
    return TileLoads(
        prologue=prologue.text().rstrip("\n"),
        visits=own.text().rstrip("\n"),
        count="visits[1]",
        load_query=load_box(names, visits, "query", "q", "head", ready, f"q_tiles.index({tile})"),
        start=start,
        write_start=write_start,
        load_key=load_box(names, visits, "key", "k", "kv_head", "k_ready.index(stage)", "k_tiles.index(stage)"),
        load_value=load_box(names, visits, "value", "k", "kv_head", "v_ready.index(stage)", "v_tiles.index(stage)"),
        descriptors=descriptors,
        constants=", BOX: gl.constexpr",
        start_places=tuple(visits.start_places()),
    )


def _emit_run(
    out: Emitter, plan: TilePlan, problem: Problem, schedule: Schedule, visits: GluonBoxVisits,
    arguments: list[Argument],
) -> None:  # fmt: skip
    out.definition(BOXES)
    emit_choice(out, plan, visits, schedule)
    emit_seen_keys(out, plan, visits)
    with run_function(out, plan, problem):
        emit_clean(out, plan, "value")
        out.line(f"options = {emit_chosen(out, plan, visits, schedule, 'FORWARD')}")
        emit_axes(out, visits)
        out.line(f"programs = {programs(visits, 'q')} * batches * heads")
        emit_start(out, "programs", arguments, "BOX=tuple(options.values()), **FORWARD")
