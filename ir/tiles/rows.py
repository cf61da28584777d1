"""Rows of the attention matrix that hold nothing: looked for in one call, where the plan proves nothing for all."""

from __future__ import annotations

import numpy as np

from ..interpret import evaluate
from .numeric import Sizes, Values, leaves
from .plan import TilePlan

# So many rows are looked at in well under a second.
MOST_ROWS = 2**20


def sees_itself(plan: TilePlan, sizes: Sizes, values: Values) -> bool | None:
    """Whether every query may attend to a key at its own position: counted from the start, or from the end.

    Evaluates the mask on these pairs alone. None where there are too many rows to look at.
    """
    if sizes.batch * sizes.heads * sizes.q_len > MOST_ROWS:
        return None
    rows = np.arange(sizes.q_len)[:, None]
    for offset in dict.fromkeys((0, sizes.kv_len - sizes.q_len)):
        if offset < 0 or sizes.q_len + offset > sizes.kv_len:
            continue
        if np.all(evaluate(plan.variant.mask, {**leaves(sizes, values), "q": rows, "kv": rows + offset})):
            return True
    return False
