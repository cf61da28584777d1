"""The backward kernels over boxes of a token space: those of :mod:`.triton_backward` with other tiles."""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import TIDY, atomic_notes, emit_helpers, emit_run
from .triton_box_options import emit_axes, emit_choice, emit_options, emit_shapes, note_of, programs
from .triton_box_skeleton import OverBoxes, plan_of_boxes
from .triton_box_tiles import BOXES
from .triton_grad_key import KERNEL as KEY_KERNEL
from .triton_grad_key import GradKey
from .triton_grad_query import KERNEL as QUERY_KERNEL
from .triton_grad_query import GradQuery
from .triton_module import emit_header, finish
from .triton_over_keys import OverKeys
from .triton_row_terms import KERNEL as ROW_KERNEL
from .triton_row_terms import RowTerms, emit_from_outputs


class _OverKeys(OverBoxes, OverKeys):
    schedule: Schedule

    def emit_programs(self, out: Emitter) -> None:
        """The options of a launch, and how many programs it has."""
        emit_options(out, self.plan, self.space, self.schedule, "GRAD_QUERY")
        out.line(f"programs = {programs(self.space, 'q')} * batches * heads")


class BoxGradQuery(_OverKeys, GradQuery):
    """dQ of a box of queries."""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule) -> None:
        super().__init__(plan, problem, schedule.descriptors)
        self.schedule = schedule
        self.walk(plan.boxes[0], "q", schedule.descriptors)


class BoxRowTerms(_OverKeys, RowTerms):
    """Terms of the rows of a box of queries."""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule) -> None:
        super().__init__(plan, problem, schedule.descriptors)
        self.schedule = schedule
        self.walk(plan.boxes[0], "q", schedule.descriptors)


class BoxGradKey(OverBoxes, GradKey):
    """dK and dV of a box of keys."""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule) -> None:
        super().__init__(plan, problem, schedule.descriptors)
        self.schedule = schedule
        self.walk(plan.boxes[0], "k", schedule.descriptors)

    def emit_tiles_of_keys(self, out: Emitter) -> None:
        """The options of the launch, and how many boxes a head has."""
        emit_options(out, self.plan, self.space, self.schedule, "GRAD_KEY")
        out.line(f"tiles_of_keys = {programs(self.space, 'k')}")


def unsupported_reason(plan: TilePlan, problem: Problem) -> str | None:
    """Why kernels over boxes cannot compute these gradients; None where they can."""
    if any(c.kind == "diagonal" for c in GradKey(plan, problem, False).contributions):
        return "they do not add up gradients of captured tensors along diagonals"
    return None


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``."""
    plan = plan_of_boxes(plan)
    (term,) = plan.boxes
    by_query = schedule.grad_query or schedule
    grad_key, grad_query = BoxGradKey(plan, problem, schedule), BoxGradQuery(plan, problem, by_query)
    row_terms = BoxRowTerms(plan, problem, by_query)
    found = grad_key.contributions
    head, out = Emitter(), Emitter()
    notes = atomic_notes(found)
    emit_header(head, "Backward kernels", plan, problem, schedule, target, notes, tiles=note_of(term))
    emit_shapes(out, "GRAD_KEY", grad_key.space, schedule)
    emit_shapes(out, "GRAD_QUERY", grad_query.space, by_query)
    if grad_key.box_tiles.descriptors or grad_query.box_tiles.descriptors:
        out.section(BOXES)
    emit_choice(out, plan, grad_key.space, schedule)
    emit_choice(out, plan, grad_query.space, by_query)
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

    def prepare(run: Emitter) -> None:
        if grad_key.box_tiles.descriptors or grad_query.box_tiles.descriptors:
            emit_axes(run, grad_key.space)

    run = Emitter()
    emit_run(run, plan, problem, row_terms, grad_key, grad_query, prepare=prepare)
    emit_helpers(out, run.text(), found)
    out.section(run.text())
    return finish(out, plan, [ROW_KERNEL, KEY_KERNEL, QUERY_KERNEL], head)
