"""Which kernels walk boxes of a token space (``TilePlan.boxes``) instead of runs of positions."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from ..ir.build import binary
from ..ir.nodes import ZERO, Binary, Const, Expr, Index, Select
from ..ir.symbolic import simplify
from ..ir.tiles.box_count import count_boxes
from ..ir.tiles.count import tile_counts
from ..ir.tiles.numeric import Sizes
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import parameter_names, walk
from ..ir.types import I32
from .box_sides import box_shapes
from .schedule import Target

# Queries and keys of a tile, and by how much kernels are faster on these than on boxes whose axes depend on each other:
# windows that narrow with the distance of frames took 1.2 times as long forward, and 1.75 times as long backward.
_TILE, _FASTER = (128, 64), 1.2
# Of grids whose outermost axis is as long as a call says; and how many tokens of a grid are looked at.
_ROWS, _LONG = 16, 16384


def walks_boxes(plan: TilePlan, target: Target) -> bool:
    """Whether tiles are boxes: where these decide more than runs of positions, and kernels can walk them."""
    return plan.boxes_decide_more and why_not_boxes(plan, target) is None


def why_not_boxes(plan: TilePlan, target: Target) -> str | None:
    """Why kernels for ``target`` cannot walk the boxes of a plan that has some; None where they can."""
    if target.backend == "cpu":
        return None
    origins = [origin for term in plan.boxes for origin in (term.query_origin, term.key_origin)]
    if any(isinstance(x, Select) or not _is_sum(x) for e in origins for x in walk(e)):
        return "a grid of theirs begins at a position that is more than a sum of lengths and parameters"
    if (target.backend, target.arch) == ("cuda", 90) and _is_nested(plan) and _are_hardly_fewer(plan):
        return "they hold hardly fewer pairs than tiles from a table, and kernels were measured faster on these"
    return None


def _is_nested(plan: TilePlan) -> bool:
    return plan.method == "classified" and len(plan.boxes) == 1 and plan.boxes[0].is_nested


@lru_cache(maxsize=64)
def _are_hardly_fewer(plan: TilePlan) -> bool:
    """Whether boxes of one term whose axes depend on each other hold nearly as many pairs as tiles do.

    Counted where the mask reads no parameters and rows are no shorter than a tile, of as many as such grids may have.
    """
    (term,) = plan.boxes
    sides = term.axes[0].query, term.axes[0].key
    if parameter_names(plan.variant.mask) or (term.query_origin, term.key_origin) != (ZERO, ZERO):
        return False
    if min(s.stride for s in sides) < max(_TILE):
        return False
    rows = (int(s.size.value) if isinstance(s.size, Const) else _ROWS for s in sides)
    lengths = (min(n, max(_LONG // s.stride, 1)) * s.stride for n, s in zip(rows, sides, strict=True))
    sizes = Sizes(1, 1, 1, *lengths)
    shapes = box_shapes(term.axes, "q", *_TILE)
    counts = [count_boxes(term, s.queries, s.keys, sizes, {})[0] * prod((*s.queries, *s.keys)) for s in shapes]
    return tile_counts(plan, sizes, {}, *_TILE).tile_pairs <= _FASTER * min(counts)


def _is_sum(x: Expr) -> bool:
    match x:
        case Binary("mod", a, Const()):  # keys before the first query, of a call that has no fewer keys than queries
            return a == simplify(binary("sub", Index("kv_len", I32), Index("q_len", I32)))
        case Binary(op):
            return op in ("add", "sub", "mul", "min", "max")
        case _:
            return True
