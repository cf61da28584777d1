"""Factors of scores taken together, and bounds of scores, against what the expressions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.ir.build import binary, unary
from regard.ir.factors import cost, factored, gathered, is_uniform, with_positive_factor
from regard.ir.interpret import evaluate
from regard.ir.magnitude import magnitude
from regard.ir.nodes import Const, Expr, Param, Score
from regard.ir.printer import print_expr
from regard.ir.types import F32

SCORES = np.linspace(-9.0, 9.0, 37)
VALUES: dict[str, np.ndarray | float] = {"cap": -3.0, "gain": 0.7, "s": SCORES}
CAP, GAIN = Param("cap", F32), Param("gain", F32)
LEAVES: tuple[Expr, ...] = (Score(), Score(), CAP, GAIN, Const(2.0, F32), Const(-0.5, F32))
CAPPED = binary("mul", CAP, unary("tanh", binary("div", binary("mul", Score(), GAIN), CAP)))


def value(e: Expr) -> np.ndarray:
    return np.broadcast_to(evaluate(e, VALUES, floats=np.float64), SCORES.shape)


@st.composite
def scores(draw: st.DrawFn, depth: int = 4) -> Expr:
    """Products, quotients, sums and functions of the score, of two parameters and of numbers."""
    if depth == 0:
        return draw(st.sampled_from(LEAVES))
    x, y = draw(scores(depth - 1)), draw(scores(depth - draw(st.integers(1, depth))))
    match draw(st.sampled_from(("mul", "mul", "mul", "div", "add", "neg", "tanh", "abs"))):
        case "div":
            return binary("div", x, y if is_uniform(y) else binary("add", unary("abs", y), Const(1.0, F32)))
        case "mul" | "add" as op:
            return binary(op, x, y)
        case "neg" | "tanh" | "abs" as function:
            return unary(function, x)
    raise AssertionError


@settings(max_examples=60, deadline=None)
@given(scores())
def test_gathered_is_the_same(e: Expr) -> None:
    with np.errstate(all="ignore"):
        wanted = value(e)
        finite = np.isfinite(wanted) & (np.abs(wanted) < 1e6)
        factor, rest = factored(e)
        for found in (value(gathered(e)), value(factor) * value(rest)):
            np.testing.assert_allclose(found[finite], wanted[finite], rtol=1e-6, atol=1e-6)
        positive = with_positive_factor(factor, rest)
        if positive is not None:
            assert (value(positive[0]) >= 0).all() or not finite.any()
            np.testing.assert_allclose((value(positive[0]) * value(positive[1]))[finite], wanted[finite], 1e-6, 1e-6)
        limit = magnitude(e)
        if limit is not None:
            assert (np.abs(wanted) <= value(limit) * (1 + 1e-9))[~np.isnan(wanted)].all()


def test_a_cap_costs_one_multiplication() -> None:
    factor, rest = factored(CAPPED)
    assert print_expr(factor) == "cap" and print_expr(rest) == "tanh(s * (gain / cap))"
    assert cost(CAPPED) == 6 and cost(rest) == 1


def test_factors_cancel() -> None:
    found = gathered(binary("div", CAPPED, binary("mul", CAP, GAIN)))
    assert print_expr(found) == "tanh(s * (gain / cap)) * (1.0 / gain)"


def test_squares_of_squares_stay_small() -> None:
    e: Expr = binary("mul", Score(), CAP)
    for _ in range(40):
        e = binary("mul", e, e)
    factor, rest = factored(e)
    assert len(print_expr(factor)) < 100
    assert with_positive_factor(CAP, rest) is None and magnitude(e) is None


@pytest.mark.parametrize(
    "e",
    [
        unary("exp", Score()),
        binary("mul", CAP, unary("abs", Score())),
        binary("mul", CAP, binary("add", Score(), Const(1.0, F32))),
    ],
)
def test_the_sign_of_a_factor_stays_where_the_function_is_not_odd(e: Expr) -> None:
    factor, rest = factored(binary("mul", CAP, e))
    assert with_positive_factor(factor, rest) is None


@pytest.mark.parametrize(
    "e", [Score(), binary("mul", Score(), unary("tanh", Score())), binary("div", CAP, GAIN), unary("exp", CAP)]
)
def test_no_bound(e: Expr) -> None:
    assert magnitude(e) is None
