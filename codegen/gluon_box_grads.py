"""The consumers of gradients over boxes of a token space: those of the kernels over runs with other tiles."""

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
from .gluon_grad_key import KeyConsumer
from .gluon_grad_query import QueryConsumer
from .gluon_grad_terms import RowConsumer
from .gluon_loader import TileLoads
from .gluon_names import Names
from .schedule import Problem, Schedule
from .triton_gradients import Gradients
from .triton_module import Argument
from .triton_values import Values

_SET_UP = """
starts = gl.allocate_shared_memory(gl.int32, [{starts}, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready, those of queries twice: by copies, and when it has written the terms of rows.
kv_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
tile_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
mbarrier.init(kv_ready, count=1)
for i in gl.static_range(STAGES):
    mbarrier.init(tile_ready.index(i), count=2)
""".strip("\n")
_TERMS = """
# Log-sum-exps and what dP starts at, in turn. Rows of a box lie apart, so that no copy brings them.
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
_QUERY_TILES = {"query": "q_tiles", "grad_out": "do_tiles"}
_KEY_TILES = {"key": "k_tiles", "value": "v_tiles"}


def unmasked(plan: TilePlan) -> TilePlan:
    """``plan`` where the product of the axes is the mask, and keys that nobody sees are gone before kernels start."""
    every_key = Ranges((Interval(ZERO, Index("kv_len", I32)),), ())
    return replace(plan, variant=replace(plan.variant, mask=TRUE), keys=every_key)


class OverBoxes(Gradients):
    """What both kernels override; ``whole``: no owned box reaches past the end of its class into another one, so that
    gradients leave by descriptor. ``short``: names of the descriptors of short classes.
    """

    constants, constants_passed = ", BOX: tl.constexpr", ", BOX"
    constant_names = ("BOX",)
    masks_positions = False
    names: Names
    visits: GluonBoxVisits
    whole: bool
    short: str

    def over(self, visits: GluonBoxVisits, short: Sequence[str], *, whole: bool) -> None:
        """Makes a consumer one over boxes, at the end of its constructor."""
        self.visits, self.whole = visits, whole
        self.short = "".join(f"{x}, " for x in short)
        self.axes = len(visits.view("q")[0])
        self.has_full_tiles = visits.has_full_boxes
        other = visits.other
        self.positions = (f"{other}_first + lane_steps", f"{other}_first + {other}_steps[None, :]")

    @property
    def loads_pairs(self) -> bool:
        """Whether anything is read for each pair."""
        return any({"q", "kv"} <= dependence(x) for e in self.results.values() for x in loads(e))

    def emit_tile_functions(self, out: Emitter, *_: Schedule) -> None:
        """Which box a program owns, and which it visits."""
        self.visits.emit_functions(out)

    def emit_own(self, out: Emitter) -> None:
        """The box of the program, and the positions ``own_row`` of what this consumer owns of it."""
        visits, own = self.visits, self.visits.own
        visits.emit_sides(out)
        out.line(f"rows = tl.arange(0, {'ROWS' if own == 'q' else 'KEYS'}, tl.SliceLayout(1, SCORES))")
        visits.emit_own_lanes(out, "rows")
        out.line(f"own = {visits.own_box('tl.program_id(0)')}")
        visits.emit_names(out)
        visits.emit_first(out, own)
        out.line(f"own_row = {own}_first + {own}_steps")
        visits.emit_inside(out)
        visits.emit_bounds(out)

    def emit_column_lanes(self, out: Emitter, loads_columns: bool) -> None:
        """Coordinates of columns inside of their boxes."""
        other = self.visits.other
        if loads_columns:
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
        self.visits.emit_product(out, exist if self.loads_pairs else "")
        return done

    def own_place(self, out: Emitter) -> str:
        """Where this half of the box is in a tensor of gradients, whose batches and heads are one axis, as text."""
        self.visits.emit_places(out, self.visits.own)
        return ", ".join(["entry", *self.visits.half_coordinates("GROUP")])

    def prologue(self, out: Emitter) -> str:
        """What the producer knows from the start, as lines."""
        visits = self.visits
        visits.emit_unpacked(out)
        out.line(f"own = {visits.own_box('tl.program_id(0)')}")
        visits.emit_names(out)
        visits.emit_places(out, "q")
        visits.emit_places(out, "k")
        return out.text().rstrip("\n")

    def load(self, tensor: str, letter: Letter, head: str, ready: str, tile: str) -> str:
        """Lines of the producer that load a box."""
        return load_box(self.names, self.visits, tensor, letter, head, ready, tile)


class BoxQueryConsumer(OverBoxes, QueryConsumer):
    """Prints the kernel for dQ."""

    stored_rows = "inside"
    checks_rows = True

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, names: Names, folded: bool,
        visits: GluonBoxVisits, short: Sequence[str], *, whole: bool,
    ) -> None:  # fmt: skip
        QueryConsumer.__init__(self, unmasked(plan), problem, schedule, visits.parameters, names, folded)
        self.over(visits, short, whole=whole)
        self.starts = f"STAGES * {len(visits.axes)}"

    def tile_loads(self) -> TileLoads:
        """The loads of the producer."""
        ready = "kv_ready.index(stage)"
        start, write_start = next_start(self.visits)
        own = [self.load(x, "q", "head", "q_ready", f"{tiles}.index(i)") for x, tiles in _QUERY_TILES.items()]
        key, value = (
            self.load(x, "k", "kv_head", ready, f"{tiles}.index(stage)") for x, tiles in _KEY_TILES.items()
        )
        return TileLoads(
            prologue=self.prologue(Emitter()), visits="visits = visited_boxes(own, sizes, parameters, BOX)",
            count="visits[1]", load_query="\n".join(own), start=start, write_start=write_start, load_key=key,
            load_value=value, descriptors=self.short, constants=self.constants,
        )  # fmt: skip

    def emit_place(self, out: Emitter) -> None:
        """The box of the program, and positions ``q_row``."""
        self.emit_own(out)
        out.line("q_row = own_row")

    def emit_lanes(self, out: Emitter) -> None:
        """Coordinates of columns."""
        self.emit_column_lanes(out, self.loads_keys)

    def emit_counts(self, out: Emitter) -> None:
        """``partial_count`` and ``count``: how many boxes are visited."""
        out.line("visits = visited_boxes(own, sizes, parameters, BOX)")
        out.line("partial_count = visits[0]")
        out.line("count = visits[1]")

    def emit_start(self, out: Emitter) -> None:
        """Where the box of keys in buffer ``stage`` starts."""
        self.emit_box_start(out)

    def emit_store(self, out: Emitter) -> None:
        """Writes ``dq``."""
        if self.whole:
            self.emit_store_tile(out, self.own_place(out))
        else:
            emit_store_rows(out, "grad_query", "(dq * scale)", "QUERY_SUMS", "HEAD", "q_row", "q_len")


class BoxRowConsumer(BoxQueryConsumer, RowConsumer):
    """Prints the kernel for exact terms of rows."""

    def __init__(self, queries: BoxQueryConsumer, short: Sequence[str]) -> None:
        RowConsumer.__init__(self, queries)
        self.over(queries.visits, short, whole=queries.whole)
        self.starts = queries.starts


class BoxKeyConsumer(OverBoxes, KeyConsumer):
    """Prints ``differentiate`` of the kernel for dK and dV."""

    terms = _TERMS
    full_pairs = "(kv_index < kv_len)"
    stored_keys = "inside"

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, names: Names, visits: GluonBoxVisits,
        short: Sequence[str], *, whole: bool,
    ) -> None:  # fmt: skip
        KeyConsumer.__init__(self, unmasked(plan), problem, schedule.block_m, visits.parameters, names)
        self.over(visits, short, whole=whole)
        axes = len(visits.axes)
        self.set_up = _SET_UP.format(starts=f"STAGES * {axes}" if axes > 1 else "STAGES")

    def tile_loads(self) -> TileLoads:
        """The loads of the producer, which brings the terms of the rows of a box through its registers."""
        visits, ready = self.visits, "tile_ready.index(stage)"
        prologue, terms = Emitter(), Emitter()
        text = self.prologue(prologue)
        lanes = Emitter()
        lanes.line("lanes = tl.arange(0, BLOCK_M, tl.BlockedLayout([1], [32], [1], [0]))")
        visits.emit_lanes(lanes, "q", "lanes")
        visits.emit_first(terms, "q")
        start, write_start = next_start(visits)
        key, value = (self.load(x, "k", "kv_head", "kv_ready", f"{tiles}.index(i)") for x, tiles in _KEY_TILES.items())
        visited = [self.load(x, "q", "head", ready, f"{tiles}.index(stage)") for x, tiles in _QUERY_TILES.items()]
        return TileLoads(
            prologue=f"{text}\n{lanes.text()}visits = visited_boxes(own, sizes, parameters, BOX)",
            visits="", count="visits[1]", load_key=key, load_value=value, start=start, write_start=write_start,
            load_query="\n".join(
                [f"mbarrier.expect({ready}, BLOCK_M * (HEAD + VALUE) * 2)", *visited]
            ) + "\n" + terms.text() + _LOAD_TERMS.strip("\n"),
            descriptors=self.short, constants=self.constants,
        )  # fmt: skip

    def emit_place(self, out: Emitter) -> None:
        """The box of the program, and positions ``kv_index``."""
        self.emit_own(out)
        out.line("kv_index = own_row[:, None]")
        if self.here:
            out.line("own_keys = own_row")
        out.line("visits = visited_boxes(own, sizes, parameters, BOX)")

    def emit_lanes(self, out: Emitter) -> None:
        """Coordinates of columns."""
        self.emit_column_lanes(out, self.loads_queries)

    def emit_counts(self, out: Emitter) -> None:
        """``masked`` and ``count``: how many boxes are visited, by every head."""
        out.line("masked = visits[0]")
        out.line("count = visits[1]")

    def emit_start(self, out: Emitter, *, needed: bool) -> None:
        """Where the box of queries in buffer ``stage`` starts, if anything asks."""
        if needed:
            self.emit_box_start(out)

    def emit_store(self, out: Emitter) -> None:
        """Writes ``dk`` and ``dv``."""
        if self.whole:
            self.emit_store_tiles(out, self.own_place(out))
            return
        emit_store_rows(out, "grad_key", "(dk * scale)", "KEY_SUMS", "HEAD", "own_row", "kv_len")
        emit_store_rows(out, "grad_value", "dv", "VALUE_SUMS", "VALUE", "own_row", "kv_len")
