"""What a tile is in gradient kernels over boxes of a token space, instead of runs of positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.dependence import dependence
from ..ir.nodes import TRUE, ZERO, Index
from ..ir.tiles.plan import Interval, Ranges, TilePlan
from ..ir.traverse import loads
from ..ir.types import I32
from .box_groups import Letter
from .emitter import Emitter
from .gluon_box_tiles import emit_store_rows, load_box, next_start
from .gluon_box_visits import GluonBoxVisits
from .gluon_grad_key import SET_UP, KeyConsumer
from .gluon_grad_query import QueryConsumer
from .gluon_grad_terms import RowConsumer
from .gluon_names import Names
from .schedule import Problem, Schedule
from .triton_box_options import emit_chosen, programs
from .triton_gradients import Gradients
from .triton_module import Part
from .triton_values import Values

# Names of constants with the boxes to choose from.
OPTIONS: dict[Letter, str] = {"q": "GRAD_QUERY", "k": "GRAD_KEY"}
_LETTERS: dict[str, Letter] = {"query": "q", "grad_out": "q", "key": "k", "value": "k"}
_TERM_BUFFERS = """
# Log-sum-exps and what dP starts at. Rows of a box lie apart, so that no copy brings them.
term_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 2, BLOCK_M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
""".strip("\n")
_LOAD_TERMS = """
places = q_first + q_steps
for i in gl.static_range(2):
    row = (all_heads * group * i + batch * heads + head).to(tl.int64) * padded
    found = tl.load(terms + row + places, mask=places < q_len, other=0.0)
    term_tiles.index(stage * 2 + i).store(found)
mbarrier.arrive(tile_ready.index(stage))
"""


def unmasked(plan: TilePlan) -> TilePlan:
    """``plan`` where the product of the axes is the mask, and keys that nobody sees are gone before kernels start."""
    every_key = Ranges((Interval(ZERO, Index("kv_len", I32)),), ())
    return replace(plan, variant=replace(plan.variant, mask=TRUE), keys=every_key)


class OverBoxes(Gradients):
    """What both kernels override.

    ``whole``: no owned box reaches past the end of its class into another one, so that gradients leave by descriptor.
    """

    constant_names: tuple[str, ...] = ("BOX",)
    constants_typed, constants_passed = ", BOX: tl.constexpr", ", BOX"
    options = "BOX=tuple(options.values()), **BACKWARD"
    masks_positions = False
    inside = "inside"
    names: Names

    def over(self, visits: GluonBoxVisits, short: Sequence[str], *, whole: bool) -> None:
        """Makes a consumer one over boxes, at the end of its constructor; ``short``: descriptors of short classes."""
        self.visits, self.whole = visits, whole
        self.more = "".join(f"{x}, " for x in short)
        self.axes = len(visits.view("q")[0])
        numbers = len(visits.axes)
        self.starts = f"STAGES * {numbers}" if numbers > 1 else "STAGES"
        self.has_full_tiles = visits.has_full_boxes
        other = visits.other
        self.positions = (f"{other}_first + lane_steps", f"{other}_first + {other}_steps[None, :]")

    def emit_boxes(self, out: Emitter, schedule: Schedule) -> str:
        """The boxes of a call; returns how many a head has, as text."""
        own = self.visits.own
        chosen = emit_chosen(out, self.plan, self.visits, schedule, OPTIONS[own])
        out.line(f"options = {chosen}")
        return programs(self.visits, own)

    def emit_tile_functions(self, out: Emitter, *_: Schedule) -> None:
        """Which box a program owns, and which it visits."""
        self.visits.emit_functions(out)

    def producer(self) -> dict[str, str]:
        """Lines of the producer: what it knows at first, how many boxes it visits, and where the next one starts."""
        visits, out = self.visits, Emitter()
        visits.emit_unpacked(out)
        out.line(f"own = {visits.own_box('tl.program_id(0)')}")
        visits.emit_names(out)
        visits.emit_places(out, "q")
        visits.emit_places(out, "k")
        out.line("visits = visited_boxes(own, sizes, parameters, BOX)")
        start, _ = next_start(visits)
        return {"prologue": out.text().rstrip("\n"), "visits": "", "count": "visits[1]", "start": start}

    def copies(self, tensor: str, parts: tuple[Part, ...], tiles: str, i: str, ready: str) -> list[str]:
        """Lines of the producer that load a box."""
        head = "head" if _LETTERS[tensor] == "q" else "kv_head"
        return [load_box(self.names, self.visits, tensor, _LETTERS[tensor], head, ready, f"{tiles}.index({i})")]

    def written_starts(self) -> list[str]:
        """Lines of the producer that tell where the box in buffer ``stage`` starts."""
        return [next_start(self.visits)[1]]

    def emit_place(self, out: Emitter) -> None:
        """The box of the program."""
        self.visits.emit_sides(out)
        out.line(f"own = {self.visits.own_box('tl.program_id(0)')}")
        self.visits.emit_names(out)

    def emit_own_rows(self, out: Emitter, name: str, count: str) -> None:
        """``name``, the positions of what this consumer owns; which are ``inside`` of the class, and what each sees."""
        visits, own = self.visits, self.visits.own
        out.line(f"rows = tl.arange(0, {count}, tl.SliceLayout(1, SCORES))")
        visits.emit_own_lanes(out, "rows")
        visits.emit_first(out, own)
        out.line(f"{name} = {own}_first + {own}_steps")
        visits.emit_inside(out)
        visits.emit_bounds(out)

    def emit_column_lanes(self, out: Emitter, *, loaded: bool) -> None:
        """Coordinates of columns inside of their boxes; of one column a thread too, where any are ``loaded`` by."""
        other = self.visits.other
        if loaded:
            self.visits.emit_lanes(out, other, "lanes")
            out.line(f"lane_steps = {other}_steps")
        self.visits.emit_lanes(out, other, "columns")

    def emit_box_start(self, out: Emitter) -> None:
        """Where the box in buffer ``stage`` starts."""
        self.visits.emit_read_start(out)
        if self.has_scores:
            self.visits.emit_first(out, self.visits.other)

    def emit_allowed(self, out: Emitter, values: Values, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs in the product of the axes."""
        # Rows past the end go nowhere, so they may attend to anything; but they must not load.
        exist = self.q_exists if self.visits.own == "q" else self.kv_exists
        by_pair = any({"q", "kv"} <= dependence(x) for e in self.results.values() for x in loads(e))
        self.visits.emit_product(out, exist if by_pair else "")
        return done

    def emit_place_of_half(self, out: Emitter) -> str:
        """Where this half of the box is in a gradient, whose batches and heads are one axis, as text."""
        self.visits.emit_places(out, self.visits.own)
        return ", ".join(["entry", *self.visits.half_coordinates("GROUP")])

    emit_gradient_place = emit_gradients_place = emit_place_of_half


class BoxQueryConsumer(OverBoxes, QueryConsumer):
    """Prints the kernel for dQ."""

    rows_with_terms = "inside"

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, names: Names, folded: bool,
        visits: GluonBoxVisits, short: Sequence[str], *, whole: bool,
    ) -> None:  # fmt: skip
        QueryConsumer.__init__(self, unmasked(plan), problem, schedule, visits.parameters, names, folded)
        self.over(visits, short, whole=whole)

    def emit_programs(self, out: Emitter) -> str:
        """The boxes of a call; returns how many a head has, as text."""
        return self.emit_boxes(out, self.schedule)

    def emit_rows(self, out: Emitter) -> None:
        """Positions ``q_row``, and what each sees."""
        self.emit_own_rows(out, "q_row", "ROWS")

    def emit_lanes(self, out: Emitter) -> None:
        """Coordinates of columns."""
        self.emit_column_lanes(out, loaded=self.loads_keys)

    def emit_counts(self, out: Emitter) -> None:
        """``partial_count`` and ``count``: how many boxes are visited."""
        out.line("visits = visited_boxes(own, sizes, parameters, BOX)")
        out.line("partial_count = visits[0]")
        out.line("count = visits[1]")

    def emit_start(self, out: Emitter) -> None:
        """Where the box of keys in buffer ``stage`` starts."""
        self.emit_box_start(out)

    def emit_gradient(self, out: Emitter) -> None:
        """Writes ``dq``."""
        if self.whole:
            super().emit_gradient(out)
        else:
            emit_store_rows(out, "grad_query", "(dq * scale)", "QUERY_SUMS", "HEAD", "q_row", "q_len")


class BoxRowConsumer(BoxQueryConsumer, RowConsumer):
    """Prints the kernel for exact terms of rows, after that for dQ."""

    def __init__(self, queries: BoxQueryConsumer, short: Sequence[str]) -> None:
        RowConsumer.__init__(self, queries)
        self.over(queries.visits, short, whole=queries.whole)


class BoxKeyConsumer(OverBoxes, KeyConsumer):
    """Prints the consumer of the kernel for dK and dV, whose producer brings terms of rows through its registers."""

    full_pairs, masked_too = "(kv_index < kv_len)", ""
    term_buffers, term_bytes = _TERM_BUFFERS, ""
    # Once when it has started the copies, and once when it has written the terms of their rows.
    set_up = SET_UP.format(arrivals=2)

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, names: Names, visits: GluonBoxVisits,
        short: Sequence[str], *, whole: bool,
    ) -> None:  # fmt: skip
        KeyConsumer.__init__(self, unmasked(plan), problem, schedule.block_m, visits.parameters, names)
        self.over(visits, short, whole=whole)

    def producer(self) -> dict[str, str]:
        """Lines of the producer; one thread has two rows of a box."""
        out = Emitter()
        out.line("lanes = tl.arange(0, BLOCK_M, tl.BlockedLayout([1], [32], [1], [0]))")
        self.visits.emit_lanes(out, "q", "lanes")
        found = super().producer()
        return {**found, "prologue": f"{found['prologue']}\n{out.text()}".rstrip("\n")}

    def emit_programs(self, out: Emitter, schedule: Schedule) -> str:
        """The boxes of a call; returns how many a head has, as text."""
        return self.emit_boxes(out, schedule)

    def copied_terms(self, ready: str) -> list[str]:
        """None: no copy brings them."""
        return []

    def written_terms(self) -> list[str]:
        """Lines of the producer that write the terms of rows."""
        out = Emitter()
        self.visits.emit_first(out, "q")
        out.lines(_LOAD_TERMS)
        return out.text().rstrip("\n").split("\n")

    def emit_own_positions(self, out: Emitter) -> None:
        """``kv_index`` and ``own_keys``, and which boxes every head visits."""
        self.emit_own_rows(out, "own_keys", "KEYS")
        out.line("kv_index = own_keys[:, None]")
        out.line("visits = visited_boxes(own, sizes, parameters, BOX)")

    def emit_lanes(self, out: Emitter) -> None:
        """Coordinates of columns."""
        self.emit_column_lanes(out, loaded=self.loads_queries)

    def emit_counts(self, out: Emitter) -> None:
        """``masked`` and ``count``: how many boxes are visited."""
        out.line("masked = visits[0]")
        out.line("count = visits[1]")

    def emit_start(self, out: Emitter, *, needed: bool) -> None:
        """Where the box of queries in buffer ``stage`` starts, if anything asks."""
        if needed:
            self.emit_box_start(out)

    def emit_gradients(self, out: Emitter) -> None:
        """Writes ``dk`` and ``dv``."""
        if self.whole:
            super().emit_gradients(out)
            return
        for x in self.sums:
            emit_store_rows(out, x.target, f"({x.name}{x.factor})", x.layout, x.size, "own_keys", "kv_len")
