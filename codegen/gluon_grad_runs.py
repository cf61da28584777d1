"""What a tile is in gradient kernels, runs of positions: which a program owns, which it visits, and where they are.

Kernels over boxes of a token space override all of it; see :mod:`.gluon_box_grads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.build import binary, index
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_bands import BAND_INDICES, Band, Column
from .gluon_columns import RUN
from .gluon_grad_loader import SIZES as KEY_SIZES
from .gluon_grad_loader import emit_place_function as emit_key_place
from .gluon_loader import emit_place_function
from .gluon_names import Names
from .gluon_parts import part_copies
from .gluon_scores import ONE, SCALE, folded_scores
from .gluon_tiles import KEYS, QUERIES, emit_visits
from .schedule import Problem, Schedule
from .triton_gradients import Contribution, Gradients
from .triton_module import Argument, Part
from .triton_program import INDICES, SIZES
from .triton_values import Guard, Values

_TERM_BUFFERS = """
# Log-sum-exps, and what dP starts at.
term_tiles = gl.allocate_shared_memory(gl.float32, [{rows}, 1, BLOCK_M], TERM_TILE)
""".strip("\n")


@dataclass(frozen=True, slots=True)
class Sum:
    """A gradient that a consumer keeps in registers: its ``name``, part by part of its columns, how it is called in
    constants, and the tensor and the tiles through which it leaves.
    """

    name: str
    size: str
    parts: tuple[Part, ...]
    target: str
    tile: str
    factor: str = ""

    @property
    def layout(self) -> str:
        """The layout of its registers."""
        return "KEY_SUMS" if self.name == "dk" else "VALUE_SUMS"


class OverRuns(Gradients):
    """What of a mask is an interval of columns in each row is asked as that."""

    # Whether masks need the positions of a tile's columns, and where these are.
    masks_positions = True
    positions = RUN
    band: Band | None = None

    def __init__(self, plan: TilePlan, problem: Problem, descriptors: bool) -> None:
        super().__init__(plan, problem, descriptors)
        # Gradients of captured tensors need what scores are on the way.
        scores = () if self.contributions else plan.variant.scores
        self.gathers = folded_scores(scores)
        if self.gathers is not None:
            masks = {name: e for name, e in self.results.items() if name == "mask"}
            self.results = masks | self.gathers.results()
            self.factors = []
            if self.gathers.slope != ONE:
                self.weight = "slope"
                self.results["slope"] = self.gathers.slope

    @property
    def counting(self) -> str:
        """Which pairs may have gradients, as text: to ask for their weight takes less registers than to remember."""
        return f"{self.weight} != 0.0"

    @property
    def unit(self) -> str:
        """What a fused exponent multiplies scores by."""
        return super().unit if self.gathers is None else "unit"

    def emit_scaled(self, out: Emitter) -> None:
        """Scales the product ``s``, unless scores do."""
        if self.gathers is None:
            super().emit_scaled(out)

    def wanted_for_probabilities(self, *, masked: bool) -> list[str]:
        """The results that a kernel needs which has no use for derivatives."""
        return super().wanted_for_probabilities(masked=masked) + ([] if self.gathers is None else ["unit"])

    def wanted(self, here: Sequence[Contribution], *, masked: bool) -> list[str]:
        """The results that a kernel needs which adds up the contributions ``here``."""
        return super().wanted(here, masked=masked) + [x for x in self.results if x == "slope"]

    def emit_score_unit(self, out: Emitter, values: Values) -> None:
        """``unit``, where scores have one."""
        if self.gathers is not None:
            out.line(f"unit = {values.result('unit')}")

    def emit_slope(self, out: Emitter, values: Values, wanted: Sequence[str], done: frozenset[str]) -> None:
        """``slope``: what the gradient of a score is multiplied by, so that ``p`` need not be kept beside it."""
        if "slope" in wanted:
            values.emit(out, "pair", ("slope",), Guard(), done)
            out.line(f"slope = p * {values.result('slope')}")

    def take_band(self, column: Column, block: int) -> None:
        """Takes the mask apart, for tiles of ``block`` columns."""
        row = "kv" if column == "q" else "q"
        exists = binary("lt", index(row), index(f"{row}_len"))
        self.band = Band.of(binary("and", exists, self.plan.variant.mask), column, block)
        self.results = self.band.results() | {name: e for name, e in self.results.items() if name != "mask"}

    @property
    def mask_result(self) -> tuple[str, ...]:
        """The names of all that the mask is made of."""
        return super().mask_result if self.band is None else tuple(self.band.results())

    def values(self) -> Values:
        """The expressions of one kernel."""
        indices, columns = (INDICES, "") if self.band is None else (BAND_INDICES, self.band.column)
        known = None if self.gathers is None else SCALE
        return Values(self.results, indices, debug=self.problem.debug, columns=columns, known=known)

    def emit_allowed(self, out: Emitter, values: Values, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs that exist and that the mask keeps."""
        if self.band is None:
            return super().emit_allowed(out, values, done)
        return self.band.emit(out, values, done, self.kv_exists if self.band.column == "q" else self.q_exists)


class OwnKeys(OverRuns):
    """A program owns a tile of keys and visits queries."""

    names: Names
    parameters: Sequence[Argument]
    owned: dict[str, tuple[Part, ...]]
    here: list[Contribution]
    term_rows: str
    sums: list[Sum]

    # Constants that functions take, as they are declared and as they are passed; arguments of the producer.
    constant_names: tuple[str, ...] = ()
    constants_typed = constants_passed = more = ""
    # How many axes a tile has before its rows, and numbers that say where one starts.
    axes, starts = 2, "STAGES"
    # Options of the launch.
    options = "**BACKWARD"
    # Buffers of terms of rows, and how many bytes of them are copied for each row.
    term_bytes = " + 8"
    # Whether any tile needs no mask.
    has_full_tiles = True
    # Which keys exist; pairs of a full tile that may be looked up, if not all; which tiles are masked besides.
    inside, full_pairs, masked_too = "own_keys < kv_len", "", "; all tiles if some keys are past the end"
    # The tile that a program owns, and how it finds what that visits, as text; the module's function that makes
    # descriptors for gradients; under which condition there is such a tile, if not always.
    own_tile = "tile_first"
    own_visits = "visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)"
    next_start = "start = visited_start(t, visits)"
    stores = "descriptor"
    exists = ""

    @property
    def work(self) -> list[Argument]:
        """What programs read of a work list, and where shares go, if rows of tiles are cut into shares."""
        return []

    @property
    def term_buffers(self) -> str:
        """Buffers of terms of rows, as text."""
        return _TERM_BUFFERS.format(rows=self.term_rows)

    def emit_programs(self, out: Emitter, schedule: Schedule) -> str:
        """What ``run`` needs before the launch; returns how many tiles a head has, as text."""
        return f"triton.cdiv(kv_len, {schedule.block_n})"

    def emit_tile_functions(self, out: Emitter, schedule: Schedule) -> None:
        """Which tile of keys a program owns, and which tiles of queries it visits."""
        emit_key_place(out, schedule.reverse)
        emit_visits(out, self.plan, QUERIES, KEY_SIZES, self.parameters)

    def producer(self) -> dict[str, str]:
        """Lines of the producer: what it knows at first and of each head, how many tiles it visits, and where the next
        one starts.
        """
        return {
            "prologue": f"{', '.join(a.name for a in KEY_SIZES)} = sizes\n"
            "batch, chunk, kv_head, tile_first = key_tile(gl.program_id(0), sizes)",
            "visits": f"{self.own_visits}\nrow = (batch * heads + head) * padded",
            "count": "visits[0] + visits[1]",
            "start": self.next_start,
        }

    def copies(self, tensor: str, parts: tuple[Part, ...], tiles: str, i: str, ready: str) -> list[str]:
        """Lines of the producer that load tile ``i``: of the owned keys, or of the visited queries."""
        where = "batch, kv_head, tile_first + KEYS * i" if tensor in self.owned else "batch, head, start"
        return part_copies(self.names.load, tensor, where, tiles, i, parts, ready)

    def copied_terms(self, ready: str) -> list[str]:
        """Lines of the producer that load the terms of rows."""
        copy = f"{self.names.load}(terms, [{{}}, row + start], {ready}, term_tiles.index(stage * 2{{}}))"
        return [copy.format(i, j) for i, j in ((0, ""), (1, " + 1"))]

    def written_terms(self) -> list[str]:
        """Lines of the producer that write the terms of rows."""
        return []

    def written_starts(self) -> list[str]:
        """Lines of the producer that tell where the tile in buffer ``stage`` starts."""
        return ["write(starts, stage, start)"]

    def emit_place(self, out: Emitter) -> None:
        """``batch``, ``chunk`` and ``kv_head`` of the program."""
        out.line("batch, chunk, kv_head, tile_first = key_tile(tl.program_id(0), sizes)")
        out.line("own_first = tile_first + GROUP * KEYS")

    def emit_own_positions(self, out: Emitter) -> None:
        """``kv_index``, and ``own_keys`` where sums are stored for each key."""
        out.line("kv_index = own_first + tl.arange(0, KEYS, tl.SliceLayout(1, SCORES))[:, None]")
        if self.here:
            out.line("own_keys = own_first + tl.arange(0, KEYS, tl.SliceLayout(1, SCORES))")

    def emit_lanes(self, out: Emitter) -> None:
        """What follows from the numbers of ``columns`` in a tile."""

    def emit_counts(self, out: Emitter) -> None:
        """``masked`` and ``count``: how many tiles are visited."""
        out.line(self.own_visits)
        out.line("count = visits[0] + visits[1]")
        out.line("masked = tl.where(tile_first + BLOCK_N > kv_len, count, visits[0])")

    def emit_start(self, out: Emitter, *, needed: bool) -> None:
        """Where the tile of queries in buffer ``stage`` starts."""
        out.line("start = read(starts, stage)")

    def emit_mixed(self, out: Emitter, name: str, nothing: str) -> None:
        """What pairs must pass besides, where masked ones are ``nothing`` in what is called ``name``."""

    def emit_gradients(self, out: Emitter) -> None:
        """Writes the sums by descriptor."""
        for x in self.sums:
            for p in x.parts:
                total = f"({x.name}{p.suffix}{x.factor})" if x.factor else f"{x.name}{p.suffix}"
                out.line(f"{x.tile}{p.suffix}.store({total}.to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        where = self.emit_gradients_place(out)
        for x in self.sums:
            out.lines("\n".join(part_copies(self.names.store, x.target, where, f"{x.tile}s", "GROUP", x.parts)))
        out.line("tma.store_wait(0)")

    def emit_gradients_place(self, out: Emitter) -> str:
        """Where this consumer's keys are in their gradients, as text."""
        return "batch, chunk, own_first"


class OwnQueries(OverRuns):
    """A program owns a tile of queries and visits keys."""

    names: Names
    parameters: Sequence[Argument]
    schedule: Schedule

    # Constants that functions take, as they are declared and as they are passed; arguments of the producer.
    constant_names: tuple[str, ...] = ()
    constants_typed = constants_passed = more = ""
    # How many axes a tile has before its rows, and numbers that say where one starts.
    axes, starts = 2, "STAGES"
    # Whether any tile needs no mask.
    has_full_tiles = True
    # Options of the launch.
    options = "**BACKWARD"
    # Which rows exist, and which have terms if not all: these are padded.
    inside, rows_with_terms = "q_row < q_len", ""

    @property
    def work(self) -> list[Argument]:
        """What programs read of a work list, and where shares go, if rows of tiles are cut into shares."""
        return []

    def emit_programs(self, out: Emitter) -> str:
        """What ``run`` needs before the launch; returns how many tiles a head has, as text."""
        return f"triton.cdiv(q_len, {self.schedule.block_m})"

    def emit_tile_functions(self, out: Emitter) -> None:
        """Which tile of queries a program owns, and which tiles of keys it visits."""
        emit_place_function(out, self.schedule.reverse)
        emit_visits(out, self.plan, KEYS, SIZES, self.parameters)

    def producer(self) -> dict[str, str]:
        """Lines of the producer: what it knows at first, how many tiles it visits, and where the next one starts."""
        return {
            "prologue": f"{', '.join(a.name for a in SIZES)} = sizes\n"
            "entry, batch, head, kv_head, tile_first = query_tile(gl.program_id(0), sizes)\n"
            "visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)",
            "count": "visits[0] + visits[1]",
            "start": "start = visited_start(t, visits)",
        }

    def copies(self, tensor: str, parts: tuple[Part, ...], tiles: str, i: str, ready: str) -> list[str]:
        """Lines of the producer that load tile ``i``: of the owned queries, or of the visited keys."""
        where = "batch, head, tile_first + ROWS * i" if tensor in ("query", "grad_out") else "batch, kv_head, start"
        return part_copies(self.names.load, tensor, where, tiles, i, parts, ready)

    def written_starts(self) -> list[str]:
        """Lines of the producer that tell where the tile in buffer ``stage`` starts."""
        return ["write(starts, stage, start)"]

    def emit_place(self, out: Emitter) -> None:
        """``entry``, ``batch``, ``head`` and ``kv_head`` of the program."""
        out.line("entry, batch, head, kv_head, tile_first = query_tile(tl.program_id(0), sizes)")

    def emit_rows(self, out: Emitter) -> None:
        """The positions ``q_row`` of this consumer's queries."""
        out.line("q_row = tile_first + GROUP * ROWS + tl.arange(0, ROWS, tl.SliceLayout(1, SCORES))")

    def emit_lanes(self, out: Emitter) -> None:
        """What follows from the numbers of ``columns`` in a tile."""

    def emit_counts(self, out: Emitter) -> None:
        """``partial_count`` and ``count``: how many tiles are visited."""
        out.line("visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)")
        out.line("partial_count = visits[0]")
        out.line("count = visits[0] + visits[1]")

    def emit_start(self, out: Emitter) -> None:
        """Where the tile of keys in buffer ``stage`` starts."""
        out.line("start = read(starts, stage)")

    def emit_gradient_place(self, out: Emitter) -> str:
        """Where this consumer's queries are in the gradient, as text."""
        return "batch, head, tile_first + GROUP * ROWS"
