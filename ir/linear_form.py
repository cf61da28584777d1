"""Sums of products with integer coefficients: the form that integer expressions are collected in, and its order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .build import binary, const, unary
from .nodes import Cast, Const, Expr, Index, Load, Param
from .traverse import index_names

Monomial = tuple[Expr, ...]
# Coefficients by monomial; the constant is that of ().
Terms = dict[Monomial, int]


@dataclass(frozen=True, slots=True)
class Linear:
    """``constant + sum(coefficient * product(monomial))`` over opaque integer expressions."""

    constant: int
    terms: tuple[tuple[Monomial, int], ...]

    def depends_on(self, name: str) -> bool:
        return any(mentions(factor, name) for monomial, _ in self.terms for factor in monomial)


def mentions(e: Expr, name: str) -> bool:
    """Whether ``e`` depends on the index ``name``."""
    return name in index_names(e)


@lru_cache(maxsize=4096)
def order(x: Expr) -> tuple[int, str]:
    """Positions first, then lengths and identities, scalars, and the rest; constants last."""
    match x:
        case Index(name=name):
            places = ("tile_first", "tile_last", "q", "kv", "kv_len", "q_len", "batch", "head", "kv_head")
            return places.index(name) if name in places else 10, name  # coordinates, in the analysis of boxes
        case Cast(x=inner) if inner.type.is_integer:
            return order(inner)
        case Param(name=name):
            return 20, name
        case Load(buffer=name):
            return 21, name + repr(x)
        case Const():
            return 90, repr(x)
        case _:
            return 30, repr(x)


def to_expr(form: Linear) -> Expr:
    """``form`` as an expression, e.g. ``tile_first - window + 1``."""
    result: Expr | None = None
    for monomial, coefficient in form.terms:
        product = monomial[0]
        for factor in monomial[1:]:
            product = binary("mul", product, factor)
        size = abs(coefficient)
        if size != 1:
            product = binary("mul", const(size), product)
        if result is None:
            result = product if coefficient > 0 else None
            if result is None and form.constant > 0:
                result = binary("sub", const(form.constant), product)
                form = Linear(0, form.terms)
            elif result is None:
                result = unary("neg", product)
        else:
            result = binary("add" if coefficient > 0 else "sub", result, product)
    if result is None:
        return const(form.constant)
    if form.constant:
        result = binary("add" if form.constant > 0 else "sub", result, const(abs(form.constant)))
    return result
