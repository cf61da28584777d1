"""Whether integers stay far enough from the ends of their type to be treated as mathematical integers."""

from __future__ import annotations

from functools import lru_cache

from ..bounds import interval
from ..build import binary, const
from ..nodes import COMPARISONS, Binary, Cast, Expr, Load
from ..traverse import children, loads, rewrite, walk
from ..types import I32, I64

# Moving terms between the sides of a comparison, and widening ends to a multiple, stays below 2**63.
ROOM = 2**60


@lru_cache(maxsize=4096)
def is_exact(e: Expr, *, compared: bool = False) -> bool:
    """Whether no integer in ``e`` can wrap, or come near to it, for any allowed positions and parameters.

    Elements of 64-bit tensors may have any value, so they may only enter ``min`` and ``max``; with ``compared``
    (nothing will be moved between the sides of a comparison) also comparisons with each other.

    >>> from regard.ir.build import binary
    >>> from regard.ir.nodes import Param
    >>> n = Param("n", I32)
    >>> is_exact(binary("mul", n, n)), is_exact(binary("mul", n, binary("mul", n, n)))
    (True, False)
    """
    wide = set[int]()
    for x in walk(e):
        low, high = interval(x, {})
        reads_wide = bool(wide) and any(id(c) in wide for c in children(x))
        if x.type.is_integer and not -ROOM <= low <= high <= ROOM:
            if not (isinstance(x, Load) or _is_op(x, {"min", "max"})):
                return False
            wide.add(id(x))
        if reads_wide and not (
            _is_op(x, {"min", "max"}) or (compared and _is_op(x, COMPARISONS) and all(map(_is_wide_load, children(x))))
        ):
            return False
        if isinstance(x, Cast) and x.type is I32 and x.x.type.is_integer:
            low, high = interval(x.x, {})
            if not -(2**31) <= low <= high < 2**31:
                return False
    return id(e) not in wide


def with_bounded_loads(mask: Expr) -> Expr:
    """``mask`` with elements of 64-bit tensors clamped to what matters for the comparisons they are in.

    That is one beyond the range of the other side: no comparison changes, and :func:`is_exact` holds.

    >>> from regard.ir.parser import parse_expr
    >>> from regard.ir.printer import print_expr
    >>> from regard.ir.types import BufferType
    >>> from regard.ir.variant import BufferParameter
    >>> print_expr(with_bounded_loads(parse_expr("kv < n[batch]", [BufferParameter("n", BufferType(I64, ("batch",)))])))
    'kv < min(max(n[batch], -1), 268435456)'
    """

    if not any(map(_is_wide_load, loads(mask))):
        return mask

    def bounded(x: Expr, other: Expr) -> Expr:
        low, high = interval(other, {})
        if not _is_wide_load(x) or not -ROOM <= low <= high <= ROOM:
            return x
        return binary("min", binary("max", x, const(int(low) - 1)), const(int(high) + 1))

    def rule(x: Expr) -> Expr:
        if isinstance(x, Binary) and x.op in COMPARISONS and x.a.type.is_integer:
            return binary(x.op, bounded(x.a, x.b), bounded(x.b, x.a), x.loc)
        return x

    return rewrite(mask, rule)


def _is_op(x: Expr, ops: set[str] | frozenset[str]) -> bool:
    return isinstance(x, Binary) and x.op in ops


def _is_wide_load(x: Expr) -> bool:
    return isinstance(x, Load) and x.type is I64
