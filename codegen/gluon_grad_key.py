"""The consumer of the kernel for dK and dV alone: four products, and nothing that consumers tell each other."""

from __future__ import annotations

from typing import Literal

from .emitter import Emitter
from .gluon_grad_consumer import Consumer
from .gluon_parts import emit_outer_product, emit_rounded, emit_wait, names_of, views
from .gluon_releases import emit_releases
from .gluon_tiles import OWN_TILE

# ``arrivals``: how often the producer arrives before a tile of queries is ready.
SET_UP = """
# The producer makes buffers ready.
kv_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
tile_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
mbarrier.init(kv_ready, count=1)
for i in gl.static_range(STAGES):
    mbarrier.init(tile_ready.index(i), count={arrivals})
""".strip("\n")


class KeyConsumer(Consumer):
    """Prints ``differentiate`` without gradients of queries."""

    arguments = (
        "grad_key, grad_value, q_tiles, k_tiles, v_tiles, do_tiles, term_tiles, barriers, starts, sizes, parameters"
    )
    barriers = "kv_ready, tile_ready"
    set_up = SET_UP.format(arrivals=1)
    wait = "if loaded >= STAGES:\n    acquire(stage)"

    def half_of_queries(self, queries: int) -> tuple[int, int] | None:
        """None: another kernel computes all of it."""
        return None

    def emit_functions(self, out: Emitter) -> None:
        """How buffers are given back."""
        emit_releases(out, 2)
        if self.renumbers:
            out.definition(OWN_TILE)

    @property
    def renumbers(self) -> bool:
        """Whether tiles of keys and values are numbered anew in each step; without at 64 and 128, as measured."""
        return self.problem.head_dim not in (64, 128)

    def emit_queries(self, out: Emitter) -> None:
        """``q_tile``, from the buffer ``stage``."""
        if self.renumbers:
            out.line("own = own_tile(GROUP)")
        super().emit_queries(out)

    def own(self, tensor: Literal["key", "value"]) -> list[str]:
        """The tile that this consumer owns, part by part, as text."""
        if not self.renumbers:
            return super().own(tensor)
        size = "HEAD" if tensor == "key" else "VALUE"
        return views(f"{tensor[0]}_tiles", "own", "KEYS", size, self.owned[tensor])

    def emit_clear(self, out: Emitter) -> None:
        """Nothing: a key is a factor of its own scores only, which are selected from."""

    def emit_tiles(self, out: Emitter) -> None:
        """None."""

    def emit_differences(self, out: Emitter) -> None:
        """What follows from ``ds``, and the release of the buffers."""
        emit_rounded(out, "ds", "DIFFERENCES", self.head)
        emit_outer_product(out, "dk", "DIFFERENCES", names_of("q_tile", self.head), self.head)
        emit_wait(out, "dv", self.value, len(self.head))
        emit_wait(out, "dk", self.head, 0)
        out.line("release(stage)")

    def emit_finish(self, out: Emitter) -> None:
        """Nothing: no other consumer reads these keys and values."""
