"""The body of the forward kernel: constants, shared memory, barriers and partitions."""

from __future__ import annotations

from collections.abc import Sequence

from .emitter import Emitter
from .gluon_cuts import CELLS_OF_CUT
from .gluon_parts import emit_together, tiles_of, together
from .schedule import Problem, Schedule
from .triton_module import Argument, head_parts

# Registers of a thread, by the number of consumers; the producer has 24, and all threads start with the same number.
_REGISTERS = {2: 240, 3: 160}
_REGISTERS_AT_START = {2: 168, 3: 128}


def emit_constants(out: Emitter, problem: Problem, schedule: Schedule, axes: int = 2) -> None:
    """Sizes and layouts of tiles, which have ``axes`` before that of the rows or, in boxes, among those of the rows."""
    element = {"f16": "tl.float16", "bf16": "tl.bfloat16"}[problem.dtype]
    rows, keys, consumers = 64, schedule.block_n, schedule.block_m // 64
    out.line(f"ROWS = tl.constexpr({rows})  # queries of one consumer")
    for name, value in (
        ("CONSUMERS", consumers),
        ("BLOCK_M", schedule.block_m),
        ("BLOCK_N", keys),
        ("HEAD", problem.head_dim),
        ("VALUE", problem.value_dim),
        ("STAGES", schedule.num_stages),
        ("ELEMENT", element),
    ):
        out.line(f"{name} = tl.constexpr({value})")
    head, value_parts = head_parts(problem.head_dim), head_parts(problem.value_dim)
    out.comment("Layouts in registers: scores, partial sums and outputs of one consumer, and scores as a left operand.")
    widths = [("SCORES", keys), ("SUMS", 8), *((f"OUTPUTS{p.suffix}", p.width) for p in value_parts)]
    for name, width in widths:
        out.line(f"{name} = tl.constexpr(tl.NVMMADistributedLayout([3, 0], [4, 1], [16, {width}, 16]))")
    for p in value_parts:
        out.line(f"WEIGHTS{p.suffix} = tl.constexpr(tl.DotOperandLayout(0, OUTPUTS{p.suffix}.value, 2))")
    out.comment("Layouts in shared memory.")
    for name, height, parts in (
        ("QUERY_TILE", rows, head),
        ("KEY_TILE", keys, head),
        ("VALUE_TILE", keys, value_parts),
        ("OUT_TILE", rows, value_parts),
    ):
        for p in parts:
            layout = f"tl.NVMMASharedLayout.get_default_for([{'1, ' * axes}{height}, {p.width}], {element})"
            out.line(f"{name}{p.suffix} = tl.constexpr({layout})")
    out.line(f"FORWARD = dict(num_warps=4, maxnreg={_REGISTERS_AT_START[consumers]})")


_WEIGHTS = """\
# Which keys of a tile have weights, for each consumer, twice; both make it ready.
weighty = gl.allocate_shared_memory(gl.int32, [4, BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
weighty_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
mbarrier.init(weighty_ready, count=2)
"""


def emit_body(
    out: Emitter, problem: Problem, schedule: Schedule, sizes: Sequence[Argument], parameters: Sequence[Argument],
    descriptors: str = "", constants: str = "", starts: int = 1, *, own_out_tiles: bool, asks: bool = False,
    constants_of_consumers: str = "",
) -> None:  # fmt: skip
    """The body of the kernel: shared memory, barriers and partitions.

    ``descriptors`` and ``constants`` are further arguments of the partitions. ``starts``: how many numbers say where
    a tile of keys starts. ``own_out_tiles``: outputs leave through buffers that are not those of queries.
    ``asks``: consumers tell each other which keys have weights.
    """
    cells = CELLS_OF_CUT if schedule.cut else 4 if schedule.listed and schedule.split_keys else 3
    out.line(f"sizes = ({', '.join(a.name for a in sizes)})")
    out.line(f"parameters = ({', '.join(a.name for a in parameters)},)")
    _emit_buffers(out, problem, schedule, own_out_tiles)
    consumers = schedule.block_m // 64
    out.lines(
        _KERNEL_BODY.format(
            attend="\n        ".join(_ATTEND.format(i, constants + constants_of_consumers) for i in range(consumers)),
            warps=[4] * (consumers - 1) + [1],
            registers=[_REGISTERS[consumers]] * (consumers - 1) + [24],
            starts=f"STAGES * {starts}" if starts > 1 else "STAGES",
            descriptors=descriptors,
            constants=constants,
            cells=2 * cells,
            told={3: "", 4: ", its place as a share", CELLS_OF_CUT: ", what it is"}[cells],
            queries="2, " if schedule.ahead else "",
            init=_INIT_BOTH if schedule.ahead else _INIT,
            weights=_WEIGHTS if asks else "",
            more=", weighty, weighty_ready" if asks else "",
        )
    )


def _emit_buffers(out: Emitter, problem: Problem, schedule: Schedule, own_out_tiles: bool) -> None:
    """Buffers of tiles; tuples of them, and of descriptors, where heads have several parts."""
    head, value = head_parts(problem.head_dim), head_parts(problem.value_dim)
    for name, parts in (("query", head), ("key", head), ("value", value), ("out", value)):
        emit_together(out, name, parts)
    for name, number, tensor, parts, layout in (
        ("q_tiles", "2 * CONSUMERS" if schedule.ahead else "CONSUMERS", "query", head, "QUERY_TILE"),
        ("k_tiles", "STAGES", "key", head, "KEY_TILE"),
        ("v_tiles", "STAGES", "value", value, "VALUE_TILE"),
        ("out_tiles", "CONSUMERS", "out", value, "OUT_TILE"),
    ):
        if name == "out_tiles" and not own_out_tiles:
            out.line(f"out_tiles = {together([tiles_of('q_tiles', head, i) for i in range(len(value))])}")
            return
        for p in parts:
            shape = f"[{number}] + {tensor}{p.suffix}.block_type.shape"
            out.line(f"{name}{p.suffix} = tl.allocate_shared_memory(ELEMENT, {shape}, {layout}{p.suffix})")
        emit_together(out, name, parts)


_ATTEND = (
    "(attend, ({}, lse, out, q_tiles, k_tiles, v_tiles, out_tiles, barriers, orders, starts, sizes, parameters{})),"
)
_INIT = """\
mbarrier.init(q_ready, count=1)
mbarrier.init(q_empty, count=CONSUMERS)
"""
_INIT_BOTH = """\
for i in gl.static_range(2):
    mbarrier.init(q_ready.index(i), count=1)
    mbarrier.init(q_empty.index(i), count=CONSUMERS)
"""
_KERNEL_BODY = """
# Two tiles of queries in turn: number, how many partial tiles of keys, how many tiles{told}; and the tiles' first keys.
orders = gl.allocate_shared_memory(gl.int32, [{cells}, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
starts = gl.allocate_shared_memory(gl.int32, [{starts}, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready, all consumers make them empty.
q_ready = gl.allocate_shared_memory(gl.int64, [{queries}1], mbarrier.MBarrierLayout())
q_empty = gl.allocate_shared_memory(gl.int64, [{queries}1], mbarrier.MBarrierLayout())
k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
order_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
order_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
{init}for i in gl.static_range(2):
    mbarrier.init(order_ready.index(i), count=1)
    mbarrier.init(order_empty.index(i), count=CONSUMERS)
for i in gl.static_range(STAGES):
    mbarrier.init(k_ready.index(i), count=1)
    mbarrier.init(v_ready.index(i), count=1)
{weights}barriers = (q_ready, q_empty, k_ready, v_ready, order_ready, order_empty{more})
gl.warp_specialize(
    [
        {attend}
        (
            load_tiles,
            (
                counter, query, key, value, {descriptors}q_tiles, k_tiles, v_tiles, barriers, orders, starts,
                sizes, parameters{constants},
            ),
        ),
    ],
    {warps},
    {registers},  # registers of the other consumers and of the producer
)
"""
