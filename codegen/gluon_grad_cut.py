"""The consumer of the backward kernel with five products over tiles that are cut where data changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.tiles.cuts import Cuts
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_bands import Band, Column
from .gluon_cuts import (
    OWN,
    READ_START,
    STARTS,
    VISITS,
    WRITTEN_START,
    Same,
    emit_cut_place,
    emit_cut_visits,
    ragged_place,
)
from .gluon_grad_five import FiveProducts
from .gluon_grad_loader import SIZES
from .gluon_grad_rows import SHIFTS
from .gluon_names import Names
from .gluon_seen import UnseenKeys
from .gluon_tiles import QUERIES
from .schedule import Problem, Schedule
from .triton_module import Argument
from .triton_values import Values

_PLACE = "entry, batch, chunk, kv_head, " + OWN


class CutFiveProducts(FiveProducts):
    """Masks of partial tiles are what is left of the mask; only in tiles that are not cut all of it is asked.

    Gradients of queries behind the end of a tile are zero, and added to others'.
    """

    starts = f"STAGES * {STARTS}"
    own_tile = OWN
    own_visits = VISITS
    next_start = "start, stop = visited_start(t, visits)"
    stores = "ragged"
    # There is room for more programs than there are tiles.
    exists = "tl.program_id(0) < tl.load(tile_rows) * all_heads"
    masked_too = ""

    def __init__(
        self, plan: TilePlan, problem: Problem, block_m: int, parameters: Sequence[Argument], names: Names, cuts: Cuts
    ) -> None:
        self.same = Same(cuts.same, "q")
        rest = replace(plan, variant=replace(plan.variant, mask=cuts.rest))
        super().__init__(rest, problem, block_m, parameters, names)
        self.unseen = UnseenKeys.of(plan)
        self.loads_queries = True

    def take_band(self, column: Column, block: int) -> None:
        """Takes the mask apart, for tiles that may start anywhere."""
        self.band = Band.of(self.plan.variant.mask, column, None)
        self.results = self.band.results() | {name: e for name, e in self.results.items() if name != "mask"}

    def emit_allowed(self, out: Emitter, values: Values, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs of both tiles that what is left of the mask keeps."""
        assert self.band is not None
        out.line("end = tl.where(kv_index < tile_stop, stop, 0)")
        return self.band.emit(out, values, done, self.kv_exists, end="end")

    def emit_mixed(self, out: Emitter, name: str, nothing: str) -> None:
        """What is equal in all other tiles."""
        with out.block("if mixed != 0:"):
            out.line(f"{name} = tl.where({self.same.emit(out)}, {name}, {nothing})")

    def emit_programs(self, out: Emitter, schedule: Schedule) -> str:
        """How many tiles a head has at most, as text."""
        return f"most_tiles(kv_len, {schedule.block_n})"

    def emit_tile_functions(self, out: Emitter, schedule: Schedule) -> None:
        """Which tile of keys a program owns, and which tiles of queries it visits."""
        emit_cut_place(out, QUERIES, SIZES, self.parameters, schedule.reverse)
        emit_cut_visits(out, QUERIES, SIZES, self.parameters)

    def producer(self) -> dict[str, str]:
        """Lines of the producer: what it knows at first and of each head, and where the next tile starts."""
        lines = super().producer()
        lines["prologue"] = (
            f"{', '.join(a.name for a in SIZES)} = sizes\n"
            f"{_PLACE} = key_tile(gl.program_id(0), sizes, parameters)"
        )
        return lines

    def copied_terms(self, ready: str) -> list[str]:
        """Lines of the producer that load the terms of rows, from the copy in which they start where loads may."""
        copy = f"{self.names.load}(terms, [{{}}late, row + start - late], {ready}, term_tiles.index(stage * 2{{}}))"
        return [f"late = start % {SHIFTS}", copy.format("", ""), copy.format(f"{SHIFTS} + ", " + 1")]

    def written_starts(self) -> list[str]:
        """Lines of the producer that tell where the tile in buffer ``stage`` starts and ends."""
        return list(WRITTEN_START)

    def emit_place(self, out: Emitter) -> None:
        """The program's tile."""
        out.line(f"{_PLACE} = key_tile(tl.program_id(0), sizes, parameters)")
        out.line("own_first = tile_first + GROUP * KEYS")

    def emit_counts(self, out: Emitter) -> None:
        """``masked`` and ``count``: how many tiles are visited."""
        out.line(self.own_visits)
        out.line("masked, count = visits[0], visits[0] + visits[1]")

    def emit_start(self, out: Emitter, *, needed: bool) -> None:
        """Where the tile of queries in buffer ``stage`` starts and ends."""
        out.line(READ_START)

    def emit_gradients_place(self, out: Emitter) -> str:
        """Where this consumer's keys are in their gradients, as text."""
        return ragged_place("entry", "kv_len", "own_first")
