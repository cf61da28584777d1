"""Numbers that are baked into the kernel."""

from __future__ import annotations

import numbers

from ..ir.errors import ParameterError


class StaticInt(int):
    """An int that is baked in. While tracing, ``parameter`` is the name it prints under."""

    parameter: str = ""

    def named(self, parameter: str) -> StaticInt:
        copy = StaticInt(self)
        copy.parameter = parameter
        return copy


class StaticFloat(float):
    """A float that is baked in. While tracing, ``parameter`` is the name it prints under."""

    parameter: str = ""

    def named(self, parameter: str) -> StaticFloat:
        copy = StaticFloat(self)
        copy.parameter = parameter
        return copy


def static(value: float) -> StaticInt | StaticFloat | bool:
    """Marks ``value`` (int, float or bool) as a constant of the kernel instead of a run-time scalar.

    Static values can steer Python itself (``if``, ``range``) inside a mask or score, and let proofs use
    the number; each new value compiles a new kernel. Booleans are always static. Raises
    :class:`ParameterError` for anything but a number.

    >>> static(4) + 1, static(True)
    (5, True)
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return StaticInt(value)
    if isinstance(value, numbers.Real):
        return StaticFloat(value)
    raise ParameterError(f"rg.static takes a number, got {type(value).__name__}")
