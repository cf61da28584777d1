"""How tiles come to the consumers of the kernel for dQ: buffers, barriers and the producer."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent

from .emitter import Emitter
from .gluon_parts import emit_buffers, emit_together, part_copies
from .gluon_tiles import ring_loads
from .schedule import Schedule
from .triton_module import Part
from .triton_program import SIZES


@dataclass(frozen=True, slots=True)
class KeyTiles:
    """Tiles of keys and values, of heads in these parts: together or, ``apart``, each with buffers of their own."""

    head: tuple[Part, ...]
    value: tuple[Part, ...]

    @property
    def apart(self) -> bool:
        """With wide heads few tiles fit, and values are done with before keys."""
        return any(sum(p.width for p in parts) > 128 for parts in (self.head, self.value))

    @property
    def ready(self) -> tuple[str, ...]:
        """Barriers that the producer completes for a tile."""
        return ("k_ready", "v_ready") if self.apart else ("kv_ready",)

    def stages(self, schedule: Schedule) -> list[tuple[str, int]]:
        """Constants: how many buffers there are."""
        others = [("OTHER_STAGES", schedule.num_stages - 1)] if self.apart else []
        return [("STAGES", schedule.num_stages), *others]

    def emit_producer(self, out: Emitter, load: str, barriers: str) -> None:
        """Its function; ``load`` is what a copy of a tile is called, ``barriers`` all of the kernel."""
        keys, values = (
            part_copies(
                load, name, "batch, kv_head, start", f"{name[0]}_tiles", "stage", parts, f"{ready}.index(stage)"
            )
            for name, parts, ready in (("key", self.head, self.ready[0]), ("value", self.value, self.ready[-1]))
        )
        if self.apart:
            visited = ring_loads("t", "k_ready", "BLOCK_N * HEAD * 2", keys)
            visited += ring_loads("t", "v_ready", "BLOCK_N * VALUE * 2", values, other=True)
        else:
            visited = ring_loads("t", "kv_ready", "BLOCK_N * (HEAD + VALUE) * 2", keys + values)
        where = "batch, head, tile_first + ROWS * i"
        own = part_copies(load, "query", where, "q_tiles", "i", self.head, "q_ready")
        own += part_copies(load, "grad_out", where, "do_tiles", "i", self.value, "q_ready")
        own_lines, lines = (indent("\n".join(x), " " * 8).lstrip() for x in (own, visited))
        sizes = ", ".join(a.name for a in SIZES)
        out.definition(_LOAD_TILES.format(barriers=barriers, sizes=sizes, own=own_lines, visited=lines))

    def emit_body(self, out: Emitter, targets: str, barriers: str, asks: bool) -> None:
        """Of the kernel: shared memory, barriers and partitions.

        ``targets``: what consumers take before buffers. ``asks``: they tell each other which keys have weights.
        """
        tensors = {"query": self.head, "grad_out": self.value, "key": self.head, "value": self.value}
        for name, parts in (({"grad_query": self.head} if "grad_query" in targets else {}) | tensors).items():
            emit_together(out, name, parts)
        emit_buffers(out, "q_tiles", "2", "ROWS", "HEAD", "QUERY_TILE", self.head)
        emit_buffers(out, "do_tiles", "2", "ROWS", "VALUE", "OUT_TILE", self.value)
        emit_buffers(out, "k_tiles", "STAGES", "BLOCK_N", "HEAD", "KEY_TILE", self.head)
        stages = "OTHER_STAGES" if self.apart else "STAGES"
        emit_buffers(out, "v_tiles", stages, "BLOCK_N", "VALUE", "VALUE_TILE", self.value)
        made = (f"{x} = gl.allocate_shared_memory(gl.int64, [STAGES, 1], {_BARRIER})" for x in self.ready)
        inits = (f"    mbarrier.init({x}.index(i), count=1)" for x in self.ready)
        facts = {"barriers": barriers, "weights": _WEIGHTS if asks else "", "targets": targets}
        out.lines(_KERNEL_BODY.format(made="\n".join(made), inits="\n".join(inits), **facts))


_BARRIER = "mbarrier.MBarrierLayout()"
_LOAD_TILES = """
@gluon.jit
def load_tiles(query, grad_out, key, value, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters):
    \"\"\"The producer: one warp loads the tile of queries, then one tile of keys after the other.\"\"\"
    {barriers} = barriers
    {sizes} = sizes
    entry, batch, head, kv_head, tile_first = query_tile(gl.program_id(0), sizes)
    visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)
    mbarrier.expect(q_ready, BLOCK_M * (HEAD + VALUE) * 2)
    for i in gl.static_range(2):
        {own}
    # Even a tile of queries that sees nothing gets one tile of keys, and masks it.
    for t in range(0, gl.maximum(visits[0] + visits[1], 1)):
        start = visited_start(t, visits)
        {visited}
"""
_WEIGHTS = """\
# Which keys of a tile have weights, for each consumer, twice; both make it ready.
weighty = gl.allocate_shared_memory(gl.int32, [4, BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
weighty_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
mbarrier.init(weighty_ready, count=2)
"""
_KERNEL_BODY = """
starts = gl.allocate_shared_memory(gl.int32, [STAGES, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
# The producer makes buffers ready.
q_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
{made}
mbarrier.init(q_ready, count=1)
for i in gl.static_range(STAGES):
{inits}
{weights}barriers = ({barriers})
gl.warp_specialize(
    [
        (
            differentiate,
            (0, {targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters),
        ),
        (
            differentiate,
            (1, {targets}, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters),
        ),
        (
            load_tiles,
            (query, grad_out, key, value, q_tiles, do_tiles, k_tiles, v_tiles, barriers, starts, sizes, parameters),
        ),
    ],
    [4, 1],
    [240, 24],  # registers of the second consumer and of the producer: 168 for each thread in all
)
"""
