"""Which kernels walk boxes of a token space (``TilePlan.boxes``) instead of runs of positions."""

from __future__ import annotations

from ..ir.build import binary
from ..ir.nodes import Binary, Const, Expr, Index, Select
from ..ir.symbolic import simplify
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import walk
from ..ir.types import I32
from .schedule import Target


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
    return None


def _is_sum(x: Expr) -> bool:
    match x:
        case Binary("mod", a, Const()):  # keys before the first query, of a call that has no fewer keys than queries
            return a == simplify(binary("sub", Index("kv_len", I32), Index("q_len", I32)))
        case Binary(op):
            return op in ("add", "sub", "mul", "min", "max")
        case _:
            return True
