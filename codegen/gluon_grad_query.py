"""The kernel for dQ alone: a program owns 128 queries, 64 for each consumer, and walks the keys that they see.

The products for the scores of a tile of keys and for their gradient start before that of the last tile's gradient with
its keys: the exponentials of one tile are computed beside products of both. Nothing is added to global memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.dependence import LoadClass, dependence
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_columns import emit_columns
from .gluon_columns import lanes as column_lanes
from .gluon_grad_consumer import emit_final_score
from .gluon_loader import emit_place_function
from .gluon_module import emit_layouts
from .gluon_names import Names
from .gluon_releases import emit_releases
from .gluon_seen import UnseenByWeights, UnseenKeys
from .gluon_tiles import CELLS, KEYS, emit_unpack, emit_visits, jit_function
from .schedule import Problem, Schedule
from .triton_gradients import Gradients, emit_select
from .triton_module import Argument, kernel
from .triton_program import SIZES
from .triton_values import Guard

KERNEL = "attention_grad_query"
# Captured tensors whose gradients are summed for each query.
SUMMED_BY_QUERY: tuple[LoadClass, ...] = ("batch_head", "query")


class QueryConsumer(Gradients):
    """Prints the kernel and all that it calls; ``folded``: in which units log-sum-exps come."""

    name = KERNEL
    # What consumers take before buffers.
    targets = "grad_query, terms"

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, parameters: Sequence[Argument], names: Names,
        folded: bool,
    ) -> None:  # fmt: skip
        super().__init__(plan, problem, True)
        self.schedule, self.parameters, self.names, self.folded = schedule, parameters, names, folded
        self.unseen = UnseenKeys.of(plan) or UnseenByWeights.of(plan, problem.dtype)
        self.expressions = self.values()
        found = [x for e in self.results.values() for x in loads(e)]
        self.loads_keys = any(dependence(x) & {"q", "kv"} == {"kv"} for x in found)
        self.asks = isinstance(self.unseen, UnseenByWeights)
        self.here = self.of_kinds(*SUMMED_BY_QUERY)
        # What fits into registers is not read again from shared memory, which products of 64 by 64 keep busy.
        fits = {"q_tile": schedule.block_n == 64, "do_tile": schedule.block_n == problem.head_dim == 64}
        self.lefts = {name: name.removesuffix("_tile") for name, does in fits.items() if does}
        self.barriers = "q_ready, kv_ready" + (", weighty, weighty_ready" if self.asks else "")

    def emit(self, out: Emitter, launched: Sequence[Argument]) -> None:
        """The kernel, which is ``launched`` with these arguments, its functions and its constants."""
        self._emit_constants(out)
        out.definition(CELLS)
        emit_place_function(out, self.schedule.reverse)
        emit_visits(out, self.plan, KEYS, SIZES, self.parameters)
        emit_releases(out, 2)
        arguments = f"{self.targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters"
        self.emit_consumer(out, f"differentiate(GROUP: tl.constexpr, {arguments})")
        sizes = ", ".join(a.name for a in SIZES)
        out.definition(_LOAD_TILES.format(load=self.names.load, barriers=self.barriers, sizes=sizes))
        out.line("\n")
        with kernel(out, self.name, launched, ()):
            out.line(f"sizes = ({sizes})")
            out.line(f"parameters = ({', '.join(a.name for a in self.parameters)},)")
            weights = _WEIGHTS if self.asks else ""
            out.lines(_KERNEL_BODY.format(barriers=self.barriers, weights=weights, targets=self.targets))

    def _emit_constants(self, out: Emitter) -> None:
        schedule = self.schedule
        element = {"f16": "tl.float16", "bf16": "tl.bfloat16"}[self.problem.dtype]
        head, value, keys = self.problem.head_dim, self.problem.value_dim, schedule.block_n
        for name, number in (
            ("ROWS", schedule.block_m // 2), ("BLOCK_M", schedule.block_m), ("BLOCK_N", keys), ("HEAD", head),
            ("VALUE", value), ("STAGES", schedule.num_stages), ("ELEMENT", element),
        ):  # fmt: skip
            out.line(f"{name} = tl.constexpr({number})")
        out.comment("Layouts in registers: scores, sums, and left operands of both.")
        tiles = [
            ("QUERY_TILE", schedule.block_m // 2, head, element),
            ("OUT_TILE", schedule.block_m // 2, value, element),
            ("KEY_TILE", keys, head, element),
            ("VALUE_TILE", keys, value, element),
        ]
        operands = {"DIFFERENCES": "QUERY_SUMS", "LEFT": "SCORES"}
        emit_layouts(out, [("SCORES", keys), ("QUERY_SUMS", head)], operands, tiles)

    def emit_consumer(self, out: Emitter, signature: str) -> None:
        """The function of a consumer."""
        self.unseen.emit_functions(out, self.names.barrier, "BLOCK_N", SIZES, self.parameters)
        with jit_function(out, signature):
            out.line('"""A consumer: four warps own ROWS queries."""')
            done = self.emit_prologue(out)
            if self.asks:
                out.line("cleared = 0  # tiles of which it was asked what no query sees")
            if not self.unseen.all_seen:
                self.unseen.emit_bounds(out)
            out.line("dq = tl.zeros([ROWS, HEAD], tl.float32, QUERY_SUMS)")
            for c in self.here:
                out.line(f"{c.name}_total = tl.zeros([ROWS], tl.float32, tl.SliceLayout(1, SCORES))")
            out.comment("The first tile, masked even if it is full: nothing to overlap with yet.")
            out.line("stage, phase = ring(0)")
            self.emit_start_products(out)
            self._emit_gradient(out, done, masked=True, last=False)
            out.comment("Tiles in which the mask decides.")
            with out.block("for t in range(1, partial_count):"):
                self._emit_step(out, done, masked=True)
            out.comment("Tiles in which every pair is allowed.")
            with out.block("for t in range(tl.maximum(partial_count, 1), count):"):
                self._emit_step(out, done, masked=False)
            self._emit_epilogue(out)

    def emit_prologue(self, out: Emitter) -> frozenset[str]:
        """What is known before the first tile of keys; returns the steps done."""
        out.line(f"{self.barriers} = barriers")
        emit_unpack(out, "sizes", SIZES)
        emit_unpack(out, "parameters", self.parameters)
        out.line("entry, batch, head, kv_head, tile_first = query_tile(tl.program_id(0), sizes)")
        out.line("q_tile = q_tiles.index(GROUP).reshape([ROWS, HEAD])")
        out.line("do_tile = do_tiles.index(GROUP).reshape([ROWS, VALUE])")
        out.line("q_row = tile_first + GROUP * ROWS + tl.arange(0, ROWS, tl.SliceLayout(1, SCORES))")
        out.line("q_index = q_row[:, None]")
        out.line("columns = tl.arange(0, BLOCK_N, tl.SliceLayout(0, SCORES))")
        if self.loads_keys:
            out.line(f"lanes = {column_lanes('BLOCK_N')}")
        self.emit_unit(out)
        out.comment("Rows are padded to whole tiles.")
        out.line("padded = tl.cdiv(q_len, BLOCK_M) * BLOCK_M")
        unit = " * -unit" if self.folded else ""
        out.line(f"lse_rows = tl.load(terms + entry.to(tl.int64) * padded + q_row){unit}")
        out.line("delta_rows = -tl.load(terms + (all_heads + entry).to(tl.int64) * padded + q_row)")
        out.line("visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)")
        out.line("partial_count = visits[0]")
        out.line("count = visits[0] + visits[1]")
        wanted = self.wanted(self.here, masked=True)
        done = self.expressions.emit(out, "program", wanted, Guard())
        done = self.expressions.emit(out, "query", wanted, Guard(query="(q_index < q_len)"), done)
        out.line("mbarrier.wait(q_ready, 0)")
        for name, left in self.lefts.items():
            out.line(f"{left} = {name}.load(LEFT)")
        return done

    def emit_start_products(self, out: Emitter) -> None:
        """Of the tile of keys in buffer ``stage``: ``next_s`` and ``next_dp``."""
        out.line("zero = tl.zeros([ROWS, BLOCK_N], tl.float32, SCORES)")
        out.line("mbarrier.wait(kv_ready.index(stage), phase)")
        for name, own, tiles, size in (("s", "q_tile", "k_tiles", "HEAD"), ("dp", "do_tile", "v_tiles", "VALUE")):
            left = self.lefts.get(own, own)
            tile = f"{tiles}.index(stage).reshape([BLOCK_N, {size}]).permute((1, 0))"
            out.line(f"next_{name} = warpgroup_mma({left}, {tile}, zero, use_acc=False, is_async=True)")

    def _emit_start_sums(self, out: Emitter) -> None:
        """From the last ``ds``, which is rounded here and not before: loops would carry halves of registers."""
        out.line("differences = tl.convert_layout(ds.to(ELEMENT), DIFFERENCES)")
        out.line("k_tile = k_tiles.index(last).reshape([BLOCK_N, HEAD])")
        out.line("next_dq = warpgroup_mma(differences, k_tile, dq, is_async=True)")

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """The gradient of the scores of one tile of keys, overlapped with the sums of the tile before."""
        out.line("last, _ = ring(t - 1)")
        out.line("stage, phase = ring(t)")
        self.emit_start_products(out)
        self._emit_start_sums(out)
        self._emit_gradient(out, done, masked=masked, last=True)

    def _emit_gradient(self, out: Emitter, done: frozenset[str], *, masked: bool, last: bool) -> None:
        """``ds`` from products on their way; with ``last`` the sums of the tile before are, too."""
        self.emit_probabilities_of_tile(out, done, masked=masked, pending=2 if last else 1)
        out.line(f"dp = warpgroup_mma_wait({1 if last else 0}, deps=(next_dp,))")
        found = self.emit_score_gradient(out, self.expressions, self.here, delta="delta_rows[:, None]")
        if masked:
            emit_select(out, found)
        for c in self.here:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        if last:
            out.line("dq = warpgroup_mma_wait(0, deps=(next_dq,))")
            out.line("release(last)")
        if masked and not self.unseen.all_seen:
            with out.block(f"if {self.unseen.some_unseen}:"):
                self.unseen.emit_clear(out, ["k_tiles.index(stage).reshape([BLOCK_N, HEAD])"])

    def emit_probabilities_of_tile(
        self, out: Emitter, done: frozenset[str], *, masked: bool, pending: int
    ) -> None:
        """``p`` and what derivatives need, from ``next_s`` after which ``pending`` products were started."""
        values, wanted = self.expressions, self.wanted(self.here, masked=masked)
        out.line(f"s = warpgroup_mma_wait({pending}, deps=(next_s,))")
        if wanted or masked:
            out.line("start = read(starts, stage)")
            done = emit_columns(out, values, "key", wanted, Guard(key=self.kv_exists if masked else ""), done)
        if masked:
            done = self.emit_allowed(out, values, done)
        lanes = "allowed" if masked else self.q_exists
        score = emit_final_score(out, self, values, wanted, done, lanes, "[ROWS, BLOCK_N]")
        text = self.exponential(score, "lse_rows[:, None]")
        out.line(f"p = {f'tl.where(allowed, {text}, 0.0)' if masked else text}")

    def _emit_epilogue(self, out: Emitter) -> None:
        out.line("last, _ = ring(tl.maximum(count, 1) - 1)")
        self._emit_start_sums(out)
        out.line("dq = warpgroup_mma_wait(0, deps=(next_dq,))")
        out.line()
        out.comment("The gradient leaves from where the queries were.")
        out.line("q_tile.store((dq * scale).to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        out.line(f"{self.names.store}(grad_query, [batch, head, tile_first + GROUP * ROWS, 0], q_tiles.index(GROUP))")
        for c in self.here:
            place = f"{c.name}_sums + entry.to(tl.int64) * q_len + q_row"
            out.line(f"tl.store({place}, {c.name}_total, mask=q_row < q_len)")
        out.line("tma.store_wait(0)")


_LOAD_TILES = """
@gluon.jit
def load_tiles(query, grad_out, key, value, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters):
    \"\"\"The producer: one warp loads the tile of queries, then one tile of keys after the other.\"\"\"
    {barriers} = barriers
    {sizes} = sizes
    entry, batch, head, kv_head, tile_first = query_tile(gl.program_id(0), sizes)
    visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)
    mbarrier.expect(q_ready, BLOCK_M * (HEAD + VALUE) * 2)
    for i in gl.static_range(2):
        {load}(query, [batch, head, tile_first + ROWS * i, 0], q_ready, q_tiles.index(i))
        {load}(grad_out, [batch, head, tile_first + ROWS * i, 0], q_ready, do_tiles.index(i))
    # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
    for t in range(0, gl.maximum(visits[0] + visits[1], 1)):
        start = visited_start(t, visits)
        stage, phase = ring(t)
        if t >= STAGES:
            acquire(stage)
        write(starts, stage, start)
        mbarrier.expect(kv_ready.index(stage), BLOCK_N * (HEAD + VALUE) * 2)
        {load}(key, [batch, kv_head, start, 0], kv_ready.index(stage), k_tiles.index(stage))
        {load}(value, [batch, kv_head, start, 0], kv_ready.index(stage), v_tiles.index(stage))
"""
_WEIGHTS = """\
# Which keys of a tile have weights, for each consumer, twice; both make it ready.
weighty = gl.allocate_shared_memory(gl.int32, [4, BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
weighty_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
mbarrier.init(weighty_ready, count=2)
"""
_KERNEL_BODY = """
q_tiles = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, ROWS, HEAD], QUERY_TILE)
do_tiles = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, ROWS, VALUE], OUT_TILE)
k_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, BLOCK_N, HEAD], KEY_TILE)
v_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, BLOCK_N, VALUE], VALUE_TILE)
starts = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready.
q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
kv_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
mbarrier.init(q_ready, count=1)
for i in gl.static_range(STAGES):
    mbarrier.init(kv_ready.index(i), count=1)
{weights}barriers = ({barriers})
gl.warp_specialize(
    [
        (
            differentiate,
            (0, {targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters),
        ),
        (
            differentiate,
            (1, {targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters),
        ),
        (
            load_tiles,
            (query, grad_out, key, value, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters),
        ),
    ],
    [4, 1],
    [240, 24],  # registers of the second consumer and of the producer: 168 for each thread in all
)
"""
