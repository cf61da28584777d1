"""Interval arithmetic: between which values an expression lies, given where its leaves lie.

An integer interval holds every value that the typed arithmetic can give: if the exact result might leave the
type, the interval is the whole type, because the value wraps. A float interval holds the result in float32
and in float64, whichever of the two an evaluator uses, with a few units in the last place to spare where a
GPU approximates. An interval with both ends infinite may also stand for NaN; any other excludes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import assert_never

import numpy as np

from .nodes import (
    COMPARISONS,
    DIAGONAL,
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
    UnaryOp,
    Value,
)
from .traverse import children, walk
from .types import BOOL, F32, I32, I64, ScalarType

Range = tuple[float, float]  # ends included; integer and boolean intervals have int ends

ANYTHING: Range = (-math.inf, math.inf)
UNDECIDED: Range = (0, 1)
POSITION: Range = (0, 2**28 - 1)  # positions, lengths, heads, batches: checked at the call
SCALAR: Range = (-(2**30), 2**30)  # integer parameters: checked at the call
_TYPE: dict[ScalarType, Range] = {
    BOOL: UNDECIDED,
    I32: (-(2**31), 2**31 - 1),
    I64: (-(2**63), 2**63 - 1),
    F32: ANYTHING,
}
_APPROXIMATE_ULPS = 4
_SMALLEST_NORMAL = 2.0**-126


def interval(e: Expr, env: Mapping[str, Range]) -> Range:
    """The values ``e`` can take where each leaf lies in ``env[name]``, ends included.

    Names are those of indices, parameters, buffers (the values loaded), steps, and ``"s"``. A name that is
    missing has the range that its kind always has (:data:`POSITION`, :data:`SCALAR`, its type).

    >>> from . import build
    >>> distance = build.binary("sub", build.index("q"), build.index("kv"))
    >>> interval(build.binary("mod", distance, build.const(4)), {"q": (8, 9), "kv": (4, 6)})
    (0, 3)
    >>> interval(build.binary("lt", distance, build.const(6)), {"q": (8, 9), "kv": (4, 6)})
    (1, 1)
    """
    return intervals(e, env)[id(e)] if env else _always(e)


def _always(e: Expr) -> Range:
    """:func:`interval` of ``e`` where nothing is known of its leaves."""
    found: Range | None = getattr(e, "known_range", None)
    if found is None:
        found = _fitted(_node(e, [_always(c) for c in e.operands], {}), e.type)
        object.__setattr__(e, "known_range", found)
    return found


def intervals(e: Expr, env: Mapping[str, Range]) -> dict[int, Range]:
    """:func:`interval` of ``e`` and of everything in it, by ``id`` of the node."""
    found: dict[int, Range] = {}
    for x in walk(e):
        found[id(x)] = _fitted(_node(x, [found[id(c)] for c in children(x)], env), x.type)
    return found


def _fitted(r: Range, type: ScalarType) -> Range:
    """``r``, or the whole type where ``r`` leaves it."""
    least, most = _TYPE[type]
    if type is F32:
        return ANYTHING if math.isnan(r[0]) or math.isnan(r[1]) else r
    return r if least <= r[0] and r[1] <= most else (least, most)


def _node(e: Expr, operands: list[Range], env: Mapping[str, Range]) -> Range:
    match e:
        case Const(value):
            return _outward(value, value, 0) if e.type is F32 else (value, value)
        case Index(name):
            return env.get(name, (-POSITION[1], POSITION[1]) if name == DIAGONAL else POSITION)
        case Param(name):
            return env.get(name, SCALAR if e.type is I32 else _TYPE[e.type])
        case Score():
            return env.get("s", ANYTHING)
        case Value(name):
            return env.get(name, _TYPE[e.type])
        case Load(buffer):
            return env.get(buffer, _TYPE[e.type])
        case Reduction():
            return operands[0]
        case Unary(op):
            return _float_unary(op, operands[0]) if e.type is F32 else _integer_unary(op, operands[0])
        case Binary(op) if op in COMPARISONS:
            return _comparison(op, *operands)
        case Binary() if e.type is BOOL:
            return _logic(e, *operands)
        case Binary() if e.type is F32:
            return _float_binary(e, *operands)
        case Binary():
            return _integer_binary(e, *operands)
        case Coordinate():
            place = operands[0]
            for op, n in e.steps:
                place = _corners(lambda x, y: x // y, place, (n, n)) if op == "floordiv" else _modulo(place, (n, n))
            return place
        case Select():
            condition, a, b = operands
            if condition[0] == condition[1]:
                return a if condition[0] else b
            return min(a[0], b[0]), max(a[1], b[1])
        case Cast(x, type):
            return _cast(operands[0], x.type, type)
        case _:
            assert_never(e)


def _outward(lo: float, hi: float, ulps: int) -> Range:
    """The interval of a float result between ``lo`` and ``hi``, computed in float32 or float64."""
    with np.errstate(over="ignore"):
        low, high = np.float32(lo), np.float32(hi)
        for _ in range(ulps):
            low, high = np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))
    lo, hi = min(lo, float(low)), max(hi, float(high))
    # GPUs may flush results below the smallest normal number to zero.
    return (0.0 if 0 < lo < _SMALLEST_NORMAL else lo), (0.0 if -_SMALLEST_NORMAL < hi < 0 else hi)


def _cast(x: Range, source: ScalarType, target: ScalarType) -> Range:
    if target is BOOL:
        if x[0] > 0 or x[1] < 0:
            return 1, 1
        return (0, 0) if x == (0, 0) else UNDECIDED
    if target is F32:
        return x if source is F32 else _outward(float(x[0]), float(x[1]), 0)
    if source is F32:
        return (math.trunc(x[0]), math.trunc(x[1])) if math.isfinite(x[0]) and math.isfinite(x[1]) else _TYPE[target]
    return x


def _comparison(op: str, a: Range, b: Range) -> Range:
    if ANYTHING in (a, b):
        return UNDECIDED
    match op:
        case "lt":
            always, never = a[1] < b[0], a[0] >= b[1]
        case "le":
            always, never = a[1] <= b[0], a[0] > b[1]
        case "gt" | "ge":
            return _comparison("lt" if op == "gt" else "le", b, a)
        case "eq":
            always, never = a[0] == a[1] == b[0] == b[1], a[1] < b[0] or b[1] < a[0]
        case _:
            lo, hi = _comparison("eq", a, b)
            return 1 - hi, 1 - lo
    return (1, 1) if always else (0, 0) if never else UNDECIDED


def _logic(e: Binary, a: Range, b: Range) -> Range:
    match e.op:
        case "and":
            return min(a[0], b[0]), min(a[1], b[1])
        case "or":
            return max(a[0], b[0]), max(a[1], b[1])
        case _:
            return _comparison("ne", a, b)


def _absolute(x: Range) -> Range:
    least = 0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1]))
    return least, max(abs(x[0]), abs(x[1]))


def _corners(f: Callable[[float, float], float], a: Range, b: Range) -> Range:
    """For ``f`` monotone in each operand."""
    values = [f(x, y) for x, y in product(a, b)]
    return (math.nan, math.nan) if any(map(math.isnan, values)) else (min(values), max(values))


def _integer_unary(op: UnaryOp, x: Range) -> Range:
    match op:
        case "neg":
            return -x[1], -x[0]
        case "abs":
            return _absolute(x)
        case _:  # not
            return 1 - x[1], 1 - x[0]


def _integer_binary(e: Binary, a: Range, b: Range) -> Range:
    whole = _TYPE[e.type]
    match e.op:
        case "add":
            return a[0] + b[0], a[1] + b[1]
        case "sub":
            return a[0] - b[1], a[1] - b[0]
        case "mul":
            return _corners(lambda x, y: x * y, a, b)
        case "min" | "max":
            f = min if e.op == "min" else max
            return f(a[0], b[0]), f(a[1], b[1])
        case "floordiv":
            return whole if b[0] <= 0 <= b[1] else _corners(lambda x, y: x // y, a, b)
        case "mod":
            return whole if b[0] <= 0 <= b[1] else _modulo(a, b)
        case "shl" | "shr":
            return whole if b[0] < 0 or b[1] >= (32 if e.type is I32 else 64) else _shift(e.op, a, b)
        case _:
            return _bitwise(e.op, a, b)


def _modulo(a: Range, b: Range) -> Range:
    """``a % b`` has the sign of ``b``, which does not contain 0."""
    if b[0] == b[1] and a[0] // b[0] == a[1] // b[0]:
        return a[0] % b[0], a[1] % b[0]
    if b[0] > 0:
        return (0, min(a[1], b[1] - 1)) if a[0] >= 0 else (0, b[1] - 1)
    return (max(a[0], b[0] + 1), 0) if a[1] <= 0 else (b[0] + 1, 0)


def _shift(op: str, a: Range, b: Range) -> Range:
    ends = [(int(x), int(y)) for x, y in product(a, b)]
    values = [x << y if op == "shl" else x >> y for x, y in ends]
    return min(values), max(values)


def _bitwise(op: str, a: Range, b: Range) -> Range:
    (a0, a1), (b0, b1) = (int(a[0]), int(a[1])), (int(b[0]), int(b[1]))
    if a0 == a1 and b0 == b1:
        value = a0 & b0 if op == "bitand" else a0 | b0 if op == "bitor" else a0 ^ b0
        return value, value
    # Without a sign bit among the operands, or with it, the result needs no more bits than they do.
    most = (1 << max(x.bit_length() if x >= 0 else (~x).bit_length() for x in (a0, a1, b0, b1))) - 1
    if op == "bitand" and (a0 >= 0 or b0 >= 0):
        return 0, min(hi for lo, hi in ((a0, a1), (b0, b1)) if lo >= 0)
    if op == "bitor" and a0 >= 0 and b0 >= 0:
        return max(a0, b0), most
    return (0 if a0 >= 0 and b0 >= 0 else ~most), most


def _float_unary(op: UnaryOp, x: Range) -> Range:
    if x == ANYTHING:
        return ANYTHING
    lo, hi = x
    match op:
        case "neg":
            return -hi, -lo
        case "abs":
            return _absolute(x)
        case "floor":
            return (math.floor(lo) if math.isfinite(lo) else lo), (math.floor(hi) if math.isfinite(hi) else hi)
        case "exp" | "exp2":
            base = math.e if op == "exp" else 2.0
            least, most = _approximated(lambda v: _power(base, v), x)
            return max(least, 0.0), most
        case "log" | "log2":
            scale = 1.0 if op == "log" else 1 / math.log(2)
            return ANYTHING if lo < 0 else _approximated(lambda v: math.log(v) * scale if v > 0 else -math.inf, x)
        case "sqrt":
            if lo < 0:
                return ANYTHING
            least, most = _approximated(math.sqrt, x)
            return max(least, 0.0), most
        case "rsqrt":
            return ANYTHING if lo <= 0 else _approximated(lambda v: 1 / math.sqrt(v), (hi, lo))
        case "tanh":
            least, most = _approximated(math.tanh, x)
            return max(least, -1.0), min(most, 1.0)
        case "sigmoid":
            least, most = _approximated(lambda v: 1 / (1 + _power(math.e, -v)), x)
            return max(least, 0.0), min(most, 1.0)
        case _:  # sin, cos; of infinity they are NaN
            return (-1.0, 1.0) if math.isfinite(lo) and math.isfinite(hi) else ANYTHING


def _approximated(f: Callable[[float], float], x: Range) -> Range:
    return _outward(f(x[0]), f(x[1]), _APPROXIMATE_ULPS)


def _power(base: float, exponent: float) -> float:
    """``base ** exponent`` with infinity in place of an overflow; ``base >= 0``."""
    try:
        return math.pow(base, exponent)
    except (OverflowError, ValueError):  # ValueError: zero to a negative power
        return math.inf


def _float_binary(e: Binary, a: Range, b: Range) -> Range:
    if ANYTHING in (a, b):
        return ANYTHING
    zero_in_b = b[0] <= 0 <= b[1]
    finite = all(map(math.isfinite, (*a, *b)))
    match e.op:
        case "add":
            return _rounded(a[0] + b[0], a[1] + b[1], a, b)
        case "sub":
            return _rounded(a[0] - b[1], a[1] - b[0], a, (-b[1], -b[0]))
        case "mul":
            hazard = not finite and (a[0] <= 0 <= a[1] or zero_in_b)  # 0 * inf
            return ANYTHING if hazard else _outward(*_corners(lambda x, y: x * y, a, b), 0)
        case "min" | "max":
            f = min if e.op == "min" else max
            return f(a[0], b[0]), f(a[1], b[1])
        case "div":
            if zero_in_b or not finite:
                return ANYTHING
            return _outward(*_corners(lambda x, y: x / y, a, b), _APPROXIMATE_ULPS)
        case "floordiv":
            if zero_in_b or not finite:
                return ANYTHING
            return _float_unary("floor", _outward(*_corners(lambda x, y: x / y, a, b), _APPROXIMATE_ULPS))
        case "mod":
            if zero_in_b or not finite:
                return ANYTHING
            return (0.0, b[1]) if b[0] > 0 else (b[0], 0.0)
        case _:  # pow
            return _powers(a, b) if finite else ANYTHING


def _rounded(lo: float, hi: float, a: Range, b: Range) -> Range:
    """A sum's interval, unless it may be ``inf - inf``."""
    hazard = (a[1] == math.inf and b[0] == -math.inf) or (a[0] == -math.inf and b[1] == math.inf)
    return ANYTHING if hazard or math.isnan(lo) or math.isnan(hi) else _outward(lo, hi, 0)


def _powers(a: Range, b: Range) -> Range:
    if a[0] > 0 or (a[0] == 0 and b[0] > 0):
        least, most = _outward(*_corners(_power, a, b), _APPROXIMATE_ULPS)
        return max(least, 0.0), most
    if b[0] == b[1] and b[0] >= 0 and b[0] == math.floor(b[0]):
        even = b[0] % 2 == 0
        ends = _absolute(a) if even else a
        power = [math.copysign(_power(abs(x), b[0]), 1.0 if even else x) for x in ends]
        least, most = _outward(power[0], power[1], _APPROXIMATE_ULPS)
        return (max(least, 0.0) if even else least), most
    return ANYTHING
