"""Rows of the attention matrix that hold nothing: looked for in one call, where the plan proves nothing for all."""

from __future__ import annotations

import numpy as np

from ..build import binary, const
from ..interpret import evaluate
from ..nodes import ZERO, Expr, Index
from ..traverse import substitute
from ..types import I32
from .box_count import is_countable, ranges_of, tiles_along
from .numeric import Sizes, Values, leaves
from .plan import BoxAxis, TilePlan
from .stretches import always

# So many rows are looked at in well under a second.
MOST_ROWS = 2**20


def sees_itself(plan: TilePlan, sizes: Sizes, values: Values) -> bool | None:
    """Whether every query may attend to a key at its own position: counted from the start, or from the end.

    Looks at these pairs alone: axis by axis where the mask is a product of them, in stretches of rows where it is made
    of linear pieces, else one by one. None where there are too many rows for that.
    """
    mask, env = plan.variant.mask, leaves(sizes, values)
    if sizes.q_len == sizes.kv_len and len(plan.boxes) == 1 and is_countable(plan.boxes[0], sizes, values):
        (term,) = plan.boxes
        if not term.remaining and all(a.query == a.key and a.shift == ZERO and not a.by_head for a in term.axes):
            return all(_sees_itself_along(axis, sizes, values) for axis in term.axes)
    row: Expr = Index("tile_first", I32)
    undecided = False
    for offset in dict.fromkeys((0, sizes.kv_len - sizes.q_len)):
        if offset < 0 or sizes.q_len + offset > sizes.kv_len:
            continue
        own = substitute(mask, {Index("q", I32): row, Index("kv", I32): binary("add", row, const(offset))})
        sees = always(own, sizes.q_len, env) if sizes.q_len else True
        if sees is None and sizes.batch * sizes.heads * sizes.q_len <= MOST_ROWS:
            sees = bool(np.all(evaluate(own, {**env, "tile_first": np.arange(sizes.q_len)[:, None]}, clamp=True)))
        if sees:
            return True
        undecided = undecided or sees is None
    return None if undecided else False


def _sees_itself_along(axis: BoxAxis, sizes: Sizes, values: Values) -> bool:
    each = tiles_along(axis, 1, sizes, values)
    keys = ranges_of(each, axis.keys.may, sizes, values)
    return bool(((keys.starts <= each.first) & (each.first < keys.stops)).any(0).all())
