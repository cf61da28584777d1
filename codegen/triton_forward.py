"""The forward kernel: online softmax over the tiles of keys that a tile of queries may see."""

from __future__ import annotations

from ..ir.nodes import TRUE, Expr, Score
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import substitute
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
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
    SIZES,
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
from .triton_split import MERGE, emit_shares
from .triton_tiles import TileLoops, emit_ranges, emit_table
from .triton_values import Guard, Values, user_name

KERNEL = "attention_forward"


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``."""
    return _Forward(plan, problem, schedule, target).source()


def composed_scores(scores: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Every score as a function of the first one: s0 -> s1, s0 -> s2, …"""
    composed: list[Expr] = []
    for e in scores:
        composed.append(substitute(e, {Score(): composed[-1]}) if composed else e)
    return tuple(composed)


class _Forward:
    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> None:
        self.plan, self.problem, self.schedule, self.target = plan, problem, schedule, target
        self.head, self.value = head_parts(problem.head_dim), head_parts(problem.value_dim)
        self.tiles = Tiles(problem, schedule.descriptors)
        results: dict[str, Expr] = {}
        if plan.variant.mask != TRUE:
            results["mask"] = plan.variant.mask
        if plan.variant.scores:
            results["score"] = composed_scores(plan.variant.scores)[-1]
        self.results = tuple(results)
        self.values = Values(results, INDICES, debug=problem.debug)
        self.exact_hull = plan.method == "closed" and hull_is_exact(plan.variant.mask)

    def arguments(self) -> list[Argument]:
        table = table_arguments("tiles") if uses_table(self.plan) else []
        split = [
            Argument("shares", "i32", "shares"),
            Argument("out_share", "i64", "out_share"),
            Argument("lse_share", "i64", "lse_share"),
        ]
        return [
            *self.tiles.pointers("out", "target"),
            Argument("lse", "", "target_lse"),
            *self.tiles.inputs("query", self.head, "BLOCK_M"),
            *self.tiles.inputs("key", self.head, "BLOCK_N"),
            *self.tiles.inputs("value", self.value, "BLOCK_N"),
            *table,
            *buffer_arguments(self.plan),
            Argument("scale", "fp32", "scale"),
            *scalar_arguments(self.plan),
            *SIZES,
            *(split if self.schedule.split_keys else []),
        ]

    def source(self) -> Source:
        head, out = Emitter(), Emitter()
        emit_header(head, "Forward kernel", self.plan, self.problem, self.schedule, self.target)
        kernels = [KERNEL]
        self.emit_options(out)
        if self.schedule.descriptors:
            out.lines(DESCRIPTOR)
            out.line("\n")
        if uses_table(self.plan):
            from .torch_classify import emit_classify

            out.lines(BROADCAST_STRIDE)
            emit_classify(out, self.plan, (self.schedule.block_m, self.schedule.block_n))
            out.line("\n")
        self.emit_kernel(out)
        if self.schedule.split_keys:
            kernels.append("merge_shares")
            out.lines(MERGE)
        self.emit_run(out)
        return finish(out, self.plan, kernels, head)

    def emit_options(self, out: Emitter) -> None:
        s = self.schedule
        out.line(
            f"FORWARD = dict(BLOCK_M={s.block_m}, BLOCK_N={s.block_n}, num_warps={s.num_warps}, num_stages={s.num_stages})"
        )
        if self.small:
            out.comment("For a handful of queries, as in decoding.")
            out.line("FEW_QUERIES = dict(BLOCK_M=16, BLOCK_N=64, num_warps=4, num_stages=3)")
        out.line("\n")

    @property
    def small(self) -> bool:
        # A table of tiles is made for one size of tile.
        return self.schedule.split_keys and not uses_table(self.plan)

    def emit_kernel(self, out: Emitter) -> None:
        with kernel(out, KERNEL, self.arguments(), ("BLOCK_M", "BLOCK_N")):
            self.emit_prologue(out)
            loops = self.emit_loops(out)
            begin_full, end_full, begin_partial, end_partial = "0", loops.full_count, "0", loops.partial_count
            if self.schedule.split_keys and (loops.full_count or loops.partial_count):
                begin_full, end_full, begin_partial, end_partial = emit_shares(out, loops)
            done = self.values.emit(out, "program", self.results, Guard())
            done = self.values.emit(out, "query", self.results, Guard(query="(q_index < q_len)"), done)
            if loops.full_count:
                out.comment("Tiles in which every pair is allowed.")
                with out.block(f"for t in range({begin_full}, {end_full}):"):
                    self.emit_step(out, loops.full_tile, loops, done, masked=False)
            if loops.partial_count:
                out.comment("Tiles in which the mask decides.")
                with out.block(f"for t in range({begin_partial}, {end_partial}):"):
                    self.emit_step(out, loops.partial_tile, loops, done, masked=True)
            self.emit_epilogue(out)

    def emit_prologue(self, out: Emitter) -> None:
        out.line("program = tl.program_id(0)")
        if self.schedule.split_keys:
            out.line("share = program % shares")
            out.line("program = program // shares")
        emit_place(out, length="q_len", block="BLOCK_M", reverse=self.schedule.reverse)
        out.line("batch, head = entry // heads, entry % heads")
        out.line("kv_head = head // (heads // kv_heads)")
        out.line()
        out.line("tile_first = tile * BLOCK_M")
        out.line("tile_last = tl.minimum(tile_first + BLOCK_M, q_len) - 1")
        out.line("rows = tl.arange(0, BLOCK_M)")
        out.line("keys = tl.arange(0, BLOCK_N)")
        out.line("q_index = tile_first + rows[:, None]")
        emit_columns(out, "columns", self.head)
        self.value_columns = "columns"
        if self.value != self.head:
            self.value_columns = "value_columns"
            emit_columns(out, "value_columns", self.value)
        self.tiles.open_input(out, "query", "head", "rows", "columns", self.head)
        self.tiles.open_input(out, "key", "kv_head", "keys", "columns", self.head)
        self.tiles.open_input(out, "value", "kv_head", "keys", self.value_columns, self.value)
        self.tiles.load(out, "q", "query", "head", "tile_first", "BLOCK_M", "columns", self.head, "(q_index < q_len)")
        out.line()

    def emit_loops(self, out: Emitter) -> TileLoops:
        if uses_table(self.plan):
            out.comment("This tile's row in the table of tiles.")
            loops = emit_table(out)
        else:
            out.comment("Keys that this tile of queries may see, and those that all of it sees.")
            loops = emit_ranges(out, self.plan.keys, INDICES, "BLOCK_N", "kv_len")
        out.line()
        out.line("m = tl.full([BLOCK_M], -3.0e38, tl.float32)  # running maximum times log2(e); finite, so never inf - inf")
        out.line("l = tl.zeros([BLOCK_M], tl.float32)  # running sum of exponentials")
        for p in self.value:
            out.line(f"acc{p.suffix} = tl.zeros([BLOCK_M, {p.width}], tl.float32)")
        if not self.plan.variant.scores:
            out.line("unit = scale * LOG2E")
        return loops

    def emit_step(self, out: Emitter, tile: str, loops: TileLoops, done: frozenset[str], *, masked: bool) -> None:
        """One tile of keys."""
        out.line(f"start = ({tile}) * BLOCK_N")
        in_rows = "(start + keys[:, None] < kv_len)" if masked else ""
        self.tiles.load(out, "k", "key", "kv_head", "start", "BLOCK_N", "columns", self.head, in_rows)
        emit_product(out, "s", "q", "k", self.head, precision(self.problem))
        if masked or self.plan.variant.scores:
            out.line("kv_index = start + keys[None, :]")
        wanted = self.results if masked else tuple(x for x in self.results if x != "mask")
        done = self.values.emit(out, "key", wanted, Guard(key="(kv_index < kv_len)" if masked else ""), done)
        lanes = "(q_index < q_len)"
        if masked:
            out.line("allowed = (q_index < q_len) & (kv_index < kv_len)")
            lanes = "allowed"
            if "mask" in wanted:
                done = self.values.emit(out, "pair", ("mask",), Guard(pair="allowed"), done)
                out.line(f"allowed &= {self.values.result('mask')}")
        unit = "unit"
        if "score" in wanted:
            unit = "LOG2E"
            out.line("s *= scale")
            self.values.emit(out, "pair", ("score",), Guard(pair=lanes), done)
            out.line(f"s = {self.values.result('score', 'BLOCK_M, BLOCK_N')}")
        if masked:
            out.line('s = tl.where(allowed, s, float("-inf"))')
        out.line(f"m_new = tl.maximum(m, tl.max(s, 1) * {unit})")
        out.line(f"p = tl.exp2(s * {unit} - m_new[:, None])")
        out.line("alpha = tl.exp2(m - m_new)")
        out.line("l = l * alpha + tl.sum(p, 1)")
        out.line("m = m_new")
        for p in self.value:
            out.line(f"acc{p.suffix} *= alpha[:, None]")
        if masked and self.exact_hull:
            in_rows = self.seen(loops)
        self.tiles.load(out, "v", "value", "kv_head", "start", "BLOCK_N", self.value_columns, self.value, in_rows)
        if masked and not (self.exact_hull and not self.schedule.descriptors):
            out.comment("Values that no query of the tile sees may be anything, even NaN.")
            out.line(f"seen = {in_rows if self.exact_hull else 'tl.max(allowed.to(tl.int32), 0)[:, None] != 0'}")
            for p in self.value:
                out.line(f"v{p.suffix} = tl.where(seen, v{p.suffix}, 0.0)")
        emit_accumulate(out, "acc", "p", "v", self.value, precision(self.problem))

    def seen(self, loops: TileLoops) -> str:
        """Which rows of K and V lie in the hull, which is all that the tile of queries sees."""
        if loops.hull is None:
            return "(start + keys[:, None] < kv_len)"
        start, stop = loops.hull
        below = f"(start + keys[:, None] < {stop})"
        return below if start == "0" else f"(start + keys[:, None] >= {start}) & {below}"

    def emit_epilogue(self, out: Emitter) -> None:
        out.line()
        out.comment("A row that may attend to nothing gives 0, and -inf for the logarithm of its sum.")
        out.line("empty = l == 0.0")
        out.line("l = tl.where(empty, 1.0, l)")
        if self.schedule.split_keys:
            out.line("out += share * out_share")
            out.line("lse += share * lse_share")
        self.tiles.open(out, "out", "head", "rows", self.value_columns, self.value)
        self.tiles.store(
            out, "acc", "out", "tile_first", self.value_columns, self.value, "(q_index < q_len)", "({} / l[:, None])"
        )
        out.line('total = tl.where(empty, float("-inf"), (m + tl.log2(l)) * LN2)')
        out.line("lse += entry.to(tl.int64) * q_len + tile_first")
        out.line("tl.store(lse + rows, total, mask=tile_first + rows < q_len)")

    def emit_run(self, out: Emitter) -> None:
        v = self.plan.variant
        names = [user_name(p.name) for p in (*v.buffers, *v.scalars)]
        out.line("\n")
        with out.block(f"def run({', '.join(['query', 'key', 'value', *names, 'scale=None', 'tiles=None'])}):"):
            out.line('"""(B, H, Lq, D), (B, Hkv, Lkv, D), (B, Hkv, Lkv, Dv) -> outputs (B, H, Lq, Dv), lse (B, H, Lq)."""')
            out.line("batches, heads, q_len, _ = query.shape")
            out.line("kv_heads, kv_len = key.shape[1], key.shape[2]")
            emit_shape_check(out, self.problem)
            default = v.scale if v.scale is not None else self.problem.head_dim**-0.5
            out.line(f"scale = {default!r} if scale is None else scale")
            if not v.scores:
                out.comment("The running maximum needs a positive scale.")
                with out.block("if scale < 0:"):
                    out.line("query, scale = -query, -scale")
                out.line("scale = max(scale, 1e-30)")
            out.line(f"out = torch.empty((batches, heads, q_len, {self.problem.value_dim}), dtype=query.dtype, device=query.device)")
            out.line("lse = torch.empty((batches, heads, q_len), dtype=torch.float32, device=query.device)")
            with out.block("if lse.numel() == 0 or kv_len == 0:"):
                out.line('return out.zero_(), lse.fill_(float("-inf"))')
            if uses_table(self.plan):
                self.emit_classify_call(out)
            self.emit_launches(out)
            out.line("return out, lse")

    def emit_classify_call(self, out: Emitter) -> None:
        v = self.plan.variant
        names = "".join(f"{user_name(p.name)}, " for p in (*v.buffers, *v.scalars))
        with out.block("if tiles is None:"):
            out.line(f"tiles = classify({names}batches, heads, kv_heads, q_len, kv_len, query.device)")

    def emit_launches(self, out: Emitter) -> None:
        if not self.schedule.split_keys:
            out.line("target, target_lse, options = out, lse, FORWARD")
            out.line('programs = triton.cdiv(q_len, options["BLOCK_M"]) * batches * heads')
            emit_launch(out, KERNEL, "(programs,)", self.arguments(), "**options")
            return
        out.line("options = FEW_QUERIES if q_len <= 16 else FORWARD" if self.small else "options = FORWARD")
        out.line('programs = triton.cdiv(q_len, options["BLOCK_M"]) * batches * heads')
        out.line('shares = share_count(programs, triton.cdiv(kv_len, options["BLOCK_N"]), query.device)')
        out.line("target, target_lse, out_share, lse_share = out, lse, 0, 0")
        with out.block("if shares > 1:"):
            out.line("partial_out = torch.empty((shares, *out.shape), dtype=torch.float32, device=out.device)")
            out.line("partial_lse = torch.empty((shares, *lse.shape), dtype=torch.float32, device=out.device)")
            out.line("out_share, lse_share = partial_out.stride(0), partial_lse.stride(0)")
            out.line("target, target_lse = partial_out[0], partial_lse[0]")
        emit_launch(out, KERNEL, "(programs * shares,)", self.arguments(), "**options")
        with out.block("if shares > 1:"):
            dim = self.problem.value_dim
            out.line(
                f"launch(merge_shares, (lse.numel(),), out, lse, partial_out, partial_lse, lse.numel(), shares, {dim},"
            )
            out.line(f"       COLUMNS={1 << (dim - 1).bit_length()}, num_warps=1)")


def emit_shape_check(out: Emitter, problem: Problem) -> None:
    """What would otherwise read out of bounds."""
    out.line(f"assert query.shape[3] == key.shape[3] == {problem.head_dim} and value.shape[3] == {problem.value_dim}")
    out.line("assert value.shape[:3] == key.shape[:3] and heads % kv_heads == 0 and key.shape[0] == batches")
    out.line("assert query.stride(3) == key.stride(3) == value.stride(3) == 1")
