"""The fast backward pass for sm_90: five products, one warp loads, two groups of four warps compute.

A program owns 128 keys, 64 for each consumer, and walks the queries that see them. A consumer computes the
transposed scores and their gradient, keeps dK and dV in registers, hands its part of the scores' gradient over
through shared memory, and computes half of the tile's dQ from both parts, which the tensor memory accelerator
adds to a float32 tensor. The order of those additions varies, so the last bits of dQ do too. The structure is
that of FlashAttention-3 (Shah et al., 2024, https://arxiv.org/abs/2407.08608).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from textwrap import fill, indent

from ..ir.dependence import dependence
from ..ir.tiles.plan import TilePlan
from .defaults import functions_of_pairs, heavier_at_one_end, heaviest_last
from .emitter import Emitter
from .gluon_cuts import RAGGED, may_be_cut
from .gluon_grad_consumer import Consumer
from .gluon_grad_cut import CutFiveProducts
from .gluon_grad_five import FiveProducts
from .gluon_grad_loader import SIZES, emit_load_tiles, loader_arguments
from .gluon_grad_rows import emit_after, emit_before, row_kernels
from .gluon_module import DESCRIPTOR, emit_layouts, emit_tables, finish, reason_against_target
from .gluon_names import installed_names
from .gluon_parts import descriptors, emit_buffers, emit_together, widths
from .gluon_tiles import CELLS
from .gluon_work import emit_work
from .schedule import Problem, Schedule, Source, Target
from .triton_backward import TIDY
from .triton_cuts import cut_arguments, cuts_of
from .triton_gradients import contributions
from .triton_module import Argument, buffer_arguments, emit_header, emit_launch, kernel, scalar_arguments, user_names
from .triton_program import emit_classify_call, emit_sizes, table_arguments, uses_table
from .triton_values import user_name

KERNEL = "attention_backward"
# (head size, value size) -> queries of a tile, for which buffers and sums fit.
_BLOCK_M = {(64, 64): 128, (128, 64): 64, (128, 128): 64}


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot compute the backward pass, in one sentence; None where it can."""
    if problem.deterministic:
        return "it adds gradients of queries in an order that varies, and they must repeat bit by bit"
    if contributions(plan, problem):
        return "gradients of captured tensors take sums that it does not keep"
    return reason_against_sizes(problem, _BLOCK_M) or reason_against_target(problem, target)


def reason_against_sizes(problem: Problem, possible: Collection[tuple[int, int]]) -> str | None:
    """Why heads and values of these sizes are not ``possible``, in one sentence; None where they are."""
    sizes = problem.head_dim, problem.value_dim
    return None if sizes in possible else f"head sizes {sizes} are none of {', '.join(map(str, possible))}"


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against."""
    block_m = _BLOCK_M[problem.head_dim, problem.value_dim]
    if functions_of_pairs(plan):
        # Scores, their slopes and the gradient of twice the queries are more than registers hold.
        block_m = 64
    reverse = heaviest_last(plan.queries)
    return Schedule(block_m, 128, num_warps=4, num_stages=2, reverse=reverse, descriptors=True, cut=may_be_cut(plan))


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first: at head size 64 smaller tiles spill less."""
    default = default_schedule(plan, problem)
    others = (replace(default, block_m=m) for m in (64, _BLOCK_M[problem.head_dim, problem.value_dim]))
    return tuple(dict.fromkeys((default, *others, replace(default, cut=False))))


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    cuts = cuts_of(plan) if schedule.cut else None
    parameters = parameters_of(plan, "tiles[1]", cut=cuts is not None)
    sums = Argument(
        "grad_query", "", "TensorDescriptor(sums, list(sums.shape), list(sums.stride()), "
        "[1, 1, DQ_ROWS.value, DQ_COLUMNS.value], SUM_TILE.value)",
    )  # fmt: skip
    head, out = Emitter(), Emitter()
    notes = ["Gradients of queries are added up in an order that varies: their last bits differ from run to run."]
    emit_header(head, "Backward kernel", plan, problem, schedule, target, notes)
    of_consumer = plan, problem, schedule.block_m, parameters, installed_names()
    consumer = CutFiveProducts(*of_consumer, cuts) if cuts else FiveProducts(*of_consumer)
    arguments = key_arguments(schedule, consumer, parameters, sums)
    emit_key_kernel(out, KERNEL, plan, schedule, consumer, arguments, parameters)
    blocks = schedule.block_m, schedule.block_n
    tables, table_kernels = emit_tables(plan, blocks, blocks, cuts=cuts)
    if cuts:
        out.definition(RAGGED)
    with run_function(out, plan, problem, consumer.folded):
        emit_before(out, problem, schedule.block_m, sums=True, shifted=schedule.cut)
        emit_groups(out, plan, consumer.emit_programs(out, schedule))
        emit_launch(out, KERNEL, KEY_PROGRAMS, arguments, "**BACKWARD")
        emit_after(out)
    kernels = [*table_kernels, "row_terms", KERNEL, "convert_sums"]
    rows = row_kernels(problem, consumer.folded, sums=True, shifted=schedule.cut)
    return finish(out, plan, kernels, head, tables + rows, short_tanh=problem.dtype == "bf16")


def parameters_of(plan: TilePlan, tiles: str, *, cut: bool = False) -> list[Argument]:
    """What kernels take besides tensors of the call and sizes.

    ``tiles`` is the table in ``run``, if there is one; ``cut``: of tiles that begin anew where data changes.
    """
    table = table_arguments(tiles) if uses_table(plan) else []
    table += cut_arguments(tiles) if cut else []
    return [Argument("scale", "fp32", "scale"), *table, *buffer_arguments(plan), *scalar_arguments(plan)]


def key_arguments(
    schedule: Schedule, consumer: Consumer, parameters: Sequence[Argument], *sums: Argument
) -> list[Argument]:
    """Of a kernel whose programs own tiles of keys; ``sums`` stand before the other gradients."""
    problem = consumer.problem
    sizes = {"key": problem.head_dim, "value": problem.value_dim}
    owned = (x for name in consumer.owned for x in descriptors(name, "KEYS", f"{name.upper()}_TILE", sizes[name]))
    gradients = (
        x
        for name in ("key", "value")
        if f"grad_{name}" in [x.target for x in consumer.sums]
        for x in descriptors(f"grad_{name}", "KEYS", f"{name.upper()}_TILE", sizes[name], f"to_{name}", consumer.stores)
    )
    terms = f"[1, {schedule.block_m}], TERM_TILE.value"
    return [
        *descriptors("query", "BLOCK_M", "QUERY_TILE", problem.head_dim),
        *owned,
        *descriptors("grad_out", "BLOCK_M", "OUT_TILE", problem.value_dim),
        Argument("terms", "", f"TensorDescriptor(terms, list(terms.shape), list(terms.stride()), {terms})"),
        *sums,
        *gradients,
        *consumer.work,
        *parameters,
        *SIZES,
    ]


def emit_key_kernel(
    out: Emitter, name: str, plan: TilePlan, schedule: Schedule, consumer: Consumer, arguments: Sequence[Argument],
    parameters: Sequence[Argument],
) -> None:  # fmt: skip
    """The kernel whose programs own tiles of keys, and all that it calls."""
    _emit_constants(out, schedule, consumer)
    out.definition(CELLS)
    consumer.emit_tile_functions(out, schedule)
    consumer.emit(out)
    owned = tuple(consumer.owned)
    loader = loader_arguments(owned, consumer.more)
    lines = {**consumer.producer(), "own": consumer.own_loads(), "visited": "\n".join(consumer.visited_loads())}
    emit_load_tiles(out, loader + consumer.constants_typed, consumer.barriers, owned, lines)
    out.line("\n")
    guard = out.block(f"if {consumer.exists}:") if consumer.exists else nullcontext()
    with kernel(out, name, arguments, consumer.constant_names), guard:
        out.line(f"sizes = ({', '.join(a.name for a in SIZES)})")
        out.line(f"parameters = ({', '.join(a.name for a in parameters)},)")
        emit_work(out, consumer.work)
        _emit_buffers(out, consumer)
        passed, loaded = (
            indent(fill(x + consumer.constants_passed, 94), " " * 13).lstrip()
            for x in (consumer.arguments, loader)
        )
        facts = {"barriers": consumer.barriers, "set_up": consumer.set_up, "terms": consumer.term_buffers}
        facts["starts"] = consumer.starts
        out.lines(_KERNEL_BODY.format(arguments=passed, loaded=loaded, **facts))


def _emit_buffers(out: Emitter, consumer: Consumer) -> None:
    """Tiles in shared memory, and tuples of descriptors where heads have several parts."""
    for name, parts in {"query": consumer.head, **consumer.owned, "grad_out": consumer.value}.items():
        emit_together(out, name, parts)
    for x in consumer.sums:
        emit_together(out, x.target, x.parts)
    for name, parts in consumer.owned.items():
        emit_buffers(out, f"{name[0]}_tiles", "2", name, f"{name.upper()}_TILE", parts)
    emit_buffers(out, "q_tiles", "STAGES", "query", "QUERY_TILE", consumer.head)
    emit_buffers(out, "do_tiles", consumer.out_stages, "grad_out", "OUT_TILE", consumer.value)


def _emit_constants(out: Emitter, schedule: Schedule, consumer: Consumer) -> None:
    element = {"f16": "tl.float16", "bf16": "tl.bfloat16"}[consumer.problem.dtype]
    queries, keys = schedule.block_m, schedule.block_n // 2
    half = consumer.half_of_queries(queries)
    out.line(f"KEYS = tl.constexpr({keys})  # keys of one consumer")
    for name, number in (
        ("BLOCK_M", queries), ("BLOCK_N", schedule.block_n), *widths("HEAD", consumer.head),
        *widths("VALUE", consumer.value), ("STAGES", schedule.num_stages), *consumer.rings(schedule),
        ("ELEMENT", element),
    ):  # fmt: skip
        out.line(f"{name} = tl.constexpr({number})")
    registers = [("SCORES", queries)]
    registers += [(f"{x.layout}{p.suffix}", p.width) for x in consumer.sums for p in x.parts]
    tiles = [
        (f"{name}{p.suffix}", rows, p.width, element)
        for name, rows, parts in (
            ("QUERY_TILE", queries, consumer.head),
            ("KEY_TILE", keys, consumer.head),
            ("VALUE_TILE", keys, consumer.value),
            ("OUT_TILE", queries, consumer.value),
        )
        for p in parts
    ]
    if half is not None:
        out.comment("The half of a tile's gradient of queries that one consumer computes.")
        out.line(f"DQ_ROWS = tl.constexpr({half[0]})")
        out.line(f"DQ_COLUMNS = tl.constexpr({half[1]})")
        registers.append(("QUERY_SUMS", half[1]))
        tiles.append(("SUM_TILE", *half, "tl.float32"))
    out.comment("Layouts in registers: transposed scores, sums, and scores as left operands.")
    operands = {"WEIGHTS": "VALUE_SUMS", "DIFFERENCES": "KEY_SUMS"}
    lefts = {
        f"{name}{p.suffix}": f"{layout}{p.suffix}"
        for name, layout in operands.items()
        for x in consumer.sums
        for p in x.parts * (x.layout == layout)
    }
    emit_layouts(out, registers, lefts, tiles, consumer.axes)
    if half is not None:
        out.line(f"SCORE_TILE = tl.constexpr(tl.NVMMASharedLayout.get_default_for([{keys}, {queries}], {element}))")
    out.line("TERM_TILE = tl.constexpr(tl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2))")
    out.line("BACKWARD = dict(num_warps=4, maxnreg=168)")


_KERNEL_BODY = """
{terms}
starts = gl.allocate_shared_memory(gl.int32, [{starts}, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
{set_up}
barriers = ({barriers})
gl.warp_specialize(
    [
        (
            differentiate,
            (0, {arguments}),
        ),
        (
            differentiate,
            (1, {arguments}),
        ),
        (
            load_tiles,
            ({loaded}),
        ),
    ],
    [4, 1],
    [240, 24],  # registers of the second consumer and of the producer: 168 for each thread in all
)
"""
KEY_PROGRAMS = "(tiles_of_keys * batches * (heads // group),)"


@contextmanager
def run_function(
    out: Emitter, plan: TilePlan, problem: Problem, folded: bool, *, listed: bool = False
) -> Iterator[None]:
    """``run``: what is written meanwhile fills ``grad_query``, ``to_key`` and ``to_value`` of groups of heads, and
    gradients of captured tensors, which begin at zero. ``listed``: there are work lists.
    """
    out.definition(TIDY)
    out.definition(DESCRIPTOR)
    v = plan.variant
    inputs = ["query", "key", "value", "out", "lse", "grad_out", "grad_lse", *user_names(v)]
    wanted = [user_name(p.name) for p, w in zip(v.buffers, problem.buffer_gradients, strict=False) if w]
    captured = "".join(f", grad_{x}.to({x}.dtype)" for x in wanted)
    with out.define(f"run({', '.join([*inputs, 'scale=None', 'tiles=None'])})"):
        of_captured = ", and captured tensors" if wanted else ""
        out.line(f'"""Gradients of query, key and value{of_captured}; ``grad_lse`` may be None."""')
        emit_sizes(out, plan, problem)
        for name in ("query", "key", "value"):
            out.line(f"grad_{name} = torch.empty({name}.shape, dtype=query.dtype, device=query.device)")
        for name in wanted:
            out.line(f"grad_{name} = torch.zeros({name}.shape, dtype=torch.float32, device={name}.device)")
        with out.block("if lse.numel() == 0 or kv_len == 0:"):
            out.line(f"return grad_query.zero_(), grad_key.zero_(), grad_value.zero_(){captured}")
        if uses_table(plan) or listed:
            emit_classify_call(out, user_names(v))
        if folded:
            out.comment("Sums of products start at multiples of the inverse of the scale.")
            out.line("flat = abs(scale) < 1e-30")
            out.line("scale = 1e-30 if flat else scale")
        out.line("grad_out = tidy(grad_out)")
        yield
        out.lines(_SUM_GROUPS)
        if folded:
            with out.block("if flat:"):
                out.line(f"return grad_query.zero_(), grad_key.zero_(), grad_value{captured}")
        out.line(f"return grad_query, grad_key, grad_value{captured}")


def emit_groups(out: Emitter, plan: TilePlan, tiles: str) -> None:
    """How many heads of queries a program that owns keys sums over, and where their sums go; ``tiles`` of a head."""
    # Keys that one head of a group does not see may be non-finite: such heads cannot share a tile of them.
    apart = "head" in dependence(plan.variant.mask)
    few = "" if apart else f" and {few_programs(plan, 'tiles_of_keys', 'multiprocessors')}"
    out.lines(_GROUPS.format(tiles=tiles, few=few))
    limits = ["cache // 3 // (q_len * row_bytes * group)", "1"]
    if heavier_at_one_end(plan.queries):
        out.comment("The last section has to take as long as its heaviest tile, or most multiprocessors wait for that.")
        limits.append("2 * multiprocessors // (tiles_of_keys + 1)")
    out.line(f"fitting = max({', '.join(limits)})")
    out.line("section = even_sections(fitting, batches * heads // group)")


def few_programs(plan: TilePlan, tiles: str, multiprocessors: str) -> str:
    """Where heads of queries that share keys do not share a program, as text: it would leave too few of these."""
    # Where tiles are of uneven weight, more of them are needed to keep all multiprocessors busy to the end.
    return f"{tiles} * batches * kv_heads < {4 if heavier_at_one_end(plan.queries) else 2} * {multiprocessors}"


_GROUPS = """
tiles_of_keys = {tiles}
multiprocessors, cache = device_limits(query.device)
group, to_key, to_value = heads // kv_heads, grad_key, grad_value
spread = group > 1{few}
if spread:
    # Too few programs, or heads that see different keys: one for each head of queries, added up afterwards.
    group = 1
    to_key = torch.empty((batches, heads, *key.shape[2:]), dtype=query.dtype, device=query.device)
    to_value = torch.empty((batches, heads, *value.shape[2:]), dtype=query.dtype, device=query.device)
row_bytes = (query.shape[3] + value.shape[3]) * query.element_size()
"""
_SUM_GROUPS = """
if spread:
    grad_key = to_key.unflatten(1, (kv_heads, -1)).sum(2)
    grad_value = to_value.unflatten(1, (kv_heads, -1)).sum(2)
"""
