"""Tiles that begin anew where data changes, as warp-specialised kernels walk them; see :mod:`.triton_cuts`.

Where a tile starts and ends is read from its table. What lies behind its end belongs to the next tile: it is loaded
with it, but must not be written, and keys there must not be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from ..ir.nodes import Expr
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_bands import BAND_INDICES
from .gluon_columns import RUN, emit_columns
from .gluon_loader import TileLoads
from .gluon_seen import UnseenByWeights
from .gluon_tiles import KEYS, Walk, emit_table_tile, emit_unpack, jit_function, visited_tiles
from .triton_cuts import MIXED, OWN_FIRST, OWN_STOP, cuts_of
from .triton_module import Argument
from .triton_program import SIZES, emit_entry
from .triton_tiles import TABLE_TILE, TileLoops, emit_table
from .triton_values import Guard, Level, Values

# What a tile of its own is, as text: its number in the table, where it starts and ends, and whether it mixes what is
# equal with what is not.
OWN = "tile, tile_first, tile_stop, mixed"
# What consumers are told of a tile of queries besides the usual three numbers, and how many there are in all.
_TOLD = ("entry", "tile_first", "tile_stop", "mixed")
CELLS_OF_CUT = 3 + len(_TOLD)
# How many numbers say where a visited tile is, and how they are read.
STARTS = 2
READ_START = "start, stop = read(starts, stage * 2), read(starts, stage * 2 + 1)"
WRITTEN_START = ("write(starts, stage * 2, start)", "write(starts, stage * 2 + 1, stop)")
VISITS = "visits = visited_tiles(batch, head, kv_head, tile, sizes, parameters)"

# The place of rows is a sum of three coordinates that wraps around in 64 bits: one counts from the end of the tile, so
# that what lies behind it is past the end of an axis. This is how Triton's descriptors of ragged tensors are made.
RAGGED = '''
def ragged(x, rows, layout, columns=None):
    """Tiles of rows of a contiguous (B, H, L, D) tensor, each with an end of its own, for the same accelerator."""
    width, most = x.shape[3], 2147418112
    block = [1, 1, rows.value, columns or width]
    return TensorDescriptor(x, [most, most, 1 << 30, width], [(1 << 34) - width, width, width, 1], block, layout.value)
'''


def may_be_cut(plan: TilePlan) -> bool:
    """Whether tiles may be cut, where there is room for outputs beside queries.

    Not where the producer tells which keys may be unseen: it does so in a bit of where a tile starts.
    """
    return cuts_of(plan) is not None and not UnseenByWeights.of(plan, "", told=True).told


def ragged_place(entry: str, length: str, first: str) -> str:
    """Coordinates of the rows from ``first`` to before ``tile_stop``, as text."""
    return f"1 << 30, {entry} * {length} + tile_stop, (1 << 30) - tile_stop + {first}"


def emit_cut_place(
    out: Emitter, walk: Walk, sizes: Sequence[Argument], parameters: Sequence[Argument], reverse: bool
) -> None:
    """From a number to a head and a tile: of its queries, or of the keys of a group of heads."""
    name = "query_tile" if walk is KEYS else "key_tile"
    with jit_function(out, f"{name}(program, sizes, parameters)"):
        out.line(f'"""Where tile number `program` of {walk.own} is."""')
        emit_unpack(out, "sizes", sizes)
        emit_unpack(out, "parameters", parameters)
        out.comment("Heads run in sections whose keys and values fit in the L2 cache, tile by tile.")
        out.line("tiles = tl.load(tile_rows)")
        emit_entry(out, reverse=reverse)
        if walk is KEYS:
            found = "entry, batch, head, head // (heads // kv_heads)"
            out.line("batch, head = entry // heads, entry % heads")
        else:
            found = "entry, batch, chunk, head // (heads // kv_heads)"
            out.line("chunks = heads // group")
            out.line("batch, chunk = entry // chunks, entry % chunks")
            out.line("head = chunk * group")
        out.line("own = tile_counts + batch * tile_counts_batch + head * tile_counts_head + tile * tile_counts_row")
        facts = ", ".join(f"tl.load(own + {i})" for i in (OWN_FIRST, OWN_STOP, MIXED))
        out.line(f"return {found}, tile, {facts}")


def emit_cut_visits(
    out: Emitter, walk: Walk, sizes: Sequence[Argument], parameters: Sequence[Argument]
) -> TileLoops:
    """Which tiles a tile of the other kind visits, and from a number to the start and end of one of them."""
    out.definition(TABLE_TILE)
    with visited_tiles(out, walk, "tile", sizes, parameters):
        loops = emit_table(out)
        out.line("firsts = tile_firsts + batch * tile_firsts_batch + head * tile_firsts_head")
        names = "partial_count, full_count, indices, first_tile, first_full, firsts"
        out.line(f"return {names}")
    with jit_function(out, "visited_start(t, visits)"):
        out.line('"""Start and end of the t-th visited tile: partial tiles come first, then full ones."""')
        out.line(f"{names} = visits")
        out.line(f"found = firsts + {emit_table_tile(out)}")
        out.line("return tl.load(found), tl.load(found + 1)")
    return loops


def cut_loads(loads: TileLoads, parameters: Sequence[Argument]) -> TileLoads:
    """The loads of the forward kernel's tiles, which come from a table."""
    return replace(
        loads,
        prologue=f"{', '.join(a.name for a in SIZES)} = sizes\n{', '.join(a.name for a in parameters)} = parameters\n"
        "programs = gl.load(tile_rows) * all_heads",
        visits=f"entry, batch, head, kv_head, {OWN} = query_tile(program, sizes, parameters)\n{VISITS}",
        cells=CELLS_OF_CUT,
        write_more="\n".join(f"write(orders, slot * {CELLS_OF_CUT} + {3 + i}, {x})" for i, x in enumerate(_TOLD)),
        before="next_start, next_stop = visited_start(0, visits)",
        start="start, stop = next_start, next_stop\nnext_start, next_stop = visited_start(t + 1, visits)",
        write_start="\n".join(WRITTEN_START),
        start_places=("stage * 2", "stage * 2 + 1"),
    )


def emit_told(out: Emitter) -> None:
    """Reads what a consumer is told of a tile of queries."""
    for i, name in enumerate(_TOLD):
        out.line(f"{name} = read(orders, slot * {CELLS_OF_CUT} + {3 + i})")


class Same:
    """What is equal in all pairs of tiles that are cut, for the tiles that are not."""

    def __init__(self, same: Expr, columns: str) -> None:
        # Names of its own: in a branch, a name keeps its type.
        self.values = Values({"same": same}, BAND_INDICES, prefix="same_", columns=columns)
        self.rows: Level = "query" if columns == "kv" else "key"
        self.columns: Literal["key", "query"] = "key" if columns == "kv" else "query"

    def emit(self, out: Emitter, done: frozenset[str] = frozenset()) -> str:
        """All of it, for ``start``; returns which pairs are the same, as text."""
        guards = Guard(query="(q_index < q_len)", key="(kv_index < kv_len)", pair="allowed")
        done = self.values.emit(out, "program", ("same",), guards, done)
        done = self.values.emit(out, self.rows, ("same",), guards, done)
        done = emit_columns(out, self.values, self.columns, ("same",), guards, done, RUN)
        self.values.emit(out, "pair", ("same",), guards, done)
        return self.values.result("same")
