"""Squares that are compared with small numbers, kept small."""

from __future__ import annotations

from math import isqrt

from .bounds import Range, interval
from .build import binary, const
from .nodes import COMPARISONS, Binary, Cast, Expr
from .traverse import joined, rewrite

# Limits below which squares, and sums of a few of them, fit in 32 bits; and what a few of fit in 64 bits.
_MOST, _LARGEST, _FEW = 2**28, 2**60, 4


def small_squares(e: Expr) -> Expr:
    """``e`` with the same value, in which no square is much larger than what a sum with it is compared with.

    A distance of positions may be large, so that its square takes 64 bits; whether that is below a limit is told
    by the distance cut at the root of the limit.

    >>> from .parser import parse_expr
    >>> from .printer import print_expr
    >>> print_expr(small_squares(parse_expr("(q - kv) * (q - kv) + q % 4 < 99")))
    'max(min(q - kv, 10), -10) * max(min(q - kv, 10), -10) + q % 4 < 99'
    """
    return rewrite(e, _compared)


def _compared(e: Expr) -> Expr:
    match e:
        case Binary(op, a, b) if op in COMPARISONS and a.type.is_integer and b.type.is_integer:
            cut = _cut(a, b), _cut(b, a)
            return e if cut == (a, b) else binary(op, *cut, e.loc)
        case _:
            return e


def _cut(total: Expr, limit: Expr) -> Expr:
    """``total`` with large squares among its addends cut, which then are still greater than ``limit``."""
    _, most = interval(limit, {})
    addends = joined(total, "add")
    ranges = [_range(x) for x in addends]
    if not 0 <= most < _MOST or len(addends) > _FEW or any(low < 0 or high > _LARGEST for low, high in ranges):
        return total
    found = [_square_up_to(x, isqrt(int(most)) + 1) for x in addends]
    if found == addends:
        return total
    first, *others = found
    for x in others:
        first = binary("add", first, x)
    return first


def values_of(e: Expr) -> Range:
    """The interval of a sum, which knows that squares are not below 0."""
    ranges = [_range(x) for x in joined(e, "add")]
    return sum(low for low, _ in ranges), sum(high for _, high in ranges)


def _root(e: Expr) -> Expr | None:
    """What ``e`` is the square of, if of an integer."""
    match e:
        case Cast(x) if x.type.is_integer:
            return _root(x)
        case Binary("mul", a, b) if a == b and a.type.is_integer:
            return a
        case _:
            return None


def _range(e: Expr) -> Range:
    """The values of ``e``, of which a square is none below 0."""
    root = _root(e)
    return interval(e, {}) if root is None else (0, max(map(abs, interval(root, {}))) ** 2)


def _square_up_to(e: Expr, most: int) -> Expr:
    """``e``, or the smaller one of it and the square of ``most`` if it is a square that may be large."""
    root = _root(e)
    if root is None or _range(e)[1] < _MOST:
        return e
    cut = binary("max", binary("min", root, const(most)), const(-most))
    return binary("mul", cut, cut, e.loc)
