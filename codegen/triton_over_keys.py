"""What backward kernels share in which a program owns a tile of queries and walks its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .emitter import Emitter
from .schedule import Schedule
from .triton_gradients import Gradients
from .triton_module import Argument
from .triton_program import emit_product, table_arguments, uses_table
from .triton_tiles import Masked, TileLoops
from .triton_values import Guard, Values


class OverKeys(Gradients):
    """Base of the kernels for dQ and for terms of rows."""

    def emit_start(self, out: Emitter, schedule: Schedule) -> None:
        """This program's place, its queries and gradients of outputs, and their log-sum-exps."""
        self.emit_program(out)
        self.emit_query_place(out, reverse=schedule.reverse)
        for tensor, head, rows, parts in (
            ("query", "head", "rows", self.head),
            ("grad_out", "head", "rows", self.value),
            ("key", "kv_head", "keys", self.head),
            ("value", "kv_head", "keys", self.value),
        ):
            self.tiles.open_input(out, tensor, head, rows, self.columns(parts), parts)
        for name, tensor, parts in (("q", "query", self.head), ("do", "grad_out", self.value)):
            columns = self.columns(parts)
            self.tiles.load(out, name, tensor, "head", "tile_first", "BLOCK_M", columns, parts, self.q_exists)
        out.line(f"row = entry.to(tl.int64) * q_len{self.first_row}")
        if self.inside != "inside":
            out.line(f"inside = {self.inside}")
        out.line(f"lse_rows = tl.load(lse + row + rows, mask=inside, other=0.0){self.row_unit}")

    def emit_loops(
        self, out: Emitter, values: Values, loops: TileLoops, needed: Sequence[str],
        step: Callable[[frozenset[str], Masked], None], *, merged: bool = False,
    ) -> frozenset[str]:  # fmt: skip
        """The loops; ``step`` writes the body from the steps done, which are returned, and what to mask."""
        done = values.emit(out, "program", needed, Guard())
        done = values.emit(out, "query", needed, Guard(query=self.q_exists), done)
        self.emit_visits(out, loops, "BLOCK_N", partial(step, done), merged=merged)
        return done

    def emit_pairs(
        self, out: Emitter, values: Values, done: frozenset[str], wanted: Sequence[str], *, rows: str,
        masked: Masked, normed: bool = True, select: bool = False,
    ) -> frozenset[str]:  # fmt: skip
        """``k``, ``p`` and ``dp`` of one tile of keys, of which ``rows`` are read; returns the steps done."""
        self.tiles.load(out, "k", "key", "kv_head", "start", "BLOCK_N", "columns", self.head, rows)
        emit_product(out, "s", "q", "k", self.head, self.precision)
        self.tiles.load(out, "v", "value", "kv_head", "start", "BLOCK_N", self.value_columns, self.value, rows)
        emit_product(out, "dp", "do", "v", self.value, self.precision)
        if wanted or masked != "none":
            self.emit_kv_index(out)
        done = values.emit(out, "key", wanted, Guard(key="" if masked == "none" else self.kv_exists), done)
        if masked == "all":
            done = self.emit_allowed(out, values, done)
        self.emit_probabilities(
            out, values, done, wanted, shape="BLOCK_M, BLOCK_N", rows="[:, None]", lanes=self.lanes(masked),
            normed=normed, select=select,
        )  # fmt: skip
        return done

    def emit_programs(self, out: Emitter) -> None:
        """The options of a launch, and how many programs it has."""
        out.line("options = GRAD_QUERY")
        out.line('programs = triton.cdiv(q_len, options["BLOCK_M"]) * batches * heads')

    def lanes(self, masked: Masked) -> str:
        """The pairs whose loads may be read, as text."""
        return "allowed" if masked == "all" else self.q_exists

    def inputs(self) -> list[Argument]:
        """The tensors that all these kernels read."""
        return [
            *self.tiles.inputs("query", self.head, "BLOCK_M"),
            *self.tiles.inputs("key", self.head, "BLOCK_N"),
            *self.tiles.inputs("value", self.value, "BLOCK_N"),
            *self.tiles.inputs("grad_out", self.value, "BLOCK_M"),
            Argument("lse", "", "lse"),
        ]

    def table_and_sizes(self) -> list[Argument]:
        """The last arguments of these kernels."""
        table = table_arguments("tiles[0]") if uses_table(self.plan) else []
        return [*table, *self.arguments_after_tensors("batches * heads", "section_size(key, value, heads)")]
