"""The producer of the backward kernel, and which tile of keys a program owns."""

from __future__ import annotations

from .emitter import Emitter
from .gluon_names import Names
from .gluon_tiles import emit_unpack, jit_function
from .triton_module import Argument
from .triton_program import emit_place

SIZES = [
    Argument("heads", "i32", "heads"),
    Argument("kv_heads", "i32", "kv_heads"),
    Argument("q_len", "i32", "q_len"),
    Argument("kv_len", "i32", "kv_len"),
    Argument("all_heads", "i32", "batches * heads // group"),
    Argument("section", "i32", "section"),
    Argument("group", "i32", "group"),
    Argument("padded", "i32", "padded"),
]


def emit_place_function(out: Emitter, reverse: bool) -> None:
    """From a program to the tile of keys that it owns, and the heads of queries that it sums over."""
    with jit_function(out, "key_tile(program, sizes)"):
        out.line('"""Batch, group of heads, head of keys, and first key of tile number `program`."""')
        emit_unpack(out, "sizes", SIZES)
        emit_place(out, length="kv_len", block="BLOCK_N", reverse=reverse)
        out.line("chunks = heads // group")
        out.line("chunk = entry % chunks")
        out.line("return entry // chunks, chunk, chunk * group // (heads // kv_heads), tile * BLOCK_N")


def emit_load_tiles(out: Emitter, names: Names, barriers: str, wait: str) -> None:
    """The producer's function; ``wait`` makes it wait for buffer ``stage`` to be empty."""
    sizes = ", ".join(a.name for a in SIZES)
    wait = wait.replace("\n", "\n            ")
    out.definition(_LOAD_TILES.format(load=names.load, sizes=sizes, barriers=barriers, wait=wait))


_LOAD_TILES = """
@gluon.jit
def load_tiles(
    query, key, value, grad_out, terms, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, barriers, starts, sizes,
    parameters,
):
    \"\"\"The producer: one warp loads the tile of keys, then one tile of queries after the other.\"\"\"
    {barriers} = barriers
    {sizes} = sizes
    batch, chunk, kv_head, tile_first = key_tile(gl.program_id(0), sizes)
    mbarrier.expect(kv_ready, BLOCK_N * (HEAD + VALUE) * 2)
    for i in gl.static_range(2):
        {load}(key, [batch, kv_head, tile_first + KEYS * i, 0], kv_ready, k_tiles.index(i))
        {load}(value, [batch, kv_head, tile_first + KEYS * i, 0], kv_ready, v_tiles.index(i))
    loaded = 0
    for member in range(0, group):
        head = chunk * group + member
        visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)
        row = (batch * heads + head) * padded
        for t in range(0, visits[0] + visits[1]):
            start = visited_start(t, visits)
            stage, phase = ring(loaded)
            {wait}
            write(starts, stage, start)
            mbarrier.expect(tile_ready.index(stage), BLOCK_M * (HEAD * 2 + VALUE * 2 + 8))
            {load}(terms, [0, row + start], tile_ready.index(stage), term_tiles.index(stage * 2))
            {load}(terms, [1, row + start], tile_ready.index(stage), term_tiles.index(stage * 2 + 1))
            {load}(query, [batch, head, start, 0], tile_ready.index(stage), q_tiles.index(stage))
            {load}(grad_out, [batch, head, start, 0], tile_ready.index(stage), do_tiles.index(stage))
            loaded += 1
"""
