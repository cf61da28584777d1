"""The kernel for terms of rows, which walks the keys: from dP itself, they are exact enough for sums over many rows.

What rows subtract from dP, computed from outputs, carries their rounding, which is common to a row and so adds up in
gradients of captured tensors; see :mod:`.triton_row_terms`.
"""

from __future__ import annotations

from .emitter import Emitter
from .gluon_grad_query import QueryConsumer
from .gluon_tiles import jit_function

KERNEL = "attention_row_terms"


class RowConsumer(QueryConsumer):
    """Prints the kernel: two products of a tile of keys, and sums of their rows."""

    name = KERNEL
    targets = "terms"

    def __init__(self, queries: QueryConsumer) -> None:
        q = queries
        super().__init__(q.plan, q.problem, q.schedule, q.parameters, q.names, q.folded)
        self.here = []
        self.asks = False
        assert not self.folded, "captured tensors are read by scores"

    def wanted(self, here: object, *, masked: bool) -> list[str]:
        """No derivatives."""
        return self.wanted_for_probabilities(masked=masked)

    def emit_consumer(self, out: Emitter, signature: str) -> None:
        """The function of a consumer, which replaces both terms of its rows."""
        with jit_function(out, signature):
            out.line('"""A consumer: four warps own ROWS queries."""')
            done = self.emit_prologue(out)
            out.line("total = tl.zeros([ROWS], tl.float32, tl.SliceLayout(1, SCORES))")
            out.line("weighted = tl.zeros([ROWS], tl.float32, tl.SliceLayout(1, SCORES))")
            self.emit_loops(out, lambda masked: self._emit_sums(out, done, masked=masked))
            out.comment("The probabilities of a row sum to one, but for the rounding of the log-sum-exp, which moves.")
            out.line("total = tl.where(total == 0.0, 1.0, total)")
            exist = f", mask={self.rows_with_terms}" if self.rows_with_terms else ""
            out.line("row = terms + entry.to(tl.int64) * padded + q_row")
            out.line(f"tl.store(row, lse_rows + tl.log2(total){exist})")
            out.line("row = terms + (all_heads + entry).to(tl.int64) * padded + q_row")
            out.line(f"tl.store(row, -delta_rows - weighted / total{exist})")

    def _emit_sums(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        out.line("stage, phase = ring(t)")
        self.emit_start_products(out, "t")
        self.emit_probabilities_of_tile(out, done, masked=masked, pending=len(self.value))
        self.emit_wait_gradient(out, 0)
        out.line("release(stage)")
        out.line("total += tl.sum(p, 1)")
        out.line(f"weighted += tl.sum({'tl.where(allowed, p * dp, 0.0)' if masked else 'p * dp'}, 1)")
