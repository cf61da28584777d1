"""Sums of products with integer coefficients, against sympy's polynomials."""

from __future__ import annotations

from typing import Any

import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.ir.build import binary, const, index
from regard.ir.linear_form import to_expr
from regard.ir.nodes import Binary, Cast, Const, Expr, Index, Unary
from regard.ir.symbolic import linear

NAMES = ("q", "kv", "q_len", "kv_len")
SYMBOLS = {name: sympy.Symbol(name, integer=True) for name in NAMES}
LEAVES = st.one_of(st.sampled_from(NAMES).map(index), st.integers(-9, 9).map(const))
SUMS = st.recursive(LEAVES, lambda x: st.builds(binary, st.sampled_from(["add", "sub", "mul"]), x, x), max_leaves=9)


def as_sympy(e: Expr) -> Any:
    match e:
        case Const(value=value):
            return sympy.Integer(value)
        case Index(name=name):
            return SYMBOLS[name]
        case Cast(x=x):
            return as_sympy(x)
        case Unary(op="neg", x=x):
            return -as_sympy(x)
        case Binary(op, a, b):
            x, y = as_sympy(a), as_sympy(b)
            return x + y if op == "add" else x - y if op == "sub" else x * y
    raise AssertionError(e)


@given(SUMS)
@settings(max_examples=200, deadline=None)
def test_sums_are_those_of_sympy(e: Expr) -> None:
    form = linear(e)
    found = {sympy.prod(map(as_sympy, monomial)): n for monomial, n in form.terms}
    wanted = {x: int(n) for x, n in sympy.expand(as_sympy(e)).as_coefficients_dict().items() if n != 0}
    assert form.constant == wanted.pop(sympy.Integer(1), 0)
    assert found == wanted


@given(SUMS)
@settings(max_examples=100, deadline=None)
def test_printed_sums_are_the_same_polynomials(e: Expr) -> None:
    assert sympy.expand(as_sympy(to_expr(linear(e))) - as_sympy(e)) == 0
