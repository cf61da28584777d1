"""Functions for masks and scores. They take symbols while a function is traced, and otherwise tensors or numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .torch_functions import apply, trace_of


def _call(name: str, on_tensors: Callable[..., Any], on_numbers: Callable[..., Any], *args: Any) -> Any:
    trace = trace_of(args)
    if trace is not None:
        return apply(trace, name, args, {})
    if any(isinstance(x, torch.Tensor) for x in args):
        return on_tensors(*(torch.as_tensor(x) for x in args))
    return on_numbers(*args)


def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where ``condition`` holds, else ``b``; both are computed."""
    return _call("where", torch.where, lambda c, x, y: x if c else y, condition, a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two values."""
    return _call("minimum", torch.minimum, min, a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two values."""
    return _call("maximum", torch.maximum, max, a, b)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """``x`` limited to ``[low, high]``."""
    return minimum(maximum(x, low), high)


def exp(x: Any) -> Any:
    """e**x."""
    return _call("exp", torch.exp, math.exp, x)


def exp2(x: Any) -> Any:
    """2**x."""
    return _call("exp2", torch.exp2, lambda y: 2.0**y, x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _call("log", torch.log, math.log, x)


def log2(x: Any) -> Any:
    """Logarithm to base 2."""
    return _call("log2", torch.log2, math.log2, x)


def sqrt(x: Any) -> Any:
    """Square root."""
    return _call("sqrt", torch.sqrt, math.sqrt, x)


def rsqrt(x: Any) -> Any:
    """1 / square root."""
    return _call("rsqrt", torch.rsqrt, lambda y: 1.0 / math.sqrt(y), x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _call("tanh", torch.tanh, math.tanh, x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x)."""
    return _call("sigmoid", torch.sigmoid, lambda y: 0.5 * (1.0 + math.tanh(0.5 * y)), x)


def sin(x: Any) -> Any:
    """Sine of an angle in radians."""
    return _call("sin", torch.sin, math.sin, x)


def cos(x: Any) -> Any:
    """Cosine of an angle in radians."""
    return _call("cos", torch.cos, math.cos, x)


def abs(x: Any) -> Any:
    """Absolute value; an int stays an int."""
    return _call("abs", torch.abs, math.fabs if isinstance(x, float) else lambda y: max(y, -y), x)


def floor(x: Any) -> Any:
    """The largest whole number that is not above ``x``, as a float; see :func:`to_int`."""
    return _call("floor", lambda y: torch.floor(to_float(y)), lambda y: float(math.floor(y)), x)


def to_int(x: Any) -> Any:
    """``x`` as an int, truncated towards zero."""
    return _call("int", lambda y: y.to(torch.int64), int, x)


def to_float(x: Any) -> Any:
    """``x`` as a float."""
    return _call("float", lambda y: y if y.is_floating_point() else y.to(torch.get_default_dtype()), float, x)
