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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..ir.dependence import dependence
from ..ir.nodes import Load, Unary
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import walk
from .defaults import heaviest_last
from .emitter import Emitter
from .gluon_consumer import Consumer
from .gluon_loader import emit_load_tiles, emit_place_function, run_loads
from .gluon_module import DESCRIPTOR, finish, reason_against_target
from .gluon_names import installed_names
from .gluon_seen import UnseenKeys
from .gluon_tiles import CELLS, KEYS, emit_visits
from .schedule import Problem, Schedule, Source, Target
from .triton_module import Argument, buffer_arguments, emit_header, emit_launch, kernel, scalar_arguments, user_names
from .triton_program import SIZES, emit_shape_check

KERNEL = "attention_forward"
HEAD_SIZES = (64, 128)


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot compute the forward pass, in one sentence; None where it can."""
    for size in (problem.head_dim, problem.value_dim):
        if size not in HEAD_SIZES:
            return f"head size {size} is not one of {', '.join(map(str, HEAD_SIZES))}"
    if plan.method != "closed":
        return "its tiles come from a table, not from closed forms"
    if UnseenKeys.of(plan) is None:
        return "which keys no query sees is not a closed form, so non-finite values could not be kept out"
    return reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against."""
    wide = max(problem.head_dim, problem.value_dim) > 64
    keys = 64 if wide and takes_registers(plan) else 128
    stages = 2 if wide and keys == 128 else 4
    return Schedule(128, keys, num_warps=4, num_stages=stages, reverse=heaviest_last(plan.keys), descriptors=True)


def takes_registers(plan: TilePlan) -> bool:
    """Whether scores are modified by what needs many registers: loads for each pair or key, and functions."""
    return any(
        (isinstance(x, Unary) and x.op not in ("neg", "not", "abs"))
        or (isinstance(x, Load) and "kv" in dependence(x))
        for score in plan.variant.scores
        for x in walk(score)
    )


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    unseen = UnseenKeys.of(plan)
    assert unseen is not None
    names = installed_names()
    parameters = [Argument("scale", "fp32", "scale"), *buffer_arguments(plan), *scalar_arguments(plan)]
    arguments = [
        Argument("lse", "", "lse"),
        Argument("counter", "", "counter"),
        Argument("query", "", "descriptor(query, ROWS, QUERY_TILE)"),
        Argument("key", "", "descriptor(key, BLOCK_N, KEY_TILE)"),
        Argument("value", "", "descriptor(value, BLOCK_N, VALUE_TILE)"),
        Argument("out", "", "descriptor(out, ROWS, OUT_TILE)"),
        *parameters,
        *SIZES,
    ]
    head, out = Emitter(), Emitter()
    emit_header(head, "Forward kernel", plan, problem, schedule, target)
    emit_constants(out, problem, schedule)
    out.definition(CELLS)
    emit_place_function(out, schedule.reverse)
    loops = emit_visits(out, plan, KEYS, SIZES, parameters)
    consumer = Consumer(plan, problem, parameters, unseen, names)
    consumer.emit(out, loops)
    emit_load_tiles(out, run_loads(names))
    out.line("\n")
    with kernel(out, KERNEL, arguments, ()):
        emit_body(out, SIZES, parameters)
    _emit_run(out, plan, problem, schedule, arguments)
    return finish(out, plan, [KERNEL], head)


def emit_constants(out: Emitter, problem: Problem, schedule: Schedule, axes: int = 2) -> None:
    """Sizes and layouts of tiles, which have ``axes`` before that of the rows or, in boxes, among those of the rows."""
    element = {"f16": "tl.float16", "bf16": "tl.bfloat16"}[problem.dtype]
    rows, keys = schedule.block_m // 2, schedule.block_n
    out.line(f"ROWS = tl.constexpr({rows})  # queries of one consumer")
    for name, value in (
        ("BLOCK_M", schedule.block_m),
        ("BLOCK_N", keys),
        ("HEAD", problem.head_dim),
        ("VALUE", problem.value_dim),
        ("STAGES", schedule.num_stages),
        ("ELEMENT", element),
    ):
        out.line(f"{name} = tl.constexpr({value})")
    out.comment("Layouts in registers: scores and outputs of one consumer, and scores as a left operand.")
    for name, width in (("SCORES", keys), ("OUTPUTS", problem.value_dim)):
        out.line(f"{name} = tl.constexpr(tl.NVMMADistributedLayout([3, 0], [4, 1], [16, {width}, 16]))")
    out.line("WEIGHTS = tl.constexpr(tl.DotOperandLayout(0, OUTPUTS.value, 2))")
    out.comment("Layouts in shared memory.")
    for name, height, width in (
        ("QUERY_TILE", rows, problem.head_dim),
        ("KEY_TILE", keys, problem.head_dim),
        ("VALUE_TILE", keys, problem.value_dim),
        ("OUT_TILE", rows, problem.value_dim),
    ):
        shape = f"[{'1, ' * axes}{height}, {width}]"
        out.line(f"{name} = tl.constexpr(tl.NVMMASharedLayout.get_default_for({shape}, {element}))")
    out.line("FORWARD = dict(num_warps=4, maxnreg=168)")


def emit_body(
    out: Emitter, sizes: Sequence[Argument], parameters: Sequence[Argument], descriptors: str = "", constants: str = "",
    starts: int = 1, copies: bool = True,
) -> None:  # fmt: skip
    """The body of the kernel: shared memory, barriers and the three partitions.

    ``starts``: how many numbers say where a tile of keys starts. ``copies``: outputs leave through shared memory.
    """
    out.line(f"sizes = ({', '.join(a.name for a in sizes)})")
    out.line(f"parameters = ({', '.join(a.name for a in parameters)},)")
    count = f"STAGES * {starts}" if starts > 1 else "STAGES"
    out_tiles = "gl.allocate_shared_memory(ELEMENT, [2] + out.block_type.shape, OUT_TILE)" if copies else "q_tiles"
    out.lines(_KERNEL_BODY.format(starts=count, descriptors=descriptors, constants=constants, out_tiles=out_tiles))


_KERNEL_BODY = """
q_tiles = gl.allocate_shared_memory(ELEMENT, [2] + query.block_type.shape, QUERY_TILE)
out_tiles = {out_tiles}
k_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES] + key.block_type.shape, KEY_TILE)
v_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES] + value.block_type.shape, VALUE_TILE)
# Two tiles of queries in turn: number, how many partial tiles of keys, how many tiles; and the tiles' first keys.
orders = gl.allocate_shared_memory(gl.int32, [6, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
starts = gl.allocate_shared_memory(gl.int32, [{starts}, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready, both consumers make them empty.
q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
order_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
order_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
mbarrier.init(q_ready, count=1)
mbarrier.init(q_empty, count=2)
for i in gl.static_range(2):
    mbarrier.init(order_ready.index(i), count=1)
    mbarrier.init(order_empty.index(i), count=2)
for i in gl.static_range(STAGES):
    mbarrier.init(k_ready.index(i), count=1)
    mbarrier.init(k_empty.index(i), count=2)
    mbarrier.init(v_ready.index(i), count=1)
    mbarrier.init(v_empty.index(i), count=2)
barriers = (q_ready, q_empty, k_ready, k_empty, v_ready, v_empty, order_ready, order_empty)
gl.warp_specialize(
    [
        (
            attend,
            (
                0, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, orders, starts,
                sizes, parameters{constants},
            ),
        ),
        (
            attend,
            (
                1, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, orders, starts,
                sizes, parameters{constants},
            ),
        ),
        (
            load_tiles,
            (
                counter, query, key, value, {descriptors}q_tiles, k_tiles, v_tiles, barriers, orders, starts,
                sizes, parameters{constants},
            ),
        ),
    ],
    [4, 1],
    [240, 24],  # registers of the second consumer and of the producer: 168 for each thread in all
)
"""


@contextmanager
def run_function(out: Emitter, plan: TilePlan, problem: Problem) -> Iterator[None]:
    """``run``: what is written meanwhile launches the kernel for ``out`` and ``lse``."""
    v = plan.variant
    with out.define(f"run({', '.join(['query', 'key', 'value', *user_names(v), 'scale=None', 'tiles=None'])})"):
        shapes = "(B, H, Lq, D), (B, Hkv, Lkv, D), (B, Hkv, Lkv, Dv) -> outputs (B, H, Lq, Dv), lse (B, H, Lq)."
        out.line(f'"""{shapes}"""')
        out.line("batches, heads, q_len, _ = query.shape")
        out.line("kv_heads, kv_len = key.shape[1], key.shape[2]")
        emit_shape_check(out, problem)
        out.line(f"scale = {v.scale if v.scale is not None else problem.head_dim**-0.5!r} if scale is None else scale")
        if not v.scores:
            out.comment("The running maximum needs a positive scale.")
            with out.block("if scale < 0:"):
                out.line("query, scale = -query, -scale")
            out.line("scale = max(scale, 1e-30)")
        shape = f"(batches, heads, q_len, {problem.value_dim})"
        out.line(f"out = torch.empty({shape}, dtype=query.dtype, device=query.device)")
        out.line("lse = torch.empty((batches, heads, q_len), dtype=torch.float32, device=query.device)")
        with out.block("if lse.numel() == 0 or kv_len == 0:"):
            out.line('return out.zero_(), lse.fill_(float("-inf"))')
        yield
        out.line("return out, lse")


def emit_start(
    out: Emitter, programs: str, arguments: Sequence[Argument], options: str = "**FORWARD"
) -> None:
    """The launch of as many programs as fit, which share ``programs`` tiles of queries."""
    out.line("multiprocessors, _ = device_limits(query.device)")
    out.comment("How many tiles of queries were taken after the first one of each program.")
    out.line("counter = torch.zeros(1, dtype=torch.int32, device=query.device)")
    emit_launch(out, KERNEL, f"(min(multiprocessors, {programs}),)", arguments, options)


def _emit_run(
    out: Emitter, plan: TilePlan, problem: Problem, schedule: Schedule, arguments: list[Argument]
) -> None:
    out.definition(DESCRIPTOR)
    with run_function(out, plan, problem):
        emit_start(out, f"triton.cdiv(q_len, {schedule.block_m}) * batches * heads", arguments)
