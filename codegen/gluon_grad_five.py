"""The consumer of the backward kernel with five products.

It exchanges the scores' gradient with the other consumer, and adds half of each tile's gradient of queries to what
programs have added before.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.tiles.plan import TilePlan
from .defaults import heavier_at_one_end
from .emitter import Emitter
from .gluon_bands import BAND_INDICES
from .gluon_columns import emit_columns
from .gluon_grad_consumer import Consumer
from .gluon_grad_loader import SIZES
from .gluon_names import Names
from .gluon_seen import UnseenKeys
from .gluon_tiles import emit_unpack, jit_function
from .schedule import Problem
from .triton_module import Argument
from .triton_program import uses_table
from .triton_values import Guard, Values

# Each consumer adds half of a tile's gradient of queries: half of the columns, or of the queries.
_HALVES = {
    True: ("k_tiles.index({}).reshape([KEYS, HEAD]).slice(GROUP * DQ_COLUMNS, DQ_COLUMNS, 1)", "ds_tiles.index({})"),
    False: (
        "k_tiles.index({}).reshape([KEYS, HEAD])",
        "ds_tiles.index({}).slice(GROUP * DQ_ROWS, DQ_ROWS, 1)",
    ),
}
_SET_UP = """
# Gradients of scores of both consumers, twice; and of queries, on their way out.
ds_tiles = gl.allocate_shared_memory(ELEMENT, [4, KEYS, BLOCK_M], SCORE_TILE)
dq_tiles = gl.allocate_shared_memory(gl.float32, [2, 1, 1, DQ_ROWS, DQ_COLUMNS], SUM_TILE)
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


class FiveProducts(Consumer):
    """Prints ``differentiate`` with gradients of queries.

    In which order products start is what was measured fastest.
    """

    # Whether dQ starts before dK, beside which it is added up.
    queries_first = False

    arguments = (
        "grad_query, grad_key, grad_value, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, ds_tiles, dq_tiles, "
        "barriers, starts, sizes, parameters"
    )
    barriers = "kv_ready, tile_ready, tile_empty, ds_ready, finished"
    # Buffers and barriers, and how the producer waits for a buffer.
    set_up = _SET_UP
    wait = "mbarrier.wait(tile_empty.index(stage), phase ^ 1)"

    def __init__(
        self, plan: TilePlan, problem: Problem, block_m: int, parameters: Sequence[Argument], names: Names
    ) -> None:
        super().__init__(plan, problem, block_m, parameters, names)
        self.unseen = UnseenKeys.of(plan)
        if block_m == 64:
            # Where programs get shorter from tile to tile, this order loses, unless more is done beside products.
            even, slopes = uses_table(plan) or not heavier_at_one_end(plan.queries), "slope" in self.results
            self.queries_first = even or (slopes and problem.head_dim > 64)
            self.late_values = even or slopes
        else:
            self.late_values = not self.has_scores

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
            place = f"batch, chunk * group, kv_head, {self.own_tile}"
            out.line(f"clear_unseen(k_tile, own_first, {place}, sizes, parameters)")
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
        if self.late_values:
            self.emit_start_values(out)
        out.line("fence_async_shared()")
        out.line("mbarrier.arrive(ds_ready.index(buffer))")
        if self.queries_first:
            self._emit_start_queries(out)
            self._emit_start_keys(out)
            out.line("dv = warpgroup_mma_wait(3, deps=(next_dv,))")
            self._emit_free_buffer(out)
            self._emit_add_queries(out, behind=1)
            out.line("dk = warpgroup_mma_wait(0, deps=(next_dk,))")
            out.line("mbarrier.arrive(tile_empty.index(stage))")
        else:
            self._emit_start_keys(out)
            self._emit_start_queries(out)
            out.line("dv = warpgroup_mma_wait(3, deps=(next_dv,))")
            out.line("dk = warpgroup_mma_wait(2, deps=(next_dk,))")
            self._emit_free_buffer(out)
            out.line("mbarrier.arrive(tile_empty.index(stage))")
            self._emit_add_queries(out, behind=0)

    def _emit_start_keys(self, out: Emitter) -> None:
        out.line("next_dk = warpgroup_mma(tl.convert_layout(ds, DIFFERENCES), q_tile, dk, is_async=True)")

    def _emit_start_queries(self, out: Emitter) -> None:
        out.comment("The gradient of queries needs the scores' gradient of all keys.")
        out.line("mbarrier.wait(ds_ready.index(buffer), step // 2 & 1)")
        low, high = (_HALVES[self.split_columns][1].format(f"buffer * 2{x}") for x in ("", " + 1"))
        out.line("nothing = tl.zeros([DQ_ROWS, DQ_COLUMNS], tl.float32, QUERY_SUMS)")
        out.line(f"half = warpgroup_mma({low}.permute((1, 0)), k_low, nothing, use_acc=False, is_async=True)")
        out.line(f"next_dq = warpgroup_mma({high}.permute((1, 0)), k_high, half, is_async=True)")

    def _emit_free_buffer(self, out: Emitter) -> None:
        out.comment("The tile before must have left the buffer.")
        out.line("tma.store_wait(0)")
        out.line(f"{self.names.barrier}()")

    def _emit_add_queries(self, out: Emitter, behind: int) -> None:
        """``behind``: how many products that were started later may go on."""
        out.line(f"dq = warpgroup_mma_wait({behind}, deps=(next_dq,))")
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

    def _emit_clear_unseen(self, out: Emitter) -> None:
        """Where which keys are seen has no closed form: the mask says, for tiles that are not finite."""
        mask = self.mask_result
        values = Values({x: self.results[x] for x in mask}, BAND_INDICES, debug=self.problem.debug, columns="q")
        signature = f"clear_unseen(k_tile, own_first, batch, head, kv_head, {self.own_tile}, sizes, parameters)"
        with jit_function(out, signature):
            out.line('"""Zeros in the rows of keys that no query sees, if there is anything but finite numbers."""')
            out.line("LAYOUT: tl.constexpr = tl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])")
            out.line("ROWS: tl.constexpr = tl.SliceLayout(1, LAYOUT)")
            out.line("keys = k_tile.load(LAYOUT)")
            with out.block("if tl.sum(tl.sum(keys.to(tl.float32) * 0.0, 1), 0) != 0.0:"):
                emit_unpack(out, "sizes", SIZES)
                emit_unpack(out, "parameters", self.parameters)
                out.line("kv_index = own_first + tl.arange(0, KEYS, tl.SliceLayout(1, SCORES))[:, None]")
                self._emit_positions(out)
                out.line("seen = tl.zeros([KEYS], tl.int32, tl.SliceLayout(1, SCORES))")
                out.line(self.own_visits)
                done = values.emit(out, "program", mask, Guard())
                done = values.emit(out, "key", mask, Guard(key="(kv_index < kv_len)"), done)
                with out.block("for t in range(0, visits[0] + visits[1]):"):
                    out.line(self.next_start)
                    guard = Guard(query="(q_index < q_len)")
                    done = emit_columns(out, values, "query", mask, guard, done)
                    self.emit_allowed(out, values, done)
                    self.emit_mixed(out, "allowed", "False")
                    out.line("seen = tl.maximum(seen, tl.max(allowed.to(tl.int32), 1))")
                out.line("k_tile.store(tl.where((tl.convert_layout(seen, ROWS) != 0)[:, None], keys, 0.0))")
                out.line("fence_async_shared()")
                out.line(f"{self.names.barrier}()")
