"""Positions as sums of coordinates: divisions and remainders by constants are decided by what is left below them."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

from .. import build
from ..bounds import Range, interval
from ..linear_form import Linear, to_expr
from ..nodes import Binary, Const, Expr, Index
from ..symbolic import linear
from ..traverse import children, index_names, rewrite, walk
from ..types import I32


def digit(name: str) -> Index:
    """A coordinate, which is never negative. Names of coordinates occur in no variant."""
    return Index(name, I32)


def rewritten(e: Expr, table: Mapping[Index, Expr], ranges: Mapping[str, Range]) -> Expr:
    """``e``, whose integers are exact, with ``table`` put in and divisions decided.

    ``(32 * y + x) // 32`` is ``y`` and ``(32 * y + x) % 32`` is ``x`` if ``x`` is in 0 … 31. ``ranges`` gives the
    values that names can take.

    >>> from ..printer import print_expr
    >>> y, x = digit("y"), digit("x")
    >>> position = build.binary("add", build.binary("mul", build.const(32), y), x)
    >>> row = build.binary("floordiv", build.index("q"), build.const(32))
    >>> print_expr(rewritten(row, {build.index("q"): position}, {"x": (0, 31)}))
    'y'
    """

    def rule(x: Expr) -> Expr:
        if isinstance(x, Index) and x in table:
            return table[x]
        x = build.rebuilt(x, children(x))
        match x:
            case Binary("floordiv" | "mod" as op, a, Const(value=w)) if x.type.is_integer and w > 0:
                return _divided(op, linear(a), int(w), ranges) or x
            case _:
                return x

    return rewrite(e, rule)


def with_distances(e: Expr) -> Expr:
    """``e`` with the squares in it as squares of absolute values, which are known never to be negative.

    >>> from ..parser import parse_expr
    >>> from ..printer import print_expr
    >>> print_expr(with_distances(parse_expr("(q - kv) * (q - kv) <= 9")))
    'abs(q - kv) * abs(q - kv) <= 9'
    """

    if not any(_is_square(x) for x in walk(e)):
        return e

    def rule(x: Expr) -> Expr:
        x = build.rebuilt(x, children(x))
        if not _is_square(x):
            return x
        distance = build.unary("abs", children(x)[0])
        return build.binary("mul", distance, distance)

    return rewrite(e, rule)


def _is_square(e: Expr) -> bool:
    return isinstance(e, Binary) and e.op == "mul" and e.a == e.b and e.type.is_integer and bool(index_names(e))


def _divided(op: str, form: Linear, w: int, ranges: Mapping[str, Range]) -> Expr | None:
    """``form // w`` or ``form % w`` where what multiples of a divisor ``d`` of ``w`` leave stays within one period.

    With ``b`` in 0 … d - 1: ``(d * a + b) // w`` is ``a // (w // d)``, and the remainder ``d * (a % (w // d)) + b``.
    """
    for d in sorted({gcd(c, w) for _, c in form.terms} | {w}, reverse=True):
        rest = Linear(form.constant % d, tuple((m, c) for m, c in form.terms if c % d))
        low, high = interval(to_expr(rest), ranges)
        if d > 1 and low // d == high // d:
            break
    else:
        return None
    period = int(low // d)
    whole = Linear(form.constant // d + period, tuple((m, c // d) for m, c in form.terms if c % d == 0))
    left = to_expr(Linear(rest.constant - d * period, rest.terms))
    if d == w:
        return left if op == "mod" else to_expr(whole)
    if op == "floordiv":
        return build.binary("floordiv", to_expr(whole), build.const(w // d))
    wrapped = build.binary("mod", to_expr(whole), build.const(w // d))
    return build.binary("add", build.binary("mul", build.const(d), wrapped), left)
