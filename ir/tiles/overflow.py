"""Whether integers stay far enough from the ends of their type to be treated as mathematical integers."""

from __future__ import annotations

from functools import lru_cache

from ..bounds import intervals
from ..nodes import Cast, Expr
from ..traverse import walk
from ..types import I32

# Moving terms between the sides of a comparison, and widening ends to a multiple, stays below 2**63.
ROOM = 2**60


@lru_cache(maxsize=4096)
def is_exact(e: Expr) -> bool:
    """Whether no integer in ``e`` can wrap, or come near to it, for any allowed positions and parameters.

    >>> from regard.ir.build import binary
    >>> from regard.ir.nodes import Param
    >>> n = Param("n", I32)
    >>> is_exact(binary("mul", n, n)), is_exact(binary("mul", n, binary("mul", n, n)))
    (True, False)
    """
    ranges = intervals(e, {})
    for x in walk(e):
        low, high = ranges[id(x)]
        if x.type.is_integer and not -ROOM <= low <= high <= ROOM:
            return False
        if isinstance(x, Cast) and x.type is I32 and x.x.type.is_integer:
            low, high = ranges[id(x.x)]
            if not -(2**31) <= low <= high < 2**31:
                return False
    return True
