"""How large the absolute value of an expression can be."""

from __future__ import annotations

from .build import binary, unary
from .nodes import Binary, Cast, Const, Expr, Param, Unary
from .traverse import children, walk
from .types import F32

_ONE = Const(1.0, F32)


def magnitude(e: Expr) -> Expr | None:
    """A float expression of literals and scalar parameters that ``abs(e)`` does not exceed where it is not NaN.

    None where none was found: scores, captured tensors and positions may be anything. Of functions alone, sums and
    products, a bound is made of ``abs``, ``+`` and ``*``.

    >>> from .nodes import Score
    >>> from .printer import print_expr
    >>> cap = Param("cap", F32)
    >>> found = magnitude(binary("mul", cap, unary("tanh", binary("div", Score(), cap))))
    >>> found and print_expr(found)
    'abs(cap)'
    """
    found: dict[int, Expr | None] = {}
    for x in walk(e):
        found[id(x)] = _magnitude(x, [found[id(c)] for c in children(x)])
    return found[id(e)]


def _magnitude(e: Expr, operands: list[Expr | None]) -> Expr | None:
    match e, operands:
        case Const(value), _:
            return Const(abs(float(value)), F32)
        case (Param() | Cast(Param())), _ if e.type is F32:
            return unary("abs", e)
        case Unary("tanh" | "sin" | "cos" | "sigmoid"), _:
            return _ONE
        case Unary("neg" | "abs"), [a]:
            return a
        case Binary("add" | "sub"), [a, b] if a is not None and b is not None and e.type is F32:
            return binary("add", a, b)
        case Binary("mul"), [a, b] if a is not None and b is not None and e.type is F32:
            return b if a == _ONE else a if b == _ONE else binary("mul", a, b)
        case _:
            return None
