"""The consumer over boxes of a token space: that of :mod:`.gluon_consumer` with other tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.nodes import TRUE, ZERO, Index
from ..ir.tiles.plan import Interval, TilePlan
from ..ir.types import I32
from .emitter import Emitter
from .gluon_box_tiles import emit_store_rows
from .gluon_box_visits import BOX_SIZES, GluonBoxVisits
from .gluon_consumer import Consumer
from .gluon_names import Names
from .gluon_seen import UnseenKeys
from .gluon_tiles import emit_unpack
from .schedule import Problem, Schedule
from .triton_module import Argument


class BoxConsumer(Consumer):
    """Prints ``attend`` where the product of the axes is the mask.

    ``whole``: no box reaches past the end of its class into another one, so that outputs leave by descriptor.
    """

    constants = ", BOX: tl.constexpr"
    positions = ("k_first + lane_steps", "k_first + k_steps[None, :]")
    masks_positions = False
    may_ask_bound = False

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, parameters: Sequence[Argument], names: Names,
        visits: GluonBoxVisits, *, whole: bool,
    ) -> None:  # fmt: skip
        self.visits, self.whole = visits, whole
        # Values that nobody sees are gone before the kernel starts.
        every_key = UnseenKeys((Interval(ZERO, Index("kv_len", I32)),))
        unmasked = replace(plan, variant=replace(plan.variant, mask=TRUE))
        super().__init__(unmasked, problem, schedule, parameters, every_key, names, shares_query=False)

    def emit_sizes(self, out: Emitter) -> None:
        """The sizes of the call, and the sides of boxes."""
        emit_unpack(out, "sizes", BOX_SIZES)
        self.visits.emit_sides(out)

    def emit_lanes(self, out: Emitter) -> None:
        """Coordinates of rows and columns inside of their boxes."""
        self.visits.emit_own_lanes(out, "rows")
        if self.loads_columns:
            self.visits.emit_lanes(out, "k", "lanes")
            out.line("lane_steps = k_steps")
        self.visits.emit_lanes(out, "k", "columns")

    def emit_place(self, out: Emitter, number: str) -> None:
        """The box of queries with this ``number``, and what each of its rows sees along each axis."""
        out.line(f"own = {self.visits.own_box(number)}")
        self.visits.emit_names(out)
        self.visits.emit_first(out, "q")
        out.line("q_row = q_first + q_steps")
        self.visits.emit_bounds(out)

    def emit_start(self, out: Emitter) -> None:
        """Where the box of keys in buffer ``stage`` starts."""
        self.visits.emit_read_start(out)
        if self.reads_keys:
            self.visits.emit_first(out, "k")

    def emit_allowed(self, out: Emitter, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs in the product of the axes."""
        # Rows past the end go nowhere, so they may attend to anything; but they must not load.
        self.visits.emit_product(out, "(q_index < q_len)" if self.loads_pairs else "")
        return done

    def emit_inside(self, out: Emitter) -> str:
        """Which rows belong to the class."""
        self.visits.emit_inside(out)
        return "inside"

    def emit_out_place(self, out: Emitter) -> str:
        """Where this half of the box is in the tensor of outputs, whose batches and heads are one axis."""
        self.visits.emit_places(out, "q")
        return ", ".join(["entry", *self.visits.half_coordinates("GROUP")])

    def emit_outputs(self, out: Emitter) -> None:
        """Writes the outputs of this consumer, by pointers where the box may end in another class."""
        if self.whole:
            super().emit_outputs(out)
            return
        (part,) = self.value
        self.emit_quotient(out, part)
        emit_store_rows(out, "out", "acc", "OUTPUTS", "VALUE", "q_row", "q_len")
