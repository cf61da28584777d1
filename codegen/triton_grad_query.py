"""The kernel for dQ: a program owns a tile of queries and walks its keys."""

from __future__ import annotations

from .emitter import Emitter
from .schedule import Schedule
from .triton_gradients import Contribution, Gradients
from .triton_module import Argument, emit_launch, kernel
from .triton_program import emit_accumulate, emit_place, emit_product, table_arguments, uses_table
from .triton_tiles import TileLoops
from .triton_values import Guard, Values

KERNEL = "attention_grad_query"


class GradQuery(Gradients):
    """Emits the kernel and its launch.

    Captured gradients of loads that do not depend on the key are summed here per query (``NAME_sums``), those
    without structure are added to the gradient itself.
    """

    @property
    def here(self) -> list[Contribution]:
        return self.of_kinds("batch_head", "query", "pair")

    @property
    def sums(self) -> list[Contribution]:
        return self.of_kinds("batch_head", "query")

    def emit(self, out: Emitter, schedule: Schedule) -> None:
        """The kernel."""
        values = self.values()
        with kernel(out, KERNEL, self.arguments(), ("BLOCK_M", "BLOCK_N"), self.problem.debug):
            out.line('"""dQ of one tile of queries."""')
            out.line("program = tl.program_id(0)")
            emit_place(out, length="q_len", block="BLOCK_M", reverse=schedule.reverse)
            self.emit_query_place(out)
            for tensor, head, rows, parts in (
                ("query", "head", "rows", self.head),
                ("grad_out", "head", "rows", self.value),
                ("key", "kv_head", "keys", self.head),
                ("value", "kv_head", "keys", self.value),
            ):
                self.tiles.open_input(out, tensor, head, rows, self.columns(parts), parts)
            for name, tensor, parts in (("q", "query", self.head), ("do", "grad_out", self.value)):
                columns = self.columns(parts)
                self.tiles.load(out, name, tensor, "head", "tile_first", "BLOCK_M", columns, parts, "(q_index < q_len)")
            out.line("row = entry.to(tl.int64) * q_len + tile_first")
            out.line("inside = tile_first + rows < q_len")
            out.line("lse_rows = tl.load(lse + row + rows, mask=inside, other=0.0) * LOG2E")
            out.line("delta_rows = tl.load(delta + row + rows, mask=inside, other=0.0)")
            loops = self.emit_key_tiles(out)
            for p in self.head:
                out.line(f"dq{p.suffix} = tl.zeros([BLOCK_M, {p.width}], tl.float32)")
            for c in self.sums:
                out.line(f"{c.name}_total = tl.zeros([BLOCK_M], tl.float32)")
            self.emit_unit(out)
            needed = self.wanted(self.here, masked=True)
            done = values.emit(out, "program", needed, Guard())
            done = values.emit(out, "query", needed, Guard(query="(q_index < q_len)"), done)
            if loops.full_count:
                out.comment("Tiles in which every pair is allowed.")
                with out.block(f"for t in range(0, {loops.full_count}):"):
                    self._emit_step(out, values, loops.full_tile, loops, done, masked=False)
            if loops.partial_count:
                out.comment("Tiles in which the mask decides.")
                with out.block(f"for t in range(0, {loops.partial_count}):"):
                    self._emit_step(out, values, loops.partial_tile, loops, done, masked=True)
            out.line()
            self.tiles.open(out, "grad_query", "head", "rows", "columns", self.head)
            self.tiles.store(
                out, "dq", "grad_query", "tile_first", "columns", self.head, "(q_index < q_len)", "({} * scale)"
            )
            for c in self.sums:
                out.line(f"tl.store({c.name}_sums + row + rows, {c.name}_total, mask=inside)")

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        captured = [Argument(f"{c.name}_sums", "", f"{c.name}_sums") for c in self.sums]
        for c in self.of_kinds("pair"):
            captured.append(Argument(f"{c.name}_to", "", c.grad))
            for i in range(len(c.load.indices)):
                captured.append(Argument(f"{c.name}_to_stride_{i}", "i64", f"{c.grad}.stride({i})"))
        return [
            *self.tiles.pointers("grad_query"),
            *captured,
            *self.tiles.inputs("query", self.head, "BLOCK_M"),
            *self.tiles.inputs("key", self.head, "BLOCK_N"),
            *self.tiles.inputs("value", self.value, "BLOCK_N"),
            *self.tiles.inputs("grad_out", self.value, "BLOCK_M"),
            Argument("lse", "", "lse"),
            Argument("delta", "", "delta"),
            *(table_arguments("tiles[0]") if uses_table(self.plan) else []),
            *self.arguments_after_tensors("batches * heads", "section_size(key, value, heads)"),
        ]

    def _emit_step(
        self, out: Emitter, values: Values, tile: str, loops: TileLoops, done: frozenset[str], *, masked: bool
    ) -> None:
        """One tile of keys."""
        wanted = self.wanted(self.here, masked=masked)
        lanes = "allowed" if masked else "(q_index < q_len)"
        rows = self.rows_in_hull(loops) if masked else ""
        out.line(f"start = {tile} * BLOCK_N")
        self.tiles.load(out, "k", "key", "kv_head", "start", "BLOCK_N", "columns", self.head, rows)
        emit_product(out, "s", "q", "k", self.head, self.precision)
        self.tiles.load(out, "v", "value", "kv_head", "start", "BLOCK_N", self.value_columns, self.value, rows)
        emit_product(out, "dp", "do", "v", self.value, self.precision)
        if wanted or masked:
            out.line("kv_index = start + keys[None, :]")
        done = values.emit(out, "key", wanted, Guard(key="(kv_index < kv_len)" if masked else ""), done)
        if masked:
            done = self.emit_allowed(out, values, done)
        self.emit_probabilities(
            out, values, done, wanted, shape="BLOCK_M, BLOCK_N", row="lse_rows[:, None]", lanes=lanes
        )
        self.emit_score_gradient(out, values, self.here, delta="delta_rows[:, None]", masked=masked)
        for c in self.sums:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        for c in self.of_kinds("pair"):
            address, conditions = values.address(c.index_names, c.load.buffer, f"{c.name}_to")
            mask = " & ".join([lanes, *conditions])
            out.line(f"tl.{'store' if c.injective else 'atomic_add'}({address}, {c.name}, mask={mask})")
        if masked:
            self.emit_unseen(out, "k", self.head, rows)
        emit_accumulate(out, "dq", "ds", "k", self.head, self.precision)

    def emit_launch(self, out: Emitter) -> None:
        """The part of ``run`` that fills ``grad_query``."""
        for c in self.sums:
            out.line(f"{c.name}_sums = torch.empty_like(lse)")
        out.line("options = GRAD_QUERY")
        out.line('programs = triton.cdiv(q_len, options["BLOCK_M"]) * batches * heads')
        emit_launch(out, KERNEL, "(programs,)", self.arguments(), "**options")
