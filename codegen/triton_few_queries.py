"""The forward kernel for a handful of queries, as in decoding: those of all heads that share keys are one tile.

Keys and values are read once for a whole group of heads (Ainslie et al., arXiv:2305.13245), and are shared between
as many programs as fill the GPU (split keys, as in Flash-Decoding).
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.tiles.plan import TilePlan
from ..ir.traverse import index_names
from .emitter import Emitter
from .schedule import Problem, Schedule
from .triton_forward import MOST_QUERIES, Forward
from .triton_module import Argument
from .triton_program import INDICES, Tiles, emit_place, uses_table
from .triton_values import Values

# Rows of a tile, which are queries of several heads: where 16 hold them all, and where they do not.
_ROWS = (16, 32)


def few_queries(plan: TilePlan, problem: Problem, schedule: Schedule) -> FewQueries | None:
    """The kernel beside that of ``schedule``.

    None for a table of tiles, which is made for one size of tile, and where heads have masks of their own, and so
    do not visit the same tiles of keys.
    """
    if not schedule.split_keys or uses_table(plan) or "head" in index_names(plan.variant.mask):
        return None
    return FewQueries(plan, problem, schedule)


class FewQueries(Forward):
    """Emits the kernel and its launch. A program owns rows of a key head: its queries, one head after the other."""

    q_exists = "row_exists[:, None]"
    inside = "row_exists"
    suffix = "_few_queries"
    own_head, own_start, own_rows = "row_head", "0", "positions"
    entry_rows, first_row = "all_rows", ""

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule) -> None:
        super().__init__(plan, problem, replace(schedule, reverse=False))
        widest = max(self.head[0].width, self.value[0].width)
        ieee = problem.dtype == "f32" and not problem.tf32
        self.options = tuple(
            replace(self.schedule, block_m=rows, block_n=min(64, 8192 // widest), num_warps=4)
            for rows in (_ROWS[:1] if ieee else _ROWS)
        )

    @property
    def query_tiles(self) -> Tiles:
        """Loads of queries, by pointers: rows of several heads are no box of their tensor."""
        return Tiles(self.problem, descriptors=False)

    def values(self) -> Values:
        """The expressions; rows have heads as they have positions."""
        indices = INDICES | {"head": self.own_head}
        return Values(self.results, indices, debug=self.problem.debug, rows=frozenset({"head"}))

    def arguments_after_tensors(self, entries: str, section: str) -> list[Argument]:
        """Captured tensors, scalars and sizes."""
        return super().arguments_after_tensors("batches * kv_heads", "section_size(key, value, kv_heads)")

    def emit_query_place(self, out: Emitter, *, reverse: bool) -> None:
        """The identities and positions of a program's rows, from ``program``."""
        out.line("group = heads // kv_heads")
        out.line("all_rows = q_len * group")
        emit_place(out, length="all_rows", block="BLOCK_M", reverse=reverse)
        out.line("batch, kv_head = entry // kv_heads, entry % kv_heads")
        out.line()
        out.line("rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)")
        out.line("row_exists = rows < all_rows")
        out.line("positions = rows % q_len")
        out.line("row_head = (kv_head * group + rows // q_len)[:, None]")
        out.comment("The first and the last position, if all rows are of one head; else any.")
        out.line("first_row = tile * BLOCK_M")
        out.line("last_row = tl.minimum(first_row + BLOCK_M, all_rows) - 1")
        out.line("one_head = first_row // q_len == last_row // q_len")
        out.line("tile_first = tl.where(one_head, first_row % q_len, 0)")
        out.line("tile_last = tl.where(one_head, last_row % q_len, q_len - 1)")
        out.line("keys = tl.arange(0, BLOCK_N)")
        out.line("q_index = positions[:, None]")
        self.emit_columns(out)

    def emit_option_choices(self, out: Emitter) -> None:
        """``options`` and the number of ``programs`` for few queries, after those of the plain kernel."""
        with out.block(f"if q_len <= {MOST_QUERIES}:"):
            few, *many = self.option_names
            choice = f"{few} if q_len * (heads // kv_heads) <= {_ROWS[0]} else {many[0]}" if many else few
            out.line(f"options = {choice}")
            out.line('programs = triton.cdiv(q_len * (heads // kv_heads), options["BLOCK_M"]) * batches * kv_heads')

    @property
    def option_names(self) -> tuple[str, ...]:
        """What ``options`` are called in a module."""
        return ("FEW_QUERIES", "FEW_QUERIES_OF_GROUPS")[: len(self.options)]
