"""What a comparison of coordinates of several axes says about one of them."""

from __future__ import annotations

from collections.abc import Mapping

from ..bounds import Range, interval
from ..build import binary, const, unary
from ..linear_form import Linear, Monomial, to_expr
from ..nodes import ZERO, Binary, Expr
from ..symbolic import linear, simplify
from ..traverse import index_names
from .formula import Atom, Formula


def axes_in(e: Expr) -> set[int]:
    """The axes whose coordinates or classes ``e`` depends on: they are named "q 0", "block 0" and so on."""
    numbers = (name.partition(" ")[2] for name in index_names(e))
    return {int(number) for number in numbers if number.isdigit()}


def implied_along(condition: Expr, axis: int, limits: Mapping[str, Range]) -> list[Formula]:
    """What a comparison of coordinates of several axes says about one: the others are at their best."""
    found: list[Formula] = []
    for own, others in _separated(condition, axis):
        bound = binary("add", own, const(int(interval(others, limits)[0])))
        if interval(bound, limits)[1] > 0:
            found.append(Atom(simplify(binary("le", bound, ZERO))))
    return found


def sufficient_along(condition: Expr, axis: int, limits: Mapping[str, Range]) -> list[Formula]:
    """What about one axis makes a comparison of several true, with the others at their worst."""
    match _separated(condition, axis):
        case [(own, others)]:
            bound = binary("add", own, const(int(interval(others, limits)[1])))
            return [Atom(simplify(binary("le", bound, ZERO)))]
        case _:
            return []


def _separated(condition: Expr, axis: int) -> list[tuple[Expr, Expr]]:
    """Sums ``a`` and ``b``, of one axis and of the others, with ``a + b <= 0`` for what ``condition`` says."""
    return [
        (
            to_expr(Linear(form.constant, tuple(t for t in form.terms if not _foreign(t[0], axis)))),
            to_expr(Linear(0, tuple(t for t in form.terms if _foreign(t[0], axis)))),
        )
        for form in at_most_zero(condition)
    ]


def at_most_zero(condition: Expr) -> list[Linear]:
    """Sums that are all at most 0 exactly where ``condition`` holds; none where it says no such thing."""
    if not isinstance(condition, Binary) or condition.op == "ne":
        return []
    difference = binary("sub", condition.a, condition.b)
    strict = 1 if condition.op in ("lt", "gt") else 0
    signs = {"le": (1,), "lt": (1,), "ge": (-1,), "gt": (-1,), "eq": (1, -1)}[condition.op]
    forms = (linear(difference if sign > 0 else unary("neg", difference)) for sign in signs)
    return [Linear(form.constant + strict, form.terms) for form in forms]


def _foreign(monomial: Monomial, axis: int) -> bool:
    return any(axes_in(x) - {axis} for x in monomial)
