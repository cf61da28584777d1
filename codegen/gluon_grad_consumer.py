"""The consumer of the backward kernel: gradients of 64 keys and values, and half of those of each tile of queries."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.dependence import LoadClass, dependence
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_columns import RUN, emit_columns, lanes
from .gluon_grad_loader import SIZES, emit_place_function, run_loads
from .gluon_loader import TileLoads
from .gluon_names import Names
from .gluon_seen import UnseenKeys
from .gluon_tiles import QUERIES, emit_unpack, emit_visits, jit_function
from .schedule import Problem, Schedule
from .triton_gradients import Gradients, emit_select
from .triton_module import Argument
from .triton_program import INDICES
from .triton_values import Guard, Values, level_of

# Captured tensors whose gradients are summed for each key.
SUMMED_BY_KEY: tuple[LoadClass, ...] = ("key",)
# Each consumer adds half of a tile's gradient of queries: half of the columns, or of the queries.
_HALVES = {
    True: ("k_tiles.index({}).reshape([KEYS, HEAD]).slice(GROUP * DQ_COLUMNS, DQ_COLUMNS, 1)", "ds_tiles.index({})"),
    False: (
        "k_tiles.index({}).reshape([KEYS, HEAD])",
        "ds_tiles.index({}).slice(GROUP * DQ_ROWS, DQ_ROWS, 1)",
    ),
}

_TERMS = """
# Log-sum-exps and what dP starts at, in turn.
term_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 2, 1, BLOCK_M], TERM_TILE)
""".strip("\n")
_SET_UP = """
# Gradients of scores of both consumers, twice; and of queries, on their way out.
ds_tiles = gl.allocate_shared_memory(ELEMENT, [4, KEYS, BLOCK_M], SCORE_TILE)
dq_tiles = gl.allocate_shared_memory(gl.float32, [2, 1, 1, DQ_ROWS, DQ_COLUMNS], SUM_TILE)
starts = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready, both consumers make them empty; both make gradients of scores ready.
kv_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
tile_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
tile_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
ds_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
finished = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
mbarrier.init(kv_ready, count=1)
mbarrier.init(finished, count=2)
for i in gl.static_range(STAGES):
    mbarrier.init(tile_ready.index(i), count=1)
    mbarrier.init(tile_empty.index(i), count=2)
for i in gl.static_range(2):
    mbarrier.init(ds_ready.index(i), count=2)
""".strip("\n")


def emit_final_score(
    out: Emitter, kernel: Gradients, values: Values, wanted: Sequence[str], done: frozenset[str], lanes: str, shape: str
) -> str:
    """The name of the modified scores of ``shape``, from products ``s``; ``lanes`` are pairs that may be looked up."""
    kernel.emit_scaled(out)
    if not kernel.has_scores:
        return "s"
    values.emit(out, "pair", [x for x in wanted if x != "mask"], Guard(pair=lanes), done)
    spread = level_of(dependence(kernel.results["score"])) != "pair"
    zeros = f"tl.zeros({shape}, tl.float32, SCORES) + " if spread else ""
    out.line(f"final = {zeros}({values.result('score')})")
    return "final"


class Consumer(Gradients):
    """Prints ``differentiate``: for each head of queries a loop with the mask and one without.

    What becomes of the scores' gradient is said by the methods that :mod:`.gluon_grad_key` overrides, and what a tile
    is by those that :mod:`.gluon_box_grads` does.
    """

    arguments = (
        "grad_query, grad_key, grad_value, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, ds_tiles, dq_tiles, "
        "barriers, starts, sizes, parameters"
    )
    barriers = "kv_ready, tile_ready, tile_empty, ds_ready, finished"
    # Buffers and barriers, and how the producer waits for a buffer.
    set_up = _SET_UP
    terms = _TERMS
    # Constants that functions take, how they are passed on, and how many axes a tile's place has before its rows.
    constants = constants_passed = ""
    constant_names: tuple[str, ...] = ()
    axes = 2
    # Positions of the columns of a tile of scores, whether masks need these, and pairs of a full tile that may be read.
    positions = RUN
    masks_positions = True
    full_pairs = ""
    has_full_tiles = True
    wait = "mbarrier.wait(tile_empty.index(stage), phase ^ 1)"

    def __init__(
        self, plan: TilePlan, problem: Problem, block_m: int, parameters: Sequence[Argument], names: Names
    ) -> None:
        super().__init__(plan, problem, True)
        self.parameters, self.names = parameters, names
        self.unseen = UnseenKeys.of(plan)
        self.expressions = self.values()
        self.split_columns = block_m == 64
        # Measured 4 % faster at D 128; at D 64 with larger tiles it takes registers.
        self.folded = not self.has_scores and self.split_columns
        found = [x for e in self.results.values() for x in loads(e)]
        self.loads_queries = any(dependence(x) & {"q", "kv"} == {"q"} for x in found)
        self.here = self.of_kinds(*SUMMED_BY_KEY)

    def emit(self, out: Emitter) -> None:
        """The function."""
        self.emit_functions(out)
        with jit_function(out, f"differentiate(GROUP: tl.constexpr, {self.arguments}{self.constants})"):
            out.line('"""A consumer: four warps own KEYS keys."""')
            self._emit_prologue(out)
            with out.block("for member in range(0, group):"):
                done = self._emit_head(out)
                with out.block("for t in range(0, masked):"):
                    self._emit_step(out, done, masked=True)
                if self.has_full_tiles:
                    out.comment("Tiles in which every pair is allowed.")
                    with out.block("for t in range(masked, count):"):
                        self._emit_step(out, done, masked=False)
                for c in self.here:
                    place = f"{c.name}_sums + (batch * heads + head).to(tl.int64) * kv_len + own_keys"
                    out.line(f"tl.store({place}, {c.name}_total, mask={self.stored_keys})")
            self._emit_epilogue(out)

    def _emit_prologue(self, out: Emitter) -> None:
        out.line(f"{self.barriers} = barriers")
        emit_unpack(out, "sizes", SIZES)
        emit_unpack(out, "parameters", self.parameters)
        self.emit_place(out)
        out.line("k_tile = k_tiles.index(GROUP).reshape([KEYS, HEAD])")
        out.line("v_tile = v_tiles.index(GROUP).reshape([KEYS, VALUE])")
        self.emit_tiles(out)
        self._emit_positions(out)
        self.emit_lanes(out)
        self.emit_unit(out)
        out.line("dk = tl.zeros([KEYS, HEAD], tl.float32, KEY_SUMS)")
        out.line("dv = tl.zeros([KEYS, VALUE], tl.float32, VALUE_SUMS)")
        out.line("step = 0  # tiles of queries of all heads")
        out.line("mbarrier.wait(kv_ready, 0)")
        self.emit_clear(out)

    def _emit_clear_unseen(self, out: Emitter) -> None:
        """Where which keys are seen has no closed form: the mask says, for tiles that are not finite."""
        values = Values({"mask": self.results["mask"]}, INDICES, debug=self.problem.debug)
        with jit_function(
            out, "clear_unseen(k_tile, own_first, batch, head, kv_head, tile_first, sizes, parameters)"
        ):
            out.line('"""Zeros in the rows of keys that no query sees, if there is anything but finite numbers."""')
            out.line("LAYOUT: tl.constexpr = tl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])")
            out.line("ROWS: tl.constexpr = tl.SliceLayout(1, LAYOUT)")
            out.line("tile = k_tile.load(LAYOUT)")
            with out.block("if tl.sum(tl.sum(tile.to(tl.float32) * 0.0, 1), 0) != 0.0:"):
                emit_unpack(out, "sizes", SIZES)
                emit_unpack(out, "parameters", self.parameters)
                out.line("kv_index = own_first + tl.arange(0, KEYS, tl.SliceLayout(1, SCORES))[:, None]")
                self._emit_positions(out)
                out.line("seen = tl.zeros([KEYS], tl.int32, tl.SliceLayout(1, SCORES))")
                out.line("visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)")
                done = values.emit(out, "program", ("mask",), Guard())
                done = values.emit(out, "key", ("mask",), Guard(key="(kv_index < kv_len)"), done)
                with out.block("for t in range(0, visits[0] + visits[1]):"):
                    out.line("start = visited_start(t, visits)")
                    guard = Guard(query="(q_index < q_len)")
                    done = emit_columns(out, values, "query", ("mask",), guard, done)
                    self.emit_allowed(out, values, done)
                    out.line("seen = tl.maximum(seen, tl.max(allowed.to(tl.int32), 1))")
                out.line("k_tile.store(tl.where((tl.convert_layout(seen, ROWS) != 0)[:, None], tile, 0.0))")
                out.line("fence_async_shared()")
                out.line(f"{self.names.barrier}()")

    def _emit_positions(self, out: Emitter) -> None:
        out.line("columns = tl.arange(0, BLOCK_M, tl.SliceLayout(0, SCORES))")
        if self.loads_queries:
            out.line(f"lanes = {lanes('BLOCK_M')}")

    def _emit_head(self, out: Emitter) -> frozenset[str]:
        out.line("head = chunk * group + member")
        self.emit_counts(out)
        for c in self.here:
            out.line(f"{c.name}_total = tl.zeros([KEYS], tl.float32, tl.SliceLayout(1, SCORES))")
        needed = self.wanted(self.here, masked=True)
        done = self.expressions.emit(out, "program", needed, Guard())
        return self.expressions.emit(out, "key", needed, Guard(key="(kv_index < kv_len)"), done)

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """One tile of queries."""
        wanted = self.wanted(self.here, masked=masked)
        out.line("stage, phase = ring(step)")
        out.line("mbarrier.wait(tile_ready.index(stage), phase)")
        out.line("q_tile = q_tiles.index(stage).reshape([BLOCK_M, HEAD])")
        out.line("do_tile = do_tiles.index(stage).reshape([BLOCK_M, VALUE])")
        lse_row = "lse_row = term_tiles.index(stage * 2).reshape([BLOCK_M]).load(tl.SliceLayout(0, SCORES))"
        out.line("zero = tl.zeros([KEYS, BLOCK_M], tl.float32, SCORES)")
        out.comment("Sums of products start at what would be subtracted from them.")
        out.line("delta_row = term_tiles.index(stage * 2 + 1).reshape([BLOCK_M]).load(tl.SliceLayout(0, SCORES))")
        out.line("first_dp = zero + delta_row[None, :]")
        product = "next_s = warpgroup_mma(k_tile, q_tile.permute((1, 0)), {}, is_async=True)"
        if self.folded:
            out.line(lse_row)
            out.line("first_s = zero + lse_row[None, :]")
            out.line(product.format("first_s"))
        else:
            out.line(product.format("zero, use_acc=False"))
        out.line("next_dp = warpgroup_mma(v_tile, do_tile.permute((1, 0)), first_dp, is_async=True)")
        out.line("s = warpgroup_mma_wait(1, deps=(next_s,))")
        self.emit_start(out, needed=bool(wanted) or masked)
        if not self.folded:
            out.line(lse_row)
        self._emit_probabilities(out, wanted, done, masked=masked)
        out.line("weights = tl.convert_layout(p.to(ELEMENT), WEIGHTS)")
        out.line("next_dv = warpgroup_mma(weights, do_tile, dv, is_async=True)")
        out.line("dp = warpgroup_mma_wait(1, deps=(next_dp,))")
        found = self.emit_score_gradient(out, self.expressions, self.here, delta="")
        if masked:
            emit_select(out, found)
        for c in self.here:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        self.emit_differences(out)
        out.line("step += 1")

    def _emit_probabilities(
        self, out: Emitter, wanted: Sequence[str], done: frozenset[str], *, masked: bool
    ) -> None:
        """``p`` from products ``s``; queries past the end have an infinite log-sum-exp, so nothing of them counts."""
        values = self.expressions
        if wanted or (masked and self.masks_positions):
            guard = Guard(query="(q_index < q_len)" if masked else "")
            done = emit_columns(out, values, "query", wanted, guard, done, self.positions)
        if masked:
            done = self.emit_allowed(out, values, done)
        lanes = "allowed" if masked else self.full_pairs
        score = emit_final_score(out, self, values, wanted, done, lanes, "[KEYS, BLOCK_M]")
        text = "tl.exp2(s * unit)" if self.folded else self.exponential(score, "lse_row[None, :]")
        out.line(f"p = {f'tl.where(allowed, {text}, 0.0)' if masked else text}")

    def _emit_epilogue(self, out: Emitter) -> None:
        out.line()
        self.emit_finish(out)
        self.emit_store(out)

    # --- what a tile is: a run of positions ---

    # Which keys exist, as text.
    stored_keys = "own_keys < kv_len"

    def emit_tile_functions(self, out: Emitter, schedule: Schedule) -> None:
        """Which tile of keys a program owns, and which tiles of queries it visits."""
        emit_place_function(out, schedule.reverse)
        emit_visits(out, self.plan, QUERIES, SIZES, self.parameters)

    def tile_loads(self) -> TileLoads:
        """The loads of the producer."""
        return run_loads(self.names)

    def emit_place(self, out: Emitter) -> None:
        """``batch``, ``chunk``, ``kv_head`` and the positions ``kv_index`` of the tile of the program."""
        out.line("batch, chunk, kv_head, tile_first = key_tile(tl.program_id(0), sizes)")
        out.line("own_first = tile_first + GROUP * KEYS")
        out.line("kv_index = own_first + tl.arange(0, KEYS, tl.SliceLayout(1, SCORES))[:, None]")
        if self.here:
            out.line("own_keys = own_first + tl.arange(0, KEYS, tl.SliceLayout(1, SCORES))")

    def emit_lanes(self, out: Emitter) -> None:
        """What follows from the numbers of ``columns`` in a tile."""

    def emit_counts(self, out: Emitter) -> None:
        """``masked`` and ``count``: how many tiles are visited."""
        out.line("visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)")
        out.line("count = visits[0] + visits[1]")
        out.comment("Tiles in which the mask decides; all tiles if some keys are past the end.")
        out.line("masked = tl.where(tile_first + BLOCK_N > kv_len, count, visits[0])")

    def emit_start(self, out: Emitter, *, needed: bool) -> None:
        """Where the tile of queries in buffer ``stage`` starts."""
        out.line("start = read(starts, stage)")

    def emit_store(self, out: Emitter) -> None:
        """Writes ``dk`` and ``dv``."""
        self.emit_store_tiles(out, "batch, chunk, own_first")

    def emit_store_tiles(self, out: Emitter, place: str) -> None:
        """Writes ``dk`` and ``dv`` by descriptor."""
        out.line("k_tile.store((dk * scale).to(ELEMENT))")
        out.line("v_tile.store(dv.to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        for name, tile in (("grad_key", "k_tiles"), ("grad_value", "v_tiles")):
            out.line(f"{self.names.store}({name}, [{place}, 0], {tile}.index(GROUP))")
        out.line("tma.store_wait(0)")

    # --- what becomes of the scores' gradient: it is exchanged, and added to that of queries ---

    def half_of_queries(self, queries: int) -> tuple[int, int] | None:
        """Rows and columns of a tile's gradient of queries that a consumer computes; None where it computes none."""
        head = self.problem.head_dim
        return (queries, head // 2) if self.split_columns else (queries // 2, head)

    def emit_functions(self, out: Emitter) -> None:
        """What ``differentiate`` calls."""
        if self.unseen is None:
            self._emit_clear_unseen(out)
        else:
            self.unseen.emit_functions(out, self.names.barrier, "KEYS", SIZES, self.parameters)

    def emit_clear(self, out: Emitter) -> None:
        """Keys that no query sees may hold anything: as factors of gradients of scores they must be zeros."""
        if self.unseen is None:
            out.line("clear_unseen(k_tile, own_first, batch, chunk * group, kv_head, tile_first, sizes, parameters)")
        elif not self.unseen.all_seen:
            out.line("seen = seen_keys(batch, chunk * group, kv_head, sizes, parameters)")
            with out.block("if some_unseen(own_first, tl.minimum(own_first + KEYS, kv_len), seen):"):
                out.line("clear_unseen(k_tile, own_first, seen)")

    def emit_tiles(self, out: Emitter) -> None:
        """Further tiles in shared memory."""
        for i, name in enumerate(("k_low", "k_high")):
            out.line(f"{name} = {_HALVES[self.split_columns][0].format(i)}")
        out.line("dq_tile = dq_tiles.index(GROUP)")

    def emit_differences(self, out: Emitter) -> None:
        """What follows from ``ds``, and the release of the buffers."""
        out.line("ds = ds.to(ELEMENT)")
        out.comment("The buffer is free: the other consumer has used it before it wrote the one of the last step.")
        out.line("buffer = step % 2")
        out.line("ds_tiles.index(buffer * 2 + GROUP).store(ds)")
        out.line("fence_async_shared()")
        out.line("mbarrier.arrive(ds_ready.index(buffer))")
        out.line("next_dk = warpgroup_mma(tl.convert_layout(ds, DIFFERENCES), q_tile, dk, is_async=True)")
        out.comment("The gradient of queries needs the scores' gradient of all keys.")
        out.line("mbarrier.wait(ds_ready.index(buffer), step // 2 & 1)")
        low, high = (_HALVES[self.split_columns][1].format(f"buffer * 2{x}") for x in ("", " + 1"))
        out.line("nothing = tl.zeros([DQ_ROWS, DQ_COLUMNS], tl.float32, QUERY_SUMS)")
        out.line(f"half = warpgroup_mma({low}.permute((1, 0)), k_low, nothing, use_acc=False, is_async=True)")
        out.line(f"next_dq = warpgroup_mma({high}.permute((1, 0)), k_high, half, is_async=True)")
        out.line("dv = warpgroup_mma_wait(3, deps=(next_dv,))")
        out.line("dk = warpgroup_mma_wait(2, deps=(next_dk,))")
        out.comment("The tile before must have left the buffer.")
        out.line("tma.store_wait(0)")
        out.line(f"{self.names.barrier}()")
        out.line("mbarrier.arrive(tile_empty.index(stage))")
        out.line("dq = warpgroup_mma_wait(0, deps=(next_dq,))")
        out.line("dq_tile.reshape([DQ_ROWS, DQ_COLUMNS]).store(dq)")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        place = "start, GROUP * DQ_COLUMNS" if self.split_columns else "start + GROUP * DQ_ROWS, 0"
        out.line(f"{self.names.add}(grad_query, [batch, head, {place}], dq_tile)")

    def emit_finish(self, out: Emitter) -> None:
        """What comes before this consumer writes over its keys and values."""
        out.comment("Keys and values make room for their gradients when both consumers are done with them.")
        out.line("mbarrier.arrive(finished)")
        out.line("mbarrier.wait(finished, 0)")
