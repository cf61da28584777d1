"""Rows of the attention matrix that hold nothing: looked for in one call, where the plan proves nothing for all."""

from __future__ import annotations

import numpy as np

from ..build import binary, const
from ..interpret import evaluate
from ..nodes import ZERO, Binary, Cast, Const, Expr, Index
from ..passes.simplify import simplified
from ..traverse import children, substitute
from ..types import I32
from .box_count import is_countable, ranges_of, tiles_along
from .numeric import Array, Sizes, Values, leaves
from .plan import BoxAxis, TilePlan
from .stretches import always

# So many rows are looked at in well under a second.
MOST_ROWS = 2**20


def sees_itself(plan: TilePlan, sizes: Sizes, values: Values) -> bool | None:
    """Whether every query may attend to a key at its own position: counted from the start, or from the end.

    Looks at these pairs alone: axis by axis where the mask is a product of them, in stretches of rows where it is made
    of linear pieces, else one by one, or one of each block. None where there are too many rows for that.
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
        column = binary("add", row, const(offset)) if offset else row
        own = simplified(substitute(mask, {Index("q", I32): row, Index("kv", I32): column}))
        sees = always(own, sizes.q_len, env) if sizes.q_len else True
        if sees is None:
            rows = _rows_that_differ(own, sizes.q_len)
            if sizes.batch * sizes.heads * len(rows) <= MOST_ROWS:
                sees = bool(np.all(evaluate(own, {**env, "tile_first": rows[:, None]}, clamp=True)))
        if sees:
            return True
        undecided = undecided or sees is None
    return None if undecided else False


def _rows_that_differ(e: Expr, length: int) -> Array:
    """The first rows of all blocks that ``e`` puts rows into; all rows where it reads them in any other way."""
    lengths = set[int]()

    def visit(x: Expr) -> bool:
        match x:
            case Index("tile_first"):
                return False
            case Binary("floordiv", Index("tile_first") | Cast(Index("tile_first")), Const(value=n)) if n > 0:
                lengths.add(int(n))
                return True
            case _:
                return all(map(visit, children(x)))

    if not visit(e):
        return np.arange(length)
    return np.unique(np.concatenate([np.zeros(min(length, 1), np.int64), *(np.arange(0, length, n) for n in lengths)]))


def _sees_itself_along(axis: BoxAxis, sizes: Sizes, values: Values) -> bool:
    each = tiles_along(axis, 1, sizes, values)
    keys = ranges_of(each, axis.keys.may, sizes, values)
    return bool(((keys.starts <= each.first) & (each.first < keys.stops)).any(0).all())
