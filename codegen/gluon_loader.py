"""The producer of the forward kernel, and the order in which tiles of queries are taken."""

from __future__ import annotations

from .emitter import Emitter
from .gluon_names import Names
from .gluon_tiles import emit_unpack, jit_function
from .triton_program import SIZES, emit_place


def emit_place_function(out: Emitter, reverse: bool) -> None:
    """From a number to a head and a tile of its queries."""
    with jit_function(out, "query_tile(program, sizes)"):
        out.line('"""Head and first query of tile number `program`."""')
        emit_unpack(out, "sizes", SIZES)
        emit_place(out, length="q_len", block="BLOCK_M", reverse=reverse)
        out.line("return entry, entry // heads, entry % heads, entry % heads // (heads // kv_heads), tile * BLOCK_M")


LOAD_TILES = """
@gluon.jit
def load_tiles(counter, query, key, value, q_tiles, k_tiles, v_tiles, barriers, orders, starts, sizes, parameters):
    \"\"\"The producer: one warp keeps the buffers full and tells the consumers what is in them.\"\"\"
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, order_ready, order_empty = barriers[:8]
    {sizes} = sizes
    programs = gl.cdiv(q_len, BLOCK_M) * all_heads
    program = gl.program_id(0)
    loaded = 0  # tiles of keys
    turn = 0  # tiles of queries
    while program < programs:
        next_program = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        entry, batch, head, kv_head, tile_first = query_tile(program, sizes)
        visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)
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
        for i in gl.static_range(2):
            {load}(query, [batch, head, tile_first + ROWS * i, 0], q_ready, q_tiles.index(i))
        {before}for t in range(0, count):
            stage, phase = ring(loaded)
            {start}
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


def emit_load_tiles(out: Emitter, names: Names, ahead: bool) -> None:
    """The producer's function; ``ahead``: where a tile is takes a load, begun one tile earlier."""
    before, start = "", "start = visited_start(t, visits)"
    if ahead:
        before = "next_start = visited_start(0, visits)\n        "
        start = "start = next_start\n            next_start = visited_start(t + 1, visits)"
    sizes = ", ".join(a.name for a in SIZES)
    out.definition(LOAD_TILES.format(load=names.load, sizes=sizes, before=before, start=start))
