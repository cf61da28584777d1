"""Which tiles a program visits: the plan's ranges as scalar arithmetic, or rows of a table.

A program's tiles are numbered ``0 .. full_count`` (no mask needed) and ``0 .. partial_count`` (mask
applied); :class:`TileLoops` spells the counts and the way from a number to a tile. In a row of a table both
kinds stand one after the other: there the numbers of partial tiles start at ``full_count``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..ir.nodes import Const, Expr, Index
from ..ir.tiles.plan import Interval, Ranges
from ..ir.types import I64
from .emitter import Emitter
from .triton_values import Guard, Values


@dataclass(frozen=True, slots=True)
class Segment:
    """Tiles ``first <= tile < stop``, as text; ``first <= stop`` holds."""

    first: str
    stop: str

    @property
    def count(self) -> str:
        return self.stop if self.first == "0" else f"{self.stop} - {self.first}"


@dataclass(frozen=True, slots=True)
class TileLoops:
    """Text of the number of tiles, and of the ``t``-th tile (an atom); a count of "" says that there are none.

    ``hull``: the positions that a partial tile may see, from start to stop, where they are one interval.
    ``table``: the tiles are a row of a table, of which ``full_tile`` and ``partial_tile`` say nothing.
    ``merged``: one loop visits both kinds.
    """

    full_count: str
    full_tile: str
    partial_count: str
    partial_tile: str
    hull: tuple[str, str] | None = None
    table: bool = False
    merged: bool = False

    @property
    def count(self) -> str:
        """All tiles."""
        return " + ".join(x for x in (self.full_count, self.partial_count) if x)


def ranges_results(ranges: Ranges) -> dict[str, Expr]:
    """The bounds of all intervals by name, for :class:`.triton_values.Values`."""
    named: dict[str, Expr] = {}
    for kind, intervals in (("may", ranges.may), ("must", ranges.must)):
        for i, interval in enumerate(intervals):
            named[f"{kind}_{i}_start"] = interval.start
            named[f"{kind}_{i}_stop"] = interval.stop
    return named


def emit_ranges(
    out: Emitter, ranges: Ranges, indices: Mapping[str, str], block: str, length: str
) -> TileLoops:
    """Writes the scalar arithmetic from intervals of positions to segments of tiles."""
    if not ranges.may:
        return TileLoops("", "", "", "")
    results = ranges_results(ranges)
    values = Values(results, indices)
    values.emit(out, "program", tuple(results), Guard())
    intervals = [_clipped(out, values, f"may_{i}", x, length) for i, x in enumerate(ranges.may)]
    may = sorted_intervals(out, "may", intervals)
    intervals = [_clipped(out, values, f"must_{i}", x, length) for i, x in enumerate(ranges.must)]
    must = sorted_intervals(out, "must", intervals)
    hull = may[0] if len(may) == 1 else None

    out.comment("The same in tiles: outwards where a pair may be allowed, inwards where all are.")
    visited = _disjoint(out, [_outward(out, f"tile_{i}", x, block) for i, x in enumerate(may)])
    inner = [_inward(out, f"full_{i}", x, block) for i, x in enumerate(must)]
    # Everything of a union of proved pairs lies in the union of possible ones, but for empty tiles.
    full = _intersected(out, inner, visited)
    partial = _remainder(out, visited, full)
    full_count, full_tile = _numbered(out, "full", full)
    partial_count, partial_tile = _numbered(out, "partial", partial)
    return TileLoops(full_count, full_tile, partial_count, partial_tile, hull)


def _clipped(out: Emitter, values: Values, name: str, interval: Interval, length: str) -> tuple[str, str]:
    def clip(e: Expr, end: str) -> str:
        if isinstance(e, Const) and e.value <= 0:
            return "0"
        text = values.result(f"{name}_{end}")
        if isinstance(e, Index) and text == length:
            return length
        text = text if values.never_negative(e) else f"tl.maximum({text}, 0)"
        text = f"tl.minimum({text}, {length})"
        out.line(f"{name}_{end} = {text}{'.to(tl.int32)' if e.type is I64 else ''}")
        return f"{name}_{end}"

    return clip(interval.start, "start"), clip(interval.stop, "stop")


def sorted_intervals(out: Emitter, kind: str, intervals: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Several intervals, sorted by start and with those that touch joined into the later one."""
    if len(intervals) < 2:
        return intervals
    out.comment(f"Sort the intervals ({kind}), then join those that touch.")
    names = [(f"{kind}_{i}_start", f"{kind}_{i}_stop") for i in range(len(intervals))]
    for (start, stop), (a, b) in zip(names, intervals, strict=True):
        if start != a:
            out.line(f"{start} = {a}")
        # An empty interval must not bridge a gap: it shrinks to nothing, at the far end.
        if stop != b:
            out.line(f"{stop} = {b}")
        out.line(f"{start} = tl.where({start} < {stop}, {start}, {_FAR})")
        out.line(f"{stop} = tl.where({start} < {stop}, {stop}, {_FAR})")
    for end in range(len(names) - 1, 0, -1):
        for i in range(end):
            (a, b), (c, d) = names[i], names[i + 1]
            out.line(f"swap = {a} > {c}")
            out.line(f"{a}, {c} = tl.where(swap, {c}, {a}), tl.where(swap, {a}, {c})")
            out.line(f"{b}, {d} = tl.where(swap, {d}, {b}), tl.where(swap, {b}, {d})")
    for (a, b), (c, d) in pairwise(names):
        out.line(f"joined = {c} <= {b}")
        out.line(f"{c} = tl.where(joined, {a}, {c})")
        out.line(f"{d} = tl.where(joined, tl.maximum({b}, {d}), {d})")
        out.line(f"{b} = tl.where(joined, {a}, {b})")
    return names


# Beyond every position, and small enough to be rounded up to a tile without overflow.
_FAR = 1 << 30


def _outward(out: Emitter, name: str, interval: tuple[str, str], block: str) -> Segment:
    start, stop = interval
    if start == "0":
        out.line(f"{name}_stop = tl.cdiv({stop}, {block})")
        return Segment("0", f"{name}_stop")
    out.line(f"{name}_first = {start} // {block}")
    out.line(f"{name}_stop = tl.where({start} < {stop}, tl.cdiv({stop}, {block}), {name}_first)")
    return Segment(f"{name}_first", f"{name}_stop")


def _inward(out: Emitter, name: str, interval: tuple[str, str], block: str) -> Segment:
    start, stop = interval
    if start == "0":
        out.line(f"{name}_stop = {stop} // {block}")
        return Segment("0", f"{name}_stop")
    out.line(f"{name}_first = tl.cdiv({start}, {block})")
    out.line(f"{name}_stop = tl.maximum({stop} // {block}, {name}_first)")
    return Segment(f"{name}_first", f"{name}_stop")


def _disjoint(out: Emitter, segments: list[Segment]) -> list[Segment]:
    """Neighbours may share the tile that both end in: the later one starts after it."""
    for before, after in pairwise(segments):
        out.line(f"{after.first} = tl.maximum({after.first}, {before.stop})")
        out.line(f"{after.stop} = tl.maximum({after.stop}, {after.first})")
    return segments


def _intersected(out: Emitter, inner: list[Segment], visited: list[Segment]) -> list[Segment]:
    """The part of each of ``inner`` in each of ``visited``, in order; some are empty."""
    pieces = []
    for i, outer in enumerate(visited):
        for j, x in enumerate(inner):
            name = f"full_{j}" if len(visited) == 1 else f"full_{i}_{j}"
            first, stop = "0", x.stop
            if (x.first, outer.first) != ("0", "0"):
                first = f"{name}_first"
                out.line(f"{first} = tl.minimum(tl.maximum({x.first}, {outer.first}), {outer.stop})")
                stop = f"tl.maximum({x.stop}, {first})"
            out.line(f"{name}_stop = tl.minimum({stop}, {outer.stop})")
            pieces.append(Segment(first, f"{name}_stop"))
    return pieces


def _remainder(out: Emitter, visited: list[Segment], full: list[Segment]) -> list[Segment]:
    """The tiles of ``visited`` that are in no segment of ``full``: the gaps before, between and after those.

    ``full`` is sorted, and each of its segments lies within one of ``visited``.
    """
    if not full:
        return visited
    per_outer = len(full) // len(visited)
    pieces: list[Segment] = []
    for i, outer in enumerate(visited):
        first = outer.first
        for x in full[i * per_outer : (i + 1) * per_outer]:
            if first != x.first:
                pieces.append(Segment(first, x.first))
            first = x.stop
        pieces.append(Segment(first, outer.stop))
    return pieces


def _numbered(out: Emitter, kind: str, segments: list[Segment]) -> tuple[str, str]:
    """The total count, and the tile that number ``t`` means: a chain of selects."""
    if not segments:
        return "", ""
    if len(segments) == 1:
        (only,) = segments
        out.line(f"{kind}_count = {only.count}")
        return f"{kind}_count", "t" if only.first == "0" else f"({only.first} + t)"
    total = ""
    shifts: list[tuple[str, str]] = []
    for i, x in enumerate(segments[:-1]):
        out.line(f"{kind}_end_{i} = {total + ' + ' if total else ''}{x.count}")
        shifts.append((f"{kind}_end_{i}", f"{x.first} - {total}" if total else x.first))
        total = f"{kind}_end_{i}"
    last = segments[-1]
    out.line(f"{kind}_count = {total} + {last.count}")
    tile = f"t + {last.first} - {total}"
    for end, shift in reversed(shifts):
        tile = f"tl.where(t < {end}, {'t' if shift == '0' else f't + {shift}'}, {tile})"
    return f"{kind}_count", tile


def emit_start(out: Emitter, tile: str, block: str) -> None:
    """``start``, the first position of a tile; a chain of selects has one a line."""
    head, *selects = tile.split(", tl.where(")
    if not selects:
        out.line(f"start = {tile} * {block}")
        return
    *selects, last = selects
    condition, otherwise = last.rsplit(", ", 1)
    lines = [head, *(f"tl.where({x}" for x in selects), f"tl.where({condition}", f"{otherwise} * {block}"]
    out.lines("start = " + ",\n    ".join(lines))


def emit_table(out: Emitter) -> TileLoops:
    """Reads this tile's row in the table of tiles (see the module's ``classify``), for :func:`table_tile`."""
    for name in ("indices", "counts"):
        place = f"batch * tile_{name}_batch + head * tile_{name}_head + tile * tile_{name}_row"
        out.line(f"{name} = tile_{name} + {place}")
    for i, name in enumerate(("full_count", "partial_count", "first_tile", "first_full")):
        out.line(f"{name} = tl.load(counts{f' + {i}' if i else ''})")
    return TileLoops("full_count", "", "partial_count", "", table=True)


def table_tile(t: str, stop: str) -> str:
    """The tile with number ``t`` in a row of a table, as text; anything from number ``stop`` on."""
    return f"table_tile(indices, {t}, full_count, first_tile, first_full, {t} < {stop})"


TABLE_TILE = '''
@triton.jit
def table_tile(indices, t, full_count, first_tile, first_full, exists):
    """The t-th tile of a row, full ones first; a row without gaps is no list, but says where its runs begin."""
    partial = first_tile + t - full_count
    partial += tl.where(partial < first_full, 0, full_count)
    run = tl.where(t < full_count, first_full + t, partial)
    return tl.where(first_tile < 0, tl.load(indices + t, mask=exists & (first_tile < 0), other=0), run)
'''

# Which tiles a loop's body has to mask: none, all, or those for which ``t >= full_count``.
Masked = Literal["none", "all", "some"]


def emit_tile_loops(
    out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None], *,
    share: tuple[str, str] | None = None, merged: bool = False,
) -> None:  # fmt: skip
    """The loops over a program's tiles; ``step`` writes the body, for which ``start`` is the tile's first position.

    ``share``: the first of the tiles that count, and the one after the last; all without it. ``merged``: one
    loop over both kinds of a table's tiles.
    """
    if not loops.table:
        _emit_range_loops(out, loops, block, step, share, "range({}, {})")
        return
    if not share:
        out.line(f"begin, end = 0, {loops.count}")
    begin, end = share or ("begin", "end")
    out.comment("Tiles are looked up two steps ahead, so that loads of their contents start without waiting.")
    out.line(f"next_start = {table_tile(begin, end)} * {block}")
    out.line(f"ahead = {table_tile(f'{begin} + 1', end)}")
    full = loops.full_count
    if share:
        middle = f"tl.minimum(tl.maximum({begin}, {full}), {end})"
        ranges = ((begin, f"tl.minimum({end}, {full})"), (middle, end))
    else:
        ranges = ((begin, full), (full, end))
    kinds: tuple[tuple[Masked, str, tuple[str, str]], ...] = (
        ("none", "Tiles in which every pair is allowed.", ranges[0]),
        ("all", "Tiles in which the mask decides.", ranges[1]),
    )
    if merged:
        kinds = (("some", "Tiles in which every pair is allowed, then those in which the mask decides.", (begin, end)),)
    for masked, comment, (first, stop) in kinds:
        out.comment(comment)
        with out.block(f"for t in range({first}, {stop}):"):
            out.line("start = next_start")
            out.line(f"next_start = ahead * {block}")
            out.line(f"ahead = {table_tile('t + 2', end)}")
            step(masked)


def emit_exact_loops(
    out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None], share: tuple[str, str] | None = None
) -> None:
    """As :func:`emit_tile_loops`, for code that hardly ever runs: little of it, and no pipeline."""
    if not loops.table:
        _emit_range_loops(out, loops, block, step, share, "tl.range({}, {}, num_stages=1)")
        return
    begin, end = share or ("begin", "end")
    with out.block(f"for t in tl.range({begin}, {end}, num_stages=1):"):
        out.line(f"start = {table_tile('t', end)} * {block}")
        step("all")


def _emit_range_loops(
    out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None], share: tuple[str, str] | None,
    numbers: str,
) -> None:  # fmt: skip
    full, partial = ("0", loops.full_count), ("0", loops.partial_count)
    if share and loops.partial_count:
        begin, end = share
        count = loops.full_count or "0"
        full = f"tl.minimum({begin}, {count})", f"tl.minimum({end}, {count})"
        partial = f"tl.maximum({begin} - {count}, 0)", f"tl.maximum({end} - {count}, 0)"
    if loops.full_count:
        out.comment("Tiles in which every pair is allowed.")
        with out.block(f"for t in {numbers.format(*full)}:"):
            emit_start(out, loops.full_tile, block)
            step("none")
    if loops.partial_count:
        out.comment("Tiles in which the mask decides.")
        with out.block(f"for t in {numbers.format(*partial)}:"):
            emit_start(out, loops.partial_tile, block)
            step("all")
