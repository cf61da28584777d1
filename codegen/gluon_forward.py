"""The forward kernel for sm_90: one warp loads, two groups of four warps compute.

The producer walks through the tiles of keys of one tile of queries after the other and fills two rings of
buffers, for K and for V, through the tensor memory accelerator. Each consumer owns 64 queries: it starts the
product of Q with the next tile of K, then that of the last weights with their tile of V, and computes the
softmax of the one while the other runs. Tiles of queries come from a counter, the heaviest first, in sections
of heads whose keys and values fit in the L2 cache. The structure is that of FlashAttention-3 (Shah et al.,
2024, https://arxiv.org/abs/2407.08608).

The tiles of keys of one tile of queries form one sequence: first the partial ones, then the full ones.
"""

from __future__ import annotations

import re

from ..ir.dependence import dependence
from ..ir.nodes import TRUE, Expr
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_module import finish
from .gluon_names import installed_names
from .gluon_seen import UnseenKeys
from .schedule import Problem, Schedule, Source, Target
from .triton_forward import composed_scores
from .triton_module import (
    Argument,
    buffer_arguments,
    emit_header,
    emit_launch,
    kernel,
    scalar_arguments,
)
from .triton_program import INDICES, SIZES, emit_place, emit_shape_check
from .triton_tiles import TileLoops, emit_ranges
from .triton_values import Guard, Values, user_name

KERNEL = "attention_forward"
_HEAD_SIZES = (64, 128)
_NAME = re.compile(r"[^\W\d]\w*(?!\w*\()")


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot compute the forward pass, in one sentence; None where it can."""
    if target.backend != "cuda" or target.arch != 90:
        return f"{target} is not sm_90"
    if problem.dtype == "f32":
        return "float32 inputs do not multiply by wgmma"
    for size in (problem.head_dim, problem.value_dim):
        if size not in _HEAD_SIZES:
            return f"head size {size} is not one of {', '.join(map(str, _HEAD_SIZES))}"
    if not problem.aligned:
        return "bases or strides are not multiples of 16 bytes, which tensor descriptors need"
    if plan.method != "closed":
        return "its tiles come from a table, not from closed forms"
    if UnseenKeys.of(plan) is None:
        return "which keys no query sees is not a closed form, so non-finite values could not be kept out"
    return None


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against."""
    from .defaults import heaviest_last

    stages = 2 if max(problem.head_dim, problem.value_dim) > 64 else 4
    return Schedule(128, 128, num_warps=4, num_stages=stages, reverse=heaviest_last(plan.keys), descriptors=True)


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    return _Forward(plan, problem, schedule, target).source()


class _Forward:
    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> None:
        self.plan, self.problem, self.schedule, self.target = plan, problem, schedule, target
        unseen = UnseenKeys.of(plan)
        assert unseen is not None
        self.unseen = unseen
        self.names = installed_names()
        results: dict[str, Expr] = {}
        if plan.variant.mask != TRUE:
            results["mask"] = plan.variant.mask
        self.score: Expr | None = None
        if plan.variant.scores:
            self.score = results["score"] = composed_scores(plan.variant.scores)[-1]
        self.results = tuple(results)
        self.values = Values(results, INDICES, debug=problem.debug)
        self.parameters = [Argument("scale", "fp32", "scale"), *buffer_arguments(plan), *scalar_arguments(plan)]

    def arguments(self) -> list[Argument]:
        return [
            Argument("lse", "", "lse"),
            Argument("counter", "", "counter"),
            Argument("query", "", "descriptor(query, ROWS, QUERY_TILE)"),
            Argument("key", "", "descriptor(key, BLOCK_N, KEY_TILE)"),
            Argument("value", "", "descriptor(value, BLOCK_N, VALUE_TILE)"),
            Argument("out", "", "descriptor(out, ROWS, OUT_TILE)"),
            *self.parameters,
            *SIZES,
        ]

    def source(self) -> Source:
        head, out = Emitter(), Emitter()
        emit_header(head, "Forward kernel", self.plan, self.problem, self.schedule, self.target)
        self.emit_constants(out)
        self.loops = self.emit_query_tile(out)
        self.emit_key_start(out)
        self.emit_load(out)
        self.unseen.emit_function(out, self.names.barrier)
        self.emit_attend(out)
        self.emit_kernel(out)
        self.emit_run(out)
        return finish(out, self.plan, [KERNEL], head)

    def emit_constants(self, out: Emitter) -> None:
        s, p = self.schedule, self.problem
        element = {"f16": "gl.float16", "bf16": "gl.bfloat16"}[p.dtype]
        out.lines(f'''
ROWS = tl.constexpr({s.block_m // 2})  # queries of one group of warps
BLOCK_M = tl.constexpr({s.block_m})
BLOCK_N = tl.constexpr({s.block_n})
HEAD = tl.constexpr({p.head_dim})
VALUE = tl.constexpr({p.value_dim})
STAGES = tl.constexpr({s.num_stages})
ELEMENT = tl.constexpr({element})
# Layouts in registers: scores and outputs of one group of warps, and scores as the left operand of a product.
SCORES = tl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, {s.block_n}, 16]))
OUTPUTS = tl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, {p.value_dim}, 16]))
WEIGHTS = tl.constexpr(gl.DotOperandLayout(0, OUTPUTS.value, 2))
# Layouts in shared memory.
QUERY_TILE = tl.constexpr(gl.NVMMASharedLayout.get_default_for([1, 1, {s.block_m // 2}, {p.head_dim}], {element}))
KEY_TILE = tl.constexpr(gl.NVMMASharedLayout.get_default_for([1, 1, {s.block_n}, {p.head_dim}], {element}))
VALUE_TILE = tl.constexpr(gl.NVMMASharedLayout.get_default_for([1, 1, {s.block_n}, {p.value_dim}], {element}))
OUT_TILE = tl.constexpr(gl.NVMMASharedLayout.get_default_for([1, 1, {s.block_m // 2}, {p.value_dim}], {element}))
FORWARD = dict(num_warps=4, maxnreg=168)
''')

    def unpack(self, out: Emitter) -> None:
        out.line(f"{', '.join(a.name for a in SIZES)} = sizes")
        out.line(f"{', '.join(a.name for a in self.parameters)}{',' if len(self.parameters) == 1 else ''} = parameters")

    def emit_query_tile(self, out: Emitter) -> TileLoops:
        out.line("\n")
        out.line("@triton.jit")
        with out.block("def query_tile(program, sizes, parameters):"):
            out.line('"""Head and tile of queries number `program`, and what numbers its tiles of keys."""')
            self.unpack(out)
            emit_place(out, length="q_len", block="BLOCK_M", reverse=self.schedule.reverse)
            out.line("batch, head = entry // heads, entry % heads")
            out.line("kv_head = head // (heads // kv_heads)")
            out.line("tile_first = tile * BLOCK_M")
            out.line("tile_last = tl.minimum(tile_first + BLOCK_M, q_len) - 1")
            out.comment("Keys that this tile of queries may see, and those that all of it sees.")
            loops = emit_ranges(out, self.plan.keys, INDICES, "BLOCK_N", "kv_len")
            for kind, count in (("partial", loops.partial_count), ("full", loops.full_count)):
                if not count:
                    out.line(f"{kind}_count = 0")
            self.tile_names = _names_in(loops)
            out.line(f"tiles = ({', '.join(('partial_count', 'full_count', *self.tile_names))})")
            out.line("return entry, batch, head, kv_head, tile_first, tiles")
        return loops

    def emit_key_start(self, out: Emitter) -> None:
        out.line("\n")
        out.line("@triton.jit")
        with out.block("def key_start(t, tiles):"):
            out.line('"""First key of the t-th tile of keys: partial tiles come first, then full ones."""')
            out.line(f"{', '.join(('partial_count', 'full_count', *self.tile_names))} = tiles")
            if not self.loops.partial_count:
                out.line("return t * BLOCK_N")
                return
            out.line(f"partial = {self.loops.partial_tile}")
            if not self.loops.full_count:
                out.line("return partial * BLOCK_N")
                return
            out.line("t = t - partial_count")
            out.line(f"full = {self.loops.full_tile}")
            out.line("return tl.where(t < 0, partial, full) * BLOCK_N")

    def emit_load(self, out: Emitter) -> None:
        out.definition(f'''
@gluon.jit
def load_tiles(query, key, value, q_tiles, k_tiles, v_tiles, barriers, queue, sizes, parameters):
    """The producer: one warp keeps the buffers full."""
    q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = barriers
    counter, following, following_ready, following_empty = queue
    {", ".join(a.name for a in SIZES)} = sizes
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    programs = gl.cdiv(q_len, BLOCK_M) * all_heads
    program = gl.program_id(0)
    loaded = 0  # tiles of keys
    turn = 0  # tiles of queries
    while program < programs:
        next_program = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
        slot = turn & 1
        mbarrier.wait(following_empty.index(slot), (turn >> 1 & 1) ^ 1)
        following.index(slot).store(gl.full([1], next_program, gl.int32, ONE))
        mbarrier.arrive(following_ready.index(slot))

        entry, batch, head, kv_head, tile_first, tiles = query_tile(program, sizes, parameters)
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_ready, BLOCK_M * HEAD * 2)
        {self.names.load}(query, [batch, head, tile_first, 0], q_ready, q_tiles.index(0))
        {self.names.load}(query, [batch, head, tile_first + ROWS, 0], q_ready, q_tiles.index(1))
        # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
        count = gl.maximum(tiles[0] + tiles[1], 1)
        for t in range(0, count):
            stage = loaded % STAGES
            phase = (loaded // STAGES & 1) ^ 1
            start = key_start(t, tiles)
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_ready.index(stage), BLOCK_N * HEAD * 2)
            {self.names.load}(key, [batch, kv_head, start, 0], k_ready.index(stage), k_tiles.index(stage))
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_ready.index(stage), BLOCK_N * VALUE * 2)
            {self.names.load}(value, [batch, kv_head, start, 0], v_ready.index(stage), v_tiles.index(stage))
            loaded += 1
        turn += 1
        program = next_program
''')

    def emit_attend(self, out: Emitter) -> None:
        out.line("\n")
        out.line("@triton.jit")
        with out.block(
            "def attend(GROUP: tl.constexpr, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, queue, sizes, parameters):"
        ):
            out.line('"""A consumer: four warps own 64 queries of each tile."""')
            self.emit_attend_prologue(out)
            with out.block("while program < programs:"):
                self.emit_query_prologue(out)
                self.emit_first(out)
                done = self.done
                if self.loops.partial_count:
                    out.comment("Tiles in which the mask decides.")
                    with out.block("for t in range(1, partial_count):"):
                        self.emit_step(out, done, masked=True)
                if self.loops.full_count:
                    out.comment("Tiles in which every pair is allowed.")
                    with out.block("for t in range(tl.maximum(partial_count, 1), count):"):
                        self.emit_step(out, done, masked=False)
                self.emit_epilogue(out)
            out.line("tma.store_wait(0)")

    def emit_attend_prologue(self, out: Emitter) -> None:
        out.line("q_ready, q_empty, k_ready, k_empty, v_ready, v_empty = barriers")
        out.line("counter, following, following_ready, following_empty = queue")
        self.unpack(out)
        out.line("FOUR: tl.constexpr = tl.BlockedLayout([1], [32], [4], [0])")
        out.line("q_tile = q_tiles.index(GROUP).reshape([ROWS, HEAD])")
        out.line("out_tile = out_tiles.index(GROUP)")
        out.line("zero = tl.zeros([ROWS, BLOCK_N], tl.float32, SCORES)")
        out.line("rows = tl.arange(0, ROWS, tl.SliceLayout(1, SCORES))")
        out.line("keys = tl.arange(0, BLOCK_N, tl.SliceLayout(0, SCORES))")
        if self.score is None:
            out.line("unit = scale * LOG2E")
        out.line("programs = tl.cdiv(q_len, BLOCK_M) * all_heads")
        out.line("program = tl.program_id(0)")
        out.line("used = 0  # tiles of keys")
        out.line("turn = 0  # tiles of queries")

    def emit_query_prologue(self, out: Emitter) -> None:
        out.line("entry, batch, head, kv_head, tile_first, tiles = query_tile(program, sizes, parameters)")
        out.line("partial_count = tiles[0]")
        out.line("count = tl.maximum(partial_count + tiles[1], 1)")
        out.line("q_row = tile_first + GROUP * ROWS + rows")
        out.line("q_index = q_row[:, None]")
        self.unseen.emit_bounds(out)
        done = self.values.emit(out, "program", self.results, Guard())
        self.done = self.values.emit(out, "query", self.results, Guard(query="(q_index < q_len)"), done)
        out.line("acc = tl.zeros([ROWS, VALUE], tl.float32, OUTPUTS)")

    def emit_first(self, out: Emitter) -> None:
        out.comment("The first tile, masked even if it is full: nothing to overlap with yet.")
        out.line("mbarrier.wait(q_ready, turn & 1)")
        self.emit_place_in_ring(out, "stage", "phase", "used")
        out.line("mbarrier.wait(k_ready.index(stage), phase)")
        out.line(
            "s = warpgroup_mma(q_tile, k_tiles.index(stage).reshape([BLOCK_N, HEAD]).permute((1, 0)), zero, use_acc=False, is_async=True)"
        )
        out.line("s = warpgroup_mma_wait(0, deps=(s,))")
        out.line("mbarrier.arrive(k_empty.index(stage))")
        self.emit_scores(out, "0", self.done, masked=True)
        out.comment("Finite, so never inf - inf: a row may see none of its first tile.")
        out.line(f"m = tl.maximum(tl.max(s, 1) * {self.unit}, -3.0e38)  # running maximum times log2(e)")
        out.line(f"p = tl.exp2(s * {self.unit} - m[:, None])")
        out.line("l = tl.sum(p, 1)  # running sum of exponentials")
        out.line("weights = tl.convert_layout(p.to(ELEMENT), WEIGHTS)")
        self.unseen.emit_clear(out)

    @property
    def unit(self) -> str:
        return "unit" if self.score is None else "LOG2E"

    def emit_place_in_ring(self, out: Emitter, stage: str, phase: str, number: str) -> None:
        out.line(f"{stage} = ({number}) % STAGES")
        out.line(f"{phase} = ({number}) // STAGES & 1")

    def emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """One tile of keys: its scores and weights, and the values of the tile before."""
        self.emit_place_in_ring(out, "stage", "phase", "used + t")
        self.emit_place_in_ring(out, "last", "last_phase", "used + t - 1")
        out.line("mbarrier.wait(k_ready.index(stage), phase)")
        out.line(
            "next_s = warpgroup_mma(q_tile, k_tiles.index(stage).reshape([BLOCK_N, HEAD]).permute((1, 0)), zero, use_acc=False, is_async=True)"
        )
        out.line("mbarrier.wait(v_ready.index(last), last_phase)")
        out.line("next_acc = warpgroup_mma(weights, v_tiles.index(last).reshape([BLOCK_N, VALUE]), acc, is_async=True)")
        out.line("s = warpgroup_mma_wait(1, deps=(next_s,))")
        out.line("mbarrier.arrive(k_empty.index(stage))")
        self.emit_scores(out, "t", done, masked=masked)
        out.line(f"m_new = tl.maximum(m, tl.max(s, 1) * {self.unit})")
        out.line(f"p = tl.exp2(s * {self.unit} - m_new[:, None])")
        out.line("alpha = tl.exp2(m - m_new)")
        out.line("l = l * alpha + tl.sum(p, 1)")
        out.line("m = m_new")
        out.line("acc = warpgroup_mma_wait(0, deps=(next_acc,))")
        out.line("mbarrier.arrive(v_empty.index(last))")
        out.line("acc = acc * tl.convert_layout(alpha, tl.SliceLayout(1, OUTPUTS))[:, None]")
        out.line("weights = tl.convert_layout(p.to(ELEMENT), WEIGHTS)")
        if masked:
            self.unseen.emit_clear(out)

    def emit_scores(self, out: Emitter, tile: str, done: frozenset[str], *, masked: bool) -> None:
        """From products ``s`` to modified and masked scores."""
        wanted = self.results if masked else tuple(x for x in self.results if x != "mask")
        if masked or (self.score is not None and "kv" in dependence(self.score)):
            out.line(f"start = key_start({tile}, tiles)")
            out.line("kv_index = start + keys[None, :]")
        done = self.values.emit(out, "key", wanted, Guard(key="(kv_index < kv_len)" if masked else ""), done)
        lanes = "(q_index < q_len)"
        if masked:
            out.line("allowed = (q_index < q_len) & (kv_index < kv_len)")
            lanes = "allowed"
            if "mask" in wanted:
                done = self.values.emit(out, "pair", ("mask",), Guard(pair="allowed"), done)
                out.line(f"allowed &= {self.values.result('mask')}")
        if self.score is not None:
            out.line("s *= scale")
            self.values.emit(out, "pair", ("score",), Guard(pair=lanes), done)
            text = self.values.result("score")
            out.line(f"s = {text}" if {"q", "kv"} <= dependence(self.score) or "s" in dependence(self.score) else f"s = zero + ({text})")
        if masked:
            out.line('s = tl.where(allowed, s, float("-inf"))')

    def emit_epilogue(self, out: Emitter) -> None:
        out.line("mbarrier.arrive(q_empty)")
        self.emit_place_in_ring(out, "last", "last_phase", "used + count - 1")
        out.line("used += count")
        out.line("mbarrier.wait(v_ready.index(last), last_phase)")
        out.line("acc = warpgroup_mma(weights, v_tiles.index(last).reshape([BLOCK_N, VALUE]), acc, is_async=True)")
        out.line("acc = warpgroup_mma_wait(0, deps=(acc,))")
        out.line("mbarrier.arrive(v_empty.index(last))")
        out.line()
        out.comment("A row that may attend to nothing gives 0, and -inf for the logarithm of its sum.")
        out.line('total = tl.where(l == 0.0, float("-inf"), (m + tl.log2(l)) * LN2)')
        out.line("tl.store(lse + entry.to(tl.int64) * q_len + q_row, total, mask=q_row < q_len)")
        out.line("l = tl.convert_layout(l, tl.SliceLayout(1, OUTPUTS))")
        out.line("weight = tl.where(l == 0.0, 0.0, 1.0 / l)")
        out.line("acc = tl.where((l == 0.0)[:, None], 0.0, acc * weight[:, None])")
        out.comment("The copy of the tile before must have left the buffer.")
        out.line("tma.store_wait(0)")
        out.line(f"{self.names.barrier}()")
        out.line("out_tile.reshape([ROWS, VALUE]).store(acc.to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        out.line(f"{self.names.store}(out, [batch, head, tile_first + GROUP * ROWS, 0], out_tile)")
        out.line()
        out.line("slot = turn & 1")
        out.line("mbarrier.wait(following_ready.index(slot), turn >> 1 & 1)")
        out.line("program = tl.max(following.index(slot).load(FOUR), 0)")
        out.line("mbarrier.arrive(following_empty.index(slot))")
        out.line("turn += 1")

    def emit_kernel(self, out: Emitter) -> None:
        out.line("\n")
        with kernel(out, KERNEL, self.arguments(), ()):
            out.line(f"sizes = ({', '.join(a.name for a in SIZES)})")
            out.line(f"parameters = ({', '.join(a.name for a in self.parameters)},)")
            out.lines('''
q_tiles = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, ROWS, HEAD], QUERY_TILE)
out_tiles = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, ROWS, VALUE], OUT_TILE)
k_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, BLOCK_N, HEAD], KEY_TILE)
v_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, BLOCK_N, VALUE], VALUE_TILE)
following = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready, both consumers make them empty.
q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
following_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
following_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
mbarrier.init(q_ready, count=1)
mbarrier.init(q_empty, count=2)
for i in gl.static_range(2):
    mbarrier.init(following_ready.index(i), count=1)
    mbarrier.init(following_empty.index(i), count=2)
for i in gl.static_range(STAGES):
    mbarrier.init(k_ready.index(i), count=1)
    mbarrier.init(k_empty.index(i), count=2)
    mbarrier.init(v_ready.index(i), count=1)
    mbarrier.init(v_empty.index(i), count=2)
barriers = (q_ready, q_empty, k_ready, k_empty, v_ready, v_empty)
queue = (counter, following, following_ready, following_empty)
gl.warp_specialize(
    [
        (attend, (0, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, queue, sizes, parameters)),
        (attend, (1, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, queue, sizes, parameters)),
        (load_tiles, (query, key, value, q_tiles, k_tiles, v_tiles, barriers, queue, sizes, parameters)),
    ],
    [4, 1],
    [240, 24],
)
''')

    def emit_run(self, out: Emitter) -> None:
        v = self.plan.variant
        names = [user_name(p.name) for p in (*v.buffers, *v.scalars)]
        out.definition('''
def descriptor(x, rows, layout):
    """Tiles of ``rows`` rows of a (B, H, L, D) tensor."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows.value, x.shape[3]], layout.value)
''')
        with out.define(f"run({', '.join(['query', 'key', 'value', *names, 'scale=None', 'tiles=None'])})"):
            out.line('"""(B, H, Lq, D), (B, Hkv, Lkv, D), (B, Hkv, Lkv, Dv) -> outputs (B, H, Lq, Dv), lse (B, H, Lq)."""')
            out.line("batches, heads, q_len, _ = query.shape")
            out.line("kv_heads, kv_len = key.shape[1], key.shape[2]")
            emit_shape_check(out, self.problem)
            default = v.scale if v.scale is not None else self.problem.head_dim**-0.5
            out.line(f"scale = {default!r} if scale is None else scale")
            if self.score is None:
                out.comment("The running maximum needs a positive scale.")
                with out.block("if scale < 0:"):
                    out.line("query, scale = -query, -scale")
                out.line("scale = max(scale, 1e-30)")
            shape = f"(batches, heads, q_len, {self.problem.value_dim})"
            out.line(f"out = torch.empty({shape}, dtype=query.dtype, device=query.device)")
            out.line("lse = torch.empty((batches, heads, q_len), dtype=torch.float32, device=query.device)")
            with out.block("if lse.numel() == 0 or kv_len == 0:"):
                out.line('return out.zero_(), lse.fill_(float("-inf"))')
            out.line("multiprocessors, _ = device_limits(query.device)")
            out.line(f"programs = min(multiprocessors, triton.cdiv(q_len, {self.schedule.block_m}) * batches * heads)")
            out.comment("Tiles of queries that programs take when they have finished their first.")
            out.line("counter = torch.zeros(1, dtype=torch.int32, device=query.device)")
            emit_launch(out, KERNEL, "(programs,)", self.arguments(), "**FORWARD")
            out.line("return out, lse")


def _names_in(loops: TileLoops) -> tuple[str, ...]:
    """Scalars that the way from a number to a tile needs, besides the counts."""
    found = re.findall(r"(?<![\w.])[A-Za-z_]\w*(?!\w*[.(])", f"{loops.partial_tile} {loops.full_tile}")
    return tuple(x for x in dict.fromkeys(found) if x not in ("t", "tl", "full_count", "partial_count"))
