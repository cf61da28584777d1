"""The kernel for dQ alone: a program owns 128 queries, 64 for each consumer, and walks the keys that they see.

The products for the scores of a tile of keys and for their gradient start before that of the last tile's gradient with
its keys: the exponentials of one tile are computed beside products of both. Nothing is added to global memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir.dependence import LoadClass, dependence
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_bands import emit_steps
from .gluon_columns import emit_columns
from .gluon_columns import lanes as column_lanes
from .gluon_grad_consumer import emit_final_score
from .gluon_grad_query_kernel import QueryKernel
from .gluon_names import Names
from .gluon_parts import (
    emit_inner_product,
    emit_outer_product,
    emit_rounded,
    emit_views,
    emit_wait,
    names_of,
    part_copies,
    views,
)
from .gluon_seen import UnseenByWeights, UnseenKeys
from .gluon_tiles import emit_unpack, jit_function
from .schedule import Problem, Schedule
from .triton_gradients import emit_select
from .triton_module import Argument, Part
from .triton_program import SIZES
from .triton_values import Guard

KERNEL = "attention_grad_query"
# Of a thread: for sums, scores, their gradient and its predecessor, and left operands; more were measured to spill.
_REGISTERS = 192
# Captured tensors whose gradients are summed for each query.
SUMMED_BY_QUERY: tuple[LoadClass, ...] = ("batch_head", "query")


class QueryConsumer(QueryKernel):
    """Prints the kernel and all that it calls; ``folded``: in which units log-sum-exps come.

    What a tile is, is said by the methods that :mod:`.gluon_box_grads` overrides.
    """

    name = KERNEL
    targets = "grad_query, terms"

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, parameters: Sequence[Argument], names: Names,
        folded: bool,
    ) -> None:  # fmt: skip
        super().__init__(plan, problem, schedule, parameters, names)
        self.folded = folded
        self.unseen = UnseenKeys.of(plan) or UnseenByWeights.of(plan, problem.dtype)
        if self.masks_positions:
            self.take_band("kv", schedule.block_n)
        self.expressions = self.values()
        found = [x for e in self.results.values() for x in loads(e)]
        self.loads_keys = any(dependence(x) & {"q", "kv"} == {"kv"} for x in found)
        self.asks = isinstance(self.unseen, UnseenByWeights)
        self.here = self.of_kinds(*SUMMED_BY_QUERY)
        self.lefts = self._left_operands()
        # Sums of the widest leave no room for the gradient of another tile's scores.
        self.overlaps = problem.head_dim <= 192

    def _left_operands(self) -> list[str]:
        """Which tiles fit into registers, and are not read again from shared memory, which small products keep busy."""
        free = _REGISTERS - self.problem.head_dim // 2 - 3 * self.schedule.block_n // 2
        found: list[str] = []
        for name, size in (("q", self.problem.head_dim), ("do", self.problem.value_dim)):
            if size // 4 <= free:
                free -= size // 4
                found.append(name)
        return found

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
            for p in self.head:
                out.line(f"dq{p.suffix} = tl.zeros([ROWS, HEAD{p.suffix}], tl.float32, QUERY_SUMS{p.suffix})")
            for c in self.here:
                out.line(f"{c.name}_total = tl.zeros([ROWS], tl.float32, tl.SliceLayout(1, SCORES))")
            if self.overlaps:
                out.comment("The first tile, masked even if it is full: nothing to overlap with yet.")
                out.line("stage, phase = ring(0)")
                self.emit_start_products(out, "0")
                self._emit_gradient(out, done, masked=True, last=False)
                self._emit_clear(out)
                out.comment("Tiles in which the mask decides.")
                with out.block("for t in range(1, partial_count):"):
                    self._emit_step(out, done, masked=True)
                if self.has_full_tiles:
                    out.comment("Tiles in which every pair is allowed.")
                    with out.block("for t in range(tl.maximum(partial_count, 1), count):"):
                        self._emit_step(out, done, masked=False)
                out.line("last, _ = ring(tl.maximum(count, 1) - 1)")
                emit_rounded(out, "ds", "DIFFERENCES", self.head)
                self._emit_start_sums(out, "last")
                emit_wait(out, "dq", self.head, 0)
            else:
                self.emit_loops(out, lambda masked: self._emit_lone_step(out, done, masked=masked))
            self._emit_epilogue(out)

    def emit_loops(self, out: Emitter, step: Callable[[bool], None]) -> None:
        """Two loops over tiles of keys, where nothing of one tile is done beside another; ``step`` may be masked."""
        out.comment("Tiles in which the mask decides, and the first one, even if it is full or not visited.")
        with out.block("for t in range(0, tl.maximum(partial_count, 1)):"):
            step(True)
        if self.has_full_tiles:
            out.comment("Tiles in which every pair is allowed.")
            with out.block("for t in range(tl.maximum(partial_count, 1), count):"):
                step(False)

    def _emit_lone_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """One tile of keys: all three products."""
        out.line("stage, phase = ring(t)")
        self.emit_start_products(out, "t")
        self._emit_gradient(out, done, masked=masked, last=False)
        emit_rounded(out, "ds", "DIFFERENCES", self.head)
        if masked:
            self._emit_clear(out)
        self._emit_start_sums(out, "stage")
        emit_wait(out, "dq", self.head, 0)
        out.line("release(stage)")

    def emit_prologue(self, out: Emitter) -> frozenset[str]:
        """What is known before the first tile of keys; returns the steps done."""
        out.line(f"{self.barriers} = barriers")
        emit_unpack(out, "sizes", SIZES)
        emit_unpack(out, "parameters", self.parameters)
        self.emit_place(out)
        emit_views(out, "q_tile", "q_tiles", "GROUP", "ROWS", "HEAD", self.head)
        emit_views(out, "do_tile", "do_tiles", "GROUP", "ROWS", "VALUE", self.value)
        self.emit_rows(out)
        out.line("q_index = q_row[:, None]")
        out.line("columns = tl.arange(0, BLOCK_N, tl.SliceLayout(0, SCORES))")
        if self.band is not None:
            emit_steps(out)
        if self.loads_keys:
            out.line(f"lanes = {column_lanes('BLOCK_N')}")
        self.emit_lanes(out)
        self.emit_unit(out)
        out.comment("Rows are padded to whole tiles.")
        out.line("padded = tl.cdiv(q_len, BLOCK_M) * BLOCK_M")
        unit = " * -unit" if self.folded else ""
        exist = f", mask={self.rows_with_terms}, other=0.0" if self.rows_with_terms else ""
        out.line(f"lse_rows = tl.load(terms + entry.to(tl.int64) * padded + q_row{exist}){unit}")
        out.line(f"delta_rows = -tl.load(terms + (all_heads + entry).to(tl.int64) * padded + q_row{exist})")
        self.emit_counts(out)
        wanted = self.wanted(self.here, masked=True)
        done = self.expressions.emit(out, "program", wanted, Guard())
        self.emit_score_unit(out, self.expressions)
        done = self.expressions.emit(out, "query", wanted, Guard(query="(q_index < q_len)"), done)
        out.line("mbarrier.wait(q_ready, 0)")
        for name in self.lefts:
            for p in self.head if name == "q" else self.value:
                out.line(f"{name}{p.suffix} = {name}_tile{p.suffix}.load(LEFT)")
        return done

    def emit_start_products(self, out: Emitter, number: str) -> None:
        """Of the tile of keys with this number, in buffer ``stage``: ``next_s`` and ``next_dp``."""
        out.line("zero = tl.zeros([ROWS, BLOCK_N], tl.float32, SCORES)")
        out.line(f"mbarrier.wait({self.ready[0]}.index(stage), phase)")
        if self.apart:
            out.line("own = own_tile(GROUP)")
        keys = views("k_tiles", "stage", "BLOCK_N", "HEAD", self.head)
        emit_inner_product(out, "next_s", self._left("q", "HEAD", self.head), keys, "zero", begins=False)
        stage = "stage"
        if self.apart:
            stage = "other"
            out.line(f"other, phase = other_ring({number})")
            out.line("mbarrier.wait(v_ready.index(other), phase)")
        values = views("v_tiles", stage, "BLOCK_N", "VALUE", self.value)
        emit_inner_product(out, "next_dp", self._left("do", "VALUE", self.value), values, "zero", begins=False)

    def _left(self, name: str, size: str, parts: tuple[Part, ...]) -> list[str]:
        if name in self.lefts:
            return names_of(name, parts)
        return views(f"{name}_tiles", "own", "ROWS", size, parts) if self.apart else names_of(f"{name}_tile", parts)

    def emit_wait_gradient(self, out: Emitter, pending: int) -> None:
        """``dp``, after which values are not needed any more."""
        out.line(f"dp = warpgroup_mma_wait({pending}, deps=(next_dp,))")
        if self.apart:
            out.line("release(STAGES + other)")

    def _emit_start_sums(self, out: Emitter, stage: str) -> None:
        """From the gradient of the scores of the tile in buffer ``stage``."""
        emit_views(out, "k_tile", "k_tiles", stage, "BLOCK_N", "HEAD", self.head)
        emit_outer_product(out, "dq", "DIFFERENCES", names_of("k_tile", self.head), self.head)

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """The gradient of the scores of one tile of keys, overlapped with the sums of the tile before."""
        out.line("last, _ = ring(t - 1)")
        out.line("stage, phase = ring(t)")
        self.emit_start_products(out, "t")
        out.comment("Rounded here and not before: loops would carry halves of registers.")
        emit_rounded(out, "ds", "DIFFERENCES", self.head)
        self._emit_start_sums(out, "last")
        self._emit_gradient(out, done, masked=masked, last=True)
        if masked:
            self._emit_clear(out)

    def _emit_gradient(self, out: Emitter, done: frozenset[str], *, masked: bool, last: bool) -> None:
        """``ds`` from products on their way; with ``last`` the sums of the tile before are, too."""
        sums = len(self.head) if last else 0
        self.emit_probabilities_of_tile(out, done, masked=masked, pending=len(self.value) + sums)
        self.emit_wait_gradient(out, sums)
        counting = self.counting if masked else ""
        found = self.emit_score_gradient(
            out, self.expressions, self.here, delta="delta_rows[:, None]", counting=counting
        )
        if masked:
            emit_select(out, found, self.counting)
        for c in self.here:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
        if last:
            emit_wait(out, "dq", self.head, 0)
            out.line("release(last)")

    def _emit_clear(self, out: Emitter) -> None:
        """Keys that no query sees may hold anything: as factors of gradients of scores they must be zeros."""
        if not self.unseen.all_seen:
            with out.block(f"if {self.unseen.some_unseen}:"):
                self.unseen.emit_clear(out, views("k_tiles", "stage", "BLOCK_N", "HEAD", self.head))

    def emit_probabilities_of_tile(
        self, out: Emitter, done: frozenset[str], *, masked: bool, pending: int
    ) -> None:
        """``p`` and what derivatives need, from ``next_s`` after which ``pending`` products were started."""
        values, wanted = self.expressions, self.wanted(self.here, masked=masked)
        out.line(f"s = warpgroup_mma_wait({pending}, deps=(next_s,))")
        if wanted or masked:
            self.emit_start(out)
        if wanted or (masked and self.masks_positions):
            guard = Guard(key=self.kv_exists if masked else "")
            done = emit_columns(out, values, "key", wanted, guard, done, self.positions)
        if masked:
            done = self.emit_allowed(out, values, done)
        lanes = "allowed" if masked else self.q_exists
        score, done = emit_final_score(out, self, values, wanted, done, lanes, "[ROWS, BLOCK_N]")
        text = self.exponential(score, "lse_rows[:, None]")
        out.line(f"p = {f'tl.where(allowed, {text}, 0.0)' if masked else text}")
        self.emit_slope(out, values, wanted, done)

    def _emit_epilogue(self, out: Emitter) -> None:
        out.line()
        self.emit_gradient(out)
        for c in self.here:
            place = f"{c.name}_sums + entry.to(tl.int64) * q_len + q_row"
            out.line(f"tl.store({place}, {c.name}_total, mask={self.inside})")
        out.line("tma.store_wait(0)")

    def emit_gradient(self, out: Emitter) -> None:
        """Writes ``dq`` by descriptor."""
        out.comment("The gradient leaves from where the queries were.")
        for p in self.head:
            out.line(f"q_tile{p.suffix}.store((dq{p.suffix} * scale).to(ELEMENT))")
        out.line("fence_async_shared()")
        out.line(f"{self.names.barrier}()")
        where = self.emit_gradient_place(out)
        out.lines("\n".join(part_copies(self.names.store, "grad_query", where, "q_tiles", "GROUP", self.head)))
