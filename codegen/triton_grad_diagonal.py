"""The kernel for gradients along diagonals: captured tensors read at an index that depends on kv - q.

A program owns some diagonals of one head. It walks the tiles of as many queries, recomputes the band of twice as
many keys that its diagonals cross, and adds up each diagonal: element (i, j) of the result is column i + j of
row i.
"""

from __future__ import annotations

from .emitter import Emitter
from .schedule import Schedule
from .triton_gradients import Gradients, emit_select
from .triton_module import Argument, emit_launch, kernel
from .triton_program import emit_call, emit_product
from .triton_values import Guard

KERNEL = "attention_grad_diagonal"


class GradDiagonal(Gradients):
    """Emits the kernel and its launch; ``NAME_sums`` is (B, H, Lq + Lkv - 1), from kv - q = 1 - Lq on."""

    @property
    def schedule(self) -> Schedule:
        """As many queries as diagonals, and the band; small where products are unrolled (see ``defaults``)."""
        rows = 64
        if not self.fused:
            rows = 32 if max(self.problem.head_dim, self.problem.value_dim) <= 128 else 16
        return Schedule(rows, 2 * rows, num_warps=8, num_stages=1)

    def emit(self, out: Emitter) -> None:
        """The kernel."""
        values = self.values()
        here = self.of_kinds("diagonal")
        wanted = self.wanted(here, masked=True)
        with kernel(out, KERNEL, self.arguments(), ("BLOCK_M", "BLOCK_N"), self.problem.debug):
            out.line('"""Captured gradients of ``BLOCK_M`` diagonals; the band is twice as wide."""')
            out.lines(_PLACE)
            self.emit_columns(out)
            for tensor, head, rows, parts in (
                ("query", "head", "rows", self.head),
                ("grad_out", "head", "rows", self.value),
                ("key", "kv_head", "keys", self.head),
                ("value", "kv_head", "keys", self.value),
            ):
                self.tiles.open(out, tensor, head, rows, self.columns(parts), parts)
            for c in here:
                out.line(f"{c.name}_total = tl.zeros([BLOCK_M], tl.float32)")
            self.emit_unit(out)
            done = values.emit(out, "program", wanted, Guard())
            with out.block("for tile_first in range(first // BLOCK_M * BLOCK_M, stop, BLOCK_M):"):
                out.lines(_TILE)
                out.line(f"lse_rows = tl.load(lse + row + rows, mask=inside, other=0.0){self.row_unit}")
                for name in self.row_terms:
                    out.line(f"{name}_rows = tl.load({name} + row + rows, mask=inside, other=0.0)")
                for name, tensor, head, start, parts, inside in (
                    ("q", "query", "head", "tile_first", self.head, "(q_index < q_len)"),
                    ("do", "grad_out", "head", "tile_first", self.value, "(q_index < q_len)"),
                    ("k", "key", "kv_head", "start", self.head, "exists"),
                    ("v", "value", "kv_head", "start", self.value, "exists"),
                ):
                    self.tiles.load(out, name, tensor, head, start, "", self.columns(parts), parts, inside)
                emit_product(out, "s", "q", "k", self.head, self.precision)
                emit_product(out, "dp", "do", "v", self.value, self.precision)
                steps = values.emit(out, "query", wanted, Guard(query="(q_index < q_len)"), done)
                steps = values.emit(out, "key", wanted, Guard(key="((kv_index >= 0) & (kv_index < kv_len))"), steps)
                out.line("allowed = (q_index < q_len) & (kv_index >= 0) & (kv_index < kv_len)")
                if self.has_mask:
                    steps = values.emit(out, "pair", ("mask",), Guard(pair="allowed"), steps)
                    out.line(f"allowed &= {values.result('mask')}")
                self.emit_probabilities(
                    out, values, steps, wanted, shape="BLOCK_M, BLOCK_N", rows="[:, None]", lanes="allowed",
                )
                emit_select(out, self.emit_score_gradient(out, values, here, delta="delta_rows[:, None]"))
                for c in here:
                    out.line(f"{c.name}_total += tl.sum(tl.gather({c.name}, taken, 1), 0)")
            for c in here:
                place = f"{c.name}_sums + entry.to(tl.int64) * diagonals + block * BLOCK_M + rows"
                emit_call(out, "tl.store", place, f"{c.name}_total", "mask=block * BLOCK_M + rows < diagonals")

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        return [
            *(Argument(f"{c.name}_sums", "", f"{c.name}_sums") for c in self.of_kinds("diagonal")),
            *(a for name in ("query", "key", "value", "grad_out") for a in self.tiles.pointers(name)),
            Argument("lse", "", "lse"),
            *(Argument(x, "", x) for x in self.row_terms),
            *self.arguments_after_tensors("batches * heads", "1"),
        ]

    def emit_launch(self, out: Emitter) -> None:
        """The part of ``run`` that fills the sums."""
        out.line("diagonals = q_len + kv_len - 1")
        for c in self.of_kinds("diagonal"):
            out.line(f"{c.name}_sums = lse.new_empty((batches, heads, diagonals))")
        out.line("options = GRAD_DIAGONAL")
        out.line('programs = triton.cdiv(diagonals, options["BLOCK_M"]) * batches * heads')
        emit_launch(out, KERNEL, "(programs,)", self.arguments(), "**options")


_PLACE = """
diagonals = q_len + kv_len - 1
blocks = tl.cdiv(diagonals, BLOCK_M)
entry = tl.program_id(0) // blocks
block = tl.program_id(0) % blocks
batch, head = entry // heads, entry % heads
kv_head = head // (heads // kv_heads)
lowest = block * BLOCK_M - (q_len - 1)  # kv - q of the first diagonal
rows = tl.arange(0, BLOCK_M)
keys = tl.arange(0, BLOCK_N)
taken = rows[:, None] + rows[None, :]
# Queries that these diagonals cross.
first = tl.maximum(-(lowest + BLOCK_M - 1), 0)
stop = tl.minimum(q_len, kv_len - lowest)
"""
_TILE = """
start = tile_first + lowest
q_index = tile_first + rows[:, None]
kv_index = start + keys[None, :]
exists = (start + keys[:, None] >= 0) & (start + keys[:, None] < kv_len)
inside = tile_first + rows < q_len
row = entry.to(tl.int64) * q_len + tile_first
"""
