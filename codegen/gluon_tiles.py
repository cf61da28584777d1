"""Which tiles a program visits: functions that the producer and the consumers of a kernel share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .triton_module import Argument
from .triton_program import INDICES, uses_table
from .triton_tiles import TABLE_TILE, TileLoops, emit_ranges, emit_table, table_tile

# A name that is neither called nor a module or an attribute.
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\w*[.(])")


def emit_unpack(out: Emitter, name: str, arguments: Sequence[Argument]) -> None:
    """Takes a tuple apart that carries kernel arguments to a function."""
    out.line(f"{', '.join(a.name for a in arguments)}{',' if len(arguments) == 1 else ''} = {name}")


CELLS = """
@gluon.jit
def write(cells, i, number):
    \"\"\"One integer in shared memory, by the producer.\"\"\"
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    cells.index(i).store(gl.full([1], number, gl.int32, LAYOUT))


@gluon.jit
def read(cells, i):
    \"\"\"One integer in shared memory, by a consumer.\"\"\"
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    return gl.max(cells.index(i).load(LAYOUT), 0)


@gluon.jit
def ring(number):
    \"\"\"Buffer of the tile with this number, counted from the first that was loaded, and its turn's parity.\"\"\"
    return number % STAGES, number // STAGES & 1
"""
OWN_TILE = """
@gluon.jit
def own_tile(i):
    \"\"\"``i``, but not as a constant: addresses of all pieces of a tile would be kept in registers, and spill.\"\"\"
    i = gl.to_tensor(i)
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [i], dtype=gl.int32, is_pure=False, pack=1)
"""
# Where tiles are so wide that few fit: the tensor that is needed for a shorter time has buffers of its own.
OTHER_RING = """
@gluon.jit
def other_ring(number):
    \"\"\"The same for the tensor that has OTHER_STAGES buffers.\"\"\"
    return number % OTHER_STAGES, number // OTHER_STAGES & 1
"""


def ring_loads(
    count: str, ready: str, needs: str, loads: Sequence[str], starts: Sequence[str], other: bool = False
) -> list[str]:
    """Lines of a producer that fill the next buffer of a ring, after ``count`` tiles.

    ``needs``: its bytes, as text. ``starts``: lines that tell where the tile starts. ``other``: of the second ring,
    whose buffers are numbered after those of the first.
    """
    ring, stages, buffer = ("other_ring", "OTHER_STAGES", "STAGES + stage") if other else ("ring", "STAGES", "stage")
    return [
        f"stage, phase = {ring}({count})",
        f"if {count} >= {stages}:",
        f"    acquire({buffer})",
        *starts,
        f"mbarrier.expect({ready}.index(stage), {needs})",
        *loads,
    ]


@dataclass(frozen=True, slots=True)
class Walk:
    """A direction to walk in: a tile of ``own`` positions visits tiles of ``other`` ones."""

    own: str
    other: str
    own_block: str
    block: str
    own_length: str
    length: str


KEYS = Walk("queries", "keys", "BLOCK_M", "BLOCK_N", "q_len", "kv_len")
QUERIES = Walk("keys", "queries", "BLOCK_N", "BLOCK_M", "kv_len", "q_len")


def emit_visits(
    out: Emitter, plan: TilePlan, walk: Walk, sizes: Sequence[Argument], parameters: Sequence[Argument]
) -> TileLoops:
    """Two functions: which tiles a tile of the other kind visits, and from a number to the start of one of them.

    ``parameters`` have the table's arguments where the plan has one.
    """
    ranges = plan.keys if walk is KEYS else plan.queries
    if uses_table(plan):
        out.definition(TABLE_TILE)
    with visited_tiles(out, walk, "tile_first", sizes, parameters):
        if uses_table(plan):
            out.line(f"tile = tile_first // {walk.own_block}")
            loops = emit_table(out)
            names: tuple[str, ...] = ("partial_count", "full_count", "indices", "first_tile", "first_full")
        else:
            out.line(f"tile_last = tl.minimum(tile_first + {walk.own_block}, {walk.own_length}) - 1")
            loops = emit_ranges(out, ranges, INDICES, walk.block, walk.length)
            for kind, count in (("partial", loops.partial_count), ("full", loops.full_count)):
                if not count:
                    out.line(f"{kind}_count = 0")
            names = ("partial_count", "full_count", *_names_in(loops))
        out.line(f"return {', '.join(names)}")

    with jit_function(out, "visited_start(t, visits)"):
        out.line('"""Start of the t-th visited tile: partial tiles come first, then full ones."""')
        out.line(f"{', '.join(names)} = visits")
        if uses_table(plan):
            out.line(f"return {emit_table_tile(out)} * {walk.block}")
            return loops
        match loops.partial_count, loops.full_count:
            case "", "":
                out.line(f"return t * {walk.block}")
            case "", _:
                out.line(f"return ({loops.full_tile}) * {walk.block}")
            case _, "":
                out.line(f"return ({loops.partial_tile}) * {walk.block}")
            case _:
                out.line(f"partial = {loops.partial_tile}")
                out.line("t = t - partial_count")
                out.line(f"full = {loops.full_tile}")
                out.line(f"return tl.where(t < 0, partial, full) * {walk.block}")
    return loops


@contextmanager
def visited_tiles(
    out: Emitter, walk: Walk, own: str, sizes: Sequence[Argument], parameters: Sequence[Argument]
) -> Iterator[None]:
    """The function of this name, for the tile that ``own`` says; what is written meanwhile is the rest of it."""
    with jit_function(out, f"visited_tiles(batch, head, kv_head, {own}, sizes, parameters)"):
        out.line(
            f'"""Numbers of partial and full tiles of {walk.other} for a tile of {walk.own}, and what says where '
            'they are."""'
        )
        emit_unpack(out, "sizes", sizes)
        emit_unpack(out, "parameters", parameters)
        yield


def emit_table_tile(out: Emitter) -> str:
    """The t-th tile that a row of a table visits, partial ones first, as text; anything past the last."""
    out.comment("The table has full tiles first.")
    out.line("count = partial_count + full_count")
    out.line("place = tl.where(t < partial_count, full_count + t, t - partial_count)")
    out.line("place = tl.where(t < count, place, count)")
    return table_tile("place", "count")


@contextmanager
def jit_function(out: Emitter, signature: str) -> Iterator[None]:
    """A function of the kernel; what is written meanwhile is its body."""
    out.line()
    out.line()
    out.line("@triton.jit")
    with out.block(f"def {signature}:"):
        yield


def _names_in(loops: TileLoops) -> tuple[str, ...]:
    """Scalars that the way from a number to a tile needs, besides the counts."""
    found = _NAME.findall(f"{loops.partial_tile} {loops.full_tile}")
    return tuple(x for x in dict.fromkeys(found) if x not in ("t", "full_count", "partial_count"))
