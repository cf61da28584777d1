"""Checks of the values that users hand to stock parts."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...ir.errors import ParameterError
from ..callsite import caller
from ..grid import Grid
from ..part import MaskPart


def whole(name: str, value: object, least: int) -> int:
    """``value`` as an int, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ParameterError(f"`{name}` must be a whole number ≥ {least}, got {value!r}", location=caller())
    return value if isinstance(value, int) else int(value)


def along_axes(name: str, value: object, grid: Grid, least: int | None = 1) -> tuple[int, ...]:
    """``value``, given once or once for each axis of ``grid``: whole numbers ≥ ``least``; booleans if that is None."""
    if not isinstance(grid, Grid):
        raise ParameterError(
            f"`grid` must be a grid, got {type(grid).__name__}", location=caller(), hint="write rg.grid(height, width)"
        )
    rank = len(grid.sizes)
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(values) != rank:
        raise ParameterError(
            f"`{name}` has {len(values)} values, but {grid!r} has {rank} axes",
            location=caller(),
            hint="give one value for all axes, or one for each",
        )
    if least is None:
        if not all(isinstance(x, bool) for x in values):
            raise ParameterError(f"`{name}` must be True or False, got {value!r}", location=caller())
        return tuple(bool(x) for x in values)
    return tuple(whole(name, x, least) for x in values)


def fits(what: str, tokens: int, grid: Grid, axis: int) -> None:
    """Raises :class:`ParameterError` where ``tokens`` are more than the axis has."""
    if tokens > grid.sizes[axis]:
        raise ParameterError(
            f"{what} {tokens} along axis {axis} is larger than the axis, which has {grid.sizes[axis]} tokens",
            location=caller(),
            hint=f"at most {grid.sizes[axis]}",
        )


def joined(name: str, parts: Sequence[MaskPart]) -> MaskPart:
    """All of ``parts``, under one name."""
    return replace(functools.reduce(operator.and_, parts), name=name)


def number(name: str, value: object, *, above: float = -math.inf) -> float:
    """``value`` as a finite float, greater than ``above``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value <= above:
        bound = "" if above == -math.inf else f" > {above:g}"
        raise ParameterError(f"`{name}` must be a finite number{bound}, got {value!r}", location=caller())
    return float(value)


def tensor(name: str, value: object, shape: str, *, ranks: tuple[int, ...], kind: str) -> torch.Tensor:
    """``value`` if it is a tensor of one of ``ranks`` and of ``kind`` ("float", "integer" or "bool")."""
    if not isinstance(value, torch.Tensor):
        raise ParameterError(
            f"`{name}` must be a tensor of shape {shape}, got {type(value).__name__}", location=caller()
        )
    if value.dim() not in ranks:
        raise ParameterError(f"`{name}` must have shape {shape}, got {tuple(value.shape)}", location=caller())
    is_bool, is_float = value.dtype is torch.bool, value.dtype.is_floating_point
    found = "bool" if is_bool else "float" if is_float else "integer"
    if found != kind:
        raise ParameterError(f"`{name}` must be a tensor of kind {kind}, got {value.dtype}", location=caller())
    return value
