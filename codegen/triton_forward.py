"""The forward kernel: online softmax over the tiles of keys that a tile of queries may see.

Scores and sums are float32, exponentials powers of two (Milakov and Gimelshein, arXiv:1805.02867; Dao,
arXiv:2307.08691).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..ir.nodes import TRUE, Expr, Score
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import substitute
from .emitter import Emitter
from .schedule import Problem, Schedule, Source, Target
from .triton_module import Argument, emit_header, emit_launch, emit_options, finish, kernel, user_names
from .triton_program import (
    BROADCAST_STRIDE,
    DESCRIPTOR,
    Tiles,
    emit_accumulate,
    emit_classify_call,
    emit_product,
    emit_sizes,
    table_arguments,
    uses_table,
)
from .triton_skeleton import Skeleton
from .triton_split import emit_merge, emit_shares, emit_sums_of_share
from .triton_tiles import TABLE_TILE, Masked, TileLoops
from .triton_values import Guard, Values

if TYPE_CHECKING:
    from .triton_few_queries import FewQueries

KERNEL = "attention_forward"
# Up to so many queries of a head are "few".
MOST_QUERIES = 16


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``."""
    from .triton_few_queries import few_queries  # which extends the kernel of this file

    head, out = Emitter(), Emitter()
    forward = Forward(plan, problem, schedule)
    forward.few = few_queries(plan, problem, schedule)
    emit_header(head, "Forward kernel", plan, problem, schedule, target)
    kernels = [KERNEL]
    emit_options(out, "FORWARD", schedule)
    if forward.few:
        out.comment("For a handful of queries, as in decoding.")
        for name, options in zip(forward.few.option_names, forward.few.options, strict=True):
            emit_options(out, name, options)
    if schedule.descriptors:
        out.section(DESCRIPTOR)
    if uses_table(plan):
        from .triton_classify import emit_classify

        out.section(BROADCAST_STRIDE)
        out.section(TABLE_TILE)
        emit_classify(out, plan, (schedule.block_m, schedule.block_n))
    out.section()
    forward.emit_kernel(out)
    if forward.few:
        kernels.append(KERNEL + forward.few.suffix)
        out.section()
        forward.few.emit_kernel(out)
    if schedule.split_keys:
        kernels.append("merge_shares")
        emit_merge(out, fused=forward.fused)
    out.section()
    forward.emit_run(out)
    return finish(out, plan, kernels, head)


def composed_scores(scores: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """Every score as a function of the first one: s0 -> s1, s0 -> s2, …"""
    composed: list[Expr] = []
    for e in scores:
        composed.append(substitute(e, {Score(): composed[-1]}) if composed else e)
    return tuple(composed)


class Forward(Skeleton):
    """Emits the kernel and ``run``."""

    # The rows of queries that are owned: their heads, where they start in their tensor, and positions from there.
    own_head, own_start, own_rows = "head", "tile_first", "rows"
    entry_rows = "q_len"

    def __init__(self, plan: TilePlan, problem: Problem, schedule: Schedule) -> None:
        self.schedule = schedule
        results: dict[str, Expr] = {}
        if plan.variant.mask != TRUE:
            results["mask"] = plan.variant.mask
        if plan.variant.scores:
            results["score"] = composed_scores(plan.variant.scores)[-1]
        super().__init__(plan, problem, schedule.descriptors, results)
        self.in_shares = schedule.split_keys
        self.few: FewQueries | None = None

    @property
    def query_tiles(self) -> Tiles:
        """Loads of queries."""
        return self.tiles

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        split = [
            Argument("shares", "i32", "shares"),
            Argument("out_share", "i64", "out_share"),
            Argument("lse_share", "i64", "lse_share"),
        ]
        return [
            *self.tiles.pointers("out", "target"),
            Argument("lse", "", "target_lse"),
            *self.query_tiles.inputs("query", self.head, "BLOCK_M"),
            *self.tiles.inputs("key", self.head, "BLOCK_N"),
            *self.tiles.inputs("value", self.value, "BLOCK_N"),
            *(table_arguments("tiles") if uses_table(self.plan) else []),
            *self.arguments_after_tensors("batches * heads", "section_size(key, value, heads)"),
            *(split if self.in_shares else []),
        ]

    def emit_kernel(self, out: Emitter) -> None:
        """The kernel."""
        values = self.values()
        wanted = tuple(self.results)
        with kernel(out, KERNEL + self.suffix, self.arguments(), self.constants, self.problem.debug):
            owns = "a share of the keys of one tile" if self.in_shares else "one tile"
            out.line(f'"""Outputs and log-sum-exps of {owns} of queries."""')
            self._emit_prologue(out)
            loops = self.emit_key_tiles(out)
            out.line()
            self._emit_state(out)
            share = self.emit_shares(out, loops) if self.in_shares and loops.partial_count else None
            done = values.emit(out, "program", wanted, Guard())
            done = values.emit(out, "query", wanted, Guard(query=self.q_exists), done)

            def step(masked: Masked, exact: bool) -> None:
                self._emit_step(out, values, loops, done, masked=masked, exact=exact)

            # One loop saves short rows a start of the pipeline; a score that reads by pair needs the mask first.
            merged = (loops.table or loops.merged) and not values.reads("score", "pair")
            hot = partial(step, exact=not self.optimistic)
            self.emit_visits(out, loops, "BLOCK_N", hot, share=share, merged=merged)
            if self.optimistic and loops.partial_count:
                with self.emit_again(out, "acc", self.value):
                    self.emit_sums(out)
                    self.emit_exact_visits(out, loops, "BLOCK_N", partial(step, exact=True), share)
            out.line()
            self._emit_epilogue(out)

    def emit_shares(self, out: Emitter, loops: TileLoops) -> tuple[str, str] | None:
        """Which tiles this share visits; None where loops say it themselves."""
        return emit_shares(out, loops)

    def _emit_prologue(self, out: Emitter) -> None:
        self.emit_program(out)
        self.emit_query_place(out, reverse=self.schedule.reverse)
        head, start, rows = self.own_head, self.own_start, self.own_rows
        self.query_tiles.open_input(out, "query", head, rows, "columns", self.head)
        self.tiles.open_input(out, "key", "kv_head", "keys", "columns", self.head)
        self.tiles.open_input(out, "value", "kv_head", "keys", self.value_columns, self.value)
        self.query_tiles.load(out, "q", "query", head, start, "BLOCK_M", "columns", self.head, self.q_exists)
        out.line()

    def _emit_state(self, out: Emitter) -> None:
        self.emit_sums(out)
        self.emit_unit(out)

    def emit_sums(self, out: Emitter) -> None:
        """``m``, ``l`` and ``acc``, before any key is seen."""
        times = ", times log2(e)" if self.fused else ""
        out.comment(f"Running maximum{times}: finite, so that it is never subtracted from itself as infinity.")
        out.line("m = tl.full([BLOCK_M], -3.0e38, tl.float32)")
        out.line("l = tl.zeros([BLOCK_M], tl.float32)  # running sum of exponentials")
        for p in self.value:
            out.line(f"acc{p.suffix} = tl.zeros([BLOCK_M, {p.width}], tl.float32)")

    def _emit_step(
        self, out: Emitter, values: Values, loops: TileLoops, done: frozenset[str], *, masked: Masked, exact: bool
    ) -> None:
        """One tile of keys; with ``exact`` values that nobody sees are zeroed."""
        wanted = [*(self.mask_result if masked == "all" else ()), *(["score"] if self.has_scores else [])]
        rows = self.key_rows if masked != "none" else ""
        self.tiles.load(out, "k", "key", "kv_head", "start", "BLOCK_N", "columns", self.head, rows)
        emit_product(out, "s", "q", "k", self.head, self.precision)
        if masked != "none" or wanted:
            self.emit_kv_index(out)
        guard = Guard(key=self.kv_exists if masked != "none" else "")
        done = values.emit(out, "key", wanted, guard, done)
        if masked == "all":
            done = self.emit_allowed(out, values, done)
        self.emit_scaled(out)
        if self.has_scores:
            lanes = "allowed" if masked == "all" else self.q_exists
            done = values.emit(out, "pair", ("score",), Guard(pair=lanes), done)
            out.line(f"s = {values.result('score', 'BLOCK_M, BLOCK_N')}")
        match masked:
            case "all":
                out.line(_SELECT)
            case "some":
                with out.block(f"if {self.is_partial}:"):
                    done = values.emit(out, "key", self.mask_result, guard, done)
                    self.emit_allowed(out, values, done)
                    out.line(_SELECT)
        if self.fused:
            out.line(f"m_new = tl.maximum(m, tl.max(s, 1) * {self.unit})")
            out.line("alpha = tl.exp2(m - m_new)")
        else:
            out.line("m_new = tl.maximum(m, tl.max(s, 1))")
            out.line("alpha = precise_exp(m - m_new)")
        out.line(f"p = {self.exponential('s', 'm_new[:, None]')}")
        out.line("l = l * alpha + tl.sum(p, 1)")
        out.line("m = m_new")
        for part in self.value:
            out.line(f"acc{part.suffix} *= alpha[:, None]")
        rows = self.rows_in_hull(loops) if masked != "none" else ""
        self.tiles.load(out, "v", "value", "kv_head", "start", "BLOCK_N", self.value_columns, self.value, rows)
        if masked == "all" and exact:
            self.emit_unseen(out, "v", self.value, rows, "p")
        emit_accumulate(out, "acc", "p", "v", self.value, self.precision)

    def _emit_epilogue(self, out: Emitter) -> None:
        out.comment("A row that may attend to nothing gives 0, and -inf for the logarithm of its sum.")
        out.line("empty = l == 0.0")
        out.line("divisor = tl.where(empty, 1.0, l)")
        if self.in_shares:
            out.line("out += share * out_share")
            out.line("lse += share * lse_share")
        self.tiles.open(out, "out", self.own_head, self.own_rows, self.value_columns, self.value)
        self.tiles.store(
            out, "acc", "out", self.own_start, self.value_columns, self.value, self.q_exists,
            "({} / divisor[:, None])",
        )  # fmt: skip
        out.line(f"lse += entry.to(tl.int64) * {self.entry_rows}{self.first_row}")
        total = "(m + tl.log2(divisor)) * LN2" if self.fused else "m + tl.log(divisor)"
        out.line(f'total = tl.where(empty, float("-inf"), {total})')
        if self.in_shares:
            emit_sums_of_share(out, self.inside)
        out.line(f"tl.store(lse + rows, total, mask={self.inside})")

    def emit_run(self, out: Emitter) -> None:
        """The function that allocates, chooses options and launches."""
        v = self.plan.variant
        names = user_names(v)
        with out.block(f"def run({', '.join(['query', 'key', 'value', *names, 'scale=None', 'tiles=None'])}):"):
            out.line('"""(B, H, Lq, D), (B, Hkv, Lkv, D), (B, Hkv, Lkv, Dv) -> out (B, H, Lq, Dv), lse (B, H, Lq)."""')
            emit_sizes(out, self.plan, self.problem)
            if self.fused and not v.scores:
                out.comment("The running maximum needs a positive scale.")
                with out.block("if scale < 0:"):
                    out.line("query, scale = -query, -scale")
                out.line("scale = max(scale, 1e-30)")
            self.emit_outputs(out)
            with out.block("if lse.numel() == 0 or kv_len == 0:"):
                out.line('return out.zero_(), lse.fill_(float("-inf"))')
            if uses_table(self.plan):
                emit_classify_call(out, names)
            self.emit_launches(out)
            out.line("return out, lse")

    def emit_outputs(self, out: Emitter) -> None:
        """The part of ``run`` that makes ``out`` and ``lse``."""
        shape = f"(batches, heads, q_len, {self.problem.value_dim})"
        out.line(f"out = torch.empty({shape}, dtype=query.dtype, device=query.device)")
        out.line("lse = torch.empty((batches, heads, q_len), dtype=torch.float32, device=query.device)")

    def emit_launches(self, out: Emitter) -> None:
        """The part of ``run`` that fills ``out`` and ``lse``."""
        out.line("options = FORWARD")
        out.line('programs = triton.cdiv(q_len, options["BLOCK_M"]) * batches * heads')
        if self.few:
            self.few.emit_option_choices(out)
        if not self.in_shares:
            out.line("target, target_lse = out, lse")
            emit_launch(out, KERNEL, "(programs,)", self.arguments(), "**options")
            return
        width = self.problem.value_dim
        out.lines(_SHARE)
        if self.few:
            with out.block(f"if q_len <= {MOST_QUERIES}:"):
                self.few.emit_launch(out)
            with out.block("else:"):
                self.emit_launch(out)
        else:
            self.emit_launch(out)
        out.lines(_MERGE_LAUNCH.format(width=width, columns=1 << (width - 1).bit_length()))


    def emit_launch(self, out: Emitter) -> None:
        """The launch for shares of the keys."""
        emit_launch(out, KERNEL + self.suffix, "(programs * shares,)", self.arguments(), "**options")


_SELECT = 's = tl.where(allowed, s, float("-inf"))'
_SHARE = """
shares = share_count(programs, triton.cdiv(kv_len, options["BLOCK_N"]), query.device)
target, target_lse, out_share, lse_share = out, lse, 0, 0
if shares > 1:
    partial_out = torch.empty((shares, *out.shape), dtype=torch.float32, device=out.device)
    partial_sums = torch.empty((shares, 2, *lse.shape), dtype=torch.float32, device=out.device)
    out_share, lse_share = partial_out.stride(0), partial_sums.stride(0)
    target, target_lse = partial_out[0], partial_sums[0]
"""
_MERGE_LAUNCH = """
if shares > 1:
    launch(
        merge_shares, (lse.numel(),), out, lse, partial_out, partial_sums, lse.numel(), shares, {width},
        COLUMNS={columns}, num_warps=1,
    )
"""
