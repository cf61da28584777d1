"""The verifier: what every variant satisfies, before and after any pass."""

from __future__ import annotations

import math
from typing import assert_never

from .errors import InternalError
from .grids import MOST_TOKENS
from .nodes import (
    BITWISE,
    COMPARISONS,
    INDEX_NAMES,
    LOGIC,
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
from .traverse import walk
from .types import BOOL, F32, I32, ScalarType
from .variant import BufferParameter, Parameter, StaticParameter, Variant

# Words that mean something else wherever a parameter could stand.
RESERVED = frozenset((*INDEX_NAMES, "s", "true", "false", "inf", "nan", "and", "or", "xor", "not"))


def verify(v: Variant) -> None:
    """Raises :class:`InternalError` unless every node of ``v`` is well typed and refers to what exists.

    >>> verify(Variant(mask=Index("q", I32)))
    Traceback (most recent call last):
    ...
    regard.ir.errors.InternalError: the mask is i32, not bool
      This is a bug in Regard; please report it together with str(attn).
    """
    parameters = {p.name: p for p in v.parameters}
    _require(len(parameters) == len(v.parameters), "two parameters have one name")
    for p in v.parameters:
        _verify_parameter(p)
    _require(v.name.isidentifier(), f"the name {v.name!r} is not an identifier")
    _require(v.mask.type is BOOL, f"the mask is {v.mask.type}, not bool")
    for x in walk(v.mask):
        _require(not isinstance(x, Score), "the mask reads the score")
        _verify_node(x, parameters)
    for e in v.scores:
        _require(e.type is F32, f"a score is {e.type}, not f32")
        for x in walk(e):
            _verify_node(x, parameters)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InternalError(message)


def _verify_parameter(p: Parameter) -> None:
    _require(p.name.isidentifier() and p.name not in RESERVED, f"a parameter is called {p.name!r}")
    if isinstance(p, StaticParameter):
        _require(_holds(p.type, p.value), f"{p.name} of type {p.type} has the value {p.value!r}")
    elif not isinstance(p, BufferParameter):
        _require(p.type in (I32, F32), f"the scalar {p.name} is {p.type}")


def _holds(type: ScalarType, value: bool | int | float) -> bool:
    match type:
        case ScalarType.BOOL:
            return isinstance(value, bool)
        case ScalarType.F32:
            return isinstance(value, float)
        case ScalarType.I32 | ScalarType.I64:
            bits = 31 if type is I32 else 63
            return isinstance(value, int) and not isinstance(value, bool) and -(2**bits) <= value < 2**bits
        case _:
            assert_never(type)


def _verify_node(e: Expr, parameters: dict[str, Parameter]) -> None:
    match e:
        case Const(value):
            _require(_holds(e.type, value), f"the literal {value!r} is not {e.type}")
        case Index(name):
            _require(name in INDEX_NAMES and e.type is I32, f"there is no index {name}: {e.type}")
        case Score():
            _require(e.type is F32, f"the score is {e.type}")
        case Param(name):
            found = parameters.get(name)
            _require(
                found is not None and not isinstance(found, BufferParameter) and found.type is e.type,
                f"there is no scalar {name}: {e.type}",
            )
        case Load():
            _verify_load(e, parameters)
        case Unary():
            allowed = e.type is BOOL if e.op == "not" else e.type is F32 if e.op not in ("neg", "abs") else True
            numeric = e.op == "not" or e.type is not BOOL
            _require(e.x.type is e.type and allowed and numeric, f"{e.op} of {e.x.type} gives {e.type}")
        case Binary():
            _verify_binary(e)
        case Select(condition, a, b):
            _require(condition.type is BOOL, f"a selection's condition is {condition.type}")
            _require(a.type is b.type is e.type, f"a selection of {a.type} and {b.type} gives {e.type}")
        case Cast(x):
            _require(x.type is not e.type, f"a conversion from {e.type} to itself")
        case Coordinate(x, axis, sizes):
            _require(x.type is e.type and x.type.is_integer, f"a coordinate of {x.type} gives {e.type}")
            fits = all(n > 0 for n in sizes) and math.prod(sizes) <= MOST_TOKENS
            _require(0 <= axis < len(sizes) and fits, f"there is no axis {axis} in a grid of {sizes}")
        case Reduction() | Value():
            raise InternalError(f"{type(e).__name__} stands in a variant")
        case _:
            assert_never(e)


def _verify_load(e: Load, parameters: dict[str, Parameter]) -> None:
    found = parameters.get(e.buffer)
    if not isinstance(found, BufferParameter):
        raise InternalError(f"there is no buffer {e.buffer}")
    _require(found.type.element is e.type, f"a load from {found.type} gives {e.type}")
    _require(found.type.rank == len(e.indices), f"{e.buffer} of rank {found.type.rank} has {len(e.indices)} indices")
    _require(all(i.type.is_integer for i in e.indices), f"an index of {e.buffer} is not an integer")


def _verify_binary(e: Binary) -> None:
    wrong = f"{e.op} of {e.a.type} and {e.b.type} gives {e.type}"
    _require(e.a.type is e.b.type, wrong)
    operand = e.a.type
    if e.op in COMPARISONS:
        _require(e.type is BOOL and (operand is not BOOL or e.op in ("eq", "ne")), wrong)
    elif e.op in LOGIC:
        _require(operand is e.type is BOOL, wrong)
    elif e.op in BITWISE:
        _require(e.type is operand and operand.is_integer, wrong)
    elif e.op in ("div", "pow"):
        _require(operand is e.type is F32, wrong)
    else:
        _require(operand is e.type and operand is not BOOL, wrong)
