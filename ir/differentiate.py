"""Symbolic partial derivatives of a score expression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from . import build
from .nodes import (
    Binary,
    BinaryOp,
    Cast,
    Const,
    Coordinate,
    Expr,
    Index,
    Load,
    Param,
    Reduction,
    Score,
    Select,
    Unary,
    Value,
)
from .traverse import loads, share
from .types import F32

_NOTHING, _ONE = Const(0.0, F32), Const(1.0, F32)


@dataclass(frozen=True, slots=True)
class Partials:
    """Derivatives of one expression by the score it receives and by each float load it uses.

    Loads whose derivative is zero everywhere (read by comparisons only, say) are left out.
    """

    score: Expr
    loads: tuple[tuple[Load, Expr], ...]


def partials(e: Expr) -> Partials:
    """The derivatives of ``e``, a float expression; equal sub-expressions are one object.

    Comparisons, ``floor`` and integers have derivative zero, ``abs`` has 0 at 0, and equal operands of
    ``min`` and ``max`` get half each, as in torch. A derivative is *selected* wherever a value is: what the
    branch not taken does (a division by zero, say) never reaches it.

    >>> from .printer import print_expr
    >>> found = partials(build.unary("tanh", build.binary("mul", Score(), build.const(2.0))))
    >>> print_expr(found.score)
    '2.0 * (1.0 - tanh(s * 2.0) * tanh(s * 2.0))'
    """
    (whole,) = share(e)
    by_load = ((x, _derivative(whole, x)) for x in loads(whole) if x.type is F32)
    found = [(x, d) for x, d in by_load if d != _NOTHING]
    score, *rest = share(_derivative(whole, Score()), *(d for _, d in found))
    return Partials(score, tuple((x, d) for (x, _), d in zip(found, rest, strict=True)))


def _derivative(e: Expr, by: Score | Load) -> Expr:
    """Forward mode: one walk over ``e`` for each variable, of which a score has few."""
    memo: dict[int, Expr] = {}

    def d(x: Expr) -> Expr:
        if id(x) not in memo:
            memo[id(x)] = _one(x, by, d)
        return memo[id(x)]

    return d(e)


def _one(e: Expr, by: Score | Load, d: Callable[[Expr], Expr]) -> Expr:
    if e.type is not F32:
        return _NOTHING
    match e:
        case Score() | Load():
            return _ONE if e == by else _NOTHING
        case Const() | Index() | Param() | Coordinate() | Value() | Reduction():
            return _NOTHING
        case Cast(x):
            return d(x)
        case Select(condition, a, b):
            return _select(condition, d(a), d(b))
        case Unary():
            return _unary(e, d(e.x))
        case Binary():
            return _binary(e, d(e.a), d(e.b))
        case _:
            assert_never(e)


def _unary(e: Unary, dx: Expr) -> Expr:
    if dx == _NOTHING:
        return _NOTHING
    x = e.x
    match e.op:
        case "neg":
            return _negative(dx)
        case "abs":
            below = _select(_compare("lt", x, _NOTHING), _negative(dx), _NOTHING)
            return _select(_compare("gt", x, _NOTHING), dx, below)
        case "exp":
            return _times(dx, e)
        case "exp2":
            return _times(dx, _product(e, Const(math.log(2), F32)))
        case "log":
            return _over(dx, x)
        case "log2":
            return _over(dx, _product(x, Const(math.log(2), F32)))
        case "sqrt":
            return _over(dx, _product(Const(2.0, F32), e))
        case "rsqrt":
            return _times(dx, _product(Const(-0.5, F32), build.binary("div", e, x)))
        case "tanh":
            return _times(dx, build.binary("sub", _ONE, _product(e, e)))
        case "sigmoid":
            return _times(dx, _product(e, build.binary("sub", _ONE, e)))
        case "sin":
            return _times(dx, build.unary("cos", x))
        case "cos":
            return _times(dx, build.unary("neg", build.unary("sin", x)))
        case "floor" | "not":
            return _NOTHING
        case _:
            assert_never(e.op)


def _binary(e: Binary, da: Expr, db: Expr) -> Expr:
    if da == _NOTHING and db == _NOTHING:
        return _NOTHING
    a, b = e.a, e.b
    match e.op:
        case "add":
            return _plus(da, db)
        case "sub":
            return _plus(da, _negative(db))
        case "mul":
            return _plus(_times(da, b), _times(db, a))
        case "div":
            return _plus(_over(da, b), _negative(_times(db, build.binary("div", e, b))))
        case "floordiv":
            return _NOTHING
        case "mod":  # a - b * floor(a / b), whose quotient is constant between jumps
            return _plus(da, _negative(_times(db, build.unary("floor", build.binary("div", a, b)))))
        case "pow":
            return _plus(_power_by_base(e, da), _power_by_exponent(e, db))
        case "min" | "max":
            wins: BinaryOp = "lt" if e.op == "min" else "gt"
            half = Const(0.5, F32)
            tie = _select(_compare("eq", a, b), _plus(_times(da, half), _times(db, half)), db)
            return _select(_compare(wins, a, b), da, tie)
        case (
            "and" | "or" | "xor" | "eq" | "ne" | "lt" | "le" | "gt" | "ge"
            | "bitand" | "bitor" | "bitxor" | "shl" | "shr"
        ):  # fmt: skip
            return _NOTHING
        case _:
            assert_never(e.op)


def _power_by_base(e: Binary, da: Expr) -> Expr:
    """``b * a**(b - 1)``; 0 where ``b`` is 0, also at ``a == 0``."""
    if isinstance(e.b, Const):
        if e.b.value == 0:
            return _NOTHING
        if e.b.value == 1:
            return da
        rest = e.a if e.b.value == 2 else build.binary("pow", e.a, Const(e.b.value - 1, F32))
        return _times(da, _product(e.b, rest))
    slope = _product(e.b, build.binary("pow", e.a, build.binary("sub", e.b, _ONE)))
    return _select(_compare("eq", e.b, _NOTHING), _NOTHING, _times(da, slope))


def _power_by_exponent(e: Binary, db: Expr) -> Expr:
    """``a**b * log(a)``; 0 at ``a == 0`` for ``b >= 0``."""
    slope = _times(db, _product(e, build.unary("log", e.a)))
    flat = build.binary("and", _compare("eq", e.a, _NOTHING), _compare("ge", e.b, _NOTHING))
    return _select(flat, _NOTHING, slope)


# Constructors that leave out zeros and ones, and that keep a selected zero selected.


def _compare(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    return build.binary(op, a, b)


def _product(a: Expr, b: Expr) -> Expr:
    return build.binary("mul", a, b)


def _select(condition: Expr, a: Expr, b: Expr) -> Expr:
    return a if a == b else build.select(condition, a, b)


def _plus(a: Expr, b: Expr) -> Expr:
    if a == _NOTHING:
        return b
    return a if b == _NOTHING else build.binary("add", a, b)


def _negative(a: Expr) -> Expr:
    return a if a == _NOTHING else _through(a, lambda x: build.unary("neg", x))


def _times(da: Expr, factor: Expr) -> Expr:
    return _through(da, lambda x: factor if x == _ONE else _product(x, factor))


def _over(da: Expr, divisor: Expr) -> Expr:
    return _through(da, lambda x: build.binary("div", x, divisor))


def _through(da: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """``f(da)`` inside the branches of a selected zero: an infinite factor must not turn it into NaN."""
    if da == _NOTHING:
        return da
    if isinstance(da, Select) and _NOTHING in (da.a, da.b):
        return _select(da.condition, _through(da.a, f), _through(da.b, f))
    return f(da)
