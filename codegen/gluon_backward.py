"""The fast backward pass for sm_90: five products, one warp loads, two groups of four warps compute.

A program owns 128 keys, 64 for each consumer, and walks the queries that see them. A consumer computes the
transposed scores and their gradient, keeps dK and dV in registers, hands its part of the scores' gradient over
through shared memory, and computes half of the tile's dQ from both parts, which the tensor memory accelerator
adds to a float32 tensor. The order of those additions varies, so the last bits of dQ do too. The structure is
that of FlashAttention-3 (Shah et al., 2024, https://arxiv.org/abs/2407.08608).
"""

from __future__ import annotations

from ..ir.dependence import dependence
from ..ir.tiles.plan import TilePlan
from .defaults import heaviest_last
from .emitter import Emitter
from .gluon_grad_consumer import Consumer
from .gluon_grad_loader import SIZES, emit_load_tiles, emit_place_function
from .gluon_grad_rows import emit_after, emit_before, row_kernels
from .gluon_module import DESCRIPTOR, emit_tables, finish, reason_against_target
from .gluon_names import installed_names
from .gluon_tiles import CELLS, QUERIES, emit_visits
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import TIDY
from .triton_gradients import contributions
from .triton_module import Argument, buffer_arguments, emit_header, emit_launch, kernel, scalar_arguments, user_names
from .triton_program import emit_classify_call, emit_sizes, table_arguments, uses_table

KERNEL = "attention_backward"
# (head size, value size) -> queries of a tile, for which buffers and sums fit.
_BLOCK_M = {(64, 64): 128, (128, 64): 64, (128, 128): 64}


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot compute the backward pass, in one sentence; None where it can."""
    if problem.deterministic:
        return "it adds gradients of queries in an order that varies, and they must repeat bit by bit"
    sizes = problem.head_dim, problem.value_dim
    if sizes not in _BLOCK_M:
        return f"head sizes {sizes} are none of {', '.join(map(str, _BLOCK_M))}"
    if contributions(plan, problem):
        return "gradients of captured tensors take sums that only the Triton kernels keep"
    return reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against."""
    block_m = _BLOCK_M[problem.head_dim, problem.value_dim]
    return Schedule(block_m, 128, num_warps=4, num_stages=2, reverse=heaviest_last(plan.queries), descriptors=True)


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing: buffers and registers leave no choice but the default."""
    return (default_schedule(plan, problem),)


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    names = installed_names()
    table = table_arguments("tiles[1]") if uses_table(plan) else []
    parameters = [Argument("scale", "fp32", "scale"), *table, *buffer_arguments(plan), *scalar_arguments(plan)]
    arguments = [
        Argument("query", "", "descriptor(query, BLOCK_M, QUERY_TILE)"),
        Argument("key", "", "descriptor(key, KEYS, KEY_TILE)"),
        Argument("value", "", "descriptor(value, KEYS, VALUE_TILE)"),
        Argument("grad_out", "", "descriptor(grad_out, BLOCK_M, OUT_TILE)"),
        Argument("terms", "", "TensorDescriptor(terms, list(terms.shape), list(terms.stride()), [1, "
                 f"{schedule.block_m}], TERM_TILE.value)"),
        Argument("grad_query", "", "TensorDescriptor(sums, list(sums.shape), list(sums.stride()), "
                 "[1, 1, DQ_ROWS.value, DQ_COLUMNS.value], SUM_TILE.value)"),
        Argument("grad_key", "", "descriptor(to_key, KEYS, KEY_TILE)"),
        Argument("grad_value", "", "descriptor(to_value, KEYS, VALUE_TILE)"),
        *parameters,
        *SIZES,
    ]  # fmt: skip
    head, out = Emitter(), Emitter()
    notes = ["Gradients of queries are added up in an order that varies: their last bits differ from run to run."]
    emit_header(head, "Backward kernel", plan, problem, schedule, target, notes)
    consumer = Consumer(plan, problem, parameters, names)
    _emit_constants(out, problem, schedule, consumer.split_columns)
    out.definition(CELLS)
    emit_place_function(out, schedule.reverse)
    emit_visits(out, plan, QUERIES, SIZES, parameters)
    consumer.emit(out)
    emit_load_tiles(out, names)
    out.line("\n")
    with kernel(out, KERNEL, arguments, ()):
        out.line(f"sizes = ({', '.join(a.name for a in SIZES)})")
        out.line(f"parameters = ({', '.join(a.name for a in parameters)},)")
        out.lines(_KERNEL_BODY)
    blocks = schedule.block_m, schedule.block_n
    tables, table_kernels = emit_tables(plan, blocks, blocks)
    out.definition(TIDY)
    out.definition(DESCRIPTOR)
    _emit_run(out, plan, problem, schedule, arguments, consumer.folded)
    kernels = [*table_kernels, "row_terms", KERNEL, "convert_sums"]
    return finish(out, plan, kernels, head, tables + row_kernels(problem, consumer.folded))


def _emit_constants(out: Emitter, problem: Problem, schedule: Schedule, split_columns: bool) -> None:
    element = {"f16": "tl.float16", "bf16": "tl.bfloat16"}[problem.dtype]
    queries, keys = schedule.block_m, schedule.block_n // 2
    head, value = problem.head_dim, problem.value_dim
    dq_rows, dq_columns = (queries, head // 2) if split_columns else (queries // 2, head)
    out.line(f"KEYS = tl.constexpr({keys})  # keys of one consumer")
    for name, number in (
        ("BLOCK_M", queries), ("BLOCK_N", schedule.block_n), ("HEAD", head), ("VALUE", value),
        ("STAGES", schedule.num_stages), ("ELEMENT", element),
    ):  # fmt: skip
        out.line(f"{name} = tl.constexpr({number})")
    out.comment("The half of a tile's gradient of queries that one consumer computes.")
    out.line(f"DQ_ROWS = tl.constexpr({dq_rows})")
    out.line(f"DQ_COLUMNS = tl.constexpr({dq_columns})")
    out.comment("Layouts in registers: transposed scores, sums, and scores as left operands.")
    for name, width in (("SCORES", queries), ("KEY_SUMS", head), ("VALUE_SUMS", value), ("QUERY_SUMS", dq_columns)):
        out.line(f"{name} = tl.constexpr(tl.NVMMADistributedLayout([3, 0], [4, 1], [16, {width}, 16]))")
    out.line("WEIGHTS = tl.constexpr(tl.DotOperandLayout(0, VALUE_SUMS.value, 2))")
    out.line("DIFFERENCES = tl.constexpr(tl.DotOperandLayout(0, KEY_SUMS.value, 2))")
    out.comment("Layouts in shared memory.")
    for name, height, width, type_ in (
        ("QUERY_TILE", queries, head, element),
        ("KEY_TILE", keys, head, element),
        ("VALUE_TILE", keys, value, element),
        ("OUT_TILE", queries, value, element),
        ("SUM_TILE", dq_rows, dq_columns, "tl.float32"),
    ):
        out.line(f"{name} = tl.constexpr(tl.NVMMASharedLayout.get_default_for([1, 1, {height}, {width}], {type_}))")
    out.line(f"SCORE_TILE = tl.constexpr(tl.NVMMASharedLayout.get_default_for([{keys}, {queries}], {element}))")
    out.line("TERM_TILE = tl.constexpr(tl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2))")
    out.line("BACKWARD = dict(num_warps=4, maxnreg=168)")


_KERNEL_BODY = """
k_tiles = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, KEYS, HEAD], KEY_TILE)
v_tiles = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, KEYS, VALUE], VALUE_TILE)
q_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, BLOCK_M, HEAD], QUERY_TILE)
do_tiles = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, BLOCK_M, VALUE], OUT_TILE)
# Log-sum-exps and what dP starts at, in turn.
term_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 2, 1, BLOCK_M], TERM_TILE)
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
barriers = (kv_ready, tile_ready, tile_empty, ds_ready, finished)
gl.warp_specialize(
    [
        (
            differentiate,
            (0, grad_query, grad_key, grad_value, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, ds_tiles,
             dq_tiles, barriers, starts, sizes, parameters),
        ),
        (
            differentiate,
            (1, grad_query, grad_key, grad_value, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, ds_tiles,
             dq_tiles, barriers, starts, sizes, parameters),
        ),
        (
            load_tiles,
            (query, key, value, grad_out, terms, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, barriers, starts,
             sizes, parameters),
        ),
    ],
    [4, 1],
    [240, 24],  # registers of the second consumer and of the producer: 168 for each thread in all
)
"""


def _emit_run(
    out: Emitter, plan: TilePlan, problem: Problem, schedule: Schedule, arguments: list[Argument], folded: bool
) -> None:
    inputs = ["query", "key", "value", "out", "lse", "grad_out", "grad_lse", *user_names(plan.variant)]
    with out.define(f"run({', '.join([*inputs, 'scale=None', 'tiles=None'])})"):
        out.line('"""Gradients of query, key and value; ``grad_lse`` may be None."""')
        emit_sizes(out, plan, problem)
        for name in ("query", "key", "value"):
            out.line(f"grad_{name} = torch.empty({name}.shape, dtype=query.dtype, device=query.device)")
        with out.block("if lse.numel() == 0 or kv_len == 0:"):
            out.line("return grad_query.zero_(), grad_key.zero_(), grad_value.zero_()")
        if uses_table(plan):
            emit_classify_call(out, user_names(plan.variant))
        if folded:
            out.comment("Sums of products start at multiples of the inverse of the scale.")
            out.line("flat = abs(scale) < 1e-30")
            out.line("scale = 1e-30 if flat else scale")
        out.line("grad_out = tidy(grad_out)")
        emit_before(out, problem, schedule.block_m)
        # Keys that one head of a group does not see may be non-finite: such heads cannot share a tile of them.
        apart = "head" in dependence(plan.variant.mask)
        few = "" if apart else " and tiles_of_keys * batches * kv_heads < 2 * multiprocessors"
        out.lines(_GROUPS.format(keys=schedule.block_n, few=few))
        emit_launch(out, KERNEL, "(tiles_of_keys * batches * (heads // group),)", arguments, "**BACKWARD")
        emit_after(out)
        out.lines(_SUM_GROUPS)
        if folded:
            with out.block("if flat:"):
                out.line("return grad_query.zero_(), grad_key.zero_(), grad_value")
        out.line("return grad_query, grad_key, grad_value")


_GROUPS = """
tiles_of_keys = triton.cdiv(kv_len, {keys})
multiprocessors, cache = device_limits(query.device)
group, to_key, to_value = heads // kv_heads, grad_key, grad_value
spread = group > 1{few}
if spread:
    # Too few programs, or heads that see different keys: one for each head of queries, added up afterwards.
    group = 1
    to_key = torch.empty((batches, heads, *key.shape[2:]), dtype=query.dtype, device=query.device)
    to_value = torch.empty((batches, heads, *value.shape[2:]), dtype=query.dtype, device=query.device)
row_bytes = (query.shape[3] + value.shape[3]) * query.element_size()
section = even_sections(max(cache // 3 // (q_len * row_bytes * group), 1), batches * heads // group)
"""
_SUM_GROUPS = """
if spread:
    grad_key = to_key.unflatten(1, (kv_heads, -1)).sum(2)
    grad_value = to_value.unflatten(1, (kv_heads, -1)).sum(2)
"""
