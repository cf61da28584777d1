"""The consumer of the forward kernel over tiles that are cut where data changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.tiles.cuts import Cuts
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_consumer import Consumer
from .gluon_cuts import CELLS_OF_CUT, READ_START, Same, emit_told, ragged_place
from .gluon_names import Names
from .gluon_seen import Unseen
from .gluon_tiles import emit_unpack
from .schedule import Problem, Schedule
from .triton_module import Argument
from .triton_program import SIZES


class CutConsumer(Consumer):
    """Masks of partial tiles are what is left of the mask; only in tiles that are not cut all of it is asked."""

    aligned = False
    may_ask_bound = False
    rows_exist = "(q_index < tile_stop)"

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, parameters: Sequence[Argument],
        unseen: Unseen, names: Names, cuts: Cuts,
    ) -> None:  # fmt: skip
        rest = replace(plan, variant=replace(plan.variant, mask=cuts.rest))
        super().__init__(rest, problem, schedule, parameters, unseen, names, shares_query=False)
        self.same = Same(cuts.same, "kv")
        self.loads_columns = True
        self.cells = CELLS_OF_CUT

    def emit_sizes(self, out: Emitter) -> None:
        """The sizes of the call, and the number of tiles of queries."""
        emit_unpack(out, "sizes", SIZES)
        out.line("programs = tl.load(tile_rows) * all_heads")

    def emit_told(self, out: Emitter) -> None:
        """What the producer says of a tile of queries besides."""
        emit_told(out)

    def emit_place(self, out: Emitter, number: str) -> None:
        """``batch``, ``head``, ``kv_head`` and the positions ``q_row`` of the tile, as the producer has told."""
        out.line("batch, head = entry // heads, entry % heads")
        out.line("kv_head = head // (heads // kv_heads)")
        out.line("q_row = tile_first + GROUP * ROWS + rows")

    def emit_start(self, out: Emitter) -> None:
        """Where the tile of keys in buffer ``stage`` starts and ends."""
        out.line(READ_START)

    def emit_allowed(self, out: Emitter, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs of keys of the tile that what is left of the mask keeps."""
        assert self.band is not None
        return self.band.emit(out, self.values, done, "(q_index < q_len)", end="stop")

    def emit_mixed(self, out: Emitter) -> None:
        """What is equal in all other tiles."""
        with out.block("if mixed != 0:"):
            out.line(f's = tl.where({self.same.emit(out)}, s, float("-inf"))')

    def emit_inside(self, out: Emitter) -> str:
        """Which rows belong to the tile, as text."""
        return "q_row < tile_stop"

    def emit_out_place(self, out: Emitter) -> str:
        """Where this consumer's queries are in the tensor of outputs, as text."""
        return ragged_place("entry", "q_len", "tile_first + GROUP * ROWS")
