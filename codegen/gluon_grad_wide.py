"""Consumers for heads so wide that registers hold one gradient of 64 keys: a kernel for dK alone, one for dV alone.

Both compute the scores, so that there are eight products in all. Few tiles fit in shared memory: queries and gradients
of outputs have rings of their own, and the one that is needed for a shorter time has fewer buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_grad_key import KeyConsumer
from .gluon_names import Names
from .gluon_parts import emit_outer_product, emit_rounded, emit_wait, names_of, part_copies, tiles_of, together
from .gluon_tiles import OTHER_RING, ring_loads
from .schedule import Problem, Schedule
from .triton_module import Argument

_SET_UP = """
# The producer makes buffers ready.
kv_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
tile_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
out_ready = gl.allocate_shared_memory(gl.int64, [OTHER_STAGES, 1], mbarrier.MBarrierLayout())
mbarrier.init(kv_ready, count=1)
for i in gl.static_range(STAGES):
    mbarrier.init(tile_ready.index(i), count=1)
for i in gl.static_range(OTHER_STAGES):
    mbarrier.init(out_ready.index(i), count=1)
""".strip("\n")


class _OneSum(KeyConsumer):
    """Prints ``differentiate`` for one of both gradients."""

    barriers = "kv_ready, tile_ready, out_ready"
    set_up = _SET_UP
    out_stages, term_rows = "OTHER_STAGES", "STAGES + OTHER_STAGES"
    reads_delta = True

    def emit_functions(self, out: Emitter) -> None:
        """How buffers are found and given back."""
        super().emit_functions(out)
        out.definition(OTHER_RING)

    def visited_loads(self) -> list[str]:
        """Lines of the producer: it loads a tile of queries, then the gradient of its outputs."""
        load, where = self.names.load, "batch, head, start"
        terms = f"{load}(terms, [{{}}, row + start], {{}}.index(stage), term_tiles.index({{}}))"
        queries = [
            terms.format(0, "tile_ready", "stage"),
            *part_copies(load, "query", where, "q_tiles", "stage", self.head, "tile_ready.index(stage)"),
        ]
        outs = part_copies(load, "grad_out", where, "do_tiles", "stage", self.value, "out_ready.index(stage)")
        if self.reads_delta:
            outs.insert(0, terms.format(1, "out_ready", "STAGES + stage"))
        needs = f"BLOCK_M * (VALUE * 2{' + 4' if self.reads_delta else ''})"
        return [
            *ring_loads("loaded", "tile_ready", "BLOCK_M * (HEAD * 2 + 4)", queries, self.written_starts()),
            *ring_loads("loaded", "out_ready", needs, outs, (), other=True),
        ]

    def emit_first(self, out: Emitter) -> None:
        """``next_s``, of the next tile of queries."""
        out.line("stage, phase = ring(step)")
        out.line("other, other_phase = other_ring(step)")
        out.line("mbarrier.wait(tile_ready.index(stage), phase)")
        self.emit_queries(out)
        out.line("zero = tl.zeros([KEYS, BLOCK_M], tl.float32, SCORES)")
        self.emit_start_scores(out, "stage")

    def emit_wait_grad_out(self, out: Emitter) -> None:
        """``do_tile``, once it is there."""
        out.line("mbarrier.wait(out_ready.index(other), other_phase)")
        self.emit_grad_out(out, "other")


class LoneKeyConsumer(_OneSum):
    """Prints the consumer of the kernel for dK: three products."""

    arguments = "grad_key, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, barriers, starts, sizes, parameters"

    def __init__(
        self, plan: TilePlan, problem: Problem, block_m: int, parameters: Sequence[Argument], names: Names
    ) -> None:
        super().__init__(plan, problem, block_m, parameters, names)
        self.sums = self.sums[:1]

    def rings(self, schedule: Schedule) -> list[tuple[str, int]]:
        """Gradients of outputs are a factor of one product, queries of two."""
        return [("OTHER_STAGES", schedule.num_stages - 1)]

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """One tile of queries."""
        self.emit_first(out)
        self.emit_wait_grad_out(out)
        self.emit_delta(out, "STAGES + other")
        self.emit_start_dp(out)
        self.emit_wait_scores(out, len(self.value), "stage", positions=True)
        self._emit_probabilities(out, self.wanted(self.here, masked=masked), done, masked=masked)
        out.line("dp = warpgroup_mma_wait(0, deps=(next_dp,))")
        out.line("release(STAGES + other)")
        self.emit_score_gradients(out, masked=masked)
        emit_rounded(out, "ds", "DIFFERENCES", self.head)
        emit_outer_product(out, "dk", "DIFFERENCES", names_of("q_tile", self.head), self.head)
        emit_wait(out, "dk", self.head, 0)
        out.line("release(stage)")
        out.line("step += 1")


class LoneValueConsumer(_OneSum):
    """Prints the consumer of the kernel for dV: two products.

    ``folded``: what the log-sum-exps are for, as the kernel for dK has it. The gradient leaves from where keys were.
    """

    arguments = "grad_value, q_tiles, k_tiles, do_tiles, term_tiles, barriers, starts, sizes, parameters"
    reads_delta = False

    def __init__(
        self, plan: TilePlan, problem: Problem, block_m: int, parameters: Sequence[Argument], names: Names,
        folded: bool,
    ) -> None:  # fmt: skip
        super().__init__(plan, problem, block_m, parameters, names)
        self.here, self.folded = [], folded
        self.owned, self.sums = {"key": self.head}, self.sums[1:]

    def emit_tiles(self, out: Emitter) -> None:
        """Where the gradient leaves from."""
        for own, other in zip(names_of("v_tile", self.value), names_of("k_tile", self.head), strict=False):
            out.line(f"{own} = {other}")
        out.line(f"v_tiles = {together([tiles_of('k_tiles', self.head, i) for i in range(len(self.value))])}")

    def wanted(self, here: object, *, masked: bool) -> list[str]:
        """No derivatives."""
        return self.wanted_for_probabilities(masked=masked)

    def rings(self, schedule: Schedule) -> list[tuple[str, int]]:
        """Both are factors of one product."""
        return [("OTHER_STAGES", schedule.num_stages)]

    def _emit_step(self, out: Emitter, done: frozenset[str], *, masked: bool) -> None:
        """One tile of queries."""
        self.emit_first(out)
        self.emit_wait_scores(out, 0, "stage", positions=True)
        self._emit_probabilities(out, self.wanted(self.here, masked=masked), done, masked=masked)
        out.line("release(stage)")
        self.emit_wait_grad_out(out)
        self.emit_start_values(out)
        emit_wait(out, "dv", self.value, 0)
        out.line("release(STAGES + other)")
        out.line("step += 1")
