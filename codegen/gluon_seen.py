"""Keys that no query sees: their values may be anything, even NaN, and zero times NaN is NaN.

A tile of V that a query tile loads may hold such rows only if the tile is partial. Where the mask is a union
of bands, the keys that some query sees are a union of intervals, known before the first tile; nearly always
every tile lies inside one of them. In a tile that does not, the consumers write zeros over the other rows in
shared memory. Both write the same, so that neither has to wait for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ir.nodes import Binary, Const, Expr, Index
from ..ir.tiles.plan import Interval, TilePlan
from ..ir.types import I64
from .emitter import Emitter
from .triton_program import INDICES
from .triton_seen import hull_is_exact
from .triton_values import Guard, Values


@dataclass(frozen=True, slots=True)
class UnseenKeys:
    """``intervals`` hold exactly the keys that some query sees, if the tile is taken to be all queries."""

    intervals: tuple[Interval, ...]

    @staticmethod
    def of(plan: TilePlan) -> UnseenKeys | None:
        """None where the keys seen are no union of intervals known in closed form."""
        if not all(hull_is_exact(mask) for mask in _alternatives(plan.variant.mask)):
            return None
        return UnseenKeys(plan.keys.may)

    @property
    def all_seen(self) -> bool:
        """Whether every key is seen, whatever the lengths."""
        return any(
            isinstance(x.start, Const) and x.start.value <= 0 and isinstance(x.stop, Index) and x.stop.name == "kv_len"
            for x in self.intervals
        )

    @property
    def _bounds(self) -> list[tuple[str, str]]:
        return [(f"seen_{i}_start", f"seen_{i}_stop") for i in range(len(self.intervals))]

    def emit_bounds(self, out: Emitter) -> None:
        """Writes the intervals of one head, as ``seen``."""
        if self.all_seen:
            return
        out.comment("Keys that some query of this head sees.")
        out.line("first_query, last_query = 0, q_len - 1")
        results: dict[str, Expr] = {}
        for (start, stop), x in zip(self._bounds, self.intervals, strict=True):
            results |= {start: x.start, stop: x.stop}
        values = Values(results, {**INDICES, "tile_first": "first_query", "tile_last": "last_query"})
        values.emit(out, "program", tuple(results), Guard())
        for name, e in results.items():
            out.line(f"{name} = tl.minimum({values.result(name)}, kv_len){'.to(tl.int32)' if e.type is I64 else ''}")
        out.line(f"seen = ({', '.join(results)},)")

    def emit_clear(self, out: Emitter) -> None:
        """After the scores of a partial tile: clears what must not be seen of its values."""
        if self.all_seen:
            return
        out.line("end = tl.minimum(start + BLOCK_N, kv_len)")
        outside = [f"(start < {start}) | (end > {stop})" for start, stop in self._bounds]
        text = outside[0] if len(outside) == 1 else " & ".join(f"({x})" for x in outside)
        with out.block(f"if {text or 'True'}:"):
            out.line("mbarrier.wait(v_ready.index(stage), phase)")
            out.line("clear_unseen(v_tiles.index(stage).reshape([BLOCK_N, VALUE]), start, seen)")

    def emit_function(self, out: Emitter, barrier: str) -> None:
        if self.all_seen:
            return
        bounds = ", ".join(x for pair in self._bounds for x in pair)
        inside = " | ".join(f"((keys >= {start}) & (keys < {stop}))" for start, stop in self._bounds)
        out.definition(f'''
@gluon.jit
def clear_unseen(v_tile, start, seen):
    """Zeros for the values of keys that no query sees; both groups of warps write the same."""
    {bounds}, = seen
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    for first in gl.static_range(0, BLOCK_N, 32):
        part = v_tile.slice(first, 32)
        keys = start + first + gl.arange(0, 32, gl.SliceLayout(1, LAYOUT))
        some_query_sees = {inside}
        part.store(gl.where(some_query_sees[:, None], part.load(LAYOUT), 0.0))
    fence_async_shared()
    {barrier}()
''')


def _alternatives(mask: Expr) -> Iterator[Expr]:
    """The operands of a disjunction."""
    match mask:
        case Binary("or", a, b):
            yield from _alternatives(a)
            yield from _alternatives(b)
        case _:
            yield mask
