"""Variables that a function takes from around it: closure cells and globals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType
from typing import cast

import torch

from .forms import ELEMENTS, Value, plain
from .static import StaticFloat, StaticInt


def captured_values(function: FunctionType) -> dict[str, Value]:
    """The numbers and tensors among them, as they are now, by variable name."""
    names = dict.fromkeys(_global_names(function.__code__))
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in _cells(function).items():
        try:
            found[name] = cell.cell_contents
        except ValueError:  # assigned only after this function was defined
            continue
    numbers = {name: plain(value) for name, value in found.items()}
    return {name: cast(Value, value) for name, value in numbers.items() if _is_parameter(value)}


def with_captured(function: FunctionType, replacements: Mapping[str, object]) -> FunctionType:
    """A copy of ``function`` that finds other values in its closure cells and globals."""
    cells = {
        name: CellType(replacements[name]) if name in replacements else cell for name, cell in _cells(function).items()
    }
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **{name: x for name, x in replacements.items() if name not in cells}},
        function.__name__,
        function.__defaults__,
        tuple(cells.values()),
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _is_parameter(value: object) -> bool:
    """Plain numbers and tensors; True and False are constants, and subclasses of int (enums) mean something else."""
    if isinstance(value, torch.Tensor):
        return value.dtype in ELEMENTS
    return type(value) in (int, float, StaticInt, StaticFloat)


def _cells(function: FunctionType) -> dict[str, CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _global_names(code: CodeType) -> Iterator[str]:
    """Names that ``code`` and the functions inside it look up (attribute names among them do no harm)."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)
