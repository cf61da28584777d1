"""Which boxes of a token space the Gluon kernels can walk, in both directions."""

from __future__ import annotations

from ..ir.tiles.plan import TilePlan
from .triton_box_options import is_known
from .triton_box_tiles import can_describe
from .triton_box_visits import BoxVisits


def reason_against_boxes(plan: TilePlan) -> str | None:
    """Why none of the Gluon kernels can walk the boxes of a plan, in one sentence; None where they can.

    The plan's boxes are some that kernels walk: see :mod:`.box_support`.
    """
    if len(plan.boxes) > 1:
        return "its boxes are of one token space, and this mask takes several"
    (term,) = plan.boxes
    spaces = [BoxVisits(term, "q"), BoxVisits(term, "k")]
    if any(spaces[0].ends_unevenly(x) for x in ("q", "k")):
        return "a grid that starts at a later position, or that no declared grid says the end of, may be cut short"
    if not all(space.is_product for space in spaces):
        return "the mask is no product of one range along each axis, so that which keys no query sees is not known"
    if spaces[0].by_head:
        return "classes differ from head to head"
    if not all(map(is_known, spaces)):
        return "what a box sees depends on captured tensors or on the head"
    if any(len(axis.keys.must) > 1 for axis in term.axes):
        return "keys that all queries of a box see are several ranges along one axis"
    if not can_describe(spaces[0]):
        return "tensor descriptors have no more than five axes, and classes along an axis must be equally long"
    return None
