"""Columns of heads in parts whose widths are powers of two, as tiles must have: 96 = 64 + 32, 192 = 128 + 64.

A part has its own descriptors and buffers, and an accumulator where it holds outputs. What is passed on is the tile
itself where there is one part, else a tuple.
"""

from __future__ import annotations

from .triton_module import Part


def tiles_of(name: str, parts: tuple[Part, ...], i: int) -> str:
    """Part ``i`` of what is called ``name``, as text."""
    return name if len(parts) == 1 else f"{name}[{i}]"


def together(names: list[str]) -> str:
    """What is passed on for all parts, as text."""
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
