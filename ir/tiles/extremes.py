"""Smallest and largest value of an expression over the positions of one tile, as expressions."""

from __future__ import annotations

from functools import lru_cache

from ..build import const, unary
from ..linear_form import mentions, to_expr
from ..nodes import Binary, Cast, Const, Expr, Index, Select, Unary
from ..symbolic import TILE_FIRST, TILE_LAST, at_least, linear, simplify
from ..traverse import substitute
from ..types import I32
from .arithmetic import Extremes, interval
from .solve import Axis


@lru_cache(maxsize=4096)
def extremes(e: Expr, axis: Axis) -> Extremes | None:
    """Bounds of the integer ``e`` over positions ``tile_first <= axis <= tile_last``.

    Attained where ``e`` is monotone in the position, else merely sound. None where nothing is known
    (a buffer read by position, a float).

    >>> from regard.ir.build import binary, const, index
    >>> low, high = extremes(binary("floordiv", index("q"), const(64)), "q")
    >>> low == simplify(binary("floordiv", TILE_FIRST, const(64)))
    True
    """
    # q - q % w hides its monotony until it is written w * (q // w).
    for form in (linear(e), linear(e, True)):
        expression = to_expr(form)
        slope = _slope(expression, axis)
        if slope is not None:
            ends = (_at(expression, axis, TILE_FIRST), _at(expression, axis, TILE_LAST))
            return ends if slope >= 0 else ends[::-1]

    def leaf(x: Expr) -> Extremes | None:
        if not mentions(x, axis):
            return x, x
        return (TILE_FIRST, TILE_LAST) if isinstance(x, Index) else None

    bounds = interval(to_expr(linear(e)), leaf)
    return None if bounds is None else (simplify(bounds[0]), simplify(bounds[1]))


def _at(e: Expr, axis: Axis, position: Expr) -> Expr:
    return simplify(substitute(e, {Index(axis, I32): position}))


def _slope(e: Expr, axis: Axis) -> int | None:
    """1 where ``e`` never falls along the axis, -1 where it never rises, 0 where constant, None if unknown."""
    if not mentions(e, axis):
        return 0
    match e:
        case Index():
            return 1
        case Cast(x=x) if x.type.is_integer:
            return _slope(x, axis)
        case Unary(op="neg", x=x):
            inner = _slope(x, axis)
            return None if inner is None else -inner
        case Binary(op="sub", a=a, b=b):
            return _same_direction(_slope(a, axis), _slope(unary("neg", b), axis))
        case Binary(op=("add" | "min" | "max"), a=a, b=b):
            return _same_direction(_slope(a, axis), _slope(b, axis))
        case Binary(op="mul", a=a, b=b):
            factor, rest = (a, b) if not mentions(a, axis) else (b, a)
            inner = _slope(rest, axis)
            sign = 1 if at_least(factor, const(0)) else -1 if at_least(const(0), factor) else None
            return None if mentions(factor, axis) or inner is None or sign is None else sign * inner
        case Binary(op="floordiv", a=a, b=Const(value=w)) if w > 0:
            return _slope(a, axis)
        case Select(condition=c, a=a, b=b) if not mentions(c, axis):
            return _same_direction(_slope(a, axis), _slope(b, axis))
        case _:
            return None


def _same_direction(a: int | None, b: int | None) -> int | None:
    if a is None or b is None or a * b < 0:
        return None
    return a or b
