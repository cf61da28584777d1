"""How large the absolute value of an expression can be."""

from __future__ import annotations

from .build import binary, unary
from .nodes import Binary, Cast, Const, Expr, Param, Unary
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
    match e:
        case Const(value):
            return Const(abs(float(value)), F32)
        case Param() | Cast(Param()) if e.type is F32:
            return unary("abs", e)
        case Unary("tanh" | "sin" | "cos" | "sigmoid"):
            return _ONE
        case Unary("neg" | "abs", x):
            return magnitude(x)
        case Binary("add" | "sub" | "mul", a, b) if e.type is F32:
            left, right = magnitude(a), magnitude(b)
            if left is None or right is None:
                return None
            if e.op != "mul":
                return binary("add", left, right)
            return right if left == _ONE else left if right == _ONE else binary("mul", left, right)
        case _:
            return None
