"""Which tiles of queries and keys a program visits, and the producer that loads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_names import Names
from .triton_module import Argument
from .triton_program import INDICES, SIZES, emit_place
from .triton_tiles import TileLoops, emit_ranges

# A name that is neither called nor a module or an attribute.
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\w*[.(])")


def emit_unpack(out: Emitter, name: str, arguments: Sequence[Argument]) -> None:
    """Takes a tuple apart that carries kernel arguments to a function."""
    out.line(f"{', '.join(a.name for a in arguments)}{',' if len(arguments) == 1 else ''} = {name}")


PLACE = """
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
    \"\"\"Buffer of the tile of keys with this number, counted over all tiles of queries, and its turn's parity.\"\"\"
    return number % STAGES, number // STAGES & 1
"""


def emit_place_function(out: Emitter, reverse: bool) -> None:
    """From a number to a head and a tile of its queries."""
    out.definition(PLACE)
    with jit_function(out, "query_tile(program, sizes)"):
        out.line('"""Head and first query of tile number `program`."""')
        emit_unpack(out, "sizes", SIZES)
        emit_place(out, length="q_len", block="BLOCK_M", reverse=reverse)
        out.line("return entry, entry // heads, entry % heads, entry % heads // (heads // kv_heads), tile * BLOCK_M")


def emit_visits(out: Emitter, plan: TilePlan, parameters: Sequence[Argument]) -> TileLoops:
    """Two functions: which tiles of keys a tile of queries visits, and from a number to one of them."""
    with jit_function(out, "key_tiles(batch, head, kv_head, tile_first, sizes, parameters)"):
        out.line('"""Numbers of partial and full tiles of keys for a tile of queries, and what says where they are."""')
        emit_unpack(out, "sizes", SIZES)
        emit_unpack(out, "parameters", parameters)
        out.line("tile_last = tl.minimum(tile_first + BLOCK_M, q_len) - 1")
        out.comment("Keys that this tile of queries may see, and those that all of it sees.")
        loops = emit_ranges(out, plan.keys, INDICES, "BLOCK_N", "kv_len")
        for kind, count in (("partial", loops.partial_count), ("full", loops.full_count)):
            if not count:
                out.line(f"{kind}_count = 0")
        names = ("partial_count", "full_count", *_names_in(loops))
        out.line(f"return {', '.join(names)}")

    with jit_function(out, "key_start(t, visits)"):
        out.line('"""First key of the t-th tile of keys: partial tiles come first, then full ones."""')
        out.line(f"{', '.join(names)} = visits")
        match loops.partial_count, loops.full_count:
            case "", "":
                out.line("return t * BLOCK_N")
            case "", _:
                out.line(f"return ({loops.full_tile}) * BLOCK_N")
            case _, "":
                out.line(f"return ({loops.partial_tile}) * BLOCK_N")
            case _:
                out.line(f"partial = {loops.partial_tile}")
                out.line("t = t - partial_count")
                out.line(f"full = {loops.full_tile}")
                out.line("return tl.where(t < 0, partial, full) * BLOCK_N")
    return loops


LOAD_TILES = """
@gluon.jit
def load_tiles(counter, query, key, value, q_tiles, k_tiles, v_tiles, barriers, orders, starts, sizes, parameters):
    \"\"\"The producer: one warp keeps the buffers full and tells the consumers what is in them.\"\"\"
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, order_ready, order_empty = barriers
    {sizes} = sizes
    programs = gl.cdiv(q_len, BLOCK_M) * all_heads
    program = gl.program_id(0)
    loaded = 0  # tiles of keys
    turn = 0  # tiles of queries
    while program < programs:
        next_program = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        entry, batch, head, kv_head, tile_first = query_tile(program, sizes)
        visits = key_tiles(batch, head, kv_head, tile_first, sizes, parameters)
        # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
        count = gl.maximum(visits[0] + visits[1], 1)
        slot = turn & 1
        mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
        write(orders, slot * 3, program)
        write(orders, slot * 3 + 1, visits[0])
        write(orders, slot * 3 + 2, count)
        mbarrier.arrive(order_ready.index(slot))
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_ready, BLOCK_M * HEAD * 2)
        {load}(query, [batch, head, tile_first, 0], q_ready, q_tiles.index(0))
        {load}(query, [batch, head, tile_first + ROWS, 0], q_ready, q_tiles.index(1))
        for t in range(0, count):
            stage, phase = ring(loaded)
            start = key_start(t, visits)
            mbarrier.wait(k_empty.index(stage), phase ^ 1)
            write(starts, stage, start)
            mbarrier.expect(k_ready.index(stage), BLOCK_N * HEAD * 2)
            {load}(key, [batch, kv_head, start, 0], k_ready.index(stage), k_tiles.index(stage))
            mbarrier.wait(v_empty.index(stage), phase ^ 1)
            mbarrier.expect(v_ready.index(stage), BLOCK_N * VALUE * 2)
            {load}(value, [batch, kv_head, start, 0], v_ready.index(stage), v_tiles.index(stage))
            loaded += 1
        turn += 1
        program = next_program
    # A number past the last tile of queries ends the consumers too.
    slot = turn & 1
    mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
    write(orders, slot * 3, program)
    mbarrier.arrive(order_ready.index(slot))
"""


def emit_load_tiles(out: Emitter, names: Names) -> None:
    """The producer's function."""
    out.definition(LOAD_TILES.format(load=names.load, sizes=", ".join(a.name for a in SIZES)))


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
