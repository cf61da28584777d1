"""Partial derivatives against finite differences, and where derivatives are delicate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regard.ir.differentiate import partials
from regard.ir.interpret import evaluate
from regard.ir.nodes import Expr, Index, Load, Param, Unary
from regard.ir.parser import parse_expr
from regard.ir.printer import print_expr
from regard.ir.traverse import walk
from regard.ir.types import F32, BufferType, ScalarType
from regard.ir.variant import BufferParameter, ScalarParameter
from strategies import scores

BIAS = BufferParameter("bias", BufferType(F32, ("_",)))
PARAMETERS = (BIAS, ScalarParameter("gain", F32))


def _environment(e: Expr, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    env: dict[str, Any] = {"s": rng.normal()}
    for x in walk(e):
        if isinstance(x, Index):
            env[x.name] = int(rng.integers(0, 20))
        elif isinstance(x, Param):
            env[x.name] = _random(rng, x.type)
        elif isinstance(x, Load):  # one element: every index is clamped to it
            env[x.buffer] = np.full((1,) * len(x.indices), _random(rng, x.type))
    return env


def _random(rng: np.random.Generator, type: ScalarType) -> Any:
    return rng.normal() if type is F32 else bool(rng.integers(2)) if type is ScalarType.BOOL else int(rng.integers(20))


def _value(e: Expr, env: dict[str, Any]) -> float:
    return float(evaluate(e, env, floats=np.float64, clamp=True).item())


def _slope(e: Expr, env: dict[str, Any], name: str) -> float | None:
    """The central difference, or None where two step sizes disagree: a kink, a jump or a huge derivative."""
    slopes = []
    for h in (1e-5, 2e-6):
        up, down = ({**env, name: np.asarray(env[name]) + d} for d in (h, -h))
        slopes.append((_value(e, up) - _value(e, down)) / (2 * h))
    usable = np.isfinite(slopes).all() and abs(slopes[0] - slopes[1]) < 1e-4 * (1 + abs(slopes[0])) < 1e3
    return slopes[0] if usable else None


@given(scores(), st.integers(0, 2**32 - 1))
def test_derivatives_agree_with_finite_differences(e: Expr, seed: int) -> None:
    env = _environment(e, seed)
    found = partials(e)
    by_name = {"s": _value(found.score, env)}
    for load, partial in found.loads:  # several loads of one buffer are one element here
        by_name[load.buffer] = by_name.get(load.buffer, 0.0) + _value(partial, env)
    for name, derivative in by_name.items():
        slope = _slope(e, env, name)
        assume(slope is not None)
        assert derivative == pytest.approx(slope, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s + bias[kv]", ("1.0", "1.0")),
        ("s * bias[kv]", ("bias[kv]", "s")),
        ("s * 0.5 - bias[kv] * (q - kv)", ("0.5", "-float(q - kv)")),
        ("tanh(s)", ("1.0 - tanh(s) * tanh(s)",)),
        ("s ** 2.0", ("2.0 * s",)),
        ("where(q < kv, s, bias[kv])", ("where(q < kv, 1.0, 0.0)", "where(q < kv, 0.0, 1.0)")),
        ("floor(s) + where(bias[kv] > 0.0, 1.0, s)", ("where(bias[kv] > 0.0, 0.0, 1.0)",)),
        ("float(q) * gain", ("0.0",)),
    ],
)
def test_zeros_and_ones_are_left_out(text: str, expected: tuple[str, ...]) -> None:
    found = partials(parse_expr(text, PARAMETERS))
    assert (print_expr(found.score), *(print_expr(d) for _, d in found.loads)) == expected


@pytest.mark.parametrize(
    ("text", "s", "expected"),
    [
        ("where(s > 0.0, sqrt(s), 0.0)", -1.0, 0.0),
        ("where(s > 0.0, log(s), s)", 0.0, 1.0),
        ("sqrt(where(s > 0.0, s, 0.0))", -1.0, 0.0),
        ("1.0 / where(s > 0.0, s, 0.0)", -1.0, 0.0),
        ("abs(s)", 0.0, 0.0),
        ("max(s, 0.0)", 0.0, 0.5),
        ("min(s, 0.0)", 0.0, 0.5),
        ("s ** 0.0", 0.0, 0.0),
        ("s ** 1.0", 0.0, 1.0),
        ("s ** (s * 0.0 + 2.0)", 0.0, 0.0),
    ],
)
def test_what_is_not_selected_never_spoils_a_derivative(text: str, s: float, expected: float) -> None:
    assert _value(partials(parse_expr(text)).score, {"s": s}) == expected


def test_equal_subexpressions_are_one_object() -> None:
    found = partials(parse_expr("tanh(bias[kv] * s) * tanh(bias[kv] * s)", PARAMETERS))
    tanhs = [x for e in (found.score, found.loads[0][1]) for x in walk(e) if isinstance(x, Unary)]
    assert len(tanhs) > 1 and len({id(x) for x in tanhs}) == 1
