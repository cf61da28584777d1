"""Interval arithmetic on integer expressions whose bounds are expressions themselves."""

from __future__ import annotations

from collections.abc import Callable

from ..build import binary, const, select, unary
from ..nodes import Binary, Cast, Const, Expr, Select, Unary
from ..traverse import index_names
from ..types import BOOL

Extremes = tuple[Expr, Expr]


def interval(e: Expr, leaf: Callable[[Expr], Extremes | None]) -> Extremes | None:
    """Lower and upper bound of ``e``, sound for any operands and blind to correlation between them.

    ``leaf`` gives the bounds of a sub-expression that need not be taken apart, else None. The result is
    None where no rule applies: floats, and loads that ``leaf`` does not know.
    """
    known = leaf(e)
    if known is not None:
        return known
    match e:
        case Cast(x=x) if x.type.is_integer:
            return interval(x, leaf)
        case Cast(x=x) if x.type is BOOL and e.type.is_integer:
            return const(0), const(1)
        case Unary(op=("neg" | "abs") as op, x=x) if e.type.is_integer:
            inner = interval(x, leaf)
            if inner is None:
                return None
            low, high = inner
            if op == "neg":
                return unary("neg", high), unary("neg", low)
            # max(low, -high, 0) is the distance from zero to [low, high].
            return _most(low, unary("neg", high), const(0)), _most(unary("neg", low), high)
        case Binary(op=("mod" | "floordiv") as op, a=a, b=Const(value=w) as divisor) if e.type.is_integer and w > 0:
            inner = interval(a, leaf)
            if inner is None:
                return None
            if op == "mod":
                return _mod(*inner, int(w))
            return binary("floordiv", inner[0], divisor), binary("floordiv", inner[1], divisor)
        case Binary(op=("add" | "sub" | "mul" | "min" | "max") as op, a=a, b=b) if e.type.is_integer:
            left, right = interval(a, leaf), interval(b, leaf)
            if left is None or right is None:
                return None
            if op == "sub":
                return binary("sub", left[0], right[1]), binary("sub", left[1], right[0])
            if op != "mul":
                return binary(op, left[0], right[0]), binary(op, left[1], right[1])
            corners = [binary("mul", s, t) for s in dict.fromkeys(left) for t in dict.fromkeys(right)]
            return _least(*corners), _most(*corners)
        case Select(condition=c, a=a, b=b) if e.type.is_integer:
            left, right = interval(a, leaf), interval(b, leaf)
            if left is None or right is None:
                return None
            if not index_names(c) & {"q", "kv"}:
                return select(c, left[0], right[0]), select(c, left[1], right[1])
            return _least(left[0], right[0]), _most(left[1], right[1])
        case _:
            return None


def chosen(some: Expr, every: Expr, first: Extremes, second: Extremes, always: Extremes) -> Extremes:
    """Bounds of a choice between numbers with the bounds ``first`` and ``second``, where ``always`` are its own.

    ``some`` is whether the first may be chosen anywhere, ``every`` whether it is everywhere.
    """
    # What is chosen nowhere leaves the bounds to the other one.
    low = binary("min", select(some, first[0], always[1]), select(every, always[1], second[0]))
    high = binary("max", select(some, first[1], always[0]), select(every, always[0], second[1]))
    return low, high


def _mod(low: Expr, high: Expr, w: int) -> Extremes:
    """Within one period the remainder is monotone; across periods it can be anything."""
    divisor = const(w)
    one_period = binary("eq", binary("floordiv", low, divisor), binary("floordiv", high, divisor))
    return (
        select(one_period, binary("mod", low, divisor), const(0)),
        select(one_period, binary("mod", high, divisor), const(w - 1)),
    )


def _least(first: Expr, *rest: Expr) -> Expr:
    for x in rest:
        first = binary("min", first, x)
    return first


def _most(first: Expr, *rest: Expr) -> Expr:
    for x in rest:
        first = binary("max", first, x)
    return first
