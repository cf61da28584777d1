"""The producer of the forward kernel, and the order in which tiles of queries are taken."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .emitter import Emitter
from .gluon_names import Names
from .gluon_parts import tiles_of
from .gluon_tiles import emit_unpack, jit_function
from .schedule import Problem
from .triton_module import Part, head_parts
from .triton_program import SIZES, emit_place


def emit_place_function(out: Emitter, reverse: bool) -> None:
    """From a number to a head and a tile of its queries."""
    with jit_function(out, "query_tile(program, sizes)"):
        out.line('"""Head and first query of tile number `program`."""')
        emit_unpack(out, "sizes", SIZES)
        emit_place(out, length="q_len", block="BLOCK_M", reverse=reverse)
        out.line("return entry, entry // heads, entry % heads, entry % heads // (heads // kv_heads), tile * BLOCK_M")


# Which buffer the queries of consumer ``i`` come to.
QUERY = "place * CONSUMERS + i"
_QUERY_RING = """
@gluon.jit
def query_ring(number):
    \"\"\"Which buffers the tile of queries with this number has, counted from the first, and its turn's parity.\"\"\"
    return number % QUERIES, number // QUERIES & 1
"""
LOAD_TILES = """
@gluon.jit
def load_tiles({arguments}):
    \"\"\"The producer: one warp keeps the buffers full and tells the consumers what is in them.\"\"\"
    q_ready, q_empty, k_ready, v_ready, order_ready, order_empty = barriers[:6]
    {prologue}
    program = gl.program_id(0)
    {find}
    loaded = 0  # tiles of keys
    turn = 0  # tiles of queries
    while program < programs:
        {names}
        # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
        count = gl.maximum({count}, 1)
        slot = turn & 1
        mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
        write(orders, slot * 3, program)
        write(orders, slot * 3 + 1, visits[0])
        write(orders, slot * 3 + 2, count)
        mbarrier.arrive(order_ready.index(slot))
        place, turn_phase = query_ring(turn)
        mbarrier.wait(q_empty.index(place), turn_phase ^ 1)
        mbarrier.expect(q_ready.index(place), BLOCK_M * HEAD * 2)
        for i in gl.static_range(CONSUMERS):
            {load_query}
        t = 0
        {before}
        {load}
        # What comes next is found out now, when consumers have something to do.
        program = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        {find_next}
        for t in range(1, count):
            {load}
        turn += 1
        {take_next}
    # A number past the last tile of queries ends the consumers too.
    slot = turn & 1
    mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
    write(orders, slot * 3, program)
    {end}
    mbarrier.arrive(order_ready.index(slot))
"""

_LOAD = """\
stage, phase = ring(loaded)
{start}
if loaded >= STAGES:
    acquire(stage)
{write_start}
mbarrier.expect(k_ready.index(stage), BLOCK_N * HEAD * 2)
{load_key}
if loaded >= STAGES:
    acquire(STAGES + stage)
mbarrier.expect(v_ready.index(stage), BLOCK_N * VALUE * 2)
{load_value}
loaded += 1"""

# Consumers start one more tile beside the end of the last one; what is computed from does not matter.
_ONE_MORE = """\
write(orders, slot * 3 + 1, 0)
write(orders, slot * 3 + 2, 1)
place, turn_phase = query_ring(turn)
mbarrier.wait(q_empty.index(place), turn_phase ^ 1)
mbarrier.arrive(q_ready.index(place))
stage, phase = ring(loaded)
if loaded >= STAGES:
    acquire(stage)
{start}
{write_start}
mbarrier.arrive(k_ready.index(stage))"""


@dataclass(frozen=True, slots=True)
class TileLoads:
    """What differs between kinds of tiles, as lines of the producer; its loop says where they stand.

    ``found``: what to find out about the tile of queries with number ``{number}``, by names; ``names``: what follows
    from that. ``count``: the number of tiles that are visited. ``before``: what comes before the first of them.
    ``no_start``: a start that any tile may have. ``descriptors``, ``constants``: further arguments.
    """

    prologue: str
    found: dict[str, str]
    names: str
    count: str
    load_query: str
    start: str
    no_start: str
    write_start: str
    load_key: str
    load_value: str
    before: str = ""
    descriptors: str = ""
    constants: str = ""


def emit_load_tiles(out: Emitter, loads: TileLoads, ahead: bool) -> None:
    """The producer's function; ``ahead``: consumers start a tile of queries before the last one has ended."""
    pieces = {name: getattr(loads, name) for name in loads.__slots__ if name != "found"}
    pieces["load"] = _filled(_LOAD, pieces)
    pieces["end"] = _filled(_ONE_MORE, pieces | {"start": loads.no_start}) if ahead else ""
    pieces["find"] = "\n".join(f"{name} = {text.format(number='program')}" for name, text in loads.found.items())
    # Past the last tile there is nothing to find, but that is not asked before the next turn.
    last = "gl.minimum(program, programs - 1)"
    following = {name: text.format(number=last) for name, text in loads.found.items()}
    for name in loads.found:
        following = {x: re.sub(rf"\b{name}\b", f"next_{name}", text) for x, text in following.items()}
    pieces["find_next"] = "\n".join(f"next_{name} = {text}" for name, text in following.items())
    pieces["take_next"] = "\n".join(f"{name} = next_{name}" for name in loads.found)
    arguments = (
        f"counter, query, key, value, {pieces.pop('descriptors')}q_tiles, k_tiles, v_tiles, barriers, orders, starts, "
        f"sizes, parameters{pieces.pop('constants')}"
    )
    out.definition(_QUERY_RING)
    out.definition(_filled(LOAD_TILES, pieces | {"arguments": arguments}))


def _filled(template: str, pieces: dict[str, str]) -> str:
    """``template`` with ``pieces``, whose lines stand as deep as their names; without those that are empty."""
    lines = []
    for line in template.split("\n"):
        name = line.strip()
        if name[:1] == "{" and not pieces[name[1:-1]]:
            continue
        depth = " " * (len(line) - len(line.lstrip()))
        lines.append(line.format(**{k: v.replace("\n", f"\n{depth}") for k, v in pieces.items()}))
    return "\n".join(lines)


def run_loads(names: Names, problem: Problem, ahead: bool) -> TileLoads:
    """The loads of tiles that are runs of positions, part by part of their columns.

    ``ahead``: where one is takes a load, begun a tile earlier.
    """
    head, value = head_parts(problem.head_dim), head_parts(problem.value_dim)
    start = "start = visited_start(t, visits)"
    found = {
        "own": "query_tile({number}, sizes)",
        "visits": "visited_tiles(own[1], own[2], own[3], own[4], sizes, parameters)",
    }
    if ahead:
        found["first"] = "visited_start(0, visits)"
        start = "start = next_start\nnext_start = visited_start(t + 1, visits)"

    def loads(source: str, where: str, ready: str, tiles: str, i: str, parts: tuple[Part, ...]) -> str:
        return "\n".join(
            f"{names.load}({tiles_of(source, parts, n)}, [{where}, {p.first}], {ready}, "
            f"{tiles_of(tiles, parts, n)}.index({i}))"
            for n, p in enumerate(parts)
        )

    return TileLoads(
        prologue=f"{', '.join(a.name for a in SIZES)} = sizes\nprograms = gl.cdiv(q_len, BLOCK_M) * all_heads",
        found=found,
        names="entry, batch, head, kv_head, tile_first = own",
        count="visits[0] + visits[1]",
        load_query=loads("query", "batch, head, tile_first + ROWS * i", "q_ready.index(place)", "q_tiles", QUERY, head),
        before="next_start = first" if ahead else "",
        start=start,
        no_start="start = 0",
        write_start="write(starts, stage, start)",
        load_key=loads("key", "batch, kv_head, start", "k_ready.index(stage)", "k_tiles", "stage", head),
        load_value=loads("value", "batch, kv_head, start", "v_ready.index(stage)", "v_tiles", "stage", value),
    )
