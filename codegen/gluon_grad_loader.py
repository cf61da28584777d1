"""The producer of the backward kernel, and which tile of keys a program owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill, indent

from .emitter import Emitter
from .gluon_loader import filled
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


def loader_arguments(owned: Sequence[str], more: str = "") -> str:
    """What the producer takes; ``owned``: the tensors of which programs own tiles, by first letter and name."""
    tensors = [name for name in ("key", "value") if name in owned]
    tiles = [f"{name[0]}_tiles" for name in tensors]
    passed = ["query", *tensors, "grad_out", "terms", f"{more}q_tiles", *tiles, "do_tiles", "term_tiles"]
    return ", ".join([*passed, "barriers", "starts", "sizes", "parameters"])


def emit_load_tiles(
    out: Emitter, arguments: str, barriers: str, owned: Sequence[str], lines: Mapping[str, str]
) -> None:
    """The producer's function, which takes ``arguments``.

    ``lines``: what it knows at first (``prologue``), how it loads the owned keys (``own``), what it knows of a head
    (``visits``) and the ``count`` of tiles, where the next one starts (``start``), and what it does then (``visited``).
    """
    widths = " + ".join({"key": "HEAD", "value": "VALUE"}[name] for name in owned)
    text = filled(_LOAD_TILES, barriers=barriers, widths=f"({widths})" if len(owned) > 1 else widths, **lines)
    out.definition(text.replace("    {arguments}", indent(fill(arguments + ",", 111), " " * 4)))


_LOAD_TILES = """
@gluon.jit
def load_tiles(
    {{arguments}}
):
    \"\"\"The producer: one warp loads the tile of keys, then one tile of queries after the other.\"\"\"
    {barriers} = barriers
    {prologue}
    mbarrier.expect(kv_ready, BLOCK_N * {widths} * 2)
    for i in gl.static_range(2):
        {own}
    loaded = 0
    for member in range(0, group):
        head = chunk * group + member
        {visits}
        for t in range(0, {count}):
            {start}
            {visited}
            loaded += 1
"""
