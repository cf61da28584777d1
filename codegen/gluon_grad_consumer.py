"""Consumers of kernels whose programs own keys: gradients of 64 keys and values, tile of queries by tile of queries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from ..ir.dependence import LoadClass, dependence
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_bands import emit_steps
from .gluon_columns import emit_columns, lanes
from .gluon_grad_loader import SIZES
from .gluon_grad_runs import OwnKeys, Sum
from .gluon_names import Names
from .gluon_parts import emit_inner_product, emit_outer_product, emit_rounded, emit_views, names_of
from .gluon_tiles import emit_unpack, jit_function
from .schedule import Problem, Schedule
from .triton_gradients import Gradients, emit_select
from .triton_module import Argument
from .triton_values import Guard, Values, level_of

# Captured tensors whose gradients are summed for each key.
SUMMED_BY_KEY: tuple[LoadClass, ...] = ("key",)
_TERM_ROW = "term_tiles.index({}).reshape([BLOCK_M]).load(tl.SliceLayout(0, SCORES))"


def emit_final_score(
    out: Emitter, kernel: Gradients, values: Values, wanted: Sequence[str], done: frozenset[str], lanes: str, shape: str
) -> tuple[str, frozenset[str]]:
    """The name of the modified scores of ``shape``, from products ``s``, and all steps done.

    ``lanes`` are pairs that may be looked up. Slopes come later.
    """
    kernel.emit_scaled(out)
    if not kernel.has_scores:
        return "s", done
    done = values.emit(out, "pair", [x for x in wanted if x not in ("mask", "slope")], Guard(pair=lanes), done)
    spread = level_of(dependence(kernel.results["score"])) != "pair"
    zeros = f"tl.zeros({shape}, tl.float32, SCORES) + " if spread else ""
    out.line(f"final = {zeros}({values.result('score')})")
    return "final", done


class Consumer(OwnKeys):
    """Prints ``differentiate``: for each head of queries a loop with the mask and one without.

    What becomes of the scores' gradient is said by :mod:`.gluon_grad_five` and :mod:`.gluon_grad_key`; which sums there
    are, and how tiles of queries come, by the methods that :mod:`.gluon_grad_wide` overrides; what a tile is by those
    of :mod:`.gluon_box_grads`.
    """

    # Arguments of ``differentiate``; buffers and barriers, and how the producer waits for a buffer.
    arguments: str
    barriers: str
    set_up: str
    wait: str
    # How many buffers there are of the gradient of outputs, and of rows of terms: log-sum-exps and deltas in turn.
    out_stages, term_rows = "STAGES", "STAGES * 2"
    # Whether the product for dV starts only after the scores' gradient was stored, by ``emit_differences``.
    late_values = False

    def __init__(
        self, plan: TilePlan, problem: Problem, block_m: int, parameters: Sequence[Argument], names: Names
    ) -> None:
        super().__init__(plan, problem, True)
        self.parameters, self.names = parameters, names
        if self.masks_positions:
            self.take_band("q", block_m)
        self.expressions = self.values()
        self.split_columns = block_m == 64
        # Measured 4 % faster at D 128; at D 64 with larger tiles it takes registers.
        self.folded = not self.has_scores and block_m <= 64
        found = [x for e in self.results.values() for x in loads(e)]
        self.loads_queries = any(dependence(x) & {"q", "kv"} == {"q"} for x in found)
        self.here = self.of_kinds(*SUMMED_BY_KEY)
        # Tiles of keys that a consumer holds in shared memory, and what it sums.
        self.owned = {"key": self.head, "value": self.value}
        self.sums = [
            Sum("dk", "HEAD", self.head, "grad_key", "k_tile", " * scale"),
            Sum("dv", "VALUE", self.value, "grad_value", "v_tile"),
        ]

    def emit(self, out: Emitter) -> None:
        """The function."""
        self.emit_functions(out)
        with jit_function(out, f"differentiate(GROUP: tl.constexpr, {self.arguments}{self.constants_typed})"):
            out.line('"""A consumer: four warps own KEYS keys."""')
            self._emit_prologue(out)
            with out.block("for member in range(0, group):"):
                done = self._emit_head(out)
                out.comment(f"Tiles in which the mask decides{self.masked_too}.")
                with out.block("for t in range(0, masked):"):
                    self._emit_step(out, done, masked=True)
                if self.has_full_tiles:
                    out.comment("Tiles in which every pair is allowed.")
                    with out.block("for t in range(masked, count):"):
                        self._emit_step(out, done, masked=False)
                for c in self.here:
                    place = f"{c.name}_sums + (batch * heads + head).to(tl.int64) * kv_len + own_keys"
                    out.line(f"tl.store({place}, {c.name}_total, mask={self.inside})")
            self._emit_epilogue(out)

    def _emit_prologue(self, out: Emitter) -> None:
        out.line(f"{self.barriers} = barriers")
        emit_unpack(out, "sizes", SIZES)
        emit_unpack(out, "parameters", self.parameters)
        self.emit_place(out)
        for name, parts in self.owned.items():
            size = "HEAD" if name == "key" else "VALUE"
            emit_views(out, f"{name[0]}_tile", f"{name[0]}_tiles", "GROUP", "KEYS", size, parts)
        self.emit_tiles(out)
        self.emit_own_positions(out)
        self._emit_positions(out)
        self.emit_lanes(out)
        self.emit_unit(out)
        for x in self.sums:
            for p in x.parts:
                zeros = f"tl.zeros([KEYS, {x.size}{p.suffix}], tl.float32, {x.layout}{p.suffix})"
                out.line(f"{x.name}{p.suffix} = {zeros}")
        out.line("step = 0  # tiles of queries of all heads")
        out.line("mbarrier.wait(kv_ready, 0)")
        self.emit_clear(out)

    def _emit_positions(self, out: Emitter) -> None:
        out.line("columns = tl.arange(0, BLOCK_M, tl.SliceLayout(0, SCORES))")
        if self.loads_queries:
            out.line(f"lanes = {lanes('BLOCK_M')}")
        if self.band is not None:
            emit_steps(out)

    def _emit_head(self, out: Emitter) -> frozenset[str]:
        out.line("head = chunk * group + member")
        self.emit_counts(out)
        for c in self.here:
            out.line(f"{c.name}_total = tl.zeros([KEYS], tl.float32, tl.SliceLayout(1, SCORES))")
        needed = self.wanted(self.here, masked=True)
        done = self.expressions.emit(out, "program", needed, Guard())
        self.emit_score_unit(out, self.expressions)
        return self.expressions.emit(out, "key", needed, Guard(key="(kv_index < kv_len)"), done)

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """One tile of queries."""
        wanted = self.wanted(self.here, masked=masked)
        out.line("stage, phase = ring(step)")
        out.line("mbarrier.wait(tile_ready.index(stage), phase)")
        self.emit_queries(out)
        self.emit_grad_out(out, "stage")
        out.line("zero = tl.zeros([KEYS, BLOCK_M], tl.float32, SCORES)")
        self.emit_delta(out, "stage * 2 + 1")
        self.emit_start_scores(out, "stage * 2")
        self.emit_start_dp(out)
        self.emit_wait_scores(out, len(self.value), "stage * 2", positions=bool(wanted) or masked)
        self._emit_probabilities(out, wanted, done, masked=masked)
        if not self.late_values:
            self.emit_start_values(out)
        out.line(f"dp = warpgroup_mma_wait({0 if self.late_values else len(self.value)}, deps=(next_dp,))")
        self.emit_score_gradients(out, masked=masked)
        self.emit_differences(out)
        out.line("step += 1")

    def rings(self, schedule: Schedule) -> list[tuple[str, int]]:
        """Constants: how many buffers other rings have."""
        return []

    def own_loads(self) -> str:
        """Lines of the producer: it loads half ``i`` of the owned tile of keys."""
        owned = self.owned.items()
        return "\n".join(x for name, p in owned for x in self.copies(name, p, f"{name[0]}_tiles", "i", "kv_ready"))

    def visited_loads(self) -> list[str]:
        """Lines of the producer: it loads a tile of queries, with their terms and the gradient of outputs."""
        ready = "tile_ready.index(stage)"
        return [
            "stage, phase = ring(loaded)",
            *self.wait.split("\n"),
            *self.written_starts(),
            f"mbarrier.expect({ready}, BLOCK_M * (HEAD * 2 + VALUE * 2{self.term_bytes}))",
            *self.copied_terms(ready),
            *self.copies("query", self.head, "q_tiles", "stage", ready),
            *self.copies("grad_out", self.value, "do_tiles", "stage", ready),
            *self.written_terms(),
        ]

    def emit_queries(self, out: Emitter) -> None:
        """``q_tile``, from the buffer ``stage``."""
        emit_views(out, "q_tile", "q_tiles", "stage", "BLOCK_M", "HEAD", self.head)

    def emit_grad_out(self, out: Emitter, stage: str) -> None:
        """``do_tile``, from a buffer."""
        emit_views(out, "do_tile", "do_tiles", stage, "BLOCK_M", "VALUE", self.value)

    def emit_delta(self, out: Emitter, i: str) -> None:
        """``first_dp``, from the ``i``-th row of terms."""
        out.comment("Sums of products start at what would be subtracted from them.")
        out.line(f"delta_row = {_TERM_ROW.format(i)}")
        out.line("first_dp = zero + delta_row[None, :]")

    def emit_start_scores(self, out: Emitter, i: str) -> None:
        """``next_s``; the ``i``-th row of terms has log-sum-exps."""
        first = "zero"
        if self.folded:
            out.line(f"lse_row = {_TERM_ROW.format(i)}")
            out.line("first_s = zero + lse_row[None, :]")
            first = "first_s"
        emit_inner_product(out, "next_s", self.own("key"), names_of("q_tile", self.head), first, begins=self.folded)

    def emit_start_dp(self, out: Emitter) -> None:
        """``next_dp``."""
        emit_inner_product(out, "next_dp", self.own("value"), names_of("do_tile", self.value), "first_dp")

    def own(self, tensor: Literal["key", "value"]) -> list[str]:
        """The tile that this consumer owns, part by part, as text."""
        return names_of(f"{tensor[0]}_tile", self.owned[tensor])

    def emit_wait_scores(self, out: Emitter, pending: int, i: str, *, positions: bool) -> None:
        """``s``, and what tells the scores apart from it; whether these ask for ``positions``."""
        out.line(f"s = warpgroup_mma_wait({pending}, deps=(next_s,))")
        self.emit_start(out, needed=positions)
        if not self.folded:
            out.line(f"lse_row = {_TERM_ROW.format(i)}")

    def emit_start_values(self, out: Emitter) -> None:
        """``next_dv``."""
        emit_rounded(out, "p", "WEIGHTS", self.value)
        emit_outer_product(out, "dv", "WEIGHTS", names_of("do_tile", self.value), self.value)

    def emit_score_gradients(self, out: Emitter, *, masked: bool) -> None:
        """``ds`` and sums of contributions, from ``p`` and ``dp``."""
        # With twice the queries a tile, or of slopes, that spills more.
        counting = self.counting if masked and self.split_columns and self.weight == "p" else ""
        found = self.emit_score_gradient(out, self.expressions, self.here, delta="", counting=counting)
        if masked:
            emit_select(out, found, self.counting)
        for c in self.here:
            out.line(f"{c.name}_total += tl.sum({c.name}, 1)")

    def _emit_probabilities(
        self, out: Emitter, wanted: Sequence[str], done: frozenset[str], *, masked: bool
    ) -> None:
        """``p`` from products ``s``; queries past the end have an infinite log-sum-exp, so nothing of them counts."""
        values = self.expressions
        if wanted or (masked and self.masks_positions):
            guard = Guard(query="(q_index < q_len)" if masked else "")
            done = emit_columns(out, values, "query", wanted, guard, done, self.positions)
        if masked:
            done = self.emit_allowed(out, values, done)
        lanes = "allowed" if masked else self.full_pairs
        score, done = emit_final_score(out, self, values, wanted, done, lanes, "[KEYS, BLOCK_M]")
        text = "tl.exp2(s * unit)" if self.folded else self.exponential(score, "lse_row[None, :]")
        out.line(f"p = {f'tl.where(allowed, {text}, 0.0)' if masked else text}")
        if masked:
            self.emit_mixed(out, "p", "0.0")
        self.emit_slope(out, values, wanted, done)

    def _emit_epilogue(self, out: Emitter) -> None:
        out.line()
        self.emit_finish(out)
        self.emit_gradients(out)

    # --- what becomes of the scores' gradient ---

    @abstractmethod
    def half_of_queries(self, queries: int) -> tuple[int, int] | None:
        """Rows and columns of a tile's gradient of queries that a consumer computes; None where it computes none."""

    @abstractmethod
    def emit_functions(self, out: Emitter) -> None:
        """What ``differentiate`` calls."""

    @abstractmethod
    def emit_clear(self, out: Emitter) -> None:
        """What must be done with keys that no query sees."""

    @abstractmethod
    def emit_tiles(self, out: Emitter) -> None:
        """Further tiles in shared memory."""

    @abstractmethod
    def emit_differences(self, out: Emitter) -> None:
        """What follows from ``ds``, and the release of the buffers."""

    @abstractmethod
    def emit_finish(self, out: Emitter) -> None:
        """What comes before this consumer writes over its keys and values."""
