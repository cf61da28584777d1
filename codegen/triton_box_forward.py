"""The forward kernels over boxes of a token space: that of :mod:`.triton_forward` with other tiles.

A plan of several terms may need several kernels (:mod:`.box_groups`). Rows that are in more than one of them carry
their sums from kernel to kernel, in float32.
"""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .box_groups import Groups, groups_of
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
from .triton_box_options import emit_axes, emit_choice, emit_options, emit_shapes, note_of, programs
from .triton_box_shares import FIRST, emit_share_count
from .triton_box_skeleton import OverBoxes, plan_of_boxes
from .triton_box_tiles import emit_helpers
from .triton_forward import KERNEL, Forward
from .triton_module import Argument, emit_header, emit_launch, finish
from .triton_split import emit_merge_some
from .triton_tiles import TileLoops


class BoxForward(OverBoxes, Forward):
    """Emits one kernel and its launch; the first of a module emits ``run``."""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule, groups: Groups, number: int) -> None:
        super().__init__(plan, problem, schedule)
        self.walk(groups, number, "q", schedule.descriptors, shares=True)
        if self.in_shares:
            self.first_row, self.entry_rows = " - first_shared", "rows_of_head"
        self.others: list[BoxForward] = []

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        found = super().arguments()
        if self.in_shares:
            found += [FIRST, Argument("rows_of_head", "i32", "target_lse.shape[2]")]
        return [*found, *([Argument("carried", "", "carried")] if self.group.adds else [])]

    def emit_shares(self, out: Emitter, loops: TileLoops) -> None:
        """Shares are those of each walk."""

    def emit_sums(self, out: Emitter) -> None:
        """``m``, ``l`` and ``acc``: of what kernels before this one have seen."""
        if not self.group.adds:
            super().emit_sums(out)
            return
        out.comment("What other kernels found: a sum of 1 at its logarithm, unless they saw nothing.")
        out.line("places = entry.to(tl.int64) * q_len + rows")
        out.line('before = tl.load(lse + places, mask=inside, other=float("-inf"))')
        out.line('nothing = before == float("-inf")')
        out.line(f"m = tl.where(nothing, -3.0e38, before{' * LOG2E' if self.fused else ''})")
        out.line("l = tl.where(nothing, 0.0, 1.0)")
        for p in self.value:
            columns = f"{self.value_columns}{p.suffix}"
            exist = f"inside[:, None] & ({columns} < {p.first + p.valid})" if p.padded else "inside[:, None]"
            place = f"carried + places[:, None] * {self.problem.value_dim} + {columns}"
            out.line(f"acc{p.suffix} = tl.load({place}, mask={exist}, other=0.0)")

    def emit_outputs(self, out: Emitter) -> None:
        """The part of ``run`` that makes ``out`` and ``lse``."""
        super().emit_outputs(out)
        if self.groups.add_up:
            made = "empty_like" if self.groups.complete else "zeros_like"
            out.line(f"carried = torch.{made}(out, dtype=torch.float32)")
        elif not self.groups.complete:
            out.line("out.zero_()")
        if not self.groups.complete:
            out.line('lse.fill_(float("-inf"))')

    def emit_launches(self, out: Emitter) -> None:
        """The part of ``run`` that fills ``out`` and ``lse``."""
        for one in (self, *self.others):
            if one.box_tiles.descriptors:
                emit_axes(out, one.space)
            emit_options(out, one.plan, one.space, one.schedule, "FORWARD", one.suffix)
            out.line(f"programs = {programs(one.space, 'q')} * batches * heads")
            if one.in_shares:
                one.emit_launch(out)
                continue
            target = "out" if not one.groups.add_up or one.group.last else "carried"
            out.line(f"target, target_lse = {target}, lse")
            emit_launch(out, KERNEL + one.suffix, "(programs,)", one.arguments(), "**options")
        if self.groups.add_up and not any(g.last for g in self.groups.groups):
            out.line("out.copy_(carried)")

    def emit_launch(self, out: Emitter) -> None:
        """The launch for shares of the keys, and what merges them."""
        width = self.problem.value_dim
        emit_share_count(out, self.space, "programs")
        out.lines(_SHARE.format(width=width))
        super().emit_launch(out)
        out.lines(_MERGE.format(width=width, columns=1 << (width - 1).bit_length()))


_SHARE = """
target, target_lse, out_share, lse_share = out, lse, 0, 0
if shares > 1:
    partial_out = torch.empty((shares, batches, heads, rows_shared, {width}), dtype=torch.float32, device=out.device)
    partial_sums = torch.empty((shares, 2, batches, heads, rows_shared), dtype=torch.float32, device=out.device)
    out_share, lse_share = partial_out.stride(0), partial_sums.stride(0)
    target, target_lse = partial_out[0], partial_sums[0, 0]
"""
_MERGE = """
if shares > 1:
    launch(
        merge_some, (batches * heads * rows_shared,), out, lse, partial_out, partial_sums,
        batches * heads * rows_shared, shares, {width}, rows_shared, first_shared, q_len,
        COLUMNS={columns}, num_warps=1,
    )
"""


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``."""
    plan = plan_of_boxes(plan)
    groups = groups_of(plan.boxes, "q")
    head, out = Emitter(), Emitter()
    kernels = [BoxForward(plan, problem, schedule, groups, i) for i in range(len(groups.groups))]
    first, *first.others = kernels
    emit_header(head, "Forward kernel", plan, problem, schedule, target, tiles=note_of(plan))
    for one in kernels:
        emit_shapes(out, f"FORWARD{one.suffix}", one.space, schedule)
    emit_helpers(out, [one.box_tiles for one in kernels])
    for one in kernels:
        emit_choice(out, plan, one.space, schedule, one.suffix)
    names = [KERNEL + one.suffix for one in kernels]
    if any(one.in_shares for one in kernels):
        names.append("merge_some")
        emit_merge_some(out, "merge_some", fused=first.fused)
    for one in kernels:
        out.section()
        one.emit_kernel(out)
    out.section()
    first.emit_run(out)
    return finish(out, plan, names, head)
