"""The producer of the forward kernel, and the order in which tiles of queries are taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .emitter import Emitter
from .gluon_names import Names
from .gluon_parts import tiles_of
from .gluon_tiles import emit_unpack, jit_function
from .schedule import Problem, Schedule
from .triton_module import Part, head_parts
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
def load_tiles({arguments}):
    \"\"\"The producer: one warp keeps the buffers full and tells the consumers what is in them.\"\"\"
    q_ready, q_empty, k_ready, v_ready, order_ready, order_empty = barriers[:6]
    {prologue}
    program = gl.program_id(0)
    loaded = 0  # tiles of keys
    turn = 0  # tiles of queries
    while program < programs:
        next_program = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        {visits}
        # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
        count = gl.maximum({count}, 1)
        slot = turn & 1
        mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
        write(orders, slot * {cells}, {number})
        write(orders, slot * {cells} + 1, {partial_count})
        write(orders, slot * {cells} + 2, count)
        {write_more}
        mbarrier.arrive(order_ready.index(slot))
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_ready, BLOCK_M * HEAD * 2)
        for i in gl.static_range(CONSUMERS):
            {load_query}
        {before}
        for t in range(0, count):
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
            loaded += 1
        turn += 1
        program = next_program
    # A number past the last tile of queries ends the consumers too.
    slot = turn & 1
    mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
    write(orders, slot * {cells}, program)
    mbarrier.arrive(order_ready.index(slot))
"""


@dataclass(frozen=True, slots=True)
class TileLoads:
    """What differs between kinds of tiles, as lines of the producer; its loop says where they stand.

    ``count``: the number of tiles that are visited. ``before``: what comes before the first of them. ``number``: of the
    tile of queries, as consumers read it from one of ``cells`` numbers that they are told for each.
    ``descriptors``, ``constants``: further arguments.
    """

    prologue: str
    visits: str
    count: str
    load_query: str
    start: str
    write_start: str
    load_key: str
    load_value: str
    number: str = "program"
    partial_count: str = "visits[0]"
    cells: int = 3
    write_more: str = ""
    before: str = ""
    descriptors: str = ""
    constants: str = ""


def emit_load_tiles(out: Emitter, loads: TileLoads) -> None:
    """The producer's function."""
    pieces = {name: str(getattr(loads, name)) for name in loads.__slots__}
    arguments = (
        f"counter, query, key, value, {pieces.pop('descriptors')}q_tiles, k_tiles, v_tiles, barriers, orders, starts, "
        f"sizes, parameters{pieces.pop('constants')}"
    )
    lines = []
    for line in LOAD_TILES.split("\n"):
        if line.strip() in ("{before}", "{write_more}") and not pieces[line.strip(" {}")]:
            continue
        depth = " " * (len(line) - len(line.lstrip()))
        lines.append(line.format(arguments=arguments, **{k: v.replace("\n", f"\n{depth}") for k, v in pieces.items()}))
    out.definition("\n".join(lines))


def run_loads(names: Names, problem: Problem, schedule: Schedule, ahead: bool) -> TileLoads:
    """The loads of tiles that are runs of positions, part by part of their columns.

    ``ahead``: where one is takes a load, begun a tile earlier.
    """
    head, value = head_parts(problem.head_dim), head_parts(problem.value_dim)
    first = "begin + " if schedule.split_keys else ""
    start = f"start = visited_start({first}t, visits)"
    if ahead:
        start = f"start = next_start\nnext_start = visited_start({first}t + 1, visits)"

    def loads(source: str, where: str, ready: str, tiles: str, i: str, parts: tuple[Part, ...]) -> str:
        return "\n".join(
            f"{names.load}({tiles_of(source, parts, n)}, [{where}, {p.first}], {ready}, "
            f"{tiles_of(tiles, parts, n)}.index({i}))"
            for n, p in enumerate(parts)
        )

    loads_of_rows = TileLoads(
        prologue=f"{', '.join(a.name for a in SIZES)} = sizes\nprograms = gl.cdiv(q_len, BLOCK_M) * all_heads",
        visits="entry, batch, head, kv_head, tile_first = query_tile(program, sizes)\n"
        "visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)",
        count="visits[0] + visits[1]",
        load_query=loads("query", "batch, head, tile_first + ROWS * i", "q_ready", "q_tiles", "i", head),
        before=f"next_start = visited_start({'begin' if first else '0'}, visits)" if ahead else "",
        start=start,
        write_start="write(starts, stage, start)",
        load_key=loads("key", "batch, kv_head, start", "k_ready.index(stage)", "k_tiles", "stage", head),
        load_value=loads("value", "batch, kv_head, start", "v_ready.index(stage)", "v_tiles", "stage", value),
    )
    return _from_list(loads_of_rows, schedule) if schedule.listed else loads_of_rows


def _from_list(loads: TileLoads, schedule: Schedule) -> TileLoads:
    """The same for what a list says, see :mod:`.gluon_work`."""
    split = schedule.split_keys
    numbers = "number, begin, end, place" if split else "number"
    items, places = ("gl.load(work[0])", "gl.load(work[0] + 2)") if split else ("gl.cdiv(q_len, BLOCK_M)", "0")
    loads = replace(
        loads,
        prologue=f"{', '.join(a.name for a in SIZES)} = sizes\n"
        f"items, places = {items}, {places}\nprograms = items * all_heads",
        visits=f"{numbers} = work_item(program, items, places, sizes, work)\n"
        + loads.visits.replace("query_tile(program,", "query_tile(number,"),
        number="number",
        constants=", work",
    )
    if not split:
        return loads
    return replace(
        loads,
        count="end - begin",
        partial_count="gl.minimum(gl.maximum(visits[0] - begin, 0), end - begin)",
        cells=4,
        write_more="write(orders, slot * 4 + 3, place)",
    )
