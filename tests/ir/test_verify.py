"""The verifier accepts what the front ends build, and names what is wrong with anything else."""

from __future__ import annotations

import pytest
from hypothesis import given

from regard.ir import build
from regard.ir.errors import InternalError
from regard.ir.nodes import (
    TRUE,
    Binary,
    Cast,
    Const,
    Coordinate,
    Expr,
    Index,
    Load,
    Param,
    Reduction,
    Score,
    Select,
    Unary,
    Value,
)
from regard.ir.parser import parse_expr
from regard.ir.types import BOOL, F32, I32, I64, BufferType
from regard.ir.variant import BufferParameter, Parameter, ScalarParameter, StaticParameter, Variant
from regard.ir.verify import verify
from strategies import variants

q, kv, one = build.index("q"), build.index("kv"), build.const(1)
BIAS = BufferParameter("bias", BufferType(F32, ("head",)))


@given(variants())
def test_random_variants_pass(v: Variant) -> None:
    verify(v)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (q, "the mask is i32, not bool"),
        (parse_expr("s > 0.0"), "the mask reads the score"),
        (Binary("lt", q, one, BOOL), "lt of i32 and i64"),
        (Binary("lt", parse_expr("q < 1"), parse_expr("q < 2"), BOOL), "lt of bool and bool"),
        (Binary("eq", q, kv, I32), "the mask is i32"),
        (Binary("and", q, kv, BOOL), "and of i32 and i32"),
        (Unary("not", q, BOOL), "not of i32"),
        (Select(q, TRUE, TRUE, BOOL), "a selection's condition is i32"),
        (Cast(TRUE, BOOL), "a conversion from bool to itself"),
        (Const(1, BOOL), "the literal 1 is not bool"),
        (Binary("eq", Index("row", I32), q, BOOL), "there is no index row"),
        (Binary("eq", Param("window", I32), q, BOOL), "there is no scalar window"),
        (Binary("eq", Const(2**31, I32), q, BOOL), "is not i32"),
        (Binary("eq", Coordinate(q, 2, (4, 4), I32), q, BOOL), "there is no axis 2 in a grid"),
        (Binary("eq", Coordinate(q, 0, (4, 0), I32), q, BOOL), "there is no axis 0 in a grid"),
        (Binary("eq", Coordinate(q, 0, (4, 4), I64), one, BOOL), "a coordinate of i32 gives i64"),
        (Reduction("any", TRUE, "q", BOOL), "Reduction stands in a variant"),
        (Value("t0", BOOL), "Value stands in a variant"),
        (Cast(Load("bias", (q, kv), F32), BOOL), "bias of rank 1 has 2 indices"),
        (Cast(Load("bias", (Score(),), F32), BOOL), "the mask reads the score"),
        (Cast(Load("bias", (q,), I32), BOOL), "gives i32"),
        (Cast(Load("other", (q,), F32), BOOL), "there is no buffer other"),
    ],
)
def test_ill_typed_masks_are_named(mask: Expr, message: str) -> None:
    with pytest.raises(InternalError, match=message.replace("[", r"\[")):
        verify(Variant(mask, parameters=(BIAS,)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((BIAS, ScalarParameter("bias", I32)), "two parameters have one name"),
        ((ScalarParameter("kv", I32),), "a parameter is called 'kv'"),
        ((ScalarParameter("my window", I32),), "a parameter is called 'my window'"),
        ((ScalarParameter("window", I64),), "the scalar window is i64"),
        ((StaticParameter("d", I32, 2.0),), "d of type i32 has the value 2.0"),
    ],
)
def test_wrong_parameters_are_named(parameters: tuple[Parameter, ...], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        verify(Variant(parameters=parameters))


def test_scores_are_floats() -> None:
    with pytest.raises(InternalError, match="a score is i64"):
        verify(Variant(scores=(one,)))
