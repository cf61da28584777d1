"""The work list of a kernel whose rows of tiles are uneven: which program computes what, the heaviest first.

One program computes a row of tiles. Where few rows see far more keys than the others, the order of positions leaves
multiprocessors without work while the last long row is computed. So rows stand in a list, by how many tiles they visit.
Where ranges depend neither on the head nor on captured tensors, a row that visits more than half of what a
multiprocessor has to do is cut into shares, whose outputs another kernel merges, in a fixed order. Kernels make the
list, so that nothing waits for the device. Bounds of its size follow from the number of multiprocessors: shares are of
at least one part of all tiles, so that there are at most as many more of them than of rows as there are parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..ir.nodes import TILE_NAMES, Expr, Index, Select
from ..ir.tiles.cuts import Cuts
from ..ir.tiles.plan import Interval, Ranges, TilePlan
from ..ir.traverse import index_names, loads, walk
from .defaults import heaviest_last
from .emitter import Emitter
from .gluon_module import emit_tables
from .gluon_tiles import KEYS, QUERIES, Walk, emit_unpack, jit_function
from .schedule import Schedule
from .triton_module import Argument, Part, emit_launch, kernel, user_names
from .triton_program import BROADCAST_STRIDE, SIZES, emit_entry, uses_table
from .triton_split import emit_merge_rows

ORDER, MERGE = "order_tiles", "merge_rows"
_COUNT = "count_tiles"
# A share has at least so many tiles: it also has a start and an end of its own.
_FEWEST = 6
# Numbers of an item: a tile, the first of those that it visits and the one after the last, and its place among partial
# results, or -1. The list starts with the numbers of items, of cut rows, of places and of lines of items.
NUMBERS = 4


def is_uneven(plan: TilePlan) -> bool:
    """Whether rows of tiles may differ in another way than that later ones are longer.

    Rows of tables do; ranges in closed form do where a condition on the tile switches between them.
    """
    return uses_table(plan) or _switch(plan.keys.may)


def few_are_long(plan: TilePlan, ranges: Ranges) -> bool:
    """Whether a condition on the tile tells rows that visit all, or many, from those that visit few.

    Not where an interval reaches to the end whatever the tile, as then most rows are long. A table may have any rows;
    of those that must see all there are intervals in closed form.
    """
    intervals = ranges.must if uses_table(plan) else ranges.may
    return _switch(intervals) and not any(
        isinstance(x.stop, Index) and x.stop.name in ("q_len", "kv_len") and not _switches(x.start) for x in intervals
    )


def _switch(intervals: Sequence[Interval]) -> bool:
    """Whether any of these has ends that depend on a condition on the tile."""
    return any(_switches(x.start) or _switches(x.stop) for x in intervals)


def _switches(end: Expr) -> bool:
    conditions = (x.condition for x in walk(end) if isinstance(x, Select))
    return any(index_names(x) & set(TILE_NAMES) for x in conditions)


def with_list(plan: TilePlan, schedule: Schedule) -> Schedule:
    """``schedule`` with a list where rows are uneven whatever tensors hold; long ones are cut if all heads are alike.

    Where tensors decide how long rows are, a list may gain nothing, and takes time in every graph: tuning tries it.
    """
    if not is_uneven(plan) or any(loads(plan.variant.mask)):
        return schedule
    return replace(schedule, reverse=False, ahead=False, listed=True, split_keys=has_one_list(plan))


def other_lists(plan: TilePlan, schedule: Schedule) -> tuple[Schedule, ...]:
    """What is worth timing besides ``schedule`` where rows are uneven: no list, a list, and shares."""
    plain = replace(schedule, listed=False, split_keys=False, reverse=heaviest_last(plan.keys))
    listed = replace(plain, reverse=False, ahead=False, cut=False, listed=True)
    shares = (replace(listed, split_keys=True),) if has_one_list(plan) else ()
    return tuple(x for x in (plain, listed, *shares) if x != schedule)


def has_one_list(plan: TilePlan) -> bool:
    """Whether rows of tiles are the same in all heads, so that long ones can be cut into shares."""
    return not index_names(plan.variant.mask) & {"head", "kv_head", "batch"}


def emit_lists(
    out: Emitter, plan: TilePlan, schedule: Schedule, parameters: Sequence[Argument], cuts: Cuts | None = None
) -> tuple[str, tuple[str, ...]]:
    """What makes tables of tiles and work lists; as text, but for a kernel in Gluon, and the names of the kernels.

    ``parameters`` are those of ``visited_tiles`` but for the scale; ``cuts``: where tiles begin anew, without a list.
    """
    blocks = schedule.block_m, schedule.block_n
    if not schedule.listed:
        return emit_tables(plan, blocks, cuts=cuts)
    tables, kernels = emit_tables(plan, blocks, listed=(_LISTED, ""))
    lists = Emitter()
    if not uses_table(plan):
        lists.section(BROADCAST_STRIDE)
        emit_count(out, _COUNT, KEYS, parameters)
        _emit_classify(lists, plan, schedule, parameters)
        kernels = (_COUNT,)
    emit_work_list(lists, split=schedule.split_keys)
    if schedule.split_keys:
        emit_merge_rows(lists, MERGE, NUMBERS)
    more = (ORDER, MERGE) if schedule.split_keys else (ORDER,)
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
    """The part of ``classify`` that fills ``counts`` of so many rows by the kernel ``name``."""
    out.line(f"rows = {rows}")
    out.line("counts = torch.empty((table_batches, table_heads, rows, 2), dtype=torch.int32, device=device)")
    emit_launch(out, name, "(table_batches * table_heads * rows,)", _count_arguments(parameters), "num_warps=1")


def _count_arguments(parameters: Sequence[Argument]) -> list[Argument]:
    names = ("heads", "kv_heads", "q_len", "kv_len", "table_heads")
    return [Argument("counts", "", "counts"), *parameters, *(Argument(x, "i32", x) for x in names)]


def emit_count(out: Emitter, name: str, walk: Walk, parameters: Sequence[Argument]) -> None:
    """The kernel ``name``, which counts the tiles of a row."""
    out.line("\n")
    with kernel(out, name, _count_arguments(parameters), ()):
        out.line(f'"""Numbers of partial and full tiles of {walk.other} that a tile of {walk.own} visits."""')
        out.line(f"rows = tl.cdiv({walk.own_length}, {walk.own_block})")
        out.line("entry, row = tl.program_id(0) // rows, tl.program_id(0) % rows")
        out.line("batch, head = entry // table_heads, entry % table_heads")
        out.comment("Ranges depend neither on the scale nor on how programs are numbered.")
        out.line(f"parameters = ({', '.join(['1.0', *(a.name for a in parameters)])},)")
        out.line(f"sizes = (heads, kv_heads, q_len, kv_len, 1, 1{', 1, 1' if walk is QUERIES else ''})")
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


def emit_work(out: Emitter, work: Sequence[Argument]) -> None:
    """``work``, which carries these kernel arguments to functions, if there are any."""
    if work:
        out.line(f"work = ({', '.join(a.name for a in work)})")


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
        out.line('"""What `program` does: number of a tile of queries, and what `own_share` says after that."""')
        emit_unpack(out, "sizes", SIZES)
        out.line("entry, tile, begin, end, place = own_share(program, items, places, all_heads, section, work[0])")
        out.line("return entry * tl.cdiv(q_len, BLOCK_M) + tile, begin, end, place")


def emit_share_function(out: Emitter) -> None:
    """``own_share``: from the number of a program to its line of the list."""
    with jit_function(out, "own_share(program, items, places, all_heads, section, work)"):
        out.line('"""Head, tile, the first tile that it visits and the one after the last, place of a share or -1."""')
        out.line("tiles = items")
        emit_entry(out, reverse=False)
        out.line(f"item = work + {NUMBERS} * (1 + tile)")
        out.line("tile = tl.load(item)")
        out.line("place = tl.load(item + 3)")
        out.line("place = tl.where(place < 0, -1, entry * places + place)")
        out.line("return entry, tile, tl.load(item + 1), tl.load(item + 2), place")


def emit_room(
    out: Emitter, work: str, rows: str, entries: str, partials: Mapping[str, str], parts: str = "parts"
) -> None:
    """The part of ``run`` that makes room for shares: tensors of these sizes of a place, by name, if there are any.

    ``work``: the list, of so many ``rows``, which serves so many ``entries``; ``parts``: what their number is called.
    """
    out.line(f"{parts} = ({work}.shape[0] - 1 - {rows}) // 2")
    out.line(f"places = {entries} * 2 * {parts} if {parts} > 1 else 1")
    for name, shape in partials.items():
        out.line(f"{name} = torch.empty((places, {shape}), dtype=torch.float32, device=query.device)")


def emit_merge_launch(
    out: Emitter, name: str, tensors: Sequence[str], work: str, heads: str, length: str, width: int, rows: int,
    parts: str = "parts",
) -> None:  # fmt: skip
    """The part of ``run`` that merges shares of tiles of so many ``rows`` by the kernel ``name``."""
    with out.block(f"if {parts} > 1:"):
        arguments = [
            *(Argument(x, "", x) for x in tensors),
            Argument("work", "", work),
            Argument("heads", "i32", heads),
            Argument("length", "i32", length),
            Argument("width", "i32", str(width)),
        ]
        options = f"ROWS={rows}, COLUMNS={1 << (width - 1).bit_length()}, num_warps=1"
        emit_launch(out, name, "(16 * multiprocessors,)", arguments, options)


def emit_sums_of_share(out: Emitter) -> None:
    """What consumers leave of a share: its maxima and sums; what they write to ``lse`` and ``out`` is replaced."""
    out.comment("A share of a row leaves its parts to be merged. No branch: it would take registers.")
    out.line("own_sums = work[2] + place.to(tl.int64) * (2 * BLOCK_M) + GROUP * ROWS + rows")
    out.line("tl.store(own_sums, m, mask=place >= 0)")
    out.line("tl.store(own_sums + BLOCK_M, l, mask=place >= 0)")


def emit_share(
    out: Emitter, p: Part, partial: str, total: str, layout: str, rows: str, block: str, width: str
) -> None:
    """The same: columns of its sums, in float32; a consumer has so many ``rows`` of the ``block``."""
    out.line(f"own_rows = GROUP * {rows} + tl.arange(0, {rows}, tl.SliceLayout(1, {layout}{p.suffix}))")
    out.line(f"own_columns = {p.first} + tl.arange(0, {p.width}, tl.SliceLayout(0, {layout}{p.suffix}))")
    out.line(f"own_out = {partial} + place.to(tl.int64) * ({block} * {width})")
    out.line(f"own_out += own_rows[:, None] * {width} + own_columns[None, :]")
    out.line(f"tl.store(own_out, {total}, mask=place >= 0)")


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
        tl.store(work + 2, 2 * parts)
        tl.store(work + 3, rows + parts)
else:
    tl.store(work + entry.to(tl.int64) * rows + place, row, mask=inside)
"""
