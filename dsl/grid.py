"""Grids of tokens: images, videos and volumes whose positions are flattened into one sequence."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

from ..ir import build
from ..ir.errors import ParameterError
from ..ir.grids import check_grid_sizes
from .callsite import caller, here
from .symbol import Symbol


@dataclass(frozen=True, slots=True)
class Grid:
    """A row-major grid: the last axis varies fastest. Made by :func:`grid`."""

    sizes: tuple[int, ...]

    def __call__(self, position: Any) -> tuple[Any, ...]:
        """The coordinates of a flattened position, one for each axis: symbols in a mask or score, else numbers.

        ``position``: ``q`` or ``kv`` (then the call checks that they are as many as the tokens of the grid), any
        integer made of them, a torch tensor of integers, or an int. Coordinate 0 goes on beyond the grid; the
        others wrap, as ``//`` and ``%`` do.
        """
        if isinstance(position, Symbol):
            where = here()
            coordinates = (build.coordinate(position.expr, i, self.sizes, where) for i in range(len(self.sizes)))
            return tuple(Symbol(x, position.trace) for x in coordinates)
        found = []
        for size in reversed(self.sizes[1:]):
            found.append(position % size)
            position = position // size
        return (position, *reversed(found))

    def __repr__(self) -> str:
        return f"grid({', '.join(map(str, self.sizes))})"


def grid(*sizes: int) -> Grid:
    """A grid of tokens, e.g. ``grid(frames, height, width)``, in row-major order.

    The sizes count tokens and are baked into the kernel. Calling the grid with a position gives its coordinates:

    >>> grid(16, 32)(70)
    (2, 6)

    Raises :class:`ParameterError` unless all sizes are whole numbers ≥ 1 and their product is below 2**28.
    """
    for axis, size in enumerate(sizes):
        if isinstance(size, bool) or not isinstance(size, numbers.Integral):
            raise ParameterError(f"axis {axis} of a grid must be a whole number, got {size!r}", location=caller())
    check_grid_sizes(sizes, caller())
    return Grid(tuple(map(int, sizes)))
