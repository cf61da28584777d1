"""The backward kernels over boxes of a token space: those of :mod:`.triton_backward` with other tiles.

Where rows, or keys, are in several groups of terms (:mod:`.box_groups`), each kernel adds to what those before it left.
"""

from __future__ import annotations

from typing import Self

from ..ir.tiles.plan import TilePlan
from .box_groups import Groups, groups_of
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import TIDY, atomic_notes, emit_helpers, emit_run
from .triton_box_options import emit_axes, emit_choice, emit_options, emit_shapes, note_of, programs
from .triton_box_shares import emit_added_up, emit_room, emit_share_count, share_arguments
from .triton_box_skeleton import OverBoxes, plan_of_boxes
from .triton_box_tiles import emit_helpers as emit_box_helpers
from .triton_grad_key import KERNEL as KEY_KERNEL
from .triton_grad_key import GradKey
from .triton_grad_query import KERNEL as QUERY_KERNEL
from .triton_grad_query import GradQuery
from .triton_module import Argument, emit_header, emit_launch, finish
from .triton_over_keys import OverKeys
from .triton_row_terms import KERNEL as ROW_KERNEL
from .triton_row_terms import RowTerms, emit_from_outputs
from .triton_split import SHARE_COUNT


class _OverKeys(OverBoxes, OverKeys):
    """A kernel that owns boxes of queries; ``others`` are those of all other groups."""

    # Whether rows outside of grids may be in shares; sums of gradients of captured tensors may not.
    shares = False

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule, groups: Groups, number: int) -> None:
        super().__init__(plan, problem, schedule.descriptors)
        self.schedule = schedule
        self.walk(groups, number, "q", schedule.descriptors, shares=self.shares and not any(problem.buffer_gradients))
        self.others: list[Self] = []

    def emit_programs(self, out: Emitter) -> None:
        """The options of a launch, and how many programs it has."""
        if self.box_tiles.descriptors:
            emit_axes(out, self.space)
        emit_options(out, self.plan, self.space, self.schedule, "GRAD_QUERY", self.suffix)
        out.line(f"programs = {programs(self.space, 'q')} * batches * heads")


class BoxGradQuery(_OverKeys, GradQuery):
    """dQ of a box of queries."""

    shares = True

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        return [*super().arguments(), *(share_arguments(["grad_query"]) if self.in_shares else [])]

    def emit_launches(self, out: Emitter) -> None:
        """The launches of all groups."""
        if self.in_shares:
            self.emit_programs(out)
            emit_share_count(out, self.space, "programs")
            emit_room(out, ["grad_query"], ["grad_query"])
            emit_launch(out, QUERY_KERNEL + self.suffix, "(programs * shares,)", self.arguments(), "**options")
            emit_added_up(out, ["grad_query"], ["grad_query"])
        else:
            super().emit_launches(out)
        for other in self.others:
            other.emit_launches(out)


class BoxRowTerms(_OverKeys, RowTerms):
    """Terms of the rows of a box of queries."""

    def emit_launches(self, out: Emitter) -> None:
        """The launches of all groups."""
        super().emit_launches(out)
        for other in self.others:
            other.emit_launches(out)

    def emit_terms(self, out: Emitter) -> None:
        """Stores what the loop has summed, or adds it to what other kernels found."""
        if not self.groups.add_up:
            super().emit_terms(out)
            return
        for name, found in (("delta", "delta_rows"), ("norm", "total")):
            place = f"{name} + row + rows"
            out.line(f"tl.store({place}, {self.stored(place, found)}, mask=inside)")

    def emit_launch(self, out: Emitter) -> None:
        """The part of ``run`` that fills the terms."""
        super().emit_launch(out)
        if self.groups.add_up:
            out.lines(_TERMS)


class BoxGradKey(OverBoxes, GradKey):
    """dK and dV of a box of keys."""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule, groups: Groups, number: int) -> None:
        super().__init__(plan, problem, schedule.descriptors)
        self.schedule = schedule
        self.walk(groups, number, "k", schedule.descriptors, shares=not any(problem.buffer_gradients))
        self.one_head = any(a.by_head for g in groups.groups for w in g.walks for a in w.term.axes)
        self.others: list[BoxGradKey] = []

    def emit_tiles_of_keys(self, out: Emitter) -> None:
        """The options of the launch, and how many boxes a head has."""
        if self.box_tiles.descriptors:
            emit_axes(out, self.space)
        emit_options(out, self.plan, self.space, self.schedule, "GRAD_KEY", self.suffix)
        out.line(f"tiles_of_keys = {programs(self.space, 'k')}")

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        return [*super().arguments(), *(share_arguments(_KEY_TENSORS) if self.in_shares else [])]

    def emit_launches(self, out: Emitter) -> None:
        """The launches of all groups."""
        if self.in_shares:
            out.line("programs = tiles_of_keys * batches * (heads // group)")
            emit_share_count(out, self.space, "programs")
            emit_room(out, _KEY_TENSORS, _KEY_TARGETS)
            emit_launch(out, KEY_KERNEL + self.suffix, "(programs * shares,)", self.arguments(), "**options")
            emit_added_up(out, _KEY_TENSORS, _KEY_TARGETS)
        else:
            super().emit_launches(out)
        for other in self.others:
            other.emit_tiles_of_keys(out)
            other.emit_launches(out)


# What the kernel for keys writes, and what these are called where it is launched.
_KEY_TENSORS, _KEY_TARGETS = ("grad_key", "grad_value"), ("to_key", "to_value")


def unsupported_reason(plan: TilePlan, problem: Problem) -> str | None:
    """Why kernels over boxes cannot compute these gradients; None where they can."""
    if any(c.kind == "diagonal" for c in GradKey(plan, problem, False).contributions):
        return "they do not add up gradients of captured tensors along diagonals"
    return None


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``."""
    plan = plan_of_boxes(plan)
    by_query = schedule.grad_query or schedule
    of_keys, of_queries = groups_of(plan.boxes, "k"), groups_of(plan.boxes, "q")
    by_keys = [BoxGradKey(plan, problem, schedule, of_keys, i) for i in range(len(of_keys.groups))]
    by_queries = [BoxGradQuery(plan, problem, by_query, of_queries, i) for i in range(len(of_queries.groups))]
    by_rows = [BoxRowTerms(plan, problem, by_query, of_queries, i) for i in range(len(of_queries.groups))]
    grad_key, *grad_key.others = by_keys
    grad_query, *grad_query.others = by_queries
    row_terms, *row_terms.others = by_rows
    found = grad_key.contributions
    head, out = Emitter(), Emitter()
    notes = atomic_notes(found)
    emit_header(head, "Backward kernels", plan, problem, schedule, target, notes, tiles=note_of(plan))
    for key_kernel in by_keys:
        emit_shapes(out, f"GRAD_KEY{key_kernel.suffix}", key_kernel.space, schedule)
    for query_kernel in by_queries:
        emit_shapes(out, f"GRAD_QUERY{query_kernel.suffix}", query_kernel.space, by_query)
    emit_box_helpers(out, [one.box_tiles for one in (*by_keys, *by_queries)])
    for key_kernel in by_keys:
        emit_choice(out, plan, key_kernel.space, schedule, key_kernel.suffix)
    for query_kernel in by_queries:
        emit_choice(out, plan, query_kernel.space, by_query, query_kernel.suffix)
    if any(one.in_shares for one in (*by_keys, *by_queries)):
        out.section(SHARE_COUNT)
    out.section(TIDY)
    if row_terms.exact_rows:
        for row_kernel in by_rows:
            out.section()
            row_kernel.emit(out, by_query)
    else:
        emit_from_outputs(out, problem)
    for key_kernel in by_keys:
        out.section()
        key_kernel.emit(out, schedule)
    for query_kernel in by_queries:
        out.section()
        query_kernel.emit(out, by_query)
    run = Emitter()
    emit_run(run, plan, problem, row_terms, grad_key, grad_query)
    emit_helpers(out, run.text(), found)
    out.section(run.text())
    rows = [ROW_KERNEL + one.suffix for one in by_rows] if row_terms.exact_rows else [ROW_KERNEL]
    names = [*rows, *(KEY_KERNEL + k.suffix for k in by_keys), *(QUERY_KERNEL + k.suffix for k in by_queries)]
    return finish(out, plan, names, head)


_TERMS = """
# One, but for the rounding of the log-sum-exp; nothing in a row that sees nothing.
norm = 1.0 / torch.where(norm == 0.0, 1.0, norm)
delta = delta * norm if grad_lse is None else delta * norm - grad_lse
"""
