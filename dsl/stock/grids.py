"""Grids of tokens cut into windows, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.errors import ParameterError
from ..callsite import caller
from ..grid import Grid
from ..part import MaskPart, mask
from ..static import static
from .causal import full
from .checks import along_axes, fits, joined, whole


def windows(grid: Grid, size: int | Sequence[int], shift: int | Sequence[int] = 0) -> MaskPart:
    """Queries and keys of the same window attend to each other; windows partition the grid.

    Liu et al., Swin Transformer, arXiv:2103.14030: ``shift`` moves all borders by so many tokens, which gives shifted
    windows with their mask, without rolling the tokens: what the roll brings together from opposite borders stays
    apart. Windows at the borders may be smaller; nothing is padded. ``size`` and ``shift`` count tokens, are given once
    or once for each axis, and are baked in, because they divide. Raises :class:`ParameterError` for windows larger
    than an axis, and unless 0 ≤ ``shift`` < ``size``.

    >>> import regard as rg
    >>> print(rg.attention(rg.windows(rg.grid(56), 7, shift=3)))
    attention windows(offset: static int = 4, size: static int = 7) {
      keep      (coordinate(q, 0, 56) + offset) // size == (coordinate(kv, 0, 56) + offset) // size
      normalize softmax
    }
    """
    parts = []
    shifts = along_axes("shift", shift, grid, least=0)
    for axis, (width, by) in enumerate(zip(along_axes("size", size, grid), shifts, strict=True)):
        fits("window", width, grid, axis)
        if by >= width:
            raise ParameterError(
                f"shift {by} along axis {axis} must be less than the window, which has {width} tokens",
                location=caller(),
                hint=f"{by} tokens further the borders are where a shift of {by % width} has them",
            )
        place = {"grid": grid, "axis": static(axis), "size": static(width)}
        parts.append(_shifted_windows(offset=static(width - by), **place) if by else _windows(**place))
    return joined("windows", parts)


@mask
def _windows(q: Any, kv: Any, grid: Grid, axis: int, size: int) -> Any:
    return grid(q)[axis] // size == grid(kv)[axis] // size


@mask
def _shifted_windows(q: Any, kv: Any, grid: Grid, axis: int, offset: int, size: int) -> Any:
    return (grid(q)[axis] + offset) // size == (grid(kv)[axis] + offset) // size


def axial(grid: Grid, axis: int, causal: bool = False) -> MaskPart:
    """Attention along one axis: keys whose other coordinates are those of the query; ``causal``: up to the query.

    Ho et al., Axial Attention in Multidimensional Transformers, arXiv:1912.12180. ``axis`` counts from 0, or from the
    end if negative. Raises :class:`ParameterError` for an axis that the grid does not have.

    >>> import regard as rg
    >>> print(rg.attention(rg.axial(rg.grid(16, 32), axis=1)))
    attention axial() {
      keep      coordinate(q, 0, 16, 32) == coordinate(kv, 0, 16, 32)
      normalize softmax
    }
    """
    rank = len(grid.sizes)
    along = whole("axis", axis, -rank)
    if along >= rank:
        raise ParameterError(f"there is no axis {along} in {grid!r}", location=caller())
    parts = [_same(grid=grid, axis=static(other)) for other in range(rank) if other != along % rank]
    if causal:
        parts.append(_up_to(grid=grid, axis=static(along % rank)))
    return joined("axial", parts or [full()])


@mask
def _same(q: Any, kv: Any, grid: Grid, axis: int) -> Any:
    return grid(q)[axis] == grid(kv)[axis]


@mask
def _up_to(q: Any, kv: Any, grid: Grid, axis: int) -> Any:
    return grid(q)[axis] >= grid(kv)[axis]
