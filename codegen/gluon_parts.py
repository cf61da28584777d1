"""Columns of heads in parts whose widths are powers of two, as tiles must have: 96 = 64 + 32, 192 = 128 + 64.

A part has its own descriptors and buffers, and an accumulator where it holds outputs. What is passed on is the tile
itself where there is one part, else a tuple.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .emitter import Emitter
from .triton_module import Argument, Part, head_parts


def tiles_of(name: str, parts: tuple[Part, ...], i: int) -> str:
    """Part ``i`` of what is called ``name``, as text."""
    return name if len(parts) == 1 else f"{name}[{i}]"


def together(names: list[str]) -> str:
    """What is passed on for all parts, as text."""
    return names[0] if len(names) == 1 else f"({', '.join(names)})"


def emit_together(out: Emitter, name: str, parts: tuple[Part, ...]) -> None:
    """``name``, from what it is called part by part."""
    if len(parts) > 1:
        out.line(f"{name} = {together([name + p.suffix for p in parts])}")


def descriptors(
    name: str, rows: str, layout: str, size: int, tensor: str = "", kind: str = "descriptor"
) -> list[Argument]:
    """Arguments for the tiles of ``rows`` of a ``tensor`` with heads of this ``size``, part by part.

    ``kind``: the module's function that makes them.
    """
    parts = head_parts(size)
    columns = [f", {p.width}" if len(parts) > 1 else "" for p in parts]
    return [
        Argument(name + p.suffix, "", f"{kind}({tensor or name}, {rows}, {layout}{p.suffix}{c})")
        for p, c in zip(parts, columns, strict=True)
    ]


def part_copies(
    copy: str, tensor: str, where: str, tiles: str, i: str, parts: tuple[Part, ...], ready: str = ""
) -> list[str]:
    """Copies of tile ``i`` between ``tensor`` and shared memory, as text; loads make a barrier ``ready``."""
    arrives = f"{ready}, " if ready else ""
    return [
        f"{copy}({tiles_of(tensor, parts, n)}, [{where}, {p.first}], {arrives}{tiles_of(tiles, parts, n)}.index({i}))"
        for n, p in enumerate(parts)
    ]


def widths(name: str, parts: tuple[Part, ...]) -> Iterator[tuple[str, int]]:
    """Constants for the ``name`` of a head's size: of all columns, and of each part."""
    yield name, sum(p.width for p in parts)
    if len(parts) > 1:
        yield from ((f"{name}{p.suffix}", p.width) for p in parts)


def views(tiles: str, i: str, rows: str, size: str, parts: tuple[Part, ...]) -> list[str]:
    """Tile ``i`` of ``rows`` as matrices, as text; ``size`` is the constant for its columns."""
    return [
        f"{tiles_of(tiles, parts, n)}.index({i}).reshape([{rows}, {size}{p.suffix}])" for n, p in enumerate(parts)
    ]


def emit_views(
    out: Emitter, name: str, tiles: str, i: str, rows: str, size: str, parts: tuple[Part, ...]
) -> None:
    """``name``: tile ``i``, part by part."""
    for own, view in zip(names_of(name, parts), views(tiles, i, rows, size, parts), strict=True):
        out.line(f"{own} = {view}")


def emit_inner_product(
    out: Emitter, result: str, left: Sequence[str], right: Sequence[str], first: str, begins: bool = True
) -> None:
    """Starts ``result``: ``left`` times the transpose of ``right``, part by part of their columns.

    Sums begin at ``first``; where they do not, it is zeros.
    """
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        added = result if i else first if begins else f"{first}, use_acc=False"
        out.line(f"{result} = warpgroup_mma({a}, {b}.permute((1, 0)), {added}, is_async=True)")


def emit_rounded(out: Emitter, left: str, operand: str, parts: tuple[Part, ...]) -> None:
    """``left`` as an ``operand`` of products with each part."""
    for p in parts:
        out.line(f"{operand.lower()}{p.suffix} = tl.convert_layout({left}.to(ELEMENT), {operand}{p.suffix})")


def emit_outer_product(
    out: Emitter, sums: str, operand: str, right: Sequence[str], parts: tuple[Part, ...]
) -> None:
    """Starts ``sums`` plus the ``operand`` times ``right``, for each part of the columns."""
    for p, b in zip(parts, right, strict=True):
        added = f"{operand.lower()}{p.suffix}, {b}, {sums}{p.suffix}"
        out.line(f"next_{sums}{p.suffix} = warpgroup_mma({added}, is_async=True)")


def names_of(name: str, parts: tuple[Part, ...]) -> list[str]:
    """What ``name`` is called part by part."""
    return [name + p.suffix for p in parts]


def emit_buffers(
    out: Emitter, name: str, number: str, tensor: str, layout: str, parts: tuple[Part, ...]
) -> None:
    """Buffers for a ``number`` of tiles of a ``tensor``, in shared memory."""
    for p in parts:
        shape = f"[{number}] + {tensor}{p.suffix}.block_type.shape"
        out.line(f"{name}{p.suffix} = gl.allocate_shared_memory(ELEMENT, {shape}, {layout}{p.suffix})")
    emit_together(out, name, parts)


def emit_wait(out: Emitter, names: str, parts: tuple[Part, ...], pending: int) -> None:
    """Waits for the sums ``names``, all but the last ``pending`` products being done."""
    found = ", ".join(f"{names}{p.suffix}" for p in parts)
    waited = ", ".join(f"next_{names}{p.suffix}" for p in parts)
    out.line(f"{found} = warpgroup_mma_wait({pending}, deps=({waited}{',' if len(parts) == 1 else ''}))")
