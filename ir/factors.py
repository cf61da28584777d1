"""Factors of float expressions that are the same for all pairs of a head: taken together, and apart from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .build import binary, select, unary
from .dependence import dependence
from .nodes import Binary, Const, Expr, Score, Select, Unary
from .traverse import children, share, substitute, walk, with_children
from .types import F32

_ONE: Expr = Const(1.0, F32)
_PAIRS = frozenset(("q", "kv", "s"))
# Higher powers of one factor are left where they are.
_MOST = 4

# Powers of uniform factors, by number, and what they multiply: None is one.
_Parts = tuple[Mapping[int, int], Expr | None]
_Parity = Literal["odd", "even", ""]


def gathered(e: Expr) -> Expr:
    """``e`` with the uniform factors of each product as one, and without those that cancel.

    Equal but for rounding, where no product of factors leaves the range of floats.

    >>> from .nodes import Param
    >>> from .printer import print_expr
    >>> scale, cap = Param("scale", F32), Param("cap", F32)
    >>> far = unary("tanh", binary("div", binary("mul", Score(), scale), cap))
    >>> print_expr(gathered(binary("mul", cap, far)))
    'tanh(s * (scale / cap)) * cap'
    >>> print_expr(gathered(binary("div", binary("mul", cap, far), cap)))
    'tanh(s * (scale / cap))'
    """
    return _times(*factored(e))


def factored(e: Expr) -> tuple[Expr, Expr]:
    """A uniform factor, which may be the literal 1, and what it multiplies to be :func:`gathered` ``e``."""
    (e,) = share(e)
    number: dict[int, Expr] = {}
    memo: dict[int, _Parts] = {}

    def parts(x: Expr) -> _Parts:
        if id(x) not in memo:
            memo[id(x)] = found(x)
        return memo[id(x)]

    def found(x: Expr) -> _Parts:
        match x:
            case Binary("mul" | "div", a, b) if x.type is F32:
                (left, rest), (right, other) = parts(a), parts(b)
                sign = 1 if x.op == "mul" else -1
                powers = {i: left.get(i, 0) + sign * right.get(i, 0) for i in {**left, **right}}
                if all(abs(n) <= _MOST for n in powers.values()):
                    if other is None:
                        varying = rest
                    elif rest is None:
                        varying = other if x.op == "mul" else binary("div", _ONE, other)
                    else:
                        varying = binary(x.op, rest, other)
                    return {i: n for i, n in powers.items() if n}, varying
            case Unary("neg", a):
                same, varying = parts(a)
                if varying is not None:
                    return same, unary("neg", varying)
        if x.type is F32 and is_uniform(x):
            if x == _ONE:
                return {}, None
            number[id(x)] = x
            return {id(x): 1}, None
        return {}, with_children(x, tuple(_joined(parts(c), number) for c in children(x)))

    powers, rest = parts(e)
    return _product(powers, number), _ONE if rest is None else rest


def is_uniform(e: Expr) -> bool:
    """Whether ``e`` is the same for all pairs of a head."""
    return _PAIRS.isdisjoint(dependence(e))


def cost(*expressions: Expr) -> int:
    """How much multiplications and divisions take that are done for each pair, in multiplications."""
    nodes = {id(x): x for e in share(*expressions) for x in walk(e)}.values()
    return sum({"mul": 1, "div": 4}.get(x.op, 0) for x in nodes if isinstance(x, Binary) and not is_uniform(x))


def with_positive_factor(factor: Expr, rest: Expr) -> tuple[Expr, Expr] | None:
    """The same product with a factor that is not negative; None where nothing cheaper than a multiplication does.

    The sign of a factor goes to the score that an odd function receives.

    >>> from .nodes import Param
    >>> from .printer import print_expr
    >>> cap = Param("cap", F32)
    >>> found = with_positive_factor(cap, unary("tanh", binary("div", Score(), cap)))
    >>> found and [print_expr(x) for x in found]
    ['abs(cap)', 'tanh(s * (where(cap < 0.0, -1.0, 1.0) / cap))']
    """
    if isinstance(factor, Const) and factor.value >= 0:
        return factor, rest
    if _parities(rest)[id(rest)] != "odd":
        return None
    sign = select(binary("lt", factor, Const(0.0, F32)), Const(-1.0, F32), _ONE)
    turned = gathered(substitute(rest, {Score(): binary("mul", Score(), sign)}))
    return (unary("abs", factor), turned) if cost(turned) <= cost(rest) else None


def _parities(e: Expr) -> dict[int, _Parity]:
    """How every node of ``e`` changes with the sign of the score: its sign does, or nothing; "" if not known."""
    found: dict[int, _Parity] = {}
    for x in walk(e):
        found[id(x)] = _parity(x, [found[id(c)] for c in children(x)])
    return found


def _parity(e: Expr, operands: list[_Parity]) -> _Parity:
    if isinstance(e, Score):
        return "odd"
    if all(x == "even" for x in operands):
        return "even"
    match e, operands:
        case Binary("mul" | "div"), [a, b] if a and b:
            return "even" if a == b else "odd"
        case (Binary("add" | "sub"), [a, b]) | (Select(), ["even", a, b]) if a == b:
            return a
        case Unary("neg" | "tanh" | "sin"), [a]:
            return a
        case Unary("abs" | "cos"), ["odd"]:
            return "even"
        case _:
            return ""


def _joined(parts: _Parts, number: Mapping[int, Expr]) -> Expr:
    powers, rest = parts
    return _times(_product(powers, number), _ONE if rest is None else rest)


def _times(factor: Expr, rest: Expr) -> Expr:
    if rest == _ONE:
        return factor
    return rest if factor == _ONE else binary("mul", rest, factor)


def _product(powers: Mapping[int, int], number: Mapping[int, Expr]) -> Expr:
    above, below = _ONE, _ONE
    for i, power in powers.items():
        for _ in range(power):
            above = _times(number[i], above)
        for _ in range(-power):
            below = _times(number[i], below)
    return above if below == _ONE else binary("div", above, below)
