"""The types of the language: four scalar types, and buffers of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ScalarType(Enum):
    """A scalar type. Its value is its spelling in the text form."""

    BOOL = "bool"
    I32 = "i32"
    I64 = "i64"
    F32 = "f32"

    # Enum's own hashes the name, in Python; members are unique.
    __hash__ = object.__hash__

    @property
    def is_integer(self) -> bool:
        return self in (ScalarType.I32, ScalarType.I64)

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return self.name


BOOL, I32, I64, F32 = ScalarType.BOOL, ScalarType.I32, ScalarType.I64, ScalarType.F32


@dataclass(frozen=True, slots=True)
class BufferType:
    """A captured tensor: element type as the language sees it, and one label per axis.

    A label is the name of the index that alone reads the axis (``head``, ``q`` …), else ``_``.
    Labels describe; only their number (the rank) binds. ``f32`` stands for every float storage
    dtype (float16, bfloat16, float32, float64: values are converted when loaded), ``i32`` for
    int8, uint8, int16 and int32. The runtime gives a variant the types of the tensors that a call brings.
    """

    element: ScalarType
    axes: tuple[str, ...]

    @property
    def rank(self) -> int:
        return len(self.axes)

    def __str__(self) -> str:
        return f"{self.element}[{', '.join(self.axes)}]"


def promote(a: ScalarType, b: ScalarType) -> ScalarType:
    """The type of arithmetic between ``a`` and ``b`` (booleans count as 0 and 1).

    >>> promote(I32, F32), promote(BOOL, I64), promote(BOOL, BOOL)
    (F32, I64, I64)

    Integer arithmetic is i64 until the pass ``narrow_integers`` proves that i32 suffices.
    """
    return F32 if F32 in (a, b) else I64
