"""The producer of the backward kernel, and which tile of keys a program owns."""

from __future__ import annotations

from .emitter import Emitter
from .gluon_loader import TileLoads, filled
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


def run_loads(names: Names) -> TileLoads:
    """The loads of tiles that are runs of positions."""
    own, visited = "[batch, kv_head, tile_first + KEYS * i, 0], kv_ready", "tile_ready.index(stage)"
    return TileLoads(
        prologue=f"{', '.join(a.name for a in SIZES)} = sizes\n"
        "batch, chunk, kv_head, tile_first = key_tile(gl.program_id(0), sizes)",
        load_key=f"{names.load}(key, {own}, k_tiles.index(i))",
        load_value=f"{names.load}(value, {own}, v_tiles.index(i))",
        visits="visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)",
        count="visits[0] + visits[1]",
        start="start = visited_start(t, visits)",
        write_start="write(starts, stage, start)",
        load_query=f"mbarrier.expect({visited}, BLOCK_M * (HEAD * 2 + VALUE * 2 + 8))\n"
        f"{names.load}(terms, [0, row + start], {visited}, term_tiles.index(stage * 2))\n"
        f"{names.load}(terms, [1, row + start], {visited}, term_tiles.index(stage * 2 + 1))\n"
        f"{names.load}(query, [batch, head, start, 0], {visited}, q_tiles.index(stage))\n"
        f"{names.load}(grad_out, [batch, head, start, 0], {visited}, do_tiles.index(stage))",
    )


def emit_load_tiles(out: Emitter, loads: TileLoads, barriers: str, wait: str) -> None:
    """The producer's function; ``wait`` makes it wait for buffer ``stage`` to be empty."""
    pieces = {name: getattr(loads, name) for name in loads.__slots__}
    out.definition(filled(_LOAD_TILES, barriers=barriers, wait=wait, **pieces))


_LOAD_TILES = """
@gluon.jit
def load_tiles(
    query, key, value, grad_out, terms, {descriptors}q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, barriers, starts,
    sizes, parameters{constants},
):
    \"\"\"The producer: one warp loads the tile of keys, then one tile of queries after the other.\"\"\"
    {barriers} = barriers
    {prologue}
    mbarrier.expect(kv_ready, BLOCK_N * (HEAD + VALUE) * 2)
    for i in gl.static_range(2):
        {load_key}
        {load_value}
    loaded = 0
    for member in range(0, group):
        head = chunk * group + member
        {visits}
        row = (batch * heads + head) * padded
        for t in range(0, {count}):
            {start}
            stage, phase = ring(loaded)
            {wait}
            {write_start}
            {load_query}
            loaded += 1
"""
