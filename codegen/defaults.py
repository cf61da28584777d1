"""Schedules that need no tuning: a table by target, direction and size of a row, and candidates to search.

What of a plan decides between them is asked here by the warp-specialised skeletons too.

Figures of sm_90 are measured (bf16, causal, B 4, H 16, S 4096); the others follow from what fits into shared
memory and registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..ir.dependence import dependence
from ..ir.nodes import TILE_NAMES, Load, Unary
from ..ir.tiles.plan import BoxAxis, Ranges, TilePlan
from ..ir.traverse import index_names, walk
from .box_support import gradients_walk_boxes, walks_boxes
from .schedule import Problem, Schedule, Target
from .triton_values import level_of

Direction = Literal["forward", "backward"]

# Rows of the tables: the widest head in bytes, then (block_m, block_n, warps, stages).
_Shape = tuple[int, int, int, int]
_Table = tuple[tuple[int, _Shape], ...]

# By tensor descriptors, on sm_90 and newer.
_FORWARD: _Table = ((128, (64, 64, 4, 3)), (256, (64, 64, 4, 3)), (512, (64, 64, 4, 2)), (1024, (64, 32, 4, 2)))
_GRAD_KEY: _Table = ((128, (32, 128, 4, 3)), (256, (32, 64, 4, 3)), (512, (32, 64, 4, 2)), (1024, (16, 32, 4, 1)))
_GRAD_QUERY: _Table = ((128, (64, 64, 4, 3)), (256, (128, 64, 8, 3)), (512, (64, 32, 4, 2)), (1024, (32, 16, 4, 1)))
# Of plans whose tiles come from a table: short rows of mostly partial tiles.
_GRAD_KEY_OF_TABLE: _Table = ((128, (32, 128, 4, 3)), (256, (64, 64, 4, 2)), *_GRAD_KEY[2:])
_GRAD_QUERY_OF_TABLE: _Table = ((128, (64, 32, 4, 3)), (256, (64, 32, 4, 3)), *_GRAD_QUERY[2:])
# Of boxes of a token space: large ones see more of their window together.
_BOX_FORWARD: _Table = ((128, (128, 64, 4, 3)), (256, (128, 64, 8, 3)), (512, (64, 64, 4, 2)), (1024, (64, 32, 4, 2)))
_BOX_GRAD_KEY: _Table = ((128, (64, 128, 8, 2)), (256, (64, 128, 8, 2)), *_GRAD_KEY[2:])
_BOX_GRAD_QUERY: _Table = _GRAD_QUERY
# By pointers: addresses take registers too.
_FORWARD_POINTERS: _Table = (
    (128, (128, 64, 4, 3)), (256, (128, 64, 8, 3)), (512, (64, 32, 4, 2)), (1024, (32, 32, 4, 1)),
)  # fmt: skip
_GRAD_KEY_POINTERS: _Table = (
    (128, (64, 64, 4, 2)), (256, (64, 64, 8, 2)), (512, (32, 32, 4, 1)), (1024, (16, 32, 4, 1)),
)  # fmt: skip
_GRAD_QUERY_POINTERS: _Table = (
    (128, (64, 64, 4, 2)), (256, (64, 64, 8, 2)), (512, (32, 32, 4, 1)), (1024, (32, 16, 4, 1)),
)  # fmt: skip
# For products in IEEE precision, which no tensor core computes: they are unrolled, so that larger tiles take
# long to compile. Tiles that come by descriptors, not by pointers, spill thousands of registers there.
_IEEE_FORWARD: _Table = ((512, (32, 32, 8, 1)), (1024, (16, 16, 8, 1)))
_IEEE_GRAD_KEY: _Table = ((256, (32, 32, 8, 1)), (512, (16, 32, 8, 1)), (1024, (16, 16, 8, 1)))
_IEEE_GRAD_QUERY: _Table = ((256, (32, 32, 8, 1)), (512, (32, 16, 8, 1)), (1024, (16, 16, 8, 1)))


def default_schedule(plan: TilePlan, problem: Problem, target: Target, direction: Direction) -> Schedule:
    """The schedule used unless one was tuned or asked for."""
    if target.backend == "cpu":
        return Schedule(128, 128, num_warps=1, num_stages=1)
    ieee = problem.dtype == "f32" and not problem.tf32
    walks = walks_boxes(plan, target) if direction == "forward" else gradients_walk_boxes(plan, target)
    descriptors = problem.aligned and not ieee and target.backend == "cuda" and int(target.arch) >= 90
    if ieee:
        tables = _IEEE_FORWARD, _IEEE_GRAD_KEY, _IEEE_GRAD_QUERY
    elif descriptors and walks:
        tables = _BOX_FORWARD, _BOX_GRAD_KEY, _BOX_GRAD_QUERY
    elif descriptors and plan.method != "closed":
        tables = _FORWARD, _GRAD_KEY_OF_TABLE, _GRAD_QUERY_OF_TABLE
    elif descriptors:
        tables = _FORWARD, _GRAD_KEY, _GRAD_QUERY
    else:
        tables = _FORWARD_POINTERS, _GRAD_KEY_POINTERS, _GRAD_QUERY_POINTERS
    forward, by_key, by_query = (
        Schedule(*_fitting(table, problem, target), descriptors=descriptors) for table in tables
    )
    late_queries, late_keys = later_are_heavier([a for term in plan.boxes for a in term.axes] if walks else [plan])
    if direction == "forward":
        return replace(forward, split_keys=not walks, reverse=late_queries)
    return replace(by_key, reverse=late_keys, grad_query=replace(by_query, reverse=late_queries))


def candidates(plan: TilePlan, problem: Problem, target: Target, direction: Direction) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first. Some may not fit: a tuner skips those that do not compile."""
    default = default_schedule(plan, problem, target, direction)
    shapes = [
        (m, n, warps, stages)
        for m, n in ((64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128))
        for warps in ((4,) if m == 64 and n < 128 else (4, 8))
        for stages in (2, 3)
    ]
    if direction == "forward":
        return tuple(dict.fromkeys((default, *(_shaped(default, s) for s in shapes))))
    found = [default]
    for m, n, warps, stages in [(32, 64, 4, 3), (32, 128, 4, 3), *shapes]:
        found.append(_shaped(default, (m, n, warps, stages)))
    query = default.grad_query
    assert query is not None
    found += [replace(default, grad_query=_shaped(query, s)) for s in shapes]
    return tuple(dict.fromkeys(found))


def heaviest_last(ranges: Ranges) -> bool:
    """Whether later tiles have more to visit: their intervals end later but do not start later."""
    return any(
        index_names(x.stop) & set(TILE_NAMES) and not index_names(x.start) & set(TILE_NAMES) for x in ranges.may
    )


def later_are_heavier(walked: Sequence[TilePlan | BoxAxis]) -> tuple[bool, bool]:
    """Whether later tiles of queries, and of keys, have more to visit, in ``walked``: a plan, or axes of boxes."""
    return any(heaviest_last(x.keys) for x in walked), any(heaviest_last(x.queries) for x in walked)


def heavier_at_one_end(ranges: Ranges) -> bool:
    """Whether earlier or later tiles have more to visit: of an interval only one end moves with the tile."""
    moves = [[bool(index_names(end) & set(TILE_NAMES)) for end in (x.start, x.stop)] for x in ranges.may]
    return any(start != stop for start, stop in moves)


def sees_few_keys(plan: TilePlan) -> bool:
    """Whether the first key that a tile of queries sees moves with it."""
    return any(index_names(x.start) & set(TILE_NAMES) for x in plan.keys.may)


def takes_registers(plan: TilePlan) -> bool:
    """Whether scores are modified by what needs many registers: loads for each pair or key, and functions."""
    return bool(functions_of_pairs(plan) - {"tanh"}) or any(
        isinstance(x, Load) and "kv" in dependence(x) for score in plan.variant.scores for x in walk(score)
    )


def functions_of_pairs(plan: TilePlan) -> set[str]:
    """Functions that scores call for each pair; tanh is one instruction of the hardware, others take several."""
    called = (x for score in plan.variant.scores for x in walk(score) if isinstance(x, Unary))
    return {x.op for x in called if x.op not in ("neg", "not", "abs") and level_of(dependence(x)) == "pair"}


def _shaped(schedule: Schedule, shape: _Shape) -> Schedule:
    m, n, warps, stages = shape
    return replace(schedule, block_m=m, block_n=n, num_warps=warps, num_stages=stages)


def _fitting(table: _Table, problem: Problem, target: Target) -> _Shape:
    item = 4 if problem.dtype == "f32" else 2
    width = max(problem.head_dim, problem.value_dim) * item
    shape = next(shape for limit, shape in table if width <= limit)
    if target.backend == "hip":
        return (*shape[:3], 1)  # 64 KiB of shared memory
    return shape
