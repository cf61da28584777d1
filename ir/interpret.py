"""The language's meaning, slowly and literally, with numpy: the second opinion for every pass.

Integers wrap in their type, ``//`` and ``%`` floor, negative buffer indices count from the end. Floats are
computed in float32, or in float64 on request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from .errors import IndexRangeError, ParameterError
from .nodes import (
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
    ReductionOp,
    Score,
    Select,
    Unary,
    Value,
)
from .traverse import walk
from .types import BOOL, F32, I32, I64
from .variant import Variant

Array = npt.NDArray[Any]
Env = Mapping[str, "Array | bool | int | float"]

_INTEGERS = {BOOL: np.dtype(np.bool_), I32: np.dtype(np.int32), I64: np.dtype(np.int64)}
_BINARY: dict[BinaryOp, Callable[[Array, Array], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.true_divide, "floordiv": np.floor_divide,
    "mod": np.remainder, "pow": np.power, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor,
    "shl": np.left_shift, "shr": np.right_shift,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def evaluate(e: Expr, env: Env, *, floats: type[np.floating[Any]] = np.float32, clamp: bool = False) -> Array:
    """The value of ``e``, broadcast over whatever ``env`` gives for its leaves.

    ``env`` maps names of indices, parameters and steps, and ``"s"``, to numbers or arrays that broadcast
    against each other, and names of buffers to arrays of the buffer's rank. A :class:`Reduction` reduces the
    last array axis for ``kv`` and the one before it for ``q``, and keeps it. ``floats`` is the type of all
    float arithmetic. An index outside a buffer raises :class:`IndexRangeError`; with ``clamp`` it reads the
    nearest element instead (for pairs that a mask drops afterwards).

    >>> from . import build
    >>> keep = build.binary("ge", build.index("q"), build.index("kv"))
    >>> evaluate(keep, {"q": np.arange(2)[:, None], "kv": np.arange(3)}).astype(int)
    array([[1, 0, 0],
           [1, 1, 0]])
    """
    (value,) = evaluate_all([e], env, floats=floats, clamp=clamp)
    return value


def evaluate_all(
    expressions: Sequence[Expr], env: Env, *, floats: type[np.floating[Any]] = np.float32, clamp: bool = False
) -> list[Array]:
    """:func:`evaluate` of several expressions, of which what they share is evaluated once."""
    dtypes = {**_INTEGERS, F32: np.dtype(floats)}
    values: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for x in (x for e in expressions for x in walk(e)):
            if id(x) not in values:
                value = _node(x, [values[id(c)] for c in x.operands], env, clamp)
                values[id(x)] = value if value.dtype is dtypes[x.type] else value.astype(dtypes[x.type], copy=False)
    return [values[id(e)] for e in expressions]


def _lookup(name: str, env: Env) -> Array:
    try:
        return np.asarray(env[name])
    except KeyError:
        raise ParameterError(f"no value was given for `{name}`") from None


def _node(e: Expr, operands: list[Array], env: Env, clamp: bool) -> Array:
    match e:
        case Const(value):
            return np.asarray(value)
        case Index(name) | Param(name) | Value(name):
            return _lookup(name, env)
        case Score():
            return _lookup("s", env)
        case Load(buffer):
            return _load(e, operands, _lookup(buffer, env), clamp)
        case Unary():
            return _unary(e, operands[0])
        case Binary():
            return np.asarray(_BINARY[e.op](operands[0], operands[1]))
        case Select():
            return np.where(operands[0], operands[1], operands[2])
        case Cast():
            return operands[0] != 0 if e.type is BOOL else operands[0]
        case Coordinate():
            place = operands[0]
            for step, n in e.steps:
                place = place // n if step == "floordiv" else place % n
            return place
        case Reduction(op, _, axis):
            reduced = operands[0] if axis == "kv" else _reduced(op, operands[0], -2)
            return reduced if axis == "q" else _reduced(op, reduced, -1)
        case _:
            assert_never(e)


def _reduced(op: ReductionOp, x: Array, axis: int) -> Array:
    match op:
        case "min" | "all":
            return np.asarray(np.min(x, axis=axis, keepdims=True))
        case "max" | "any":
            return np.asarray(np.max(x, axis=axis, keepdims=True))
        case _:
            assert_never(op)


def _load(e: Load, indices: list[Array], buffer: Array, clamp: bool) -> Array:
    places = []
    for axis, (index, size) in enumerate(zip(indices, buffer.shape, strict=True)):
        place = np.where(index < 0, index + size, index)
        if clamp and size:
            place = np.clip(place, 0, size - 1)
        outside = (place < 0) | (place >= size)
        if outside.any():
            worst = int(np.broadcast_to(index, outside.shape)[outside].flat[0])
            raise IndexRangeError(
                f"index {axis} of `{e.buffer}` is {worst}, but the axis has {size} elements", location=e.loc
            )
        places.append(place)
    return np.asarray(buffer[tuple(places)])


def _unary(e: Unary, x: Array) -> Array:
    match e.op:
        case "neg":
            return np.negative(x)
        case "not":
            return np.logical_not(x)
        case "abs":
            return np.abs(x)
        case "exp":
            return np.exp(x)
        case "exp2":
            return np.exp2(x)
        case "log":
            return np.log(x)
        case "log2":
            return np.log2(x)
        case "sqrt":
            return np.sqrt(x)
        case "rsqrt":
            return 1 / np.sqrt(x)
        case "tanh":
            return np.tanh(x)
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "sin":
            return np.sin(x)
        case "cos":
            return np.cos(x)
        case "floor":
            return np.floor(x)
        case _:
            assert_never(e.op)


def attention(
    v: Variant, query: Array, key: Array, value: Array, values: Env, *, floats: type[np.floating[Any]] = np.float64
) -> tuple[Array, Array]:
    """The whole attention, with one matrix of scores: ``(out, lse)``.

    ``query`` is (B, H, Lq, D), ``key`` (B, Hkv, Lkv, D), ``value`` (B, Hkv, Lkv, Dv) with Hkv dividing H;
    ``values`` holds run-time scalars and buffers by name. ``out`` is (B, H, Lq, Dv), ``lse`` the natural
    logarithm (B, H, Lq), both of type ``floats``, which scores and sums are computed in; masks are float32.
    A row that may attend to nothing gives 0 and -inf.
    """
    batch, heads, q_len, depth = query.shape
    kv_heads, kv_len = key.shape[1:3]
    group = heads // kv_heads if kv_heads else 1
    first = kv_len - q_len if v.align == "end" else 0
    head = np.arange(heads)[:, None, None]
    env = {
        **values,
        **{p.name: p.value for p in v.statics},
        "q": np.arange(q_len)[:, None] + first,
        "kv": np.arange(kv_len),
        "head": head,
        "kv_head": head // group,
        "batch": np.arange(batch)[:, None, None, None],
        "q_len": q_len,
        "kv_len": kv_len,
    }
    pairs = (batch, heads, q_len, kv_len)
    keep = np.broadcast_to(evaluate(v.mask, env), pairs)
    keys, seen = (np.repeat(x.astype(floats), group, axis=1) for x in (key, value))
    scale = depth**-0.5 if v.scale is None else v.scale
    with np.errstate(all="ignore"):
        s = np.where(keep, query.astype(floats) @ np.swapaxes(keys, -1, -2) * scale, 0)
        for e in v.scores:
            s = evaluate(e, {**env, "s": s}, floats=floats, clamp=True)
        s = np.where(keep, np.broadcast_to(s, pairs), -np.inf)
        top = np.max(s, axis=-1, keepdims=True, initial=-np.inf)
        shift = np.where(np.isneginf(top), 0, top)
        weights = np.where(keep, np.exp(s - shift), 0)
        total = weights.sum(axis=-1, keepdims=True)
        lse = np.where(total > 0, shift + np.log(total), -math.inf)
        # A key that no query of its batch and head attends to takes part in nothing, whatever it holds.
        attended = np.any(keep, axis=-2, keepdims=True).swapaxes(-1, -2)
        out = np.where(total > 0, weights @ np.where(attended, seen, 0) / np.where(total > 0, total, 1), 0)
    return out, lse[..., 0]
