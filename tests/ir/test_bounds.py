"""Intervals contain every value that any assignment gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.ir.bounds import ANYTHING, Range, interval
from regard.ir.interpret import evaluate
from regard.ir.nodes import Expr, Index, Load, Param
from regard.ir.parser import parse_expr
from regard.ir.traverse import walk
from regard.ir.types import BOOL, F32, BufferType, ScalarType
from regard.ir.variant import BufferParameter, ScalarParameter
from strategies import expressions, masks, scores

BIAS = BufferParameter("bias", BufferType(F32, ("head",)))
GAIN = ScalarParameter("gain", F32)
POINTS = 24  # random assignments tried against each interval


@st.composite
def _boxes(draw: st.DrawFn) -> dict[str, Range]:
    """Ranges of the leaves, narrow or wide, around zero or away from it."""

    def integers(least: int, most: int) -> Range:
        low = draw(st.integers(least, most))
        return low, low + draw(st.sampled_from((0, 1, 3, 40)))

    def floats() -> Range:
        low = draw(st.floats(-8, 8, width=32))
        return low, float(np.float32(low + draw(st.sampled_from((0.0, 0.5, 16.0)))))

    names = ("q", "kv", "q_len", "kv_len", "head", "kv_head", "batch")
    box = {name: integers(0, 60) for name in names}
    box |= {name: integers(-40, 40) for name in ("window", "offset", "step", "widths", "lengths", "ids", "wide")}
    box |= {name: floats() for name in ("gain", "sharp", "s", "slopes", "key_bias", "row_bias", "table", "single")}
    return box | {"flag": (0, 1), "keep_key": (0, 1)}


def _sample(e: Expr, box: dict[str, Range], rng: np.random.Generator) -> dict[str, Any]:
    """Random points of the box. A buffer holds one element along each axis: loads clamp their indices."""
    env: dict[str, Any] = {}
    types: dict[str, tuple[ScalarType, int]] = {"s": (F32, 0)}
    for x in walk(e):
        if isinstance(x, Index | Param):
            types[x.name] = (x.type, 0)
        elif isinstance(x, Load):
            types[x.buffer] = (x.type, len(x.indices))
    for name, (type, rank) in types.items():
        low, high = box[name]
        match type:
            case ScalarType.F32:
                point: Any = np.float32(rng.choice([low, high, rng.uniform(low, high)]))
            case ScalarType.BOOL:
                point = bool(rng.integers(int(low), int(high) + 1))
            case _:
                point = int(rng.integers(int(low), int(high) + 1))
        env[name] = np.full((1,) * rank, point)
    return env


def _check(e: Expr, box: dict[str, Range], seed: int) -> None:
    low, high = interval(e, box)
    rng = np.random.default_rng(seed)
    for _ in range(POINTS):
        env = _sample(e, box, rng)
        for floats in (np.float32, np.float64):
            value = evaluate(e, env, floats=floats, clamp=True).item()
            assert low <= value <= high or (low, high) == ANYTHING, (value, env)


@given(masks(), _boxes(), st.integers(0, 2**32 - 1))
def test_masks_stay_in_their_interval(e: Expr, box: dict[str, Range], seed: int) -> None:
    _check(e, box, seed)


@given(scores(), _boxes(), st.integers(0, 2**32 - 1))
def test_scores_stay_in_their_interval(e: Expr, box: dict[str, Range], seed: int) -> None:
    _check(e, box, seed)


@given(expressions(), _boxes(), st.integers(0, 2**32 - 1))
def test_anything_stays_in_its_interval(e: Expr, box: dict[str, Range], seed: int) -> None:
    _check(e, box, seed)


@pytest.mark.parametrize(
    ("text", "box", "expected"),
    [
        ("q - kv", {"q": (4, 9), "kv": (1, 2)}, (2, 8)),
        ("q % 8", {"q": (17, 19)}, (1, 3)),
        ("q % 8", {"q": (6, 9)}, (0, 7)),
        ("q // -3", {"q": (4, 9)}, (-3, -2)),
        ("(q - 9) * (kv - 9)", {"q": (4, 10), "kv": (5, 12)}, (-15, 20)),
        ("q & 3", {"q": (0, 99)}, (0, 3)),
        ("q << kv", {"q": (1, 3), "kv": (0, 2)}, (1, 12)),
        ("q // kv == 1", {"q": (8, 15), "kv": (8, 8)}, (1, 1)),
        ("q < kv or kv < 5", {"q": (3, 4), "kv": (5, 9)}, (1, 1)),
        ("not q < kv", {"q": (3, 4), "kv": (1, 3)}, (1, 1)),
        ("where(q < 5, 1, kv)", {"q": (0, 4)}, (1, 1)),
        ("q * 0.5", {"q": (3, 8)}, (1.5, 4.0)),
        ("floor(q * 0.5)", {"q": (3, 8)}, (1.0, 4.0)),
        ("max(s, 0.0)", {"s": (-2.0, 3.0)}, (0.0, 3.0)),
        ("abs(s)", {"s": (-2.0, 1.0)}, (0.0, 2.0)),
        ("9223372036854775807 + q", {"q": (0, 1)}, (-(2**63), 2**63 - 1)),
        ("1.0 / s", {"s": (-1.0, 1.0)}, ANYTHING),
        ("log(s)", {"s": (-1.0, 1.0)}, ANYTHING),
        ("s - s", {"s": (0.0, math.inf)}, ANYTHING),
        ("bias[head] <= inf", {}, (0, 1)),
        ("exp(s) >= 0.0", {"s": (-1e30, 1e30)}, (1, 1)),
        ("s ** 2.0 >= 0.0", {"s": (-3.0, 2.0)}, (1, 1)),
        ("tanh(s * gain) <= 1.0", {"s": (-9.0, 9.0), "gain": (0.0, 3.0)}, (1, 1)),
    ],
)
def test_known_intervals(text: str, box: dict[str, Range], expected: Range) -> None:
    assert interval(parse_expr(text, [BIAS, GAIN]), box) == expected


@pytest.mark.parametrize("text", ["exp(s)", "log2(s)", "sqrt(s)", "rsqrt(s)", "tanh(s)", "sigmoid(s)", "1.0 / s"])
def test_approximated_functions_leave_some_units_in_the_last_place(text: str) -> None:
    for x in (0.3, 1.7, 5.0):
        low, high = interval(parse_expr(text), {"s": (x, x)})
        value = evaluate(parse_expr(text), {"s": x}).item()
        assert low < value < high
        assert high - low < 1e-5 * abs(value)


def test_what_is_not_given_has_the_range_of_its_kind() -> None:
    assert interval(parse_expr("q"), {}) == (0, 2**28 - 1)
    assert interval(parse_expr("bias[head]", [BIAS]), {}) == ANYTHING
    assert parse_expr("q < kv").type is BOOL
