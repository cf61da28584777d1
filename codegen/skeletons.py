"""Which kernel skeleton runs. Every choice has its reason, which ``explain`` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ir.tiles.plan import TilePlan
from .box_support import walks_boxes as walks_boxes
from .box_support import why_not_boxes, why_not_boxes_of_gradients
from .defaults import Direction, functions_of_pairs, sees_few_keys
from .defaults import candidates as candidates_of_triton
from .schedule import Problem, Schedule, Source, Target
from .triton_program import uses_table

Skeleton = Literal["torch", "triton", "gluon"]

# Of an H100 or H200, for which choices are explained where there is none.
_MULTIPROCESSORS = 132


@dataclass(frozen=True, slots=True)
class Pinned:
    """A skeleton and a schedule that were chosen from outside, instead of by :func:`choose`."""

    skeleton: Skeleton
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Choice:
    """A skeleton, and in one sentence why it and not a faster or more general one."""

    skeleton: Skeleton
    reason: str


def fills(q_len: int, batch: int, heads: int, multiprocessors: int = _MULTIPROCESSORS) -> bool:
    """Whether there is a tile of 128 queries for every multiprocessor.

    >>> fills(128, batch=2, heads=66), fills(128, batch=2, heads=65)
    (True, False)
    """
    return -(-q_len // 128) * batch * heads >= multiprocessors


def is_long(q_len: int, kv_len: int, problem: Problem, *, masked: bool) -> bool:
    """Whether rows of tiles are mostly long, as far as lengths can tell, and that matters.

    Measured at 1024, 4096, 8192 and 16384 tokens; a row of ``masked`` attention sees half of them, or fewer.
    """
    return min(q_len, kv_len) >= (8192 if masked else 2048) and problem.head_dim == 64


def choose(
    plan: TilePlan, problem: Problem, target: Target, direction: Direction, fills_gpu: bool, long: bool = False
) -> Choice:
    """The skeleton for ``plan``.

    ``fills_gpu``: whether calls are large, see :func:`fills`; ``long``: see :func:`is_long`. Preferences between
    skeletons that could both run are measured (bf16 on an H200; see benchmarks/results).
    """
    if target.backend == "cpu":
        return Choice("torch", "the printed PyTorch program is what runs on a CPU")
    if _walks_boxes(plan, problem, target, direction):
        return _choose_for_boxes(plan, problem, target, direction, fills_gpu)
    choice = _choose_for_runs(plan, problem, target, direction, fills_gpu, long)
    if not plan.boxes_decide_more:
        return choice
    reason = why_not_boxes(plan, target) or _why_not_these_gradients(plan, problem, target)
    return Choice(choice.skeleton, f"{choice.reason}; boxes would decide more, but kernels do not walk them: {reason}")


def _choose_for_boxes(
    plan: TilePlan, problem: Problem, target: Target, direction: Direction, fills_gpu: bool
) -> Choice:
    decide = "boxes decide more here than runs of positions"
    from . import gluon_box_backward, gluon_box_forward

    forward = direction == "forward"
    reason = (gluon_box_forward if forward else gluon_box_backward).unsupported_reason(plan, problem, target)
    if reason is not None:
        return Choice("triton", f"{decide}; the warp-specialised skeleton over boxes (gluon) cannot: {reason}")
    reason = _slower_scores(plan, problem) if forward else None
    if reason is not None:
        return Choice("triton", f"{decide}; the warp-specialised skeleton (gluon) was measured {reason}")
    if not fills_gpu:
        return Choice("triton", f"{decide}; too few of them for the warp-specialised skeleton (gluon) to fill the GPU")
    form = "softmax beside both products" if forward else "seven products, every sum in one program"
    return Choice("gluon", f"{decide}; warp-specialised: boxes by TMA, wgmma, {form}")


def alternatives(plan: TilePlan, problem: Problem, target: Target, direction: Direction) -> tuple[Pinned, ...]:
    """What is worth timing for ``plan``: every skeleton that can run it, each with its default schedule first.

    Some schedules may not fit into a multiprocessor: a tuner leaves out those that do not compile.
    """
    of_triton = candidates_of_triton(plan, problem, target, direction)
    of_gluon = _candidates_of_gluon(plan, problem, target, direction)
    return (*(Pinned("triton", s) for s in of_triton), *(Pinned("gluon", s) for s in of_gluon))


def _candidates_of_gluon(
    plan: TilePlan, problem: Problem, target: Target, direction: Direction
) -> tuple[Schedule, ...]:
    if _walks_boxes(plan, problem, target, direction) and direction == "backward":
        from .gluon_box_backward import candidates, unsupported_reason
    elif direction == "backward":
        return _gradients_of_gluon(plan, problem, target)
    elif walks_boxes(plan, target):
        from .gluon_box_forward import candidates, unsupported_reason
    else:
        from .gluon_forward import candidates, unsupported_reason
    return () if unsupported_reason(plan, problem, target) else candidates(plan, problem)


def _gradients_of_gluon(plan: TilePlan, problem: Problem, target: Target) -> tuple[Schedule, ...]:
    """Of both forms: that which repeats bit by bit may be the faster one too."""
    from . import gluon_backward, gluon_repeatable

    forms = (gluon_backward, gluon_repeatable)
    found = (() if x.unsupported_reason(plan, problem, target) else x.candidates(plan, problem) for x in forms)
    return tuple(schedule for schedules in found for schedule in schedules)


def _walks_boxes(plan: TilePlan, problem: Problem, target: Target, direction: Direction) -> bool:
    if direction == "forward":
        return walks_boxes(plan, target)
    return walks_boxes(plan, target) and _why_not_these_gradients(plan, problem, target) is None


def _why_not_these_gradients(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    reason = why_not_boxes_of_gradients(plan, target)
    if reason is not None or not any(problem.buffer_gradients):
        return reason
    from .triton_box_backward import unsupported_reason

    return unsupported_reason(plan, problem)


def _choose_for_runs(
    plan: TilePlan, problem: Problem, target: Target, direction: Direction, fills_gpu: bool, long: bool
) -> Choice:
    # Imported late: other targets do not need it.
    from . import gluon_backward, gluon_forward, gluon_repeatable
    from .gluon_cuts import may_be_cut

    why_seven = _why_seven_products(plan, problem, target)
    backward = gluon_backward if why_seven is None else gluon_repeatable
    reason = (gluon_forward if direction == "forward" else backward).unsupported_reason(plan, problem, target)
    if reason is not None:
        return Choice("triton", f"the warp-specialised skeleton (gluon) cannot: {reason}")
    cut = may_be_cut(plan) and (direction == "forward" or why_seven is None)
    reason = _slower_on_tables(plan, problem, direction, long, cut)
    if reason is None and direction == "forward":
        reason = _slower_scores(plan, problem)
    if reason is not None:
        return Choice("triton", f"the warp-specialised skeleton (gluon) was measured {reason}")
    if not fills_gpu:
        return Choice("triton", "too few tiles for the warp-specialised skeleton (gluon) to fill the GPU")
    if direction == "forward":
        return Choice("gluon", "warp-specialised: TMA, wgmma, softmax beside both products")
    if why_seven is None:
        return Choice("gluon", "warp-specialised: TMA, wgmma, five products, gradients of queries added as they come")
    products = "seven" if gluon_repeatable.default_schedule(plan, problem).grad_value is None else "eight"
    return Choice("gluon", f"warp-specialised: TMA, wgmma; {products} products: the kernel with five {why_seven}")


def _why_seven_products(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why the backward pass is that of :mod:`.gluon_repeatable`; None where it is that of :mod:`.gluon_backward`."""
    from .gluon_backward import unsupported_reason
    from .gluon_grad_work import cuts_long_rows

    reason = unsupported_reason(plan, problem, target)
    if reason is not None:
        return f"cannot: {reason}"
    if cuts_long_rows(plan):
        return "does not cut long ones of uneven rows of tiles into shares"
    if problem.head_dim == 128 and sees_few_keys(plan):
        return "was measured slower at head size 128 where queries see few keys"
    return None


def _slower_on_tables(
    plan: TilePlan, problem: Problem, direction: Direction, long: bool, cut: bool
) -> str | None:
    """``cut``: the warp-specialised kernel has tiles that begin anew where data changes."""
    from .gluon_forward import default_schedule
    from .gluon_grad_work import cuts_long_rows
    from .gluon_seen import may_hide_keys

    if cut:
        return None
    # At head size 128 short rows lose less (0.56 against 0.51 ms, backward) than long ones gain (5.6 against 8.1 ms).
    widest = problem.head_dim if direction == "backward" else max(problem.head_dim, problem.value_dim)
    if not uses_table(plan) or widest >= 96:
        return None
    if direction == "backward" and cuts_long_rows(plan):
        return None
    if not long:
        return "slower at head size 64 where tiles come from a table and its rows are short"
    if direction == "backward" and len(plan.boxes) > 1:
        return "slower at head size 64 where tiles come from a table and boxes of several terms cut closer"
    if direction == "forward" and default_schedule(plan, problem).listed:
        return "slower at head size 64 where tiles come from a table and rows from a list"
    if may_hide_keys(plan):
        return "slower at head size 64 where tiles come from a table and may hold keys that no query sees"
    return None


def _slower_scores(plan: TilePlan, problem: Problem) -> str | None:
    functions = functions_of_pairs(plan)
    if functions - {"tanh"}:
        return "slower where scores call functions, other than tanh"
    if plan.variant.scores and not functions and max(problem.head_dim, problem.value_dim) < 96:
        return "slower at head size 64 where scores are modified by cheap arithmetic"
    return None


def schedule_for(
    choice: Choice, plan: TilePlan, problem: Problem, target: Target, direction: Direction, long: bool = False
) -> Schedule:
    """The default schedule of the chosen skeleton; ``long``: see :func:`is_long`."""
    if choice.skeleton == "gluon":
        if direction == "forward" and walks_boxes(plan, target):
            from .gluon_box_forward import default_schedule
        elif direction == "backward" and _walks_boxes(plan, problem, target, direction):
            from .gluon_box_backward import default_schedule
        elif direction == "forward":
            from . import gluon_forward

            return gluon_forward.default_schedule(plan, problem, long)
        else:
            from . import gluon_backward, gluon_repeatable

            if _why_seven_products(plan, problem, target) is None:
                return gluon_backward.default_schedule(plan, problem)
            return gluon_repeatable.default_schedule(plan, problem)
        return default_schedule(plan, problem)
    from .defaults import default_schedule as default_triton_schedule

    return default_triton_schedule(plan, problem, target, direction)


def emit(
    choice: Choice, plan: TilePlan, problem: Problem, schedule: Schedule, target: Target, direction: Direction
) -> Source:
    """The generated module; each emitter is imported by the one case that needs it."""
    match choice.skeleton, direction:
        case "torch", "forward" if walks_boxes(plan, target):
            from . import torch_box_forward

            return torch_box_forward.emit_forward(plan, problem, schedule)
        case "torch", "backward" if walks_boxes(plan, target):
            from . import torch_box_backward

            return torch_box_backward.emit_backward(plan, problem, schedule)
        case "torch", "forward":
            from . import torch_program

            return torch_program.emit_forward(plan, problem, schedule)
        case "torch", "backward":
            from . import torch_backward

            return torch_backward.emit_backward(plan, problem, schedule)
        case "triton", "forward" if _walks_boxes(plan, problem, target, direction):
            from . import triton_box_forward

            return triton_box_forward.emit_forward(plan, problem, schedule, target)
        case "triton", "backward" if _walks_boxes(plan, problem, target, direction):
            from . import triton_box_backward

            return triton_box_backward.emit_backward(plan, problem, schedule, target)
        case "triton", "forward":
            from . import triton_forward

            return triton_forward.emit_forward(plan, problem, schedule, target)
        case "triton", "backward":
            from . import triton_backward

            return triton_backward.emit_backward(plan, problem, schedule, target)
        case "gluon", "forward" if walks_boxes(plan, target):
            from . import gluon_box_forward

            return gluon_box_forward.emit_forward(plan, problem, schedule, target)
        case "gluon", "forward":
            from . import gluon_forward

            return gluon_forward.emit_forward(plan, problem, schedule, target)
        case "gluon", "backward" if _walks_boxes(plan, problem, target, direction):
            from . import gluon_box_backward

            return gluon_box_backward.emit_backward(plan, problem, schedule, target)
        case _ if schedule.grad_query is not None:
            from . import gluon_repeatable

            return gluon_repeatable.emit_backward(plan, problem, schedule, target)
        case _:
            from . import gluon_backward

            return gluon_backward.emit_backward(plan, problem, schedule, target)
