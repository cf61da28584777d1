"""Which loads follow rows, columns and diagonals."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.ir import build
from regard.ir.dependence import LoadClass, dependence, diagonal_form, load_class
from regard.ir.interpret import evaluate
from regard.ir.lowered import lower
from regard.ir.nodes import DIAGONAL, BinaryOp, Expr, Load
from regard.ir.parser import parse_expr
from regard.ir.passes import align_positions, inline_statics
from regard.ir.traverse import loads
from regard.ir.types import F32, I32, BufferType
from regard.ir.variant import BufferParameter, ScalarParameter, Variant

PARAMETERS = (
    BufferParameter("row", BufferType(F32, ("_",))),
    BufferParameter("grid", BufferType(F32, ("_", "_"))),
    BufferParameter("ids", BufferType(I32, ("_",))),
    ScalarParameter("window", I32),
)

CASES: dict[str, LoadClass] = {
    "row[3]": "batch_head",
    "grid[batch, head * 2 + window]": "batch_head",
    "row[q_len - 1]": "batch_head",
    "grid[head, q // 2]": "query",
    "row[ids[q]]": "query",
    "grid[kv % 4, kv]": "key",
    "row[q - kv]": "diagonal",
    "grid[head, kv - q + window]": "diagonal",
    "row[abs(q - kv) // 2 + min(kv - q, 5)]": "diagonal",
    "row[2 * q - (kv + kv) + 1]": "diagonal",
    "row[ids[q - kv] + head]": "diagonal",
    "row[where(q - kv < 4, q - kv, 4 + int(log(float(q - kv))))]": "diagonal",
    "grid[q - kv, kv - q]": "diagonal",
    "row[-(kv - q)]": "diagonal",
    "row[q + 1 - kv]": "diagonal",
    "row[q + kv]": "pair",
    "row[2 * q - kv]": "pair",
    "row[q * kv]": "pair",
    "grid[q, kv]": "pair",
    "row[ids[q] - ids[kv]]": "pair",
    "row[q // 2 - kv // 2]": "pair",
    "row[int(s)]": "pair",
}


@pytest.mark.parametrize(("text", "expected"), CASES.items())
def test_classes(text: str, expected: LoadClass) -> None:
    load = parse_expr(text, PARAMETERS)
    assert isinstance(load, Load)
    assert load_class(load) == expected


def test_every_class_has_a_case() -> None:
    assert set(CASES.values()) == set(get_args(LoadClass))


def test_diagonals_survive_alignment() -> None:
    v = Variant(scores=(parse_expr("row[q - kv]", PARAMETERS),), parameters=PARAMETERS, align="end")
    (load,) = loads(align_positions(inline_statics(v)).scores[0])
    assert load_class(load) == "diagonal"
    (form,) = diagonal_form(load)
    assert dependence(form) == {"diagonal", "q_len", "kv_len"}


@st.composite
def _of_the_difference(draw: st.DrawFn, depth: int = 3) -> Expr:
    """An integer function of ``kv - q``, written in roundabout ways."""
    q, kv, window = build.index("q"), build.index("kv"), parse_expr("window", PARAMETERS)
    if depth == 0:
        shift = build.const(draw(st.integers(-3, 3)))
        left, right = draw(st.permutations((q, kv)))
        return draw(
            st.sampled_from(
                (
                    build.binary("sub", left, right),
                    build.binary("add", build.unary("neg", left), build.binary("add", right, shift)),
                    build.binary(
                        "sub", build.binary("mul", build.const(3), left), build.binary("mul", right, build.const(3))
                    ),
                    window,
                )
            )
        )
    op: BinaryOp = draw(st.sampled_from(("add", "sub", "min", "max", "floordiv", "mod")))
    x = draw(_of_the_difference(depth - 1))
    divides = op in ("floordiv", "mod")
    return build.binary(op, x, build.const(draw(st.integers(1, 5))) if divides else draw(_of_the_difference(depth - 1)))


@given(_of_the_difference(), st.integers(0, 9), st.integers(0, 9), st.integers(-5, 5))
def test_the_diagonal_form_has_the_same_value(e: Expr, q: int, kv: int, window: int) -> None:
    load = build.load("row", BufferType(F32, ("_",)), (e,))
    (form,) = diagonal_form(load)
    assert dependence(form) <= {DIAGONAL}
    env: dict[str, Any] = {"q": np.int64(q), "kv": np.int64(kv), "diagonal": np.int64(kv - q), "window": window}
    assert evaluate(form, env) == evaluate(e, env)


def test_other_classes_have_no_diagonal_form() -> None:
    load = parse_expr("row[q + kv]", PARAMETERS)
    assert isinstance(load, Load)
    with pytest.raises(ValueError, match="does not depend on kv - q alone"):
        diagonal_form(load)


def test_each_step_varies_with_one_set_of_indices() -> None:
    e = parse_expr("s * row[head] + (q * 2 - kv // 3) * window", PARAMETERS)
    lowered = lower({"score": e})
    found: dict[str, frozenset[str]] = {}
    for step in lowered.steps:
        found[step.name] = dependence(step.expr, found)
    assert {frozenset(), frozenset({"q"}), frozenset({"kv"}), frozenset({"head"})} <= set(found.values())
