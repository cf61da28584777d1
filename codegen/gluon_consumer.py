"""The consumer: softmax and products of 64 queries, on four warps."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.dependence import dependence
from ..ir.nodes import TRUE, Expr
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_columns import RUN, emit_columns, lanes
from .gluon_names import Names
from .gluon_seen import UnseenKeys
from .gluon_tiles import emit_unpack, jit_function
from .schedule import Problem
from .triton_forward import composed_scores
from .triton_module import Argument
from .triton_program import INDICES, SIZES
from .triton_tiles import TileLoops
from .triton_values import Guard, Values, level_of

PRODUCTS = """
@gluon.jit
def start_scores(q_tile, k_tile):
    \"\"\"Starts Q K^T; the result may be read after a wait.\"\"\"
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, SCORES)
    return warpgroup_mma(q_tile, k_tile.reshape([BLOCK_N, HEAD]).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def start_outputs(weights, v_tile, acc):
    \"\"\"Starts acc + weights V; the result may be read after a wait.\"\"\"
    return warpgroup_mma(weights, v_tile.reshape([BLOCK_N, VALUE]), acc, is_async=True)

"""


class Consumer:
    """Prints ``attend``: for each tile of queries a first tile of keys, a masked loop, a loop without mask.

    What a tile is, is said by the methods that :mod:`.gluon_box_consumer` overrides.
    """

    # Constants that ``attend`` takes, positions of the columns of a tile of scores, and whether masks need these.
    constants = ""
    positions = RUN
    masks_positions = True

    def __init__(
        self, plan: TilePlan, problem: Problem, parameters: Sequence[Argument], unseen: UnseenKeys, names: Names
    ) -> None:
        self.parameters, self.unseen, self.names = parameters, unseen, names
        results: dict[str, Expr] = {}
        if plan.variant.mask != TRUE:
            results["mask"] = plan.variant.mask
        self.score: Expr | None = None
        if plan.variant.scores:
            self.score = results["score"] = composed_scores(plan.variant.scores)[-1]
        self.results = tuple(results)
        self.reads_keys = self.score is not None and "kv" in dependence(self.score)
        self.loads = [x for e in results.values() for x in loads(e)]
        self.loads_pairs = any({"q", "kv"} <= dependence(x) for x in self.loads)
        self.loads_columns = any(dependence(x) & {"q", "kv"} == {"kv"} for x in self.loads)
        # What exponents are multiplied by: without score functions the scale is part of it.
        self.unit = "unit" if self.score is None else "LOG2E"
        self.values = Values(results, INDICES, debug=problem.debug)

    def emit(self, out: Emitter, loops: TileLoops) -> None:
        self.unseen.emit_functions(out, self.names.barrier, "BLOCK_N", SIZES, self.parameters)
        out.definition(PRODUCTS)
        with jit_function(
            out,
            "attend(GROUP: tl.constexpr, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, orders, starts, "
            f"sizes, parameters{self.constants})",
        ):
            out.line('"""A consumer: four warps own ROWS queries of each tile."""')
            self._emit_prologue(out)
            with out.block("while program < programs:"):
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
                self._emit_epilogue(out)
            out.line("tma.store_wait(0)")

    def _emit_prologue(self, out: Emitter) -> None:
        out.line("q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, order_ready, order_empty = barriers")
        self.emit_sizes(out)
        emit_unpack(out, "parameters", self.parameters)
        out.line("q_tile = q_tiles.index(GROUP).reshape([ROWS, HEAD])")
        out.line("out_tile = out_tiles.index(GROUP)")
        out.line("rows = tl.arange(0, ROWS, tl.SliceLayout(1, SCORES))")
        out.line("columns = tl.arange(0, BLOCK_N, tl.SliceLayout(0, SCORES))")
        if self.loads_columns:
            out.line(f"lanes = {lanes('BLOCK_N')}")
        self.emit_lanes(out)
        if self.score is None:
            out.line("unit = scale * LOG2E")
        out.line("mbarrier.wait(order_ready.index(0), 0)")
        out.line("program = read(orders, 0)")
        out.line("used = 0  # tiles of keys")
        out.line("turn = 0  # tiles of queries")

    def _emit_query_prologue(self, out: Emitter) -> frozenset[str]:
        out.line("slot = turn & 1")
        out.line("partial_count = read(orders, slot * 3 + 1)")
        out.line("count = read(orders, slot * 3 + 2)")
        out.line("mbarrier.arrive(order_empty.index(slot))")
        self.emit_place(out)
        out.line("q_index = q_row[:, None]")
        if not self.unseen.all_seen:
            out.line("seen = seen_keys(batch, head, kv_head, sizes, parameters)")
        done = self.values.emit(out, "program", self.results, Guard())
        done = self.values.emit(out, "query", self.results, Guard(query="(q_index < q_len)"), done)
        out.line("acc = tl.zeros([ROWS, VALUE], tl.float32, OUTPUTS)")
        return done

    def _emit_first(self, out: Emitter, done: frozenset[str]) -> None:
        out.comment("The first tile, masked even if it is full: nothing to overlap with yet.")
        out.line("mbarrier.wait(q_ready, turn & 1)")
        out.line("stage, phase = ring(used)")
        out.line("mbarrier.wait(k_ready.index(stage), phase)")
        out.line("s = start_scores(q_tile, k_tiles.index(stage))")
        self.emit_start(out, masked=True)
        out.line("s = warpgroup_mma_wait(0, deps=(s,))")
        out.line("mbarrier.arrive(k_empty.index(stage))")
        self._emit_scores(out, done, masked=True)
        out.comment("Finite, so never inf - inf: a row may see none of its first tile.")
        out.line(f"m = tl.maximum(tl.max(s, 1) * {self.unit}, -3.0e38)  # running maximum times log2(e)")
        out.line(f"p = tl.exp2(s * {self.unit} - m[:, None])")
        out.line("l = tl.sum(p, 1)  # running sum of exponentials")
        out.line("weights = tl.convert_layout(p.to(ELEMENT), WEIGHTS)")
        self._emit_clear(out)

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """Scores and weights of one tile of keys, overlapped with the values of the tile before."""
        out.line("last, last_phase = ring(used + t - 1)")
        out.line("stage, phase = ring(used + t)")
        out.line("mbarrier.wait(k_ready.index(stage), phase)")
        out.line("next_s = start_scores(q_tile, k_tiles.index(stage))")
        out.line("mbarrier.wait(v_ready.index(last), last_phase)")
        out.line("next_acc = start_outputs(weights, v_tiles.index(last), acc)")
        if masked or self.reads_keys:
            self.emit_start(out, masked=masked)
        out.line("s = warpgroup_mma_wait(1, deps=(next_s,))")
        self._emit_scores(out, done, masked=masked)
        out.line(f"m_new = tl.maximum(m, tl.max(s, 1) * {self.unit})")
        out.line(f"p = tl.exp2(s * {self.unit} - m_new[:, None])")
        out.line("alpha = tl.exp2(m - m_new)")
        out.line("l = l * alpha + tl.sum(p, 1)")
        out.line("m = m_new")
        out.line("acc = warpgroup_mma_wait(0, deps=(next_acc,))")
        out.comment("Together, because all four warps meet before an arrival.")
        out.line("mbarrier.arrive(k_empty.index(stage))")
        out.line("mbarrier.arrive(v_empty.index(last))")
        out.line("acc = acc * tl.convert_layout(alpha, tl.SliceLayout(1, OUTPUTS))[:, None]")
        out.line("weights = tl.convert_layout(p.to(ELEMENT), WEIGHTS)")
        if masked:
            self._emit_clear(out)

    def _emit_scores(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """From products ``s`` to modified and masked scores."""
        wanted = self.results if masked else tuple(x for x in self.results if x != "mask")
        if self.reads_keys or (masked and self.masks_positions):
            guard = Guard(key="(kv_index < kv_len)" if masked else "")
            done = emit_columns(out, self.values, "key", wanted, guard, done, self.positions)
        guarded = "(q_index < q_len)"
        if masked:
            done = self.emit_allowed(out, done)
            guarded = "allowed"
        if self.score is not None:
            out.line("s *= scale")
            self.values.emit(out, "pair", ("score",), Guard(pair=guarded), done)
            text = self.values.result("score")
            spread = level_of(dependence(self.score)) != "pair"
            out.line(f"s = tl.zeros([ROWS, BLOCK_N], tl.float32, SCORES) + ({text})" if spread else f"s = {text}")
        if masked:
            out.line('s = tl.where(allowed, s, float("-inf"))')

    # --- what a tile is: a run of positions ---

    def emit_sizes(self, out: Emitter) -> None:
        """The sizes of the call, and the number of tiles of queries."""
        emit_unpack(out, "sizes", SIZES)
        out.line("programs = tl.cdiv(q_len, BLOCK_M) * all_heads")

    def emit_lanes(self, out: Emitter) -> None:
        """What follows from the numbers of ``rows`` and ``columns`` in a tile."""

    def emit_place(self, out: Emitter) -> None:
        """``entry``, ``batch``, ``head``, ``kv_head`` and the positions ``q_row`` of tile number ``program``."""
        out.line("entry, batch, head, kv_head, tile_first = query_tile(program, sizes)")
        out.line("q_row = tile_first + GROUP * ROWS + rows")

    def emit_start(self, out: Emitter, *, masked: bool) -> None:
        """Where the tile of keys in buffer ``stage`` starts."""
        out.line("start = read(starts, stage)")

    def emit_allowed(self, out: Emitter, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs of keys that exist, and that the mask keeps."""
        # Rows past the end go nowhere, so they may attend to anything; but they must not load.
        allowed = "(q_index < q_len) & (kv_index < kv_len)" if self.loads_pairs else "kv_index < kv_len"
        out.line(f"allowed = {allowed}")
        if "mask" in self.results:
            done = self.values.emit(out, "pair", ("mask",), Guard(pair="allowed"), done)
            out.line(f"allowed = allowed & ({self.values.result('mask')})")
        return done

    def emit_outputs(self, out: Emitter) -> None:
        """Writes ``acc``, the outputs of this consumer."""
        out.comment("The copy of the tile before must have left the buffer.")
        out.line("tma.store_wait(0)")
        out.line(f"{self.names.barrier}()")
        out.line("out_tile.reshape([ROWS, VALUE]).store(acc.to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        self.emit_store(out)

    def emit_store(self, out: Emitter) -> None:
        """Starts the copy of ``out_tile`` to memory."""
        out.line(f"{self.names.store}(out, [batch, head, tile_first + GROUP * ROWS, 0], out_tile)")

    def emit_inside(self, out: Emitter) -> str:
        """Which rows exist, as text."""
        return "q_row < q_len"

    def _emit_clear(self, out: Emitter) -> None:
        """After the scores of a partial tile: clears what must not be seen of its values."""
        if self.unseen.all_seen:
            return
        with out.block("if some_unseen(start, tl.minimum(start + BLOCK_N, kv_len), seen):"):
            out.line("mbarrier.wait(v_ready.index(stage), phase)")
            out.line("clear_unseen(v_tiles.index(stage).reshape([BLOCK_N, VALUE]), start, seen)")

    def _emit_epilogue(self, out: Emitter) -> None:
        out.line("mbarrier.arrive(q_empty)")
        out.line("used += count")
        out.line("last, last_phase = ring(used - 1)")
        out.line("mbarrier.wait(v_ready.index(last), last_phase)")
        out.line("acc = start_outputs(weights, v_tiles.index(last), acc)")
        out.line("acc = warpgroup_mma_wait(0, deps=(acc,))")
        out.line("mbarrier.arrive(v_empty.index(last))")
        out.line()
        out.comment("A row that may attend to nothing gives 0, and -inf for the logarithm of its sum.")
        out.line('total = tl.where(l == 0.0, float("-inf"), (m + tl.log2(l)) * LN2)')
        inside = self.emit_inside(out)
        out.line(f"tl.store(lse + entry.to(tl.int64) * q_len + q_row, total, mask={inside})")
        out.line("l = tl.convert_layout(l, tl.SliceLayout(1, OUTPUTS))")
        out.line("acc = tl.where((l == 0.0)[:, None], 0.0, acc * (1.0 / l)[:, None])")
        self.emit_outputs(out)
        out.line()
        out.line("turn += 1")
        out.line("mbarrier.wait(order_ready.index(turn & 1), turn >> 1 & 1)")
        out.line("program = read(orders, (turn & 1) * 3)")
