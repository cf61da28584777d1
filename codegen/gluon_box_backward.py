"""The backward pass for sm_90 over boxes of a token space: that of :mod:`.gluon_repeatable` with other tiles.

A box of queries visits boxes of keys for dQ, as in the forward pass, and a box of keys visits boxes of queries for dK
and dV. So every sum has one program, and nothing is added to global memory.
"""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from . import gluon_repeatable
from .box_groups import Letter
from .box_sides import box_tokens
from .emitter import Emitter
from .gluon_backward import emit_key_kernel, parameters_of, reason_against_sizes, run_function
from .gluon_box_grads import OPTIONS, BoxKeyConsumer, BoxQueryConsumer, BoxRowConsumer
from .gluon_box_seen import emit_clean, emit_seen_keys
from .gluon_box_support import reason_against_boxes
from .gluon_box_tiles import BOXES, Tensor, boxes, copies, emit_axes, is_whole
from .gluon_box_visits import GluonBoxVisits, units_of
from .gluon_grad_consumer import SUMMED_BY_KEY
from .gluon_grad_loader import SIZES as KEY_SIZES
from .gluon_grad_query import SUMMED_BY_QUERY
from .gluon_grad_rows import row_kernels
from .gluon_module import finish
from .gluon_names import installed_names
from .gluon_repeatable import emit_launches, emit_query_kernels, kernels_of, sums_of
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import emit_helpers
from .triton_box_options import emit_choice, emit_sides, note_of, shapes_of
from .triton_box_skeleton import plan_of_boxes
from .triton_gradients import emit_scatter
from .triton_module import Argument, emit_header
from .triton_program import SIZES

# Sizes of heads and values.
_SIZES = ((64, 64), (128, 64), (128, 128))
_INPUTS: dict[str, Tensor] = {
    "query": ("query", "q", "QUERY_TILE"), "key": ("key", "k", "KEY_TILE"),
    "value": ("value", "k", "VALUE_TILE"), "grad_out": ("grad_out", "q", "OUT_TILE"),
}  # fmt: skip


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why these kernels cannot compute the backward pass, in one sentence; None where they can.

    The plan's boxes are some that kernels walk: see :mod:`.box_support`.
    """
    reason = reason_against_sizes(problem, _SIZES) or gluon_repeatable.unsupported_reason(plan, problem, target)
    reason = reason or reason_against_boxes(plan)
    if reason is not None:
        return reason
    (term,) = plan.boxes
    if any(len(axis.queries.must) > 1 for axis in term.axes):
        return "queries that see all keys of a box are several ranges along one axis"
    schedule = default_schedule(plan, problem)
    assert schedule.grad_query is not None
    kernels: dict[Letter, Schedule] = {"k": schedule, "q": schedule.grad_query}
    for own, s in kernels.items():
        if box_tokens(term.axes, s.block_m, s.block_n) != (s.block_m, s.block_n):
            return f"classes hold fewer than {max(s.block_m, s.block_n)} {'keys' if own == 'k' else 'queries'}"
    return None


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipelines for a plan and problem that :func:`unsupported_reason` has nothing against."""
    return gluon_repeatable.plain_schedule(plan, problem, plan.boxes[0].axes)


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first."""
    return gluon_repeatable.variations(plan, problem, default_schedule(plan, problem))


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    by_query = schedule.grad_query
    assert by_query is not None, "a schedule of another form"
    plan = plan_of_boxes(plan)
    names = installed_names()
    head, out = Emitter(), Emitter()
    emit_header(head, "Backward kernels", plan, problem, schedule, target, tiles=note_of(plan))

    parameters = [*parameters_of(plan, ""), *units_of(*_INPUTS)]
    of_keys = [*parameters, *sums_of(plan, problem, SUMMED_BY_KEY)]
    visits = GluonBoxVisits(plan.boxes[0], "k", KEY_SIZES, of_keys, reverse=schedule.reverse)
    whole = _emit_shapes(out, visits, schedule)
    inputs = copies(visits, list(_INPUTS.values()))
    consumer = BoxKeyConsumer(plan, problem, schedule, names, visits, [a.name for a in inputs[4:]], whole=whole)
    arguments = [
        *inputs,
        Argument("terms", "", "terms"),
        _target(visits, ("grad_key", "k", "KEY_TILE"), "to_key", whole),
        _target(visits, ("grad_value", "k", "VALUE_TILE"), "to_value", whole),
        *of_keys,
        *KEY_SIZES,
    ]
    emit_key_kernel(out, gluon_repeatable.KERNEL, plan, schedule, consumer, arguments, of_keys)

    of_queries = [*parameters, *sums_of(plan, problem, SUMMED_BY_QUERY)]
    visits = GluonBoxVisits(plan.boxes[0], "q", SIZES, of_queries, reverse=by_query.reverse)
    whole = _emit_shapes(out, visits, by_query)
    inputs = copies(visits, list(_INPUTS.values()))
    short = [a.name for a in inputs[4:]]
    queries = BoxQueryConsumer(plan, problem, by_query, names, consumer.folded, visits, short, whole=whole)
    targets = [_target(visits, ("grad_query", "q", "QUERY_TILE"), "grad_query", whole)]
    inputs += [Argument("terms", "", "terms"), *of_queries, *SIZES]
    rows = BoxRowConsumer(queries, short) if queries.contributions else None
    targets, inputs = emit_query_kernels(out, queries, rows, targets, inputs)
    out.definition(BOXES)
    for consumed, s in ((consumer, schedule), (queries, by_query)):
        emit_choice(out, plan, consumed.visits, s)
    emit_seen_keys(out, plan, visits)
    before = len(out.text())
    with run_function(out, plan, problem, consumer.folded):
        emit_clean(out, plan, "key")
        emit_axes(out, visits)
        emit_launches(out, plan, schedule, consumer, arguments, queries, targets, inputs)
        emit_scatter(out, plan, queries.contributions)
    emit_helpers(out, out.text()[before:], queries.contributions)
    kernels = row_kernels(problem, consumer.folded, sums=False, exact=rows is not None)
    return finish(out, plan, kernels_of(queries), head, kernels, short_tanh=problem.dtype == "bf16")


def _emit_shapes(out: Emitter, visits: GluonBoxVisits, schedule: Schedule) -> bool:
    """The boxes to choose from; returns whether all of them end where their class does, or where the tensor does."""
    shapes = shapes_of(visits, schedule)
    emit_sides(out, OPTIONS[visits.own], shapes)
    return is_whole(visits, [s.queries if visits.own == "q" else s.keys for s in shapes])


def _target(visits: GluonBoxVisits, tensor: Tensor, name: str, whole: bool) -> Argument:
    """A gradient: by descriptor, or by pointers."""
    return Argument(tensor[0], "", boxes(visits, (name, *tensor[1:])) if whole else name, aligned=not whole)
