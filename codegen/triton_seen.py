"""Which keys of a partial tile some query of the tile sees."""

from __future__ import annotations

from ..ir.nodes import Binary, Cast, Const, Expr, Index, Unary
from ..ir.traverse import index_names


def hull_is_exact(mask: Expr) -> bool:
    """Whether the keys seen by the queries of any tile are exactly the plan's one interval.

    True for conjunctions of comparisons between kv and ``q + c`` or ``c``, where c is constant within a
    tile: row q then sees ``max(q + a, b) <= kv < min(q + c, d)``, whose ends rise by at most one from row to
    row. The rows that see anything are neighbours (the width is concave in q), so their union has no gap,
    and it starts and ends where the first and last row say.
    """
    match mask:
        case Binary("and", a, b):
            return hull_is_exact(a) and hull_is_exact(b)
        case Const(value):
            return bool(value)
        case Binary("lt" | "le" | "gt" | "ge", a, b):
            left, right = _slopes(a), _slopes(b)
            if left is None or right is None:
                return False
            q, kv = left[0] - right[0], left[1] - right[1]
            return (kv != 0 and q in (0, -kv) and abs(kv) == 1) or (q, kv) == (0, 0)
        case _:
            return False


def _slopes(e: Expr) -> tuple[int, int] | None:
    """Coefficients of q and kv in an integer expression that is affine in both, else None."""
    if not e.type.is_integer:
        return None
    if not index_names(e) & {"q", "kv"}:
        return 0, 0
    match e:
        case Index(name):
            return int(name == "q"), int(name == "kv")
        case Cast(x):
            return _slopes(x)
        case Unary("neg", x):
            inner = _slopes(x)
            return inner and (-inner[0], -inner[1])
        case Binary("add" | "sub" as op, a, b):
            left, right = _slopes(a), _slopes(b)
            if left is None or right is None:
                return None
            sign = 1 if op == "add" else -1
            return left[0] + sign * right[0], left[1] + sign * right[1]
        case _:
            return None
