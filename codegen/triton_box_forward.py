"""The forward kernel over boxes of a token space: that of :mod:`.triton_forward` with other tiles."""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
from .triton_box_options import emit_axes, emit_choice, emit_options, emit_shapes, note_of, programs
from .triton_box_skeleton import OverBoxes, plan_of_boxes
from .triton_box_tiles import BOXES
from .triton_forward import KERNEL, Forward
from .triton_module import emit_header, emit_launch, finish


class BoxForward(OverBoxes, Forward):
    """Emits the kernel and ``run``."""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule) -> None:
        super().__init__(plan, problem, schedule)
        self.walk(plan.boxes[0], "q", schedule.descriptors)

    def emit_launches(self, out: Emitter) -> None:
        """The part of ``run`` that fills ``out`` and ``lse``."""
        if self.box_tiles.descriptors:
            emit_axes(out, self.space)
        emit_options(out, self.plan, self.space, self.schedule, "FORWARD")
        out.line(f"programs = {programs(self.space, 'q')} * batches * heads")
        out.line("target, target_lse = out, lse")
        emit_launch(out, KERNEL, "(programs,)", self.arguments(), "**options")


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``."""
    plan = plan_of_boxes(plan)
    (term,) = plan.boxes
    head, out = Emitter(), Emitter()
    forward = BoxForward(plan, problem, schedule)
    emit_header(head, "Forward kernel", plan, problem, schedule, target, tiles=note_of(term))
    emit_shapes(out, "FORWARD", forward.space, schedule)
    if forward.box_tiles.descriptors:
        out.section(BOXES)
    emit_choice(out, plan, forward.space, schedule)
    out.section()
    forward.emit_kernel(out)
    out.section()
    forward.emit_run(out)
    return finish(out, plan, [KERNEL], head)
