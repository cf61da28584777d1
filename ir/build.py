"""Typed constructors: they convert operands, compute result types and report mismatches."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import assert_never

from .errors import TypeMismatchError
from .location import Location
from .nodes import (
    BITWISE,
    COMPARISONS,
    LOGIC,
    Binary,
    BinaryOp,
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
    UnaryOp,
    Value,
)
from .types import BOOL, F32, I32, I64, BufferType, ScalarType, promote

MAX_I32, MAX_I64 = 2**31 - 1, 2**63 - 1
_FLOAT_UNARY = frozenset(("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "floor"))


def const(value: bool | int | float, loc: Location | None = None) -> Const:
    """A literal of the type that the Python value has (int is i64, float is f32).

    >>> const(3).type, const(True).type, const(0.5).type
    (I64, BOOL, F32)
    """
    if isinstance(value, bool):
        return Const(value, BOOL, loc)
    if isinstance(value, int):
        if abs(value) > MAX_I64:
            raise TypeMismatchError("the integer does not fit 64 bits", location=loc)
        return Const(value, I64, loc) if loc is not None else _whole(value)
    return Const(float(value), F32, loc)


@lru_cache(maxsize=4096)
def _whole(value: int) -> Const:
    """One node for each number: what is equal is the same object mostly, and found at once."""
    return Const(value, I64)


def index(name: str, loc: Location | None = None) -> Index:
    """A position, identity or length."""
    return Index(name, I32, loc)


def cast(x: Expr, type: ScalarType, loc: Location | None = None) -> Expr:
    """``x`` as ``type``; literals that fit are converted on the spot, and nothing happens where types agree."""
    if x.type is type:
        return x
    if isinstance(x, Const):
        if type is F32:
            return Const(float(x.value), F32, loc or x.loc)
        if type is BOOL:
            return Const(bool(x.value), BOOL, loc or x.loc)
        if math.isfinite(x.value) and abs(int(x.value)) <= (MAX_I32 if type is I32 else MAX_I64):
            return Const(int(x.value), type, loc or x.loc)
    return Cast(x, type, loc or x.loc)


def unary(op: UnaryOp, x: Expr, loc: Location | None = None) -> Expr:
    """``op(x)``. Raises :class:`TypeMismatchError` for ``not`` of a number and the like."""
    if op == "not":
        if x.type is not BOOL:
            raise TypeMismatchError(
                f"`~` and `not` need a boolean, got {x.type}", location=loc, hint="compare first, e.g. x == 0"
            )
        return Unary("not", x, BOOL, loc)
    if op in _FLOAT_UNARY:
        return Unary(op, cast(x, F32), F32, loc)
    if x.type is not F32:
        x = cast(x, I64)
    if op == "neg" and isinstance(x, Const):
        return Const(-x.value, x.type, loc)
    return Unary(op, x, x.type, loc)


def binary(op: BinaryOp, a: Expr, b: Expr, loc: Location | None = None) -> Expr:
    """``a op b`` with Python's meaning. ``and``/``or``/``xor`` of two integers become bitwise."""
    if op in LOGIC:
        if a.type is BOOL and b.type is BOOL:
            return Binary(op, a, b, BOOL, loc)
        if a.type.is_integer and b.type.is_integer:
            bitwise: dict[str, BinaryOp] = {"and": "bitand", "or": "bitor", "xor": "bitxor"}
            return binary(bitwise[op], a, b, loc)
        raise TypeMismatchError(
            f"`{ {'and': '&', 'or': '|', 'xor': '^'}[op] }` needs two booleans or two integers, "
            f"got {a.type} and {b.type}",
            location=loc,
            hint="put comparisons in parentheses: (q >= kv) & (q - kv < window)",
        )
    if op in BITWISE:
        if not (a.type.is_integer and b.type.is_integer):
            raise TypeMismatchError(f"{op} needs two integers, got {a.type} and {b.type}", location=loc)
        return Binary(op, cast(a, I64), cast(b, I64), I64, loc)
    if op in COMPARISONS:
        if a.type is BOOL and b.type is BOOL and op in ("eq", "ne"):
            return Binary(op, a, b, BOOL, loc)
        # i32 against i32 stays as it is; anything wider meets in i64 or f32.
        common = I32 if a.type is I32 and b.type is I32 else promote(a.type, b.type)
        return Binary(op, cast(a, common), cast(b, common), BOOL, loc)
    if op in ("div", "pow"):
        return Binary(op, cast(a, F32), cast(b, F32), F32, loc)
    common = promote(a.type, b.type)
    if op in ("floordiv", "mod") and isinstance(b, Const) and b.value == 0:
        raise TypeMismatchError("division by zero", location=loc)
    return Binary(op, cast(a, common), cast(b, common), common, loc)


def select(condition: Expr, a: Expr, b: Expr, loc: Location | None = None) -> Expr:
    """``a`` where ``condition`` holds, else ``b``."""
    if condition.type is not BOOL:
        raise TypeMismatchError(
            f"the condition of `where` must be boolean, got {condition.type}", location=loc, hint="write e.g. x != 0"
        )
    common = a.type if a.type is b.type else promote(a.type, b.type)
    return Select(condition, cast(a, common), cast(b, common), common, loc)


def load(buffer: str, type: BufferType, indices: tuple[Expr, ...], loc: Location | None = None) -> Load:
    """One element of ``buffer``; the indices must be integers and as many as the buffer has axes."""
    if len(indices) != type.rank:
        raise TypeMismatchError(
            f"`{buffer}` has {type.rank} {'axis' if type.rank == 1 else 'axes'}, got {len(indices)} indices",
            location=loc,
            hint=f"write {buffer}[{', '.join(type.axes)}]",
        )
    for i, x in enumerate(indices):
        if not x.type.is_integer:
            raise TypeMismatchError(f"index {i} of `{buffer}` must be an integer, got {x.type}", location=loc)
    return Load(buffer, indices, type.element, loc)


def coordinate(x: Expr, axis: int, sizes: tuple[int, ...], loc: Location | None = None) -> Coordinate:
    """Coordinate ``axis`` of the flattened position ``x``; ``sizes`` are positive and hold fewer than 2**28 tokens."""
    if not x.type.is_integer:
        raise TypeMismatchError(f"a grid takes an integer position, got {x.type}", location=loc)
    return Coordinate(x, axis, sizes, x.type, loc)


def rebuilt(e: Expr, operands: tuple[Expr, ...]) -> Expr:
    """``e`` with other operands, whose types may differ: the result's type follows them.

    >>> from .nodes import Index
    >>> q, kv = index("q"), index("kv")
    >>> rebuilt(binary("ge", q, kv), (binary("add", q, const(1)), kv)).b
    Cast(x=Index(name='kv', type=I32), type=I64)
    """
    match e:
        case Const() | Index() | Score() | Param() | Value():
            return e
        case Load():
            return Load(e.buffer, operands, e.type, e.loc)
        case Unary():
            return unary(e.op, operands[0], e.loc)
        case Cast():
            return cast(operands[0], e.type, e.loc)
        case Coordinate():
            return coordinate(operands[0], e.axis, e.sizes, e.loc)
        case Reduction():
            return Reduction(e.op, operands[0], e.axis, operands[0].type, e.loc)
        case Binary():
            return binary(e.op, operands[0], operands[1], e.loc)
        case Select():
            return select(operands[0], operands[1], operands[2], e.loc)
        case _:
            assert_never(e)


def conjunction(terms: list[Expr]) -> Expr:
    """``a and b and …``; true where there are none."""
    result: Expr = const(True)
    for term in terms:
        result = term if result == const(True) else binary("and", result, term, term.loc)
    return result
