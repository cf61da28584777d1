"""The kernel for dK and dV: a program owns a tile of keys and walks the queries that see it.

It computes the transposed product K Q^T directly: Triton 3.4 to 3.7.0 miscompile the transpose of an
accumulator as an operand on sm_90.
"""

from __future__ import annotations

from .emitter import Emitter
from .schedule import Schedule
from .triton_gradients import Gradients, emit_select
from .triton_module import Argument, emit_launch, kernel
from .triton_program import INDICES, emit_accumulate, emit_place, emit_product, table_arguments, uses_table
from .triton_tiles import Masked, TileLoops, emit_ranges, emit_table
from .triton_values import Guard, Values

KERNEL = "attention_grad_key_value"


class GradKey(Gradients):
    """Emits the kernel and its launch; sums of captured gradients per key are ``NAME_sums`` in ``run``."""

    inside = "tile_first + rows < kv_len"
    # Positions of the queries that are visited, relative to ``row``.
    visited_rows = "start + queries"
    visited_exist = "start + queries < q_len"
    # Whether every head of queries needs programs of its own.
    one_head = False

    def emit(self, out: Emitter, schedule: Schedule) -> None:
        """The kernel."""
        values = self.values()
        with kernel(out, KERNEL + self.suffix, self.arguments(), self.constants, self.problem.debug):
            out.line('"""dK and dV of one tile of keys, summed over ``group`` heads of queries."""')
            self.emit_program(out)
            self.emit_key_place(out, reverse=schedule.reverse)
            inside = self.kv_exists
            for name, tensor, parts in (("k", "key", self.head), ("v", "value", self.value)):
                columns = self.columns(parts)
                self.tiles.open_input(out, tensor, "kv_head", "rows", columns, parts)
                self.tiles.load(out, name, tensor, "kv_head", "tile_first", "BLOCK_N", columns, parts, inside)
            for name, parts in (("dk", self.head), ("dv", self.value)):
                for p in parts:
                    out.line(f"{name}{p.suffix} = tl.zeros([BLOCK_N, {p.width}], tl.float32)")
            self.emit_unit(out)
            with out.block("for member in range(0, group):"):
                self._emit_head(out, values)
            out.line()
            for name, tensor, parts, text in (
                ("dk", "grad_key", self.head, "({} * scale)"),
                ("dv", "grad_value", self.value, "{}"),
            ):
                self.store_gradient(out, name, tensor, "chunk", "BLOCK_N", parts, inside, text)

    def emit_key_place(self, out: Emitter, *, reverse: bool) -> None:
        """The identities and positions of a program that owns a tile of keys, from ``program``."""
        emit_place(out, length="kv_len", block="BLOCK_N", reverse=reverse)
        self.emit_chunk(out)
        out.line("tile_first = tile * BLOCK_N")
        out.line("tile_last = tl.minimum(tile_first + BLOCK_N, kv_len) - 1")
        out.line("rows = tl.arange(0, BLOCK_N)")
        out.line("queries = tl.arange(0, BLOCK_M)")
        out.line("kv_index = tile_first + rows[:, None]")
        self.emit_columns(out)

    def emit_query_tiles(self, out: Emitter) -> TileLoops:
        """Which tiles of queries a tile of keys visits."""
        if uses_table(self.plan):
            out.comment("This tile's row in the table of tiles.")
            return emit_table(out)
        out.comment("Queries that may see this tile of keys, and those that see all of it.")
        return emit_ranges(out, self.plan.queries, INDICES, "BLOCK_M", "q_len")

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        table = table_arguments("tiles[1]") if uses_table(self.plan) else []
        return [
            *self.tiles.pointers("grad_key", "to_key"),
            *self.tiles.pointers("grad_value", "to_value"),
            *(Argument(f"{c.name}_sums", "", f"{c.name}_sums") for c in self.of_kinds("key")),
            *self.tiles.inputs("query", self.head, "BLOCK_M"),
            *self.tiles.inputs("key", self.head, "BLOCK_N"),
            *self.tiles.inputs("value", self.value, "BLOCK_N"),
            *self.tiles.inputs("grad_out", self.value, "BLOCK_M"),
            Argument("lse", "", "lse"),
            *(Argument(x, "", x) for x in self.row_terms),
            *table,
            *self.arguments_after_tensors("batches * heads // group", "section"),
            Argument("group", "i32", "group"),
        ]

    def emit_q_index(self, out: Emitter) -> None:
        """Positions of the queries that are visited."""
        out.line("q_index = start + queries[None, :]")

    def _emit_head(self, out: Emitter, values: Values) -> None:
        """The loops over the queries of one head."""
        here = self.of_kinds("key")
        out.line("head = chunk * group + member")
        self.tiles.open_input(out, "query", "head", "queries", "columns", self.head)
        self.tiles.open_input(out, "grad_out", "head", "queries", self.value_columns, self.value)
        out.line("entry = batch * heads + head")
        out.line("row = entry.to(tl.int64) * q_len")
        loops = self.emit_query_tiles(out)
        for c in here:
            out.line(f"{c.name}_total = tl.zeros([BLOCK_N], tl.float32)")
        needed = self.wanted(here, masked=True)
        done = values.emit(out, "program", needed, Guard())
        done = values.emit(out, "key", needed, Guard(key=self.kv_exists), done)
        merged = (loops.table or loops.merged) and not any(
            values.reads(x, "pair") for x in needed if x not in self.mask_result
        )
        self.emit_visits(
            out, loops, "BLOCK_M", lambda masked: self._emit_step(out, values, done, masked=masked), merged=merged
        )
        for c in here:
            place = f"{c.name}_sums + entry.to(tl.int64) * kv_len{self.first_row} + rows"
            out.line(f"tl.store({place}, {self.stored(place, f'{c.name}_total')}, mask={self.inside})")

    def _emit_step(self, out: Emitter, values: Values, done: frozenset[str], *, masked: Masked) -> None:
        """One tile of queries."""
        here = self.of_kinds("key")
        wanted = self.wanted(here, masked=masked == "all")
        inside = mask = ""
        if masked != "none":
            inside, mask = self.query_rows, f", mask={self.visited_exist}, other=0.0"
        self.tiles.load(out, "q", "query", "head", "start", "BLOCK_M", "columns", self.head, inside)
        if self.exact_rows:
            out.line(f"norm_rows = tl.load(norm + row + {self.visited_rows}{mask})")
        out.line(f"lse_rows = tl.load(lse + row + {self.visited_rows}{mask}){self.row_unit}")
        emit_product(out, "s", "k", "q", self.head, self.precision)
        if wanted or masked != "none":
            self.emit_q_index(out)
        guard = Guard(query="" if masked == "none" else self.q_exists)
        done = values.emit(out, "query", wanted, guard, done)
        if masked == "all":
            done = self.emit_allowed(out, values, done)
        self.emit_probabilities(
            out, values, done, wanted, shape="BLOCK_N, BLOCK_M", rows="[None, :]",
            lanes="allowed" if masked == "all" else self.kv_exists, select=masked == "all",
        )  # fmt: skip
        self.tiles.load(out, "do", "grad_out", "head", "start", "BLOCK_M", self.value_columns, self.value, inside)
        if masked != "some":
            emit_accumulate(out, "dv", "p", "do", self.value, self.precision)
        out.line(f"delta_rows = tl.load(delta + row + {self.visited_rows}{mask})")
        emit_product(out, "dp", "v", "do", self.value, self.precision)
        found = self.emit_score_gradient(out, values, here, delta="delta_rows[None, :]")
        match masked:
            case "all":
                emit_select(out, found)
            case "some":
                with out.block(f"if {self.is_partial}:"):
                    done = values.emit(out, "query", self.mask_result, guard, done)
                    self.emit_allowed(out, values, done)
                    emit_select(out, ("p", *found))
                emit_accumulate(out, "dv", "p", "do", self.value, self.precision)
        for c in here:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        emit_accumulate(out, "dk", "ds", "q", self.head, self.precision)

    def emit_tiles_of_keys(self, out: Emitter) -> None:
        """The options of the launch, and how many tiles a head has."""
        out.line("options = GRAD_KEY")
        out.line('tiles_of_keys = triton.cdiv(kv_len, options["BLOCK_N"])')

    def emit_launch(self, out: Emitter) -> None:
        """The part of ``run`` that fills ``grad_key`` and ``grad_value``."""
        for c in self.of_kinds("key"):
            out.line(f"{c.name}_sums = lse.new_{self.fresh}((batches, heads, kv_len))")
        self.emit_tiles_of_keys(out)
        few = "" if self.one_head else " and tiles_of_keys * batches * kv_heads < 2 * multiprocessors"
        why = "They have tiles of their own" if self.one_head else "Too few programs"
        out.lines(_BEFORE.format(fresh=self.fresh, few=few, why=why))
        self.emit_launches(out)
        out.lines(_AFTER)

    def emit_launches(self, out: Emitter) -> None:
        """The launch itself."""
        grid = "(tiles_of_keys * batches * (heads // group),)"
        emit_launch(out, KERNEL + self.suffix, grid, self.arguments(), "**options")


_BEFORE = """
multiprocessors, cache = device_limits(query.device)
group, to_key, to_value = heads // kv_heads, grad_key, grad_value
spread = group > 1{few}
if spread:
    # {why}: one for each head of queries, added up afterwards.
    group = 1
    to_key = torch.{fresh}((batches, heads, *key.shape[2:]), dtype=torch.float32, device=query.device)
    to_value = torch.{fresh}((batches, heads, *value.shape[2:]), dtype=torch.float32, device=query.device)
row_bytes = (query.shape[3] + value.shape[3]) * query.element_size()
section = even_sections(max(cache // 3 // (q_len * row_bytes * group), 1), batches * heads // group)
"""
_AFTER = """
if spread:
    grad_key = to_key.unflatten(1, (kv_heads, -1)).sum(2).to(query.dtype)
    grad_value = to_value.unflatten(1, (kv_heads, -1)).sum(2).to(query.dtype)
"""
