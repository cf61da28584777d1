"""Which tiles are visited, found on the device by two kernels, where ranges have no sharp closed form.

The first kernel reduces what the mask reads by position to a number for each tile. In the second a program owns a
row of tiles and decides all its pairs, from these numbers (``classified``) or from the mask itself (``exact``).
Nothing is stored for a pair of tiles: a row whose visited tiles, and whose full tiles, are one run each (sorted
documents, windows, lengths) is four integers. Only a row with gaps is listed. Whether data is sorted is thus
never assumed, and nothing waits for the device, so it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from ..ir.nodes import Expr, Index, Reduction, Value
from ..ir.tiles.plan import TilePlan
from ..ir.tiles.steps import steps
from ..ir.traverse import index_names, loads, substitute, walk
from ..ir.types import BOOL, F32, I64, ScalarType
from .emitter import Emitter
from .triton_module import Argument, buffer_arguments, emit_launch, kernel, scalar_arguments, user_names
from .triton_program import INDICES
from .triton_values import LEVELS, Guard, Level, Values, user_name

_SIZES = [
    Argument("heads", "i32", "heads"),
    Argument("kv_heads", "i32", "kv_heads"),
    Argument("q_len", "i32", "q_len"),
    Argument("kv_len", "i32", "kv_len"),
    Argument("table_heads", "i32", "table_heads"),
]
_STORED: dict[ScalarType, str] = {BOOL: "int8", F32: "float32", I64: "int64"}
_STEMS = {"min": "low", "max": "high", "any": "any", "all": "all"}

# A list holds this many tiles in all, or so many of each row: what does not fit is visited from its first tile to its
# last, with the mask.
LISTED, LISTED_IN_ROW = 1 << 22, 256

_EMPTY_TABLE = '''
def empty_table(batches, heads, rows, columns, device):
    """Room for lists of tiles, of a bounded size in all, and for {words} numbers a row."""
    capacity = min(columns, max({all} // (batches * heads * rows), {row}))
    sizes = (batches, heads, rows)
    return torch.empty((*sizes, capacity), dtype=torch.int32, device=device), torch.empty(
        (*sizes, {numbers}), dtype=torch.int32, device=device
    )
'''

ENTRY = """
batch, head = entry // table_heads, entry % table_heads
kv_head = head // (heads // kv_heads)
"""
_TILES = "q_tiles, kv_tiles = tl.cdiv(q_len, BLOCK_M), tl.cdiv(kv_len, BLOCK_N)"
_DECIDED = """
if BY_KEY:
    q_tile, kv_tile = tl.minimum(column, q_tiles - 1), row
    exists, whole = column < q_tiles, (column + 1) * BLOCK_M <= q_len
else:
    q_tile, kv_tile = row, tl.minimum(column, kv_tiles - 1)
    exists, whole = column < kv_tiles, (column + 1) * BLOCK_N <= kv_len
"""
_ROW = """
if BY_KEY:
    rows, columns = kv_tiles, q_tiles
else:
    rows, columns = q_tiles, kv_tiles
row, entry = tl.program_id(0) % rows, tl.program_id(0) // rows
# Ends and sizes of the runs of visited and of full tiles.
first = tl.full([COLUMNS], 1 << 30, tl.int32)
stop = tl.zeros([COLUMNS], tl.int32)
full_first, full_stop = first, stop
visited_count, full_count = stop, stop
for begin in range(0, columns, COLUMNS):
    column = begin + tl.arange(0, COLUMNS)
    visited, full = decide(entry, row, {column}, facts, BY_KEY, BLOCK_M, BLOCK_N)
    first = tl.minimum(first, tl.where(visited, column, 1 << 30))
    stop = tl.maximum(stop, tl.where(visited, column + 1, 0))
    visited_count = visited_count + tl.where(visited, 1, 0)
    full_first = tl.minimum(full_first, tl.where(full, column, 1 << 30))
    full_stop = tl.maximum(full_stop, tl.where(full, column + 1, 0))
    full_count = full_count + tl.where(full, 1, 0)
first, stop, visited_count = tl.min(first, 0), tl.max(stop, 0), tl.sum(visited_count, 0)
full_first, full_stop, full_count = tl.min(full_first, 0), tl.max(full_stop, 0), tl.sum(full_count, 0)
first, full_first = tl.minimum(first, stop), tl.minimum(full_first, full_stop)
gaps = (stop - first != visited_count) | (full_stop - full_first != full_count)
listed = gaps & (visited_count <= capacity)
# Too many for the list: all from the first to the last, and the mask decides in each.
overflows = gaps & (visited_count > capacity)
visited_count = tl.where(overflows, stop - first, visited_count)
full_count = tl.where(overflows, 0, full_count)
row_number = entry.to(tl.int64) * rows + row
counts = tile_counts + row_number * {numbers}
tl.store(counts, full_count)
tl.store(counts + 1, visited_count - full_count)
tl.store(counts + 2, tl.where(listed, -1, first))
tl.store(counts + 3, tl.where(overflows, stop, full_first)){more}
if listed:
    full_place, partial_place = 0, full_count
    indices = tile_indices + row_number * capacity
    for begin in range(0, columns, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        visited, full = decide(entry, row, {column}, facts, BY_KEY, BLOCK_M, BLOCK_N)
        full = tl.where(full, 1, tl.zeros([COLUMNS], tl.int32))
        partial = tl.where(visited, 1 - full, 0)
        tl.store(indices + full_place + tl.cumsum(full, 0) - 1, column, mask=full != 0)
        tl.store(indices + partial_place + tl.cumsum(partial, 0) - 1, column, mask=partial != 0)
        full_place, partial_place = full_place + tl.sum(full, 0), partial_place + tl.sum(partial, 0)
"""


def emit_classify(
    out: Emitter, plan: TilePlan, by_query: tuple[int, int], by_key: tuple[int, int] | None = None, *,
    listed: tuple[str, str] = ("", ""),
) -> tuple[str, ...]:  # fmt: skip
    """Prints ``classify`` and its kernels, whose names it returns.

    ``by_query`` and ``by_key`` are (block_m, block_n) of the kernels that walk keys and queries. With
    ``by_key``, ``classify`` returns both tables. ``listed``: what it returns besides each, made from its ``counts``.
    """
    made = Classify(plan, listed)
    made.emit(out, by_query, by_key)
    return made.kernels


class Classify:
    """Prints the two kernels and the functions around them, for tiles that start at multiples of their size."""

    # How many numbers say what a row of tiles is; how many tiles there are, and which of two decides, as text.
    numbers, words = 4, "four"
    tiles, decided = _TILES, _DECIDED
    # What a row stores besides.
    stored_too = ""
    # What tables of rows of queries, and of keys, come with.
    returned_too = ("", "")

    def __init__(self, plan: TilePlan, listed: tuple[str, str]) -> None:
        self.plan, self.listed = plan, listed
        conditions = plan.classification
        found = [] if conditions is None else [conditions.may, conditions.must]
        reductions = list(dict.fromkeys(x for e in found for x in walk(e) if isinstance(x, Reduction)))
        self.reductions = {x: Value(f"{_STEMS[x.op]}_{x.axis}_{i}", x.type) for i, x in enumerate(reductions)}
        # Ends of tiles are known without looking, and pairs of tiles are too many to store.
        self.stored = {
            x: v for x, v in self.reductions.items() if x.axis != "both" and not isinstance(x.x, Index)
        }
        # The mask is evaluated whole where no conditions on tiles decide.
        self.results: dict[str, Expr] = {"mask": plan.variant.mask}
        if conditions is not None:
            table: dict[Expr, Expr] = {x: v for x, v in self.reductions.items()}
            self.results = {
                "may": substitute(conditions.may, table),
                "must": substitute(conditions.must, table),
            }
        read = {user_name(x.buffer) for x in loads(plan.variant.mask)}
        buffers = [a for a in buffer_arguments(plan) if a.value.partition(".")[0] in read]
        self.vectors = [Argument(v.name, "", v.name) for v in self.stored.values()]
        self.facts = [*buffers, *scalar_arguments(plan), *_SIZES]

    @property
    def kernels(self) -> tuple[str, ...]:
        """Their names."""
        return ("reduce_tiles", "list_tiles") if self.stored else ("list_tiles",)

    def emit(self, out: Emitter, by_query: tuple[int, int], by_key: tuple[int, int] | None) -> None:
        """All of it."""
        if self.stored:
            out.section()
            self._emit_reduce(out)
        out.section()
        self._emit_decide(out)
        out.section()
        self._emit_list(out)
        facts = {"all": LISTED, "row": LISTED_IN_ROW, "numbers": self.numbers, "words": self.words}
        out.section(_EMPTY_TABLE.format(**facts))
        self._emit_classify(out, by_query, by_key)

    def _emit_reduce(self, out: Emitter) -> None:
        with kernel(out, "reduce_tiles", [*self.vectors, *self.facts], ("BLOCK_M", "BLOCK_N")):
            out.line('"""What the mask reads by position, reduced over each tile of queries and of keys."""')
            out.lines(self.tiles)
            out.line("tiles = tl.maximum(q_tiles, kv_tiles)")
            out.line("tile, entry = tl.program_id(0) % tiles, tl.program_id(0) // tiles")
            out.lines(ENTRY)
            for axis, block in (("q", "BLOCK_M"), ("kv", "BLOCK_N")):
                found = {v.name: x for x, v in self.stored.items() if x.axis == axis}
                if found:
                    with out.block(f"if tile < {axis}_tiles:"):
                        self._emit_axis(out, axis, block, found)

    def _emit_axis(self, out: Emitter, axis: str, block: str, found: dict[str, Reduction]) -> None:
        out.comment("A ragged tile repeats its last position, which changes no extreme.")
        self.emit_tile_positions(out, axis, block)
        values = Values({name: x.x for name, x in found.items()}, INDICES, prefix=f"{axis}_")
        emit_all(out, values, tuple(found))
        out.line(f"place = entry.to(tl.int64) * {axis}_tiles + tile")
        for name, x in found.items():
            out.line(f"tl.store({name} + place, {_reduced(x, values.result(name))})")

    def _emit_decide(self, out: Emitter) -> None:
        """``decide``: the verdict on one pair of tiles (``exact``), or on many at once."""
        out.line("@triton.jit")
        with out.block(
            "def decide(entry, row, column, facts, BY_KEY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):"
        ):
            out.line('"""May any pair of two tiles attend, and must all?"""')
            out.line(f"{self._names} = facts")
            out.lines(ENTRY)
            out.lines(self.tiles)
            out.lines(self.decided)
            may, must = self._emit_exact(out) if self.plan.classification is None else self._emit_classified(out)
            out.line(f"visited = exists & ({may})")
            out.comment("A tile that reaches past the end is never full: what is beyond has to be masked.")
            out.line(f"return visited, visited & whole & ({must})")

    def _emit_classified(self, out: Emitter) -> tuple[str, str]:
        known: dict[str, Level] = {}
        for x, v in self.reductions.items():
            if x.axis == "both":
                known[v.name] = "pair"
                self._emit_looks(out, v.name, x)
                continue
            known[v.name] = "query" if x.axis == "q" else "key"
            block = "BLOCK_M" if x.axis == "q" else "BLOCK_N"
            if x in self.stored:
                text = f"tl.load({v.name} + entry.to(tl.int64) * {x.axis}_tiles + {x.axis}_tile)"
                text += " != 0" if x.type is BOOL else ""
            else:
                text = self.end_of_tile(x, block)
            out.line(f"{v.name} = {text}")
        values = Values(self.results, INDICES, known=known)
        emit_all(out, values, tuple(self.results))
        return values.result("may"), values.result("must")

    def emit_tile_positions(self, out: Emitter, axis: str, block: str) -> None:
        """The positions of ``tile``, along ``axis``."""
        out.line(f"{axis}_index = tl.minimum(tile * {block} + tl.arange(0, {block}), {axis}_len - 1)")

    def end_of_tile(self, x: Reduction, block: str) -> str:
        """The first or the last position of a tile, as text."""
        if x.op == "min":
            return f"{x.axis}_tile * {block}"
        return f"tl.minimum(({x.axis}_tile + 1) * {block}, {x.axis}_len) - 1"

    def _emit_looks(self, out: Emitter, name: str, x: Reduction) -> None:
        """``name``: reduced over one position of every block that the tiles touch."""
        found = steps(x.x)
        assert found is not None
        out.line(f"{name} = {x.op == 'all'}")
        values = Values({name: x.x}, INDICES, prefix=f"{name}_")
        with ExitStack() as loops:
            for axis, length, block in (("q", found[0], "BLOCK_M"), ("kv", found[1], "BLOCK_N")):
                last = f"tl.minimum({axis}_tile * {block} + {block}, {axis}_len) - 1"
                loops.enter_context(out.block(f"for look in tl.static_range(0, {block} + {length} - 1, {length}):"))
                out.line(f"{axis}_index = tl.minimum({axis}_tile * {block} + look, {last})")
            emit_all(out, values, (name,))
            out.line(f"{name} {'&=' if x.op == 'all' else '|='} {values.result(name)}")

    def _emit_exact(self, out: Emitter) -> tuple[str, str]:
        out.comment("Ragged last tiles repeat their last position, which changes nothing.")
        out.line("q_index = tl.minimum(q_tile * BLOCK_M + tl.arange(0, BLOCK_M), q_len - 1)[:, None]")
        out.line("kv_index = tl.minimum(kv_tile * BLOCK_N + tl.arange(0, BLOCK_N), kv_len - 1)[None, :]")
        values = Values(self.results, INDICES)
        emit_all(out, values, ("mask",))
        out.line(f"keep = ({values.result('mask')}).to(tl.int32)")
        return "tl.max(tl.max(keep, 1), 0) != 0", "tl.min(tl.min(keep, 1), 0) != 0"

    def _emit_list(self, out: Emitter) -> None:
        constants = ("BY_KEY", "COLUMNS", "BLOCK_M", "BLOCK_N")
        with kernel(out, "list_tiles", self._list_arguments, constants):
            out.line('"""One row of tiles: where its runs begin and how long they are, or a list."""')
            out.line(f"facts = {self._names}")
            out.lines(self.tiles)
            column = "begin" if self.plan.classification is None else "column"
            out.lines(_ROW.format(column=column, numbers=self.numbers, more=self.stored_too))

    @property
    def _names(self) -> str:
        return ", ".join(a.name for a in (*self.vectors, *self.facts))

    @property
    def _list_arguments(self) -> list[Argument]:
        return [
            Argument("tile_counts", "", "counts"),
            Argument("tile_indices", "", "indices"),
            Argument("capacity", "i32", "indices.shape[3]"),
            *self.vectors,
            *self.facts,
        ]

    def _emit_classify(
        self, out: Emitter, by_query: tuple[int, int], by_key: tuple[int, int] | None
    ) -> None:
        used = index_names(self.plan.variant.mask)
        inputs = ", ".join([*user_names(self.plan.variant), "batches, heads, kv_heads, q_len, kv_len, device"])
        with out.define(f"classify({inputs})"):
            out.line('"""Tables of tiles for `run`; they depend on the captured tensors, scalars and sizes only."""')
            out.line(f"table_batches = {'batches' if 'batch' in used else '1'}")
            out.line(f"table_heads = {'heads' if {'head', 'kv_head'} & used else '1'}")
            out.line("entries = table_batches * table_heads")
            self._emit_table(out, by_query, "by_query")
            if by_key is None:
                out.line("return by_query")
                return
            self._emit_table(out, by_key, "by_key", reduce=by_key != by_query)
            out.line("return by_query, by_key")

    def _emit_table(self, out: Emitter, blocks: tuple[int, int], name: str, reduce: bool = True) -> None:
        m, n = blocks
        if reduce:
            self.emit_numbers_of_tiles(out, m, n)
            for x, v in self.stored.items():
                dtype = f"torch.{_STORED.get(x.type, 'int32')}"
                out.line(f"{v.name} = torch.empty((entries, {x.axis}_tiles), dtype={dtype}, device=device)")
        if reduce and self.stored:
            grid = "(max(q_tiles, kv_tiles) * entries,)"
            emit_launch(out, "reduce_tiles", grid, [*self.vectors, *self.facts], f"BLOCK_M={m}, BLOCK_N={n}")
        rows, columns = ("q_tiles", "kv_tiles") if name == "by_query" else ("kv_tiles", "q_tiles")
        out.line(f"{name} = indices, counts = empty_table(table_batches, table_heads, {rows}, {columns}, device)")
        at_once, warps = (1, 8) if self.plan.classification is None else (512, 4)
        options = f"BY_KEY={name == 'by_key'}, COLUMNS={at_once}, BLOCK_M={m}, BLOCK_N={n}, num_warps={warps}"
        emit_launch(out, "list_tiles", f"({rows} * entries,)", self._list_arguments, options)
        more = self.listed[name == "by_key"] or self.returned_too[name == "by_key"]
        if more:
            out.line(f"{name} = *{name}, {more}")

    def emit_numbers_of_tiles(self, out: Emitter, block_m: int, block_n: int) -> None:
        """``q_tiles`` and ``kv_tiles``, on the host."""
        out.line(f"q_tiles, kv_tiles = triton.cdiv(q_len, {block_m}), triton.cdiv(kv_len, {block_n})")


def emit_all(out: Emitter, values: Values, wanted: Sequence[str]) -> None:
    done: frozenset[str] = frozenset()
    for level in LEVELS:
        done = values.emit(out, level, wanted, Guard(), done)


def _reduced(x: Reduction, text: str) -> str:
    match x.op:
        case "any":
            return f"tl.max(({text}).to(tl.int8), 0)"
        case "all":
            return f"tl.min(({text}).to(tl.int8), 0)"
        case _ if x.type is F32:
            # Reductions skip NaN, with which every comparison must fail.
            missing = f"tl.max(({text} != {text}).to(tl.int32), 0) != 0"
            return f'tl.where({missing}, float("nan"), tl.{x.op}({text}, 0))'
        case _:
            return f"tl.{x.op}({text}, 0)"
