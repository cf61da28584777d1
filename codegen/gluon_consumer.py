"""The consumer: softmax and products of 64 queries, on four warps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from ..ir.dependence import dependence
from ..ir.nodes import TILE_NAMES, Expr
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_bands import BAND_INDICES, Band, emit_steps
from .gluon_columns import RUN, emit_columns, lanes
from .gluon_names import Names
from .gluon_parts import tiles_of
from .gluon_products import emit_products
from .gluon_releases import emit_first_turn, emit_releases, in_turn
from .gluon_scores import SCALE, are_bounded, folded_exponents
from .gluon_seen import QUERIES_EXIST, Unseen, UnseenByWeights
from .gluon_tiles import emit_unpack, jit_function
from .gluon_weights import POWERS, Weights
from .gluon_work import emit_share, emit_sums_of_share
from .schedule import Problem, Schedule
from .triton_forward import composed_scores
from .triton_module import Argument, head_parts
from .triton_program import SIZES
from .triton_tiles import TileLoops
from .triton_values import Guard, Values, level_of


class Consumer(Weights):
    """Prints ``attend``: for each tile of queries a first tile of keys, a masked loop, a loop without mask.

    ``ahead``: the first tile of keys comes beside the last values of the tile of queries before, and its scores beside
    the outputs of that. What a tile is, is said by the methods that :mod:`.gluon_box_consumer` overrides.
    """

    # Constants that ``attend`` takes, positions of the columns of a tile of scores, and whether masks need these.
    constants = ""
    positions = RUN
    masks_positions = True
    may_ask_bound = True
    # Whether tiles of keys start at multiples of their size; which rows of a tile of queries exist.
    aligned = True
    rows_exist = QUERIES_EXIST

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, parameters: Sequence[Argument],
        unseen: Unseen, names: Names, shares_query: bool,
    ) -> None:  # fmt: skip
        self.in_shares = schedule.listed and schedule.split_keys
        self.constants = ", work" if schedule.listed else self.constants
        if unseen.asked_on_host:
            self.constants += ", ALL_SEEN: tl.constexpr"
        # How many numbers the producer says for each tile of queries.
        self.cells = 4 if self.in_shares else 3
        self.parameters, self.unseen, self.names = parameters, unseen, names
        self.dtype = problem.dtype
        self.consumers, self.shares_query, self.ahead = schedule.block_m // 64, shares_query, schedule.ahead
        # Which of two tiles of queries, where there is room for both.
        self.own_query = "slot * CONSUMERS + GROUP" if self.ahead else "GROUP"
        self.query_turn = (".index(slot)", "turn >> 1 & 1") if self.ahead else ("", "turn & 1")
        self.head, self.value = head_parts(problem.head_dim), head_parts(problem.value_dim)
        block = schedule.block_n if self.aligned else None
        self.band = Band.of(plan.variant.mask, "kv", block) if self.masks_positions else None
        if self.in_shares and self.band is not None and not self.band.is_bounded:
            self.band = Band.without_bounds(plan.variant.mask, "kv")
        results: dict[str, Expr] = {} if self.band is None else self.band.results()
        self.score: Expr | None = None
        # Whether the host may say that scores are too small for their largest to matter.
        self.asks_bound = self.may_ask_bound and are_bounded(plan.variant.scores, problem)
        # Wider heads have no time for it beside their products.
        self.by_series = self.asks_bound and (problem.head_dim, problem.value_dim) == (64, 64)
        self.gathers = folded_exponents(plan.variant.scores, bounds=self.asks_bound)
        if self.asks_bound:
            self.constants += ", BOUNDED: tl.constexpr"
        if self.gathers is not None:
            self.score = self.gathers.core
            results |= self.gathers.results()
        elif plan.variant.scores:
            self.score = results["score"] = composed_scores(plan.variant.scores)[-1]
        self.results = tuple(results)
        # Whether all of scores but products is the same for all tiles.
        self.folds_early = self.gathers is not None and not any(
            dependence(x) - {"s"} for x in self.gathers.results().values()
        )
        self.reads_keys = self.score is not None and "kv" in dependence(self.score)
        self.masks_keys = any({"kv", TILE_NAMES[0]} & dependence(e) for name, e in results.items() if name != "score")
        self.loads = [x for e in results.values() for x in loads(e)]
        self.loads_pairs = any({"q", "kv"} <= dependence(x) for x in self.loads)
        self.loads_columns = any(dependence(x) & {"q", "kv"} == {"kv"} for x in self.loads)
        # What exponents are multiplied by: without score functions the scale is part of it.
        self.unit = "LOG2E" if self.score is not None and self.gathers is None else "unit"
        known = None if self.gathers is None else SCALE
        self.values = Values(results, BAND_INDICES, debug=problem.debug, columns="kv", known=known)

    def emit(self, out: Emitter, loops: TileLoops) -> None:
        self.unseen.emit_functions(out, self.names.barrier, "BLOCK_N", SIZES, self.parameters)
        emit_releases(out, self.consumers)
        emit_products(out, self.dtype, len(self.head))
        if self.by_series:
            out.definition(POWERS)
        with jit_function(
            out,
            "attend(GROUP: tl.constexpr, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, orders, starts, "
            f"sizes, parameters{self.constants})",
        ):
            out.line('"""A consumer: four warps own ROWS queries of each tile."""')
            self._emit_prologue(out)
            if self.ahead:
                done = self._emit_query_prologue(out)
                self._emit_first(out, done)
            with out.block("while program < programs:"):
                if not self.ahead:
                    done = self._emit_query_prologue(out)
                    self._emit_first(out, done)
                if loops.partial_count:
                    out.comment("Tiles in which the mask decides.")
                    with out.block("for t in range(1, partial_count):"):
                        self._emit_step(out, done, masked=True)
                if loops.full_count:
                    out.comment("Tiles in which every pair is allowed.")
                    with out.block("for t in range(tl.maximum(partial_count, 1), count):"):
                        self._emit_step(out, done, masked=False)
                if self.ahead:
                    self._emit_end_and_next(out)
                else:
                    self._emit_epilogue(out)
            out.line("tma.store_wait(0)")

    def _emit_prologue(self, out: Emitter) -> None:
        asks = isinstance(self.unseen, UnseenByWeights)
        more = ", weighty, weighty_ready" if asks else ""
        out.line(f"q_ready, q_empty, k_ready, v_ready, order_ready, order_empty{more} = barriers")
        emit_unpack(out, "parameters", self.parameters)
        self.emit_sizes(out)
        if not self.ahead:
            for i, p in enumerate(self.head):
                out.line(f"q_tile{p.suffix} = {self._query_tile(i)}")
        out.line("rows = tl.arange(0, ROWS, tl.SliceLayout(1, SCORES))")
        out.line("columns = tl.arange(0, BLOCK_N, tl.SliceLayout(0, SCORES))")
        if self.loads_columns:
            out.line(f"lanes = {lanes('BLOCK_N')}")
        if self.band is not None:
            emit_steps(out)
        self.emit_lanes(out)
        if self.score is None:
            out.line("unit = scale * LOG2E")
        if self.folds_early:
            self.values.emit(out, "program", ("score", "unit"), Guard())
            self.emit_unit(out)
        out.line("mbarrier.wait(order_ready.index(0), 0)")
        out.line("program = read(orders, 0)")
        out.line("used = 0  # tiles of keys")
        out.line("turn = 0  # tiles of queries")
        emit_first_turn(out, self.consumers)
        if asks:
            out.line("cleared = 0  # tiles of which it was asked what no query sees")

    def _emit_query_prologue(self, out: Emitter) -> frozenset[str]:
        out.line("slot = turn & 1")
        out.line(f"partial_count = read(orders, slot * {self.cells} + 1)")
        out.line(f"count = read(orders, slot * {self.cells} + 2)")
        self.emit_told(out)
        out.line("mbarrier.arrive(order_empty.index(slot))")
        if self.ahead:
            out.comment("Past the last tile, what is computed goes nowhere.")
        self.emit_place(out, "tl.minimum(program, programs - 1)" if self.ahead else "program")
        out.line("q_index = q_row[:, None]")
        if not self.unseen.all_seen:
            self.unseen.emit_bounds(out)
        early = self.values.emit(Emitter(), "program", ("score", "unit"), Guard()) if self.folds_early else frozenset()
        done = self.values.emit(out, "program", self.results, Guard(), early)
        if not self.folds_early:
            self.emit_unit(out)
        done = self.values.emit(out, "query", self.results, Guard(query="(q_index < q_len)"), done)
        if not self.ahead:
            self.emit_no_outputs(out)
        return done

    def _query_tile(self, i: int) -> str:
        """Part ``i`` of the columns of this consumer's queries, as text."""
        tiles, width = tiles_of("q_tiles", self.head, i), self.head[i].width
        return f"{tiles}.index({self.own_query}).reshape([ROWS, {width}])"

    def _emit_first(self, out: Emitter, done: frozenset[str]) -> None:
        out.comment("The first tile, masked even if it is full: nothing to overlap with yet.")
        self._emit_start_first(out, "s")
        self._emit_weights_of_first(out, done, "s")
        if self.ahead:
            self.emit_no_outputs(out)

    def _emit_start_first(self, out: Emitter, name: str) -> None:
        """Starts the scores of the first tile of keys."""
        at, phase = self.query_turn
        out.line(f"mbarrier.wait(q_ready{at}, {phase})")
        out.line("stage, phase = ring(used)")
        self._emit_start_scores(out, name)

    def _emit_weights_of_first(self, out: Emitter, done: frozenset[str], product: str) -> None:
        """From its product to the weights of the first tile of keys, with which maxima and sums begin."""
        self.emit_start(out)
        done = self._emit_early_columns(out, done, masked=True)
        out.line(f"s = warpgroup_mma_wait(0, deps=({product},))")
        out.line("release(stage)")
        self._emit_scores(out, done, masked=True)
        self.emit_first_weights(out)
        self._emit_clear(out, exists="program < programs" if self.ahead else "")

    def _emit_start_scores(self, out: Emitter, name: str) -> None:
        out.line("mbarrier.wait(k_ready.index(stage), phase)")
        for i, p in enumerate(self.head):
            tile = f"{tiles_of('k_tiles', self.head, i)}.index(stage)"
            query = self._query_tile(i) if self.ahead else f"q_tile{p.suffix}"
            start = f"add_scores({query}, {tile}, {name})" if i else f"start_scores({query}, {tile})"
            out.line(f"{name} = {start}")

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """Scores and weights of one tile of keys, overlapped with the values of the tile before."""
        out.line("last, last_phase = ring(used + t - 1)")
        out.line("stage, phase = ring(used + t)")
        with in_turn(out, self.consumers):
            self._emit_start_scores(out, "next_s")
            self.emit_start_outputs(out, "next_")
        if masked or self.reads_keys:
            self.emit_start(out)
        done = self._emit_early_columns(out, done, masked=masked)
        out.line(f"s = warpgroup_mma_wait({len(self.value)}, deps=(next_s,))")
        self._emit_scores(out, done, masked=masked)
        self.emit_weights(out, masked=masked)
        if masked:
            self._emit_clear(out)

    def _emit_early_columns(self, out: Emitter, done: frozenset[str], *, masked: bool) -> frozenset[str]:
        """Columns that are loaded, beside the products."""
        return self._emit_columns(out, done, masked=masked) if self.loads_columns else done

    def _emit_columns(self, out: Emitter, done: frozenset[str], *, masked: bool) -> frozenset[str]:
        """What depends on the key alone."""
        if not self.reads_keys and not (masked and self.masks_keys):
            return done
        wanted = self.results if masked else tuple(x for x in self.results if x == "score")
        guard = Guard(key="(kv_index < kv_len)" if masked else "")
        return emit_columns(out, self.values, "key", wanted, guard, done, self.positions)

    def _emit_scores(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """From products ``s`` to modified and masked scores."""
        if not self.loads_columns:
            done = self._emit_columns(out, done, masked=masked)
        guarded = "(q_index < q_len)"
        if masked:
            done = self.emit_allowed(out, done)
            guarded = "allowed"
        if self.score is not None:
            if self.gathers is None:
                out.line("s *= scale")
            self.values.emit(out, "pair", ("score",), Guard(pair=guarded), done)
            text = self.values.result("score")
            spread = level_of(dependence(self.score)) != "pair"
            out.line(f"s = tl.zeros([ROWS, BLOCK_N], tl.float32, SCORES) + ({text})" if spread else f"s = {text}")
        if masked:
            if not self.asks_bound:
                self.emit_masked(out)
            self.emit_mixed(out)

    def _emit_clear(self, out: Emitter, exists: str = "") -> None:
        """After the scores of a partial tile: clears what must not be seen of its values, if it ``exists``."""
        if self.unseen.all_seen:
            return
        some_unseen = f"({self.unseen.some_unseen}) & ({exists})" if exists else self.unseen.some_unseen
        asked = out.block("if not ALL_SEEN:") if self.unseen.asked_on_host else nullcontext()
        with asked, out.block(f"if {some_unseen}:"):
            out.line("mbarrier.wait(v_ready.index(stage), phase)")
            tiles = [f"{tiles_of('v_tiles', self.value, i)}.index(stage)" for i in range(len(self.value))]
            shapes = [f"[BLOCK_N, {p.width}]" for p in self.value]
            tiles = [f"{t}.reshape({s})" for t, s in zip(tiles, shapes, strict=True)]
            self.unseen.emit_clear(out, tiles, self.rows_exist)

    def _emit_epilogue(self, out: Emitter) -> None:
        if not self.shares_query:
            out.line("mbarrier.arrive(q_empty)")
        out.line("used += count")
        out.line("last, last_phase = ring(used - 1)")
        self.emit_start_outputs(out, "")
        self.emit_wait_outputs(out, "")
        out.line("release(STAGES + last)")
        out.line()
        self._emit_log_sums(out)
        self.emit_outputs(out)
        out.line()
        self._emit_next_number(out)

    def _emit_end_and_next(self, out: Emitter) -> None:
        """The last values and the outputs of a tile of queries, and between them the first scores of the next."""
        out.line("mbarrier.arrive(q_empty.index(slot))")
        out.line("used += count")
        out.line("last, last_phase = ring(used - 1)")
        self.emit_start_outputs(out, "next_")
        self._emit_log_sums(out)
        self.emit_keep(out)
        self._emit_next_number(out)
        done = self._emit_query_prologue(out)
        self._emit_start_first(out, "next_s")
        self.emit_wait_outputs(out, "next_", behind=len(self.head))
        out.line("release(STAGES + last)")
        self.emit_outputs(out)
        self._emit_weights_of_first(out, done, "next_s")
        self.emit_no_outputs(out)

    def _emit_log_sums(self, out: Emitter) -> None:
        """Sums ``l`` of whole rows, and their logarithms for the caller."""
        out.line("l = tl.convert_layout(tl.sum(l, 1), tl.SliceLayout(1, SCORES))")
        out.comment("A row that may attend to nothing gives 0, and -inf for the logarithm of its sum.")
        out.line('total = tl.where(l == 0.0, float("-inf"), (m + tl.log2(l)) * LN2)')
        inside = self.emit_inside(out)
        out.line(f"tl.store(lse + entry.to(tl.int64) * q_len + q_row, total, mask={inside})")
        if self.in_shares:
            emit_sums_of_share(out)

    def _emit_next_number(self, out: Emitter) -> None:
        """``program`` of the next tile of queries."""
        out.line("turn += 1")
        out.line("mbarrier.wait(order_ready.index(turn & 1), turn >> 1 & 1)")
        out.line(f"program = read(orders, (turn & 1) * {self.cells})")

    # --- what a tile is: a run of positions ---

    def emit_sizes(self, out: Emitter) -> None:
        """The sizes of the call, and the number of tiles of queries."""
        emit_unpack(out, "sizes", SIZES)
        out.line("programs = tl.cdiv(q_len, BLOCK_M) * all_heads")

    def emit_lanes(self, out: Emitter) -> None:
        """What follows from the numbers of ``rows`` and ``columns`` in a tile."""

    def emit_told(self, out: Emitter) -> None:
        """What the producer says of a tile of queries besides."""
        if self.in_shares:
            out.line(f"place = read(orders, slot * {self.cells} + 3)  # of a share of a row")

    def emit_place(self, out: Emitter, number: str) -> None:
        """``entry``, ``batch``, ``head``, ``kv_head`` and the positions ``q_row`` of tile ``number``."""
        out.line(f"entry, batch, head, kv_head, tile_first = query_tile({number}, sizes)")
        out.line("q_row = tile_first + GROUP * ROWS + rows")

    def emit_start(self, out: Emitter) -> None:
        """Where the tile of keys in buffer ``stage`` starts."""
        out.line("start = read(starts, stage)")
        if self.unseen.told:
            out.line("hides = start & 1  # tiles start at multiples of their size")
            out.line("start -= hides")

    def emit_allowed(self, out: Emitter, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs of keys that exist, and that the mask keeps."""
        # Rows past the end go nowhere, so they may attend to anything; but they must not load.
        assert self.band is not None
        return self.band.emit(out, self.values, done, "(q_index < q_len)")

    def emit_mixed(self, out: Emitter) -> None:
        """What masked scores must pass besides."""

    def emit_inside(self, out: Emitter) -> str:
        """Which rows exist, as text."""
        return "q_row < q_len"

    def emit_keep(self, out: Emitter) -> None:
        """Keeps the place of outputs, whose names the next tile takes."""
        coordinates = self.emit_out_place(out).split(", ")
        self.kept = [f"out_at_{i}" for i in range(len(coordinates))]
        out.line(f"{', '.join(self.kept)} = {', '.join(coordinates)}")

    def emit_outputs(self, out: Emitter) -> None:
        """Writes the outputs of this consumer, from ``acc`` and the sums ``l`` of weights."""
        if not self.shares_query:
            out.comment("The copy of the tile before must have left the buffer.")
            out.line("tma.store_wait(0)")
        out.line(f"{self.names.barrier}()")
        for i, p in enumerate(self.value):
            self.emit_quotient(out, p)
            if self.in_shares:
                emit_share(out, p, "work[1]", f"acc{p.suffix}", "OUTPUTS", "ROWS", "BLOCK_M", "VALUE")
            tile = f"{tiles_of('out_tiles', self.value, i)}.index(GROUP)"
            out.line(f"{tile}.reshape([ROWS, {p.width}]).store(acc{p.suffix}.to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        place = ", ".join(self.kept) if self.ahead else self.emit_out_place(out)
        for i, p in enumerate(self.value):
            target, tile = (tiles_of(x, self.value, i) for x in ("out", "out_tiles"))
            out.line(f"{self.names.store}({target}, [{place}, {p.first}], {tile}.index(GROUP))")
        if self.shares_query:
            out.comment("The next queries come to where this tile leaves from.")
            out.line("tma.store_wait(0)")
            out.line("mbarrier.arrive(q_empty)")

    def emit_out_place(self, out: Emitter) -> str:
        """Where this consumer's queries are in the tensor of outputs, as text."""
        return "batch, head, tile_first + GROUP * ROWS"
