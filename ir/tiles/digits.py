"""Positions as sums of coordinates: divisions and remainders by constants are decided by what is left below them."""

from __future__ import annotations

from collections.abc import Mapping

from .. import build
from ..bounds import Range, interval
from ..nodes import Binary, Const, Expr, Index
from ..symbolic import Linear, linear, to_expr
from ..traverse import children, index_names, rewrite
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

    def rule(x: Expr) -> Expr:
        x = build.rebuilt(x, children(x))
        match x:
            case Binary("mul", a, b) if a == b and x.type.is_integer and index_names(a):
                distance = build.unary("abs", a)
                return build.binary("mul", distance, distance)
            case _:
                return x

    return rewrite(e, rule)


def _divided(op: str, form: Linear, w: int, ranges: Mapping[str, Range]) -> Expr | None:
    """``form // w`` or ``form % w`` where what multiples of ``w`` leave stays within one period."""
    rest = Linear(form.constant % w, tuple((m, c) for m, c in form.terms if c % w))
    low, high = interval(to_expr(rest), ranges)
    if low // w != high // w:
        return None
    period = int(low // w)
    if op == "mod":
        return to_expr(Linear(rest.constant - w * period, rest.terms))
    return to_expr(Linear(form.constant // w + period, tuple((m, c // w) for m, c in form.terms if c % w == 0)))
