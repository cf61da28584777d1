"""Which torch functions and methods are part of the language, and what they mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..ir import build
from ..ir.errors import TraceError
from ..ir.nodes import BinaryOp, UnaryOp
from ..ir.types import BOOL, F32, I64, ScalarType
from .callsite import here
from .symbol import Symbol, as_condition, as_expr, combine

if TYPE_CHECKING:
    from .trace import Trace

Handler = Callable[..., Symbol]


def trace_of(values: object) -> Trace | None:
    """The trace of the first symbol among ``values`` (nested tuples, lists and mappings)."""
    match values:
        case Symbol():
            return values.trace
        case tuple() | list():
            found = (trace_of(x) for x in values)
        case dict():
            found = (trace_of(x) for x in values.values())
        case _:
            return None
    return next((x for x in found if x is not None), None)


def call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> object:
    """A torch function was called with symbols among its arguments."""
    trace = trace_of((args, kwargs))
    assert trace is not None
    name = func.__name__
    if name == "__getitem__" and isinstance(args[0], torch.Tensor):
        return trace.capture(args[0])[args[1]]
    return apply(trace, name.removeprefix("__").removesuffix("__"), args, kwargs)


def apply(trace: Trace, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Symbol:
    """Builds the IR of ``name(*args, **kwargs)``, or raises :class:`TraceError` if the language lacks it."""
    handler = FUNCTIONS.get(name)
    if handler is None:
        raise TraceError(
            f"the function `{name}` is not part of the language",
            location=here(),
            hint=f"there are: {', '.join(_LISTED)}",
        )
    try:
        inspect.signature(handler).bind(trace, *args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"these arguments of `{name}` are not part of the language: {error}", location=here()
        ) from None
    return handler(trace, *args, **kwargs)


def apply_numpy(trace: Trace, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Symbol:
    """:func:`apply` for a function of numpy: most are called as torch's are, and operators of its numbers are some."""
    numbers = tuple(x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in args)
    return apply(trace, _OF_NUMPY.get(name, name), numbers, kwargs)


def _unary(op: UnaryOp) -> Handler:
    return lambda trace, input: Symbol(build.unary(op, as_expr(trace, input), here()), trace)


def _binary(op: BinaryOp) -> Handler:
    return lambda trace, input, other: combine(trace, op, input, other)


def _logical(op: BinaryOp) -> Handler:
    def handler(trace: Trace, input: object, other: object) -> Symbol:
        return Symbol(build.binary(op, as_condition(trace, input), as_condition(trace, other), here()), trace)

    return handler


def _convert(type: ScalarType) -> Handler:
    return lambda trace, input: Symbol(build.cast(as_expr(trace, input), type, here()), trace)


def _logical_not(trace: Trace, input: object) -> Symbol:
    return Symbol(build.unary("not", as_condition(trace, input), here()), trace)


def _where(trace: Trace, condition: object, input: object, other: object) -> Symbol:
    chosen = build.select(as_expr(trace, condition), as_expr(trace, input), as_expr(trace, other), here())
    return Symbol(chosen, trace)


def _clamp(trace: Trace, input: object, min: object = None, max: object = None) -> Symbol:
    x = as_expr(trace, input)
    if min is not None:
        x = build.binary("max", x, as_expr(trace, min), here())
    if max is not None:
        x = build.binary("min", x, as_expr(trace, max), here())
    return Symbol(x, trace)


def _to(trace: Trace, input: object, dtype: object) -> Symbol:
    if dtype is torch.bool:
        type = BOOL
    elif isinstance(dtype, torch.dtype):
        type = F32 if dtype.is_floating_point else I64
    else:
        raise TraceError("`to` converts to a dtype only", location=here(), hint="write x.to(torch.float32)")
    return _convert(type)(trace, input)


def _masked_fill(trace: Trace, input: object, mask: object, value: object) -> Symbol:
    return _where(trace, mask, value, input)


def _filled(value: int) -> Handler:
    """``x.new_ones(())`` and the like, which FlexAttention's own masks start with."""

    def handler(trace: Trace, input: object, size: object = (), dtype: object = None, device: object = None) -> Symbol:
        if size != ():
            raise TraceError("a symbolic value has no axes", location=here(), hint="ask for the size ()")
        filled = Symbol(build.const(value, here()), trace)
        return filled if dtype is None else _to(trace, filled, dtype)

    return handler


_UNARY: dict[str, UnaryOp] = {
    "abs": "abs", "absolute": "abs", "neg": "neg", "negative": "neg", "invert": "not", "bitwise_not": "not",
    "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2", "sqrt": "sqrt", "rsqrt": "rsqrt",
    "tanh": "tanh", "sigmoid": "sigmoid", "sin": "sin", "cos": "cos", "floor": "floor",
}  # fmt: skip
_BINARY: dict[str, BinaryOp] = {
    "add": "add", "sub": "sub", "subtract": "sub", "mul": "mul", "multiply": "mul",
    "div": "div", "divide": "div", "true_divide": "div", "truediv": "div", "pow": "pow",
    "floor_divide": "floordiv", "floordiv": "floordiv", "remainder": "mod", "mod": "mod",
    "minimum": "min", "maximum": "max",
    "eq": "eq", "ne": "ne", "not_equal": "ne", "lt": "lt", "less": "lt", "le": "le", "less_equal": "le",
    "gt": "gt", "greater": "gt", "ge": "ge", "greater_equal": "ge",
    "and": "and", "bitwise_and": "and", "or": "or", "bitwise_or": "or", "xor": "xor", "bitwise_xor": "xor",
    "lshift": "shl", "bitwise_left_shift": "shl", "rshift": "shr", "bitwise_right_shift": "shr",
}  # fmt: skip
FUNCTIONS: dict[str, Handler] = {
    **{name: _unary(op) for name, op in _UNARY.items()},
    **{name: _binary(op) for name, op in _BINARY.items()},
    "logical_and": _logical("and"), "logical_or": _logical("or"), "logical_xor": _logical("xor"),
    "logical_not": _logical_not, "where": _where, "clamp": _clamp, "clip": _clamp, "to": _to,
    "masked_fill": _masked_fill, "new_ones": _filled(1), "new_zeros": _filled(0),
    "ones_like": _filled(1), "zeros_like": _filled(0),
    "float": _convert(F32), "int": _convert(I64), "long": _convert(I64), "bool": _convert(BOOL),
}  # fmt: skip
# In torch, `equal` compares whole tensors.
_OF_NUMPY = {"power": "pow", "equal": "eq", "left_shift": "lshift", "right_shift": "rshift"}
_LISTED = (
    "where", "abs", "minimum", "maximum", "clamp", "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid",
    "sin", "cos", "floor", "floor_divide", "remainder", "logical_and", "logical_or", "logical_not",
)  # fmt: skip
