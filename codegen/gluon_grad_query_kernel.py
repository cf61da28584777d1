"""The kernel for dQ around its consumers: buffers, constants, and the producer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_grad_runs import OwnQueries
from .gluon_loader import filled
from .gluon_module import emit_layouts
from .gluon_names import Names
from .gluon_parts import emit_buffers, emit_together, widths
from .gluon_releases import emit_releases
from .gluon_tiles import CELLS, OTHER_RING, OWN_TILE, ring_loads
from .gluon_work import emit_work
from .schedule import Problem, Schedule
from .triton_module import Argument, kernel
from .triton_program import SIZES


class QueryKernel(OwnQueries):
    """Prints the kernel; subclasses print its consumers.

    ``asks``: whether consumers tell each other which keys have weights. ``apart``: keys and values have buffers of
    their own.
    """

    name: str
    # What consumers take before buffers.
    targets: str
    asks: bool

    def __init__(
        self, plan: TilePlan, problem: Problem, schedule: Schedule, parameters: Sequence[Argument], names: Names
    ) -> None:
        super().__init__(plan, problem, True)
        self.schedule, self.parameters, self.names = schedule, parameters, names
        # With wide heads few tiles fit, and values are done with before keys.
        self.apart = max(problem.head_dim, problem.value_dim) > 128
        self.ready = ("k_ready", "v_ready") if self.apart else ("kv_ready",)

    @property
    def barriers(self) -> str:
        """All that consumers share, as text."""
        return ", ".join(["q_ready", *self.ready, *(["weighty", "weighty_ready"] if self.asks else [])])

    @abstractmethod
    def emit_consumer(self, out: Emitter, signature: str) -> None:
        """The function of a consumer."""

    def emit(self, out: Emitter, launched: Sequence[Argument]) -> None:
        """The kernel, which is ``launched`` with these arguments, its functions and its constants."""
        self._emit_constants(out)
        out.definition(CELLS)
        self.emit_tile_functions(out)
        emit_releases(out, 2)
        if self.apart:
            out.definition(OWN_TILE + OTHER_RING)
        arguments = f"{self.targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters"
        self.emit_consumer(out, f"differentiate(GROUP: tl.constexpr, {arguments}{self.constants_typed})")
        constants = {"more": self.more, "constants": self.constants_typed}
        out.definition(filled(_LOAD_TILES, barriers=self.barriers, **constants, **self._loads(), **self.producer()))
        out.line("\n")
        with kernel(out, self.name, launched, self.constant_names):
            out.line(f"sizes = ({', '.join(a.name for a in SIZES)})")
            out.line(f"parameters = ({', '.join(a.name for a in self.parameters)},)")
            emit_work(out, self.work)
            self._emit_buffers(out)
            weights = _WEIGHTS if self.asks else ""
            init = "\n".join(f"    mbarrier.init({x}.index(i), count=1)" for x in self.ready)
            kinds = "\n".join(
                f"{x} = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())" for x in self.ready
            )
            facts = {"barriers": self.barriers, "weights": weights, "targets": self.targets, "starts": self.starts}
            constants["constants"] = self.constants_passed
            out.lines(_KERNEL_BODY.format(init=init, kinds=kinds, **constants, **facts))

    def _loads(self) -> dict[str, str]:
        """Lines of the producer: what it loads once, and for each tile of keys from its start on."""
        keys, values = (
            self.copies(name, parts, f"{name[0]}_tiles", "stage", f"{ready}.index(stage)")
            for name, parts, ready in (("key", self.head, self.ready[0]), ("value", self.value, self.ready[-1]))
        )
        starts = self.written_starts()
        visited = ring_loads("t", "kv_ready", "BLOCK_N * (HEAD + VALUE) * 2", keys + values, starts)
        if self.apart:
            visited = ring_loads("t", "k_ready", "BLOCK_N * HEAD * 2", keys, starts)
            visited += ring_loads("t", "v_ready", "BLOCK_N * VALUE * 2", values, (), other=True)
        own = self.copies("query", self.head, "q_tiles", "i", "q_ready")
        own += self.copies("grad_out", self.value, "do_tiles", "i", "q_ready")
        return {"own": "\n".join(own), "visited": "\n".join(visited)}

    def _emit_buffers(self, out: Emitter) -> None:
        targets = [("grad_query", self.head)] if "grad_query" in self.targets else []
        tensors = [("query", self.head), ("grad_out", self.value), ("key", self.head), ("value", self.value)]
        for name, parts in (*targets, *tensors):
            emit_together(out, name, parts)
        emit_buffers(out, "q_tiles", "2", "query", "QUERY_TILE", self.head)
        emit_buffers(out, "do_tiles", "2", "grad_out", "OUT_TILE", self.value)
        emit_buffers(out, "k_tiles", "STAGES", "key", "KEY_TILE", self.head)
        stages = "OTHER_STAGES" if self.apart else "STAGES"
        emit_buffers(out, "v_tiles", stages, "value", "VALUE_TILE", self.value)

    def _emit_constants(self, out: Emitter) -> None:
        schedule = self.schedule
        element = {"f16": "tl.float16", "bf16": "tl.bfloat16"}[self.problem.dtype]
        rows, keys = schedule.block_m // 2, schedule.block_n
        for name, number in (
            ("ROWS", rows), ("BLOCK_M", schedule.block_m), ("BLOCK_N", keys), *widths("HEAD", self.head),
            *widths("VALUE", self.value), ("STAGES", schedule.num_stages),
            *([("OTHER_STAGES", schedule.num_stages - 1)] if self.apart else []), ("ELEMENT", element),
        ):  # fmt: skip
            out.line(f"{name} = tl.constexpr({number})")
        out.comment("Layouts in registers: scores, sums, and left operands of both.")
        tiles = [
            (f"{name}{p.suffix}", height, p.width, element)
            for name, height, parts in (
                ("QUERY_TILE", rows, self.head),
                ("OUT_TILE", rows, self.value),
                ("KEY_TILE", keys, self.head),
                ("VALUE_TILE", keys, self.value),
            )
            for p in parts
        ]
        registers = [("SCORES", keys), *((f"QUERY_SUMS{p.suffix}", p.width) for p in self.head)]
        operands = {f"DIFFERENCES{p.suffix}": f"QUERY_SUMS{p.suffix}" for p in self.head} | {"LEFT": "SCORES"}
        emit_layouts(out, registers, operands, tiles, self.axes)


_LOAD_TILES = """
@gluon.jit
def load_tiles(
    query, grad_out, key, value, {more}q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes,
    parameters{constants},
):
    \"\"\"The producer: one warp loads the tile of queries, then one tile of keys after the other.\"\"\"
    {barriers} = barriers
    {prologue}
    mbarrier.expect(q_ready, BLOCK_M * (HEAD + VALUE) * 2)
    for i in gl.static_range(2):
        {own}
    # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
    for t in range(0, gl.maximum({count}, 1)):
        {start}
        {visited}
"""
_WEIGHTS = """\
# Which keys of a tile have weights, for each consumer, twice; both make it ready.
weighty = gl.allocate_shared_memory(gl.int32, [4, BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
weighty_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
mbarrier.init(weighty_ready, count=2)
"""
_KERNEL_BODY = """
starts = gl.allocate_shared_memory(gl.int32, [{starts}, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready.
q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
{kinds}
mbarrier.init(q_ready, count=1)
for i in gl.static_range(STAGES):
{init}
{weights}barriers = ({barriers})
gl.warp_specialize(
    [
        (
            differentiate,
            (0, {targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters{constants}),
        ),
        (
            differentiate,
            (1, {targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters{constants}),
        ),
        (
            load_tiles,
            (
                query, grad_out, key, value, {more}q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes,
                parameters{constants},
            ),
        ),
    ],
    [4, 1],
    [240, 24],  # registers of the second consumer and of the producer: 168 for each thread in all
)
"""
