"""Which kernels walk boxes of a token space (``TilePlan.boxes``) instead of runs of positions."""

from __future__ import annotations

from ..ir.nodes import ZERO
from ..ir.tiles.plan import TilePlan
from .schedule import Target


def walks_boxes(plan: TilePlan, target: Target) -> bool:
    """Whether tiles are boxes: where these decide more than runs of positions, and kernels can walk them."""
    return plan.boxes_decide_more and why_not_boxes(plan, target) is None


def why_not_boxes(plan: TilePlan, target: Target) -> str | None:
    """Why kernels for ``target`` cannot walk the boxes of a plan that has some; None where they can."""
    if target.backend == "cpu":
        return None
    return None
