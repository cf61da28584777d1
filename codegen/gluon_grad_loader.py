"""The producer of the backward kernel, and which tile of keys a program owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill, indent

from .emitter import Emitter
from .gluon_parts import part_copies
from .gluon_tiles import emit_unpack, jit_function
from .triton_module import Argument, Part
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


def loader_arguments(owned: Sequence[str]) -> str:
    """What the producer takes; ``owned``: the tensors of which programs own tiles, by first letter and name."""
    tensors = [name for name in ("key", "value") if name in owned]
    tiles = [f"{name[0]}_tiles" for name in tensors]
    passed = ["query", *tensors, "grad_out", "terms", "q_tiles", *tiles, "do_tiles", "term_tiles"]
    return ", ".join([*passed, "barriers", "starts", "sizes", "parameters"])


def emit_load_tiles(
    out: Emitter, copy: str, barriers: str, owned: Mapping[str, tuple[Part, ...]], visited: Sequence[str]
) -> None:
    """The producer's function; ``visited`` are its lines for a tile of queries from ``start`` on."""
    sizes = ", ".join(a.name for a in SIZES)
    own = [
        line
        for name, parts in owned.items()
        for line in part_copies(copy, name, _OWN, f"{name[0]}_tiles", "i", parts, "kv_ready")
    ]
    widths = " + ".join({"key": "HEAD", "value": "VALUE"}[name] for name in owned)
    out.definition(
        _LOAD_TILES.format(
            arguments=indent(fill(loader_arguments(tuple(owned)) + ",", 111), " " * 4),
            barriers=barriers, sizes=sizes, widths=f"({widths})" if len(owned) > 1 else widths,
            own=indent("\n".join(own), " " * 8).lstrip(), visited=indent("\n".join(visited), " " * 12).lstrip(),
        )
    )  # fmt: skip


_OWN = "batch, kv_head, tile_first + KEYS * i"
_LOAD_TILES = """
@gluon.jit
def load_tiles(
{arguments}
):
    \"\"\"The producer: one warp loads the tile of keys, then one tile of queries after the other.\"\"\"
    {barriers} = barriers
    {sizes} = sizes
    batch, chunk, kv_head, tile_first = key_tile(gl.program_id(0), sizes)
    mbarrier.expect(kv_ready, BLOCK_N * {widths} * 2)
    for i in gl.static_range(2):
        {own}
    loaded = 0
    for member in range(0, group):
        head = chunk * group + member
        visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)
        row = (batch * heads + head) * padded
        for t in range(0, visits[0] + visits[1]):
            start = visited_start(t, visits)
            {visited}
            loaded += 1
"""
