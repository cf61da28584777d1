"""The work list of a forward kernel whose rows of tiles are uneven: which program computes what, the heaviest first.

One program computes a row of tiles. Where few rows see far more keys than the others, the order of positions leaves
multiprocessors without work while the last long row is computed. So rows stand in a list, by how many tiles they visit.
Where ranges depend neither on the head nor on captured tensors, a row that visits more than half of what a
multiprocessor has to do is cut into shares, whose outputs another kernel merges, in a fixed order. Kernels make the
list, so that nothing waits for the device. Bounds of its size follow from the number of multiprocessors: shares are of
at least one part of all tiles, so that there are at most as many more of them than of rows as there are parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..ir.nodes import TILE_NAMES, Select
from ..ir.tiles.plan import Ranges, TilePlan
from ..ir.traverse import index_names, loads, walk
from .emitter import Emitter
from .gluon_module import emit_tables
from .gluon_tiles import KEYS, QUERIES, Walk, emit_unpack, jit_function
from .schedule import Schedule
from .triton_module import Argument, emit_launch, kernel, user_names
from .triton_program import BROADCAST_STRIDE, SIZES, emit_entry, uses_table
from .triton_split import emit_merge_rows

_COUNT, ORDER, _MERGE = "count_tiles", "order_tiles", "merge_rows"
# A share has at least so many tiles: it also has a start and an end of its own.
_FEWEST = 6
# Numbers of an item: a tile of queries, the first of its visited tiles and the one after the last, and its place among
# partial outputs, or -1. The list starts with the numbers of items, of cut rows, of places and of lines of items; lines
# past the last item have the last place, and no tiles.
NUMBERS = 4


def is_uneven(plan: TilePlan, ranges: Ranges) -> bool:
    """Whether rows of tiles may differ in another way than that later ones are longer.

    Rows of tables do; ``ranges`` in closed form do where a condition on the tile switches between them.
    """
    if uses_table(plan):
        return True
    ends = (e for x in ranges.may for e in (x.start, x.stop))
    switches = (x.condition for e in ends for x in walk(e) if isinstance(x, Select))
    return any(index_names(x) & set(TILE_NAMES) for x in switches)


def may_split(plan: TilePlan, ranges: Ranges) -> bool:
    """Whether all heads have one list, which no tensor changes, so that long rows may be cut into shares."""
    read = plan.variant.mask
    return is_uneven(plan, ranges) and not index_names(read) & {"head", "kv_head", "batch"} and not any(loads(read))


def emit_lists(
    out: Emitter, plan: TilePlan, schedule: Schedule, parameters: Sequence[Argument]
) -> tuple[str, tuple[str, ...]]:
    """What makes tables of tiles and work lists; as text, but for a kernel in Gluon, and the names of the kernels.

    ``parameters`` are those of ``visited_tiles`` but for the scale.
    """
    blocks = schedule.block_m, schedule.block_n
    if not schedule.listed:
        return emit_tables(plan, blocks)
    tables, kernels = emit_tables(plan, blocks, listed=_LISTED)
    lists = Emitter()
    if not uses_table(plan):
        lists.section(BROADCAST_STRIDE)
        emit_count(out, _COUNT, KEYS, parameters, ())
        _emit_classify(lists, plan, schedule, parameters)
        kernels = (_COUNT,)
    emit_work_list(lists, split=schedule.split_keys)
    if schedule.split_keys:
        emit_merge_rows(lists, _MERGE, NUMBERS)
    more = (ORDER, _MERGE) if schedule.split_keys else (ORDER,)
    return tables + lists.text(), (*kernels, *more)


def emit_work_list(out: Emitter, *, split: bool) -> None:
    """The kernel in plain Triton that orders rows, and ``work_list``, which launches it."""
    arguments = [
        Argument("work", "", "work"),
        Argument("counts", "", "counts"),
        Argument("rows", "i32", "rows"),
        Argument("width", "i32", "counts.shape[3]"),
        Argument("parts", "i32", "parts"),
    ]
    if split:
        out.section(_PARTS)
    out.section()
    with kernel(out, ORDER, arguments, ("SPLIT", "ROWS", "COLUMNS")):
        out.line('"""Places of ROWS rows of tiles in their list: after all that visit more tiles."""')
        out.lines(_ORDER_BODY.format(fewest=_FEWEST))
    out.section(_VISITED)
    with out.define("work_list(counts, entries)"):
        out.line('"""Rows of tiles, the heaviest first; ``entries`` heads have lists like these."""')
        out.line("batches, heads, rows = counts.shape[:3]")
        if split:
            out.line("parts = part_count(entries, counts.device)")
            out.line(f"shape = (1 + rows + 2 * parts, {NUMBERS})")
        else:
            out.line("parts = 1")
            out.line("shape = (batches, heads, rows)")
        out.line("work = torch.empty(shape, dtype=torch.int32, device=counts.device)")
        options = f"SPLIT={split}, ROWS=32, COLUMNS=256, num_warps=4"
        emit_launch(out, ORDER, "(batches * heads * triton.cdiv(rows, 32),)", arguments, options)
        out.line("return work")


def _emit_classify(out: Emitter, plan: TilePlan, schedule: Schedule, parameters: Sequence[Argument]) -> None:
    """``classify`` for ranges in closed form, whose only table is the work list."""
    used = {x for i in plan.keys.may for e in (i.start, i.stop) for x in index_names(e)}
    inputs = ", ".join([*user_names(plan.variant), "batches, heads, kv_heads, q_len, kv_len, device"])
    with out.define(f"classify({inputs})"):
        out.line('"""The work list for `run`; it depends on what ranges read, and on sizes."""')
        out.line(f"table_batches = {'batches' if 'batch' in used else '1'}")
        out.line(f"table_heads = {'heads' if {'head', 'kv_head'} & used else '1'}")
        emit_count_launch(out, _COUNT, f"triton.cdiv(q_len, {schedule.block_m})", parameters)
        out.line(f"return ({_LISTED},)")


# The work list, in ``classify``.
_LISTED = "work_list(counts, batches * heads)"


def emit_count_launch(out: Emitter, name: str, rows: str, parameters: Sequence[Argument]) -> None:
    """The part of ``classify`` that makes ``counts``."""
    out.line(f"rows = {rows}")
    out.line("counts = torch.empty((table_batches, table_heads, rows, 2), dtype=torch.int32, device=device)")
    emit_launch(out, name, "(table_batches * table_heads * rows,)", _count_arguments(parameters), "num_warps=1")


def _count_arguments(parameters: Sequence[Argument]) -> list[Argument]:
    names = ("heads", "kv_heads", "q_len", "kv_len", "table_heads")
    return [Argument("counts", "", "counts"), *parameters, *(Argument(x, "i32", x) for x in names)]


def emit_count(
    out: Emitter, name: str, walk: Walk, parameters: Sequence[Argument], unread: Sequence[Argument]
) -> None:
    """The kernel that counts the tiles of a row; ``parameters`` and ``unread`` are those of ``visited_tiles``, but for
    the scale.
    """
    out.line("\n")
    with kernel(out, name, _count_arguments(parameters), ()):
        out.line(f'"""Numbers of partial and full tiles of {walk.other} that a tile of {walk.own} visits."""')
        out.line(f"rows = tl.cdiv({walk.own_length}, {walk.own_block})")
        out.line("entry, row = tl.program_id(0) // rows, tl.program_id(0) % rows")
        out.line("batch, head = entry // table_heads, entry % table_heads")
        out.comment("Ranges depend neither on the scale nor on how programs are numbered.")
        passed = ["1.0", *(a.name for a in parameters), *(["counts"] * len(unread))]
        out.line(f"parameters = ({', '.join(passed)},)")
        out.line(f"sizes = (heads, kv_heads, q_len, kv_len, 1, 1{', 1, 1' * (walk is QUERIES)})")
        place = f"head, head // (heads // kv_heads), row * {walk.own_block}"
        out.line(f"visits = visited_tiles(batch, {place}, sizes, parameters)")
        out.line("counts += 2 * tl.program_id(0)")
        out.line("tl.store(counts, visits[0])")
        out.line("tl.store(counts + 1, visits[1])")


def work_arguments(schedule: Schedule) -> list[Argument]:
    """What programs read of the list, and where shares go; ``tiles[-1]`` is the list."""
    if schedule.split_keys:
        names = ("partial_out", "partial_sums")
        return [Argument("work", "", "tiles[-1]"), *(Argument(x, "", x) for x in names)]
    return [
        Argument("work", "", "tiles[-1]"),
        Argument("work_batch", "i64", "broadcast_stride(tiles[-1], 0)"),
        Argument("work_head", "i64", "broadcast_stride(tiles[-1], 1)"),
    ]


def emit_work_functions(out: Emitter, schedule: Schedule) -> None:
    """``query_tile``, and ``work_item``: what the program with a number does."""
    with jit_function(out, "query_tile(number, sizes)"):
        out.line('"""Head and first query of a tile, which are numbered head by head."""')
        emit_unpack(out, "sizes", SIZES)
        out.line("tiles = tl.cdiv(q_len, BLOCK_M)")
        out.line("entry, tile = number // tiles, number % tiles")
        out.line("return entry, entry // heads, entry % heads, entry % heads // (heads // kv_heads), tile * BLOCK_M")
    if not schedule.split_keys:
        with jit_function(out, "work_item(program, items, places, sizes, work)"):
            out.line('"""Number of the tile of queries that `program` owns; a head has so many `items`."""')
            emit_unpack(out, "sizes", SIZES)
            emit_unpack(out, "work", work_arguments(schedule))
            out.line("tiles = items")
            emit_entry(out, reverse=False)
            out.line("row = work + entry // heads * work_batch + entry % heads * work_head + tile")
            out.line("return entry * items + tl.load(row)")
        return
    emit_share_function(out)
    with jit_function(out, "work_item(program, items, places, sizes, work)"):
        out.line('"""Number of the tile of queries that `program` owns, and what `own_share` says."""')
        emit_unpack(out, "sizes", SIZES)
        out.line("entry, tile, begin, end, place = own_share(program, items, places, all_heads, section, work[0])")
        out.line("return entry * tl.cdiv(q_len, BLOCK_M) + tile, begin, end, place")


def emit_share_function(out: Emitter) -> None:
    """``own_share``: from the number of a program to what it does."""
    with jit_function(out, "own_share(program, items, places, all_heads, section, work)"):
        out.line('"""Head, tile, first visited tile and the one after the last, place of a share or -1."""')
        out.comment("Heads run in sections that fit in the L2 cache, item by item.")
        out.line("tiles = items")
        emit_entry(out, reverse=False)
        out.line(f"item = work + {NUMBERS} * (1 + tile)")
        out.line("place = tl.load(item + 3)")
        out.line("place = tl.where(place < 0, -1, entry * places + place)")
        out.line("return entry, tl.load(item), tl.load(item + 1), tl.load(item + 2), place")


def emit_room(out: Emitter, work: str, rows: str, entries: str, partials: Mapping[str, str]) -> None:
    """The part of ``run`` that makes room for shares: tensors by name, with these sizes of a place.

    ``work`` is the list, of ``rows`` rows, that each of ``entries`` heads has.
    """
    out.line(f"parts = ({work}.shape[0] - 1 - {rows}) // 2")
    out.line(f"places = {entries} * (2 * parts + 1)")
    for name, shape in partials.items():
        out.line(f"{name} = torch.empty((places, {shape}), dtype=torch.float32, device=query.device)")


def emit_partial_outputs(out: Emitter, block_m: int) -> None:
    """The part of ``run`` that makes room for shares of outputs."""
    partials = {"partial_out": "BLOCK_M.value, VALUE.value", "partial_sums": "2, BLOCK_M.value"}
    emit_room(out, "tiles[-1]", f"triton.cdiv(q_len, {block_m})", "batches * heads", partials)


def emit_merge_launch(out: Emitter, columns: int) -> None:
    """The part of ``run`` that merges shares."""
    with out.block("if parts > 1:"):
        arguments = [
            *(Argument(x, "", x) for x in ("out", "lse", "partial_out", "partial_sums")),
            Argument("work", "", "tiles[-1]"),
            Argument("heads", "i32", "batches * heads"),
            Argument("length", "i32", "q_len"),
            Argument("width", "i32", "VALUE.value"),
        ]
        options = f"ROWS=BLOCK_M.value, COLUMNS={columns}, num_warps=1"
        emit_launch(out, _MERGE, "(16 * multiprocessors,)", arguments, options)


_PARTS = '''
def part_count(entries, device):
    """Into how many parts of equal cost the tiles of a head are cut: two for each multiprocessor that it keeps busy."""
    multiprocessors, _ = device_limits(device)
    return max(2 * multiprocessors // entries, 1)
'''
_VISITED = '''
@triton.jit
def visited_count(counts, row, rows, width):
    """How many tiles are visited in a row."""
    inside = row < rows
    return tl.load(counts + row * width, mask=inside, other=0) + tl.load(counts + row * width + 1, mask=inside, other=0)
'''
_ORDER_BODY = """
blocks = tl.cdiv(rows, ROWS)
entry, first = tl.program_id(0) // blocks, tl.program_id(0) % blocks * ROWS
counts += entry.to(tl.int64) * rows * width
limit = 1 << 30
if SPLIT:
    total = tl.full([], 0, tl.int64)
    for begin in range(0, rows, COLUMNS):
        total += tl.sum(visited_count(counts, begin + tl.arange(0, COLUMNS), rows, width).to(tl.int64), 0)
    limit = tl.maximum(tl.cdiv(total, parts), {fewest}).to(tl.int32)
row = first + tl.arange(0, ROWS)
count = visited_count(counts, row, rows, width)
shares = tl.cdiv(tl.maximum(count, 1), limit)
size = tl.cdiv(count, shares)
place = tl.zeros([ROWS], tl.int32)
# Of the rows before: how many are cut, and into how many shares; of all rows, how many items and cut rows there are.
cut_before, shares_before = place, place
items = tl.zeros([COLUMNS], tl.int32)
cut = items
for begin in range(0, rows, COLUMNS):
    other = begin + tl.arange(0, COLUMNS)
    other_count = visited_count(counts, other, rows, width)
    other_shares = tl.where(other < rows, tl.cdiv(tl.maximum(other_count, 1), limit), 0)
    other_size = tl.cdiv(other_count, tl.maximum(other_shares, 1))
    earlier = other[None, :] < row[:, None]
    heavier = (other_size[None, :] > size[:, None]) | ((other_size[None, :] == size[:, None]) & earlier)
    place += tl.sum(tl.where(heavier, other_shares[None, :], 0), 1)
    if SPLIT:
        is_cut = tl.where(other_shares > 1, 1, 0)
        cut_before += tl.sum(tl.where(earlier, is_cut[None, :], 0), 1)
        shares_before += tl.sum(tl.where(earlier, (is_cut * other_shares)[None, :], 0), 1)
        items += other_shares
        cut += is_cut
inside = row < rows
if SPLIT:
    for share in range(0, tl.max(shares, 0)):
        item = work + 4 * (1 + place + share)
        exists = inside & (share < shares)
        tl.store(item, row, mask=exists)
        tl.store(item + 1, count * share // shares, mask=exists)
        tl.store(item + 2, count * (share + 1) // shares, mask=exists)
        tl.store(item + 3, tl.where(shares > 1, shares_before + share, -1), mask=exists)
    several = inside & (shares > 1)
    item = work + 4 * (1 + rows + parts + cut_before)
    tl.store(item, row, mask=several)
    tl.store(item + 1, shares_before, mask=several)
    tl.store(item + 2, shares, mask=several)
    if first == 0:
        tl.store(work, tl.sum(items, 0))
        tl.store(work + 1, tl.sum(cut, 0))
        tl.store(work + 2, 2 * parts + 1)
        tl.store(work + 3, rows + parts)
        for begin in range(0, parts, COLUMNS):
            other = tl.sum(items, 0) + begin + tl.arange(0, COLUMNS)
            unused = work + 4 * (1 + other)
            for number in tl.static_range(4):
                tl.store(unused + number, tl.where(other >= 0, number // 3 * 2 * parts, 0), mask=other < rows + parts)
else:
    tl.store(work + entry.to(tl.int64) * rows + place, row, mask=inside)
"""
