"""The producer of the forward kernel, and the order in which tiles of queries are taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .emitter import Emitter
from .gluon_names import Names
from .gluon_parts import part_copies
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
    {before_all}
    loaded = 0  # tiles of keys
    turn = 0  # tiles of queries
    while program < programs:
        {early}
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
        mbarrier.wait(q_empty{query}, ({turn}) ^ 1)
        mbarrier.expect(q_ready{query}, BLOCK_M * HEAD * 2)
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
            {late}
        turn += 1
        program = next_program
    # A number past the last tile of queries ends the consumers too.
    slot = turn & 1
    mbarrier.wait(order_empty.index(slot), (turn >> 1 & 1) ^ 1)
    write(orders, slot * {cells}, program)
    {end}
    mbarrier.arrive(order_ready.index(slot))
"""
_NEXT = 'next_program = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")'
_LATE = f"""\
if t == 0:
    # The answer takes a while, and now consumers do not wait for it.
    {_NEXT}"""
# Consumers start one more tile beside the end of the last one; what is computed from does not matter.
_ONE_MORE = """\
write(orders, slot * {cells} + 1, 0)
write(orders, slot * {cells} + 2, 1)
{write_more}
mbarrier.wait(q_empty.index(slot), (turn >> 1 & 1) ^ 1)
mbarrier.arrive(q_ready.index(slot))
stage, phase = ring(loaded)
if loaded >= STAGES:
    acquire(stage)
{nowhere}
mbarrier.arrive(k_ready.index(stage))"""


@dataclass(frozen=True, slots=True)
class TileLoads:
    """What differs between kinds of tiles, as lines of the producer; its loop says where they stand.

    ``count``: the number of tiles that are visited. ``before``: what comes before the first of them. ``number``: of the
    tile of queries, as consumers read it from one of ``cells`` numbers that they are told for each.
    ``descriptors``, ``constants``: further arguments. ``start_places``: of the numbers that say where a tile starts.
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
    start_places: tuple[str, ...] = ("stage",)


def emit_load_tiles(out: Emitter, loads: TileLoads, ahead: bool = False) -> None:
    """The producer's function; ``ahead``: consumers start a tile of queries before the last one has ended."""
    pieces = {name: str(getattr(loads, name)) for name in loads.__slots__}
    pieces["arguments"] = (
        f"counter, query, key, value, {pieces.pop('descriptors')}q_tiles, k_tiles, v_tiles, barriers, orders, starts, "
        f"sizes, parameters{pieces.pop('constants')}"
    )
    # The last tile of keys, which is none, starts at position 0 along every axis.
    nowhere = "\n".join(f"write(starts, {place}, 0)" for place in loads.start_places)
    none_more = "\n".join(f"write(orders, slot * {loads.cells} + {i}, 0)" for i in range(3, loads.cells))
    del pieces["start_places"]
    pieces["before_all"] = "next_program = program" if ahead else ""
    if ahead:
        end = filled(_ONE_MORE, cells=pieces["cells"], write_more=none_more, nowhere=nowhere)
        pieces |= {"early": "", "late": _LATE, "end": end}
    else:
        pieces |= {"early": _NEXT, "late": "", "end": ""}
    pieces |= {"query": ".index(slot)", "turn": "turn >> 1 & 1"} if ahead else {"query": "", "turn": "turn & 1"}
    out.definition(filled(LOAD_TILES, **pieces))


def filled(template: str, **pieces: str) -> str:
    """``template`` with ``pieces`` in their places, which may be several lines, or none that is left.

    >>> filled("if x:\\n    {before}\\n    {what}", what="y()\\nz()", before="")
    'if x:\\n    y()\\n    z()'
    """
    lines = []
    for line in template.split("\n"):
        place = line.strip()
        if place.startswith("{") and place.endswith("}") and not pieces.get(place[1:-1], place):
            continue
        depth = " " * (len(line) - len(line.lstrip()))
        lines.append(line.format(**{k: v.replace("\n", f"\n{depth}") for k, v in pieces.items()}))
    return "\n".join(lines)


def run_loads(
    names: Names, problem: Problem, schedule: Schedule, *, from_table: bool, tells_hidden: bool
) -> TileLoads:
    """The loads of tiles that are runs of positions, part by part of their columns.

    ``from_table``: where one is takes a load, begun a tile earlier. ``tells_hidden``: consumers are told which partial
    tiles hold keys that may not be seen.
    """
    head, value = head_parts(problem.head_dim), head_parts(problem.value_dim)
    first = "begin + " if schedule.split_keys else ""
    start = f"start = visited_start({first}t, visits)"
    if from_table:
        start = f"start = next_start\nnext_start = visited_start({first}t + 1, visits)"

    write_start = "write(starts, stage, start)"
    if tells_hidden:
        start += (
            f"\nhides = hides_keys(start, {first}t < visits[0], batch, head, kv_head, sizes, parameters)"
        )
        write_start = "write(starts, stage, start + hides)"

    def loads(source: str, where: str, ready: str, tiles: str, i: str, parts: tuple[Part, ...]) -> str:
        return "\n".join(part_copies(names.load, source, where, tiles, i, parts, ready))

    ready, i = ("q_ready.index(slot)", "slot * CONSUMERS + i") if schedule.ahead else ("q_ready", "i")
    loads_of_rows = TileLoads(
        prologue=f"{', '.join(a.name for a in SIZES)} = sizes\nprograms = gl.cdiv(q_len, BLOCK_M) * all_heads",
        visits="entry, batch, head, kv_head, tile_first = query_tile(program, sizes)\n"
        "visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)",
        count="visits[0] + visits[1]",
        load_query=loads("query", "batch, head, tile_first + ROWS * i", ready, "q_tiles", i, head),
        before=f"next_start = visited_start({'begin' if first else '0'}, visits)" if from_table else "",
        start=start,
        write_start=write_start,
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
