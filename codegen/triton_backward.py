"""The backward kernels, repeatable bit by bit: seven products, no atomics except where said.

P is recomputed from the log-sum-exp of the forward pass. One kernel owns a tile of keys and walks the queries
that see it (dK, dV), one owns a tile of queries and walks its keys (dQ). The former computes the transposed
product K Q^T directly: Triton 3.4 to 3.7.0 miscompile the transpose of an accumulator as an operand on sm_90.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ir.dependence import LoadClass, load_class
from ..ir.differentiate import partials
from ..ir.nodes import TRUE, Const, Expr, Load, Score
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import substitute
from ..ir.types import F32
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
from .triton_forward import composed_scores, emit_shape_check
from .triton_gradients import SCATTER, Contribution, contributions, emit_scatter
from .triton_module import (
    Argument,
    buffer_arguments,
    emit_header,
    emit_launch,
    finish,
    head_parts,
    kernel,
    scalar_arguments,
)
from .triton_program import (
    BROADCAST_STRIDE,
    DESCRIPTOR,
    INDICES,
    Tiles,
    emit_accumulate,
    emit_columns,
    emit_place,
    emit_product,
    precision,
    table_arguments,
    uses_table,
)
from .triton_seen import hull_is_exact
from .triton_tiles import TileLoops, emit_ranges, emit_table
from .triton_values import Guard, Values, user_name

_ROW_TERMS = '''
@triton.jit(do_not_specialize=range(13))
def row_terms(
    delta, out, out_batch: "i64", out_head: "i64", out_row: "i64",
    grad_out, grad_out_batch: "i64", grad_out_head: "i64", grad_out_row: "i64",
    grad_lse, heads: "i32", q_len: "i32", value_dim: "i32",
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WITH_GRAD_LSE: tl.constexpr,
):
    """delta = rowsum(out * grad_out) - grad_lse: what every row subtracts from dP."""
    tiles = tl.cdiv(q_len, ROWS)
    entry = tl.program_id(0) // tiles
    batch, head = entry // heads, entry % heads
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    inside = (rows[:, None] < q_len) & (columns < value_dim)
    place = rows[:, None] * out_row + columns
    o = tl.load(out + batch * out_batch + head * out_head + place, mask=inside, other=0.0).to(tl.float32)
    place = rows[:, None] * grad_out_row + columns
    do = tl.load(grad_out + batch * grad_out_batch + head * grad_out_head + place, mask=inside, other=0.0)
    total = tl.sum(o * do.to(tl.float32), 1)
    places = entry.to(tl.int64) * q_len + rows
    if WITH_GRAD_LSE:
        total -= tl.load(grad_lse + places, mask=rows < q_len, other=0.0)
    tl.store(delta + places, total, mask=rows < q_len)
'''

_TIDY = '''
def tidy(x):
    """A gradient may come in any layout; the kernels need a contiguous, aligned last axis."""
    group = 16 // x.element_size()
    tidy = x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(s > 0 and s % group == 0 for s in x.stride()[:3])
    return x if tidy else x.contiguous()
'''


def emit_backward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes the gradients; see ``docs/internals.md``."""
    return _Backward(plan, problem, schedule, target).source()


class _Backward:
    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> None:
        self.plan, self.problem, self.schedule, self.target = plan, problem, schedule, target
        self.by_query = schedule.grad_query or schedule
        self.head, self.value = head_parts(problem.head_dim), head_parts(problem.value_dim)
        self.columns = {"D": "columns", "V": "columns" if self.head == self.value else "value_columns"}
        self.tiles = Tiles(problem, schedule.descriptors)
        self.contributions = contributions(plan, problem)
        v = plan.variant
        results: dict[str, Expr] = {}
        if v.mask != TRUE:
            results["mask"] = v.mask
        self.factors: list[str] = []
        before: Expr = Score()
        for i, (score, after) in enumerate(zip(v.scores, composed_scores(v.scores), strict=True)):
            results["score"] = after
            factor = substitute(partials(score).score, {Score(): before})
            self.factors.append("" if factor == Const(1.0, F32) else f"factor_{i}")
            results[f"factor_{i}"] = factor
            before = after
        for c in self.contributions:
            results |= {name: e for name, e in c.partials.values()}
            if c.kind == "pair":
                results |= {name: e for name, e in zip(c.index_names, c.load.indices, strict=True)}
        self.results = results
        self.exact_hull = plan.method == "closed" and hull_is_exact(v.mask)

    # --- what both kernels share

    def inputs(self) -> list[Argument]:
        return [
            *self.tiles.inputs("query", self.head, "BLOCK_M"),
            *self.tiles.inputs("key", self.head, "BLOCK_N"),
            *self.tiles.inputs("value", self.value, "BLOCK_N"),
            *self.tiles.inputs("grad_out", self.value, "BLOCK_M"),
            Argument("lse", "", "lse"),
            Argument("delta", "", "delta"),
        ]

    def sizes(self, entries: str, section: str) -> list[Argument]:
        return [
            *buffer_arguments(self.plan),
            Argument("scale", "fp32", "scale"),
            *scalar_arguments(self.plan),
            Argument("heads", "i32", "heads"),
            Argument("kv_heads", "i32", "kv_heads"),
            Argument("q_len", "i32", "q_len"),
            Argument("kv_len", "i32", "kv_len"),
            Argument("all_heads", "i32", entries),
            Argument("section", "i32", section),
        ]

    def wanted(self, kinds: tuple[LoadClass, ...], *, masked: bool) -> list[str]:
        """The results that a kernel needs which adds up gradients of these classes of loads."""
        names = [name for c in self.contributions if c.kind in kinds for name, _ in c.partials.values()]
        names += [x for c in self.contributions if c.kind == "pair" and "pair" in kinds for x in c.index_names]
        names += [x for x in self.factors if x]
        if "score" in self.results:
            names.append("score")
        return (["mask"] if masked and "mask" in self.results else []) + names

    def emit_probabilities(
        self, out: Emitter, values: Values, done: frozenset[str], names: list[str], *, transposed: bool, masked: bool
    ) -> None:
        """``p`` from the raw product ``s``; leaves all that the derivatives need computed."""
        lanes = "(kv_index < kv_len)" if transposed else "(q_index < q_len)"
        if masked:
            out.line("allowed = (q_index < q_len) & (kv_index < kv_len)")
            lanes = "allowed"
            if "mask" in self.results:
                done = values.emit(out, "pair", ("mask",), Guard(pair="allowed"), done)
                out.line(f"allowed &= {values.result('mask')}")
        rest = [x for x in names if x != "mask"]
        shape = "BLOCK_N, BLOCK_M" if transposed else "BLOCK_M, BLOCK_N"
        unit = "unit"
        final = "s"
        if "score" in self.results:
            out.line("s *= scale")
            values.emit(out, "pair", rest, Guard(pair=lanes), done)
            unit, final = "LOG2E", "final"
            out.line(f"final = {values.result('score', shape)}")
        row = "lse_rows[None, :]" if transposed else "lse_rows[:, None]"
        text = f"tl.exp2({final} * {unit} - {row})"
        out.line(f"p = {f'tl.where(allowed, {text}, 0.0)' if masked else text}")

    def emit_score_gradient(
        self, out: Emitter, values: Values, kinds: tuple[LoadClass, ...], *, transposed: bool, masked: bool
    ) -> None:
        """``ds``, the gradient of the scaled product, from ``p`` and ``dp``, and contributions on the way."""
        delta = "delta_rows[None, :]" if transposed else "delta_rows[:, None]"
        out.line(f"ds = p * (dp - {delta})")
        started: set[str] = set()
        for i in reversed(range(len(self.factors))):
            for c in self.contributions:
                if c.kind in kinds and i in c.partials:
                    sign = "+=" if c.name in started else "="
                    name, derivative = c.partials[i]
                    text = "ds" if derivative == Const(1.0, F32) else f"ds * ({values.result(name)})"
                    out.line(f"{c.name} {sign} {text}")
                    started.add(c.name)
            if self.factors[i]:
                out.line(f"ds *= {values.result(self.factors[i])}")
        if masked:
            for x in (*sorted(started), "ds"):
                out.line(f"{x} = tl.where(allowed, {x}, 0.0)")

    # --- dK, dV

    def key_arguments(self) -> list[Argument]:
        sums = [c for c in self.contributions if c.kind == "key"]
        table = table_arguments("tiles[1]") if uses_table(self.plan) else []
        return [
            *self.tiles.pointers("grad_key"),
            *self.tiles.pointers("grad_value"),
            *(Argument(f"{c.name}_sums", "", f"{c.name}_sums") for c in sums),
            *self.inputs(),
            *table,
            *self.sizes("batches * heads // group", "section"),
            Argument("group", "i32", "group"),
        ]

    def emit_key_kernel(self, out: Emitter) -> None:
        values = Values(self.results, INDICES, debug=self.problem.debug)
        kinds: tuple[LoadClass, ...] = ("key",)
        sums = [c for c in self.contributions if c.kind == "key"]
        with kernel(out, "attention_grad_key_value", self.key_arguments(), ("BLOCK_M", "BLOCK_N")):
            out.line('"""dK and dV of one tile of keys, summed over ``group`` heads of queries."""')
            out.line("program = tl.program_id(0)")
            emit_place(out, length="kv_len", block="BLOCK_N", reverse=self.schedule.reverse)
            out.line("chunks = heads // group")
            out.line("batch, chunk = entry // chunks, entry % chunks")
            out.line("kv_head = chunk * group // (heads // kv_heads)")
            out.line()
            out.line("tile_first = tile * BLOCK_N")
            out.line("tile_last = tl.minimum(tile_first + BLOCK_N, kv_len) - 1")
            out.line("rows = tl.arange(0, BLOCK_N)")
            out.line("queries = tl.arange(0, BLOCK_M)")
            out.line("kv_index = tile_first + rows[:, None]")
            self.emit_columns(out)
            for name, tensor, parts, width in (("k", "key", self.head, "D"), ("v", "value", self.value, "V")):
                columns = self.columns[width]
                self.tiles.open_input(out, tensor, "kv_head", "rows", columns, parts)
                self.tiles.load(
                    out, name, tensor, "kv_head", "tile_first", "BLOCK_N", columns, parts, "(kv_index < kv_len)"
                )
            for name, parts in (("dk", self.head), ("dv", self.value)):
                for p in parts:
                    out.line(f"{name}{p.suffix} = tl.zeros([BLOCK_N, {p.width}], tl.float32)")
            if not self.plan.variant.scores:
                out.line("unit = scale * LOG2E")
            with out.block("for member in range(0, group):"):
                out.line("head = chunk * group + member")
                self.emit_key_loops(out, values, kinds, sums)
            out.line()
            self.tiles.open(out, "grad_key", "chunk", "rows", "columns", self.head)
            self.tiles.store(out, "dk", "grad_key", "tile_first", "columns", self.head, "(kv_index < kv_len)", "({} * scale)")
            self.tiles.open(out, "grad_value", "chunk", "rows", self.columns["V"], self.value)
            self.tiles.store(out, "dv", "grad_value", "tile_first", self.columns["V"], self.value, "(kv_index < kv_len)")

    def emit_key_loops(self, out: Emitter, values: Values, kinds: tuple[LoadClass, ...], sums: list[Contribution]) -> None:
        self.tiles.open_input(out, "query", "head", "queries", "columns", self.head)
        self.tiles.open_input(out, "grad_out", "head", "queries", self.columns["V"], self.value)
        out.line("row = (batch * heads + head).to(tl.int64) * q_len")
        out.comment("Queries that may see this tile of keys, and those that see all of it.")
        if uses_table(self.plan):
            loops = emit_table(out)
        else:
            loops = emit_ranges(out, self.plan.queries, INDICES, "BLOCK_M", "q_len")
        for c in sums:
            out.line(f"{c.name}_total = tl.zeros([BLOCK_N], tl.float32)")
        needed = self.wanted(kinds, masked=True)
        done = values.emit(out, "program", needed, Guard())
        done = values.emit(out, "key", needed, Guard(key="(kv_index < kv_len)"), done)
        for masked, count, tile in (
            (False, loops.full_count, loops.full_tile),
            (True, loops.partial_count, loops.partial_tile),
        ):
            if not count:
                continue
            out.comment("Tiles in which the mask decides." if masked else "Tiles in which every pair is allowed.")
            with out.block(f"for t in range(0, {count}):"):
                self.emit_key_step(out, values, tile, done, kinds, sums, masked=masked)
        for c in sums:
            out.line("places = (batch * heads + head).to(tl.int64) * kv_len + tile_first + rows")
            out.line(f"tl.store({c.name}_sums + places, {c.name}_total, mask=tile_first + rows < kv_len)")

    def emit_key_step(
        self, out: Emitter, values: Values, tile: str, done: frozenset[str], kinds: tuple[LoadClass, ...],
        sums: list[Contribution], *, masked: bool,
    ) -> None:  # fmt: skip
        out.line(f"start = ({tile}) * BLOCK_M")
        inside = "(start + queries[:, None] < q_len)" if masked else ""
        mask = ", mask=start + queries < q_len, other=0.0" if masked else ""
        self.tiles.load(out, "q", "query", "head", "start", "BLOCK_M", "columns", self.head, inside)
        out.line(f"lse_rows = tl.load(lse + row + start + queries{mask}) * LOG2E")
        emit_product(out, "s", "k", "q", self.head, precision(self.problem))
        names = self.wanted(kinds, masked=masked)
        if names or masked:
            out.line("q_index = start + queries[None, :]")
        done = values.emit(out, "query", names, Guard(query="(q_index < q_len)" if masked else ""), done)
        self.emit_probabilities(out, values, done, names, transposed=True, masked=masked)
        self.tiles.load(out, "do", "grad_out", "head", "start", "BLOCK_M", self.columns["V"], self.value, inside)
        emit_accumulate(out, "dv", "p", "do", self.value, precision(self.problem))
        out.line(f"delta_rows = tl.load(delta + row + start + queries{mask})")
        emit_product(out, "dp", "v", "do", self.value, precision(self.problem))
        self.emit_score_gradient(out, values, kinds, transposed=True, masked=masked)
        for c in sums:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        emit_accumulate(out, "dk", "ds", "q", self.head, precision(self.problem))

    # --- dQ

    def query_arguments(self) -> list[Argument]:
        table = table_arguments("tiles[0]") if uses_table(self.plan) else []
        captured: list[Argument] = []
        for c in self.contributions:
            if c.kind in ("batch_head", "query"):
                captured.append(Argument(f"{c.name}_sums", "", f"{c.name}_sums"))
            elif c.kind == "pair":
                captured.append(Argument(c.name + "_to", "", c.grad))
                captured += [
                    Argument(f"{c.name}_to_stride_{i}", "i64", f"{c.grad}.stride({i})")
                    for i in range(len(c.load.indices))
                ]
        return [
            *self.tiles.pointers("grad_query"),
            *captured,
            *self.inputs(),
            *table,
            *self.sizes("batches * heads", "section_size(key, value, heads)"),
        ]

    def emit_query_kernel(self, out: Emitter) -> None:
        values = Values(self.results, INDICES, debug=self.problem.debug)
        kinds: tuple[LoadClass, ...] = ("batch_head", "query", "pair")
        sums = [c for c in self.contributions if c.kind in ("batch_head", "query")]
        with kernel(out, "attention_grad_query", self.query_arguments(), ("BLOCK_M", "BLOCK_N")):
            out.line('"""dQ of one tile of queries."""')
            out.line("program = tl.program_id(0)")
            emit_place(out, length="q_len", block="BLOCK_M", reverse=self.by_query.reverse)
            out.line("batch, head = entry // heads, entry % heads")
            out.line("kv_head = head // (heads // kv_heads)")
            out.line()
            out.line("tile_first = tile * BLOCK_M")
            out.line("tile_last = tl.minimum(tile_first + BLOCK_M, q_len) - 1")
            out.line("rows = tl.arange(0, BLOCK_M)")
            out.line("keys = tl.arange(0, BLOCK_N)")
            out.line("q_index = tile_first + rows[:, None]")
            self.emit_columns(out)
            for tensor, head, block_rows, parts, width in (
                ("query", "head", "rows", self.head, "D"),
                ("grad_out", "head", "rows", self.value, "V"),
                ("key", "kv_head", "keys", self.head, "D"),
                ("value", "kv_head", "keys", self.value, "V"),
            ):
                self.tiles.open_input(out, tensor, head, block_rows, self.columns[width], parts)
            for name, tensor, parts, width in (("q", "query", self.head, "D"), ("do", "grad_out", self.value, "V")):
                self.tiles.load(
                    out, name, tensor, "head", "tile_first", "BLOCK_M", self.columns[width], parts, "(q_index < q_len)"
                )
            out.line("row = entry.to(tl.int64) * q_len + tile_first")
            out.line("inside = tile_first + rows < q_len")
            out.line("lse_rows = tl.load(lse + row + rows, mask=inside, other=0.0) * LOG2E")
            out.line("delta_rows = tl.load(delta + row + rows, mask=inside, other=0.0)")
            out.comment("Keys that this tile of queries may see, and those that all of it sees.")
            if uses_table(self.plan):
                loops = emit_table(out)
            else:
                loops = emit_ranges(out, self.plan.keys, INDICES, "BLOCK_N", "kv_len")
            for p in self.head:
                out.line(f"dq{p.suffix} = tl.zeros([BLOCK_M, {p.width}], tl.float32)")
            for c in sums:
                out.line(f"{c.name}_total = tl.zeros([BLOCK_M], tl.float32)")
            if not self.plan.variant.scores:
                out.line("unit = scale * LOG2E")
            needed = self.wanted(kinds, masked=True)
            done = values.emit(out, "program", needed, Guard())
            done = values.emit(out, "query", needed, Guard(query="(q_index < q_len)"), done)
            for masked, count, tile in (
                (False, loops.full_count, loops.full_tile),
                (True, loops.partial_count, loops.partial_tile),
            ):
                if not count:
                    continue
                out.comment("Tiles in which the mask decides." if masked else "Tiles in which every pair is allowed.")
                with out.block(f"for t in range(0, {count}):"):
                    self.emit_query_step(out, values, tile, loops, done, kinds, sums, masked=masked)
            out.line()
            self.tiles.open(out, "grad_query", "head", "rows", "columns", self.head)
            self.tiles.store(out, "dq", "grad_query", "tile_first", "columns", self.head, "(q_index < q_len)", "({} * scale)")
            for c in sums:
                out.line(f"tl.store({c.name}_sums + row + rows, {c.name}_total, mask=inside)")

    def emit_query_step(
        self, out: Emitter, values: Values, tile: str, loops: TileLoops, done: frozenset[str],
        kinds: tuple[LoadClass, ...], sums: list[Contribution], *, masked: bool,
    ) -> None:  # fmt: skip
        out.line(f"start = ({tile}) * BLOCK_N")
        in_range = "(start + keys[:, None] < kv_len)" if masked else ""
        rows = in_range
        if masked and self.exact_hull and loops.hull is not None:
            first, stop = loops.hull
            rows = f"(start + keys[:, None] < {stop})"
            if first != "0":
                rows = f"(start + keys[:, None] >= {first}) & {rows}"
        self.tiles.load(out, "k", "key", "kv_head", "start", "BLOCK_N", "columns", self.head, rows)
        emit_product(out, "s", "q", "k", self.head, precision(self.problem))
        self.tiles.load(out, "v", "value", "kv_head", "start", "BLOCK_N", self.columns["V"], self.value, in_range)
        emit_product(out, "dp", "do", "v", self.value, precision(self.problem))
        names = self.wanted(kinds, masked=masked)
        if names or masked:
            out.line("kv_index = start + keys[None, :]")
        done = values.emit(out, "key", names, Guard(key="(kv_index < kv_len)" if masked else ""), done)
        self.emit_probabilities(out, values, done, names, transposed=False, masked=masked)
        self.emit_score_gradient(out, values, kinds, transposed=False, masked=masked)
        for c in sums:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        for c in self.contributions:
            if c.kind == "pair":
                address, conditions = values.address(c.index_names, c.load.buffer, c.name + "_to")
                lanes = "allowed" if masked else "(q_index < q_len)"
                mask = " & ".join([lanes, *conditions])
                out.line(f"tl.{'store' if c.injective else 'atomic_add'}({address}, {c.name}, mask={mask})")
        if masked and not (self.exact_hull and not self.schedule.descriptors):
            out.comment("Keys that no query of the tile sees may be anything, even NaN.")
            out.line(f"seen = {rows if self.exact_hull else 'tl.max(allowed.to(tl.int32), 0)[:, None] != 0'}")
            for p in self.head:
                out.line(f"k{p.suffix} = tl.where(seen, k{p.suffix}, 0.0)")
        emit_accumulate(out, "dq", "ds", "k", self.head, precision(self.problem))

    def emit_columns(self, out: Emitter) -> None:
        emit_columns(out, "columns", self.head)
        if self.columns["V"] != "columns":
            emit_columns(out, "value_columns", self.value)

    # --- the module

    def source(self) -> Source:
        head, out = Emitter(), Emitter()
        notes = [
            f"Gradient of {c.load.buffer}: by atomic additions, whose order varies, because its index has no structure."
            for c in self.contributions
            if c.kind == "pair" and not c.injective
        ]
        emit_header(head, "Backward kernels", self.plan, self.problem, self.schedule, self.target, notes)
        for name, s in (("GRAD_KEY", self.schedule), ("GRAD_QUERY", self.by_query)):
            out.line(f"{name} = dict(BLOCK_M={s.block_m}, BLOCK_N={s.block_n}, num_warps={s.num_warps}, num_stages={s.num_stages})")
        out.line("\n")
        if self.schedule.descriptors:
            out.lines(DESCRIPTOR)
            out.line("\n")
        if uses_table(self.plan):
            from .torch_classify import emit_classify

            out.lines(BROADCAST_STRIDE)
            emit_classify(
                out, self.plan, (self.by_query.block_m, self.by_query.block_n), (self.schedule.block_m, self.schedule.block_n)
            )
            out.line("\n")
        kernels = ["row_terms", "attention_grad_key_value", "attention_grad_query"]
        out.lines(_TIDY)
        out.line("\n")
        out.lines(_ROW_TERMS)
        out.line("\n")
        self.emit_key_kernel(out)
        out.line("\n")
        self.emit_query_kernel(out)
        if any(c.kind == "diagonal" for c in self.contributions):
            from .triton_diagonal import emit_diagonal_kernel

            kernels.append("attention_grad_diagonal")
            out.line("\n")
            emit_diagonal_kernel(out, self.plan, self.problem, self.results, self.factors, self.contributions)
        if any(c.kind != "pair" for c in self.contributions):
            out.lines("\n\n" + SCATTER)
        self.emit_run(out)
        return finish(out, self.plan, kernels, head)

    def emit_run(self, out: Emitter) -> None:
        v, dim = self.plan.variant, self.problem
        names = [user_name(p.name) for p in (*v.buffers, *v.scalars)]
        out.line("\n")
        inputs = ["query", "key", "value", "out", "lse", "grad_out", "grad_lse", *names, "scale=None", "tiles=None"]
        with out.block(f"def run({', '.join(inputs)}):"):
            out.line('"""Gradients of query, key, value and captured tensors; ``grad_lse`` may be None."""')
            out.line("batches, heads, q_len, _ = query.shape")
            out.line("kv_heads, kv_len = key.shape[1], key.shape[2]")
            emit_shape_check(out, self.problem)
            default = v.scale if v.scale is not None else self.problem.head_dim**-0.5
            out.line(f"scale = {default!r} if scale is None else scale")
            for name, like, width in (("query", "query", dim.head_dim), ("key", "key", dim.head_dim), ("value", "value", dim.value_dim)):
                out.line(f"grad_{name} = torch.empty({like}.shape, dtype=query.dtype, device=query.device)")
            for p, wanted in zip(v.buffers, self.problem.buffer_gradients, strict=False):
                if wanted:
                    name = user_name(p.name)
                    out.line(f"grad_{name} = torch.zeros({name}.shape, dtype=torch.float32, device={name}.device)")
            results = ["grad_query", "grad_key", "grad_value"] + [
                f"grad_{user_name(p.name)}.to({user_name(p.name)}.dtype)"
                for p, wanted in zip(v.buffers, self.problem.buffer_gradients, strict=False)
                if wanted
            ]
            answer = f"return {', '.join(results)}"
            with out.block("if lse.numel() == 0 or kv_len == 0:"):
                out.line("for x in (grad_query, grad_key, grad_value):")
                out.line("    x.zero_()")
                out.line(answer)
            if uses_table(self.plan):
                arguments = "".join(f"{x}, " for x in names)
                with out.block("if tiles is None:"):
                    out.line(f"tiles = classify({arguments}batches, heads, kv_heads, q_len, kv_len, query.device)")
            out.line("grad_out = tidy(grad_out)")
            out.line("delta = torch.empty_like(lse)")
            columns = 1 << (dim.value_dim - 1).bit_length()
            out.lines(f"""
launch(
    row_terms, (triton.cdiv(q_len, 32) * batches * heads,), delta, out, *out.stride()[:3], grad_out,
    *grad_out.stride()[:3], lse if grad_lse is None else grad_lse.contiguous(), heads, q_len, {dim.value_dim},
    ROWS=32, COLUMNS={max(columns, 16)}, WITH_GRAD_LSE=grad_lse is not None, num_warps=4,
)
""")
            self.emit_key_launch(out)
            self.emit_query_launch(out)
            self.emit_captured(out)
            out.line(answer)

    def emit_key_launch(self, out: Emitter) -> None:
        for c in self.contributions:
            if c.kind == "key":
                out.line(f"{c.name}_sums = torch.empty((batches, heads, kv_len), dtype=torch.float32, device=query.device)")
        out.lines("""
options = GRAD_KEY
tiles_of_keys = triton.cdiv(kv_len, options["BLOCK_N"])
group = heads // kv_heads
multiprocessors, cache = device_limits(query.device)
shared = group > 1 and tiles_of_keys * batches * kv_heads < 2 * multiprocessors
to_key, to_value = grad_key, grad_value
if shared:
    # Too few programs: one for each head of queries, added up afterwards.
    group = 1
    to_key = torch.empty((batches, heads, *key.shape[2:]), dtype=torch.float32, device=query.device)
    to_value = torch.empty((batches, heads, *value.shape[2:]), dtype=torch.float32, device=query.device)
row_bytes = (query.shape[3] + value.shape[3]) * query.element_size()
section = max(cache // 3 // max(q_len * row_bytes * group, 1), 1)
""")
        arguments = [
            replace(a, value=a.value.replace("grad_key", "to_key").replace("grad_value", "to_value")) for a in self.key_arguments()
        ]
        emit_launch(out, "attention_grad_key_value", "(tiles_of_keys * batches * (heads // group),)", arguments, "**options")
        out.lines("""
if shared:
    grad_key = to_key.unflatten(1, (kv_heads, -1)).sum(2).to(query.dtype)
    grad_value = to_value.unflatten(1, (kv_heads, -1)).sum(2).to(query.dtype)
""")

    def emit_query_launch(self, out: Emitter) -> None:
        for c in self.contributions:
            if c.kind in ("batch_head", "query"):
                out.line(f"{c.name}_sums = torch.empty_like(lse)")
        out.line("options = GRAD_QUERY")
        out.line('programs = triton.cdiv(q_len, options["BLOCK_M"]) * batches * heads')
        emit_launch(out, "attention_grad_query", "(programs,)", self.query_arguments(), "**options")

    def emit_captured(self, out: Emitter) -> None:
        if any(c.kind == "diagonal" for c in self.contributions):
            from .triton_diagonal import emit_diagonal_launch

            emit_diagonal_launch(out, self.plan, self.problem, self.contributions)
        emit_scatter(out, self.plan, self.contributions)
