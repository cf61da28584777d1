"""How a parameter enters a trace: run-time scalar, constant or tensor."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..ir.errors import ParameterError
from ..ir.location import Location
from ..ir.types import BOOL, F32, I32, I64, ScalarType
from .callsite import caller
from .grid import Grid
from .static import StaticFloat, StaticInt

Value = bool | int | float | torch.Tensor | Grid | None
Kind = Literal["mask", "score"]


@dataclass(frozen=True, slots=True)
class ScalarForm:
    """A run-time scalar. ``guessed``: nothing but its use says that it is no tensor."""

    type: ScalarType
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class ConstantForm:
    """A value that the user's function receives as it is; static numbers keep their name in the text."""

    value: bool | StaticInt | StaticFloat | Grid | None


@dataclass(frozen=True, slots=True)
class BufferForm:
    """A tensor. ``guessed``: its element type is only assumed."""

    element: ScalarType
    rank: int | None  # None until the first use of an open parameter
    guessed: bool = False


Form = ScalarForm | ConstantForm | BufferForm

ELEMENTS: dict[torch.dtype, ScalarType] = {
    torch.bool: BOOL,
    torch.int8: I32, torch.uint8: I32, torch.int16: I32, torch.int32: I32, torch.int64: I64,
    torch.float16: F32, torch.bfloat16: F32, torch.float32: F32, torch.float64: F32,
}  # fmt: skip
_SCALARS = {"int": I32, "float": F32}
_BUFFER = re.compile(r"\b(bool|i32|i64|f32)\[([\w, ]*)\]")


def form_of_value(name: str, value: object) -> Form:
    """The form of a bound parameter, or :class:`ParameterError` if such a value cannot be one."""
    match value:
        case None | bool() | StaticInt() | StaticFloat() | Grid():
            return ConstantForm(value)
        case int():
            return ScalarForm(I32)
        case float():
            return ScalarForm(F32)
        case torch.Tensor() if value.dtype in ELEMENTS:
            return BufferForm(ELEMENTS[value.dtype], value.dim())
        case torch.Tensor():
            raise ParameterError(
                f"`{name}` has dtype {value.dtype}, which cannot be captured",
                location=caller(),
                hint="convert it to a float, integer or boolean dtype",
            )
        case _:
            raise ParameterError(
                f"`{name}` is a {type(value).__name__}; parameters are int, float, bool, torch.Tensor or rg.grid",
                location=caller(),
                hint="" if isinstance(value, str) else "torch.from_numpy(x) or torch.tensor(x) makes a tensor",
            )


def form_of_annotation(name: str, annotation: object, kind: Kind, place: Location) -> Form:
    """The form of an open parameter.

    ``int`` and ``float`` are run-time scalars; ``"i32[batch, q]"`` (the text language's own spelling), or for linters
    ``Annotated[torch.Tensor, "i32[batch, q]"]``, is a tensor with that element type and rank; ``torch.Tensor`` is a
    tensor whose rank comes from its use. Without an annotation, a parameter that is indexed is a tensor and any
    other is an int. Elements of a tensor that are not declared are i32 in a mask, or as an index, bool where a mask
    takes them for a condition, and f32 in a score. The call accepts any integer or boolean dtype for i32 and bool.
    """
    # Read as text: under `from __future__ import annotations` it is nothing else.
    text = inspect.formatannotation(annotation).strip("\"'")
    if annotation is inspect.Parameter.empty or text.split(".")[-1] == "Any":
        return ScalarForm(I32, guessed=True)
    if text in _SCALARS:
        return ScalarForm(_SCALARS[text])
    if buffer := _BUFFER.search(text):
        axes = [axis for axis in buffer[2].split(",") if axis.strip()]
        return BufferForm(ScalarType(buffer[1]), len(axes))
    if text.split(".")[-1] == "Tensor":
        return BufferForm(guessed_element(kind), None, guessed=True)
    if text == "bool":
        raise ParameterError(
            f"`{name}` is a bool, which is always constant, but has no value",
            location=place,
            hint=f"bind it when the part is built: ({name}=True)",
        )
    raise ParameterError(
        f"`{name}` is annotated `{text}`, which is no parameter type",
        location=place,
        hint='use int, float, torch.Tensor, or a tensor type like "f32[head]"',
    )


def guessed_element(kind: Kind) -> ScalarType:
    """The element type of an open tensor until its use says otherwise."""
    return I32 if kind == "mask" else F32


def plain(value: object) -> object:
    """numpy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def converted(value: object, annotation: object) -> object:
    """``value`` as its annotation asks: an int given for a ``float`` becomes one, so that both share a kernel.

    numpy's numbers become Python's.
    """
    value = plain(value)
    if annotation in (float, "float") and isinstance(value, int) and not isinstance(value, bool):
        return StaticFloat(value) if isinstance(value, StaticInt) else float(value)
    return value
