"""Keys that no query sees: their values may be anything, even NaN, and zero times NaN is NaN.

A tile of V that a query tile loads may hold such rows only if the tile is partial. Where the mask is a union
of bands, the keys that some query sees are a union of intervals, known before the first tile; nearly always
every tile lies inside one of them. In a tile that does not, the consumers write zeros over the other rows in
shared memory. Both write the same, so that neither has to wait for the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..ir.nodes import Binary, Const, Expr, Index
from ..ir.tiles.plan import Interval, TilePlan
from ..ir.types import I64
from .emitter import Emitter
from .gluon_tiles import emit_unpack, jit_function
from .triton_module import Argument
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
        if not plan.keys.may or not all(hull_is_exact(mask) for mask in _alternatives(plan.variant.mask)):
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

    def emit_functions(
        self, out: Emitter, barrier: str, rows: str, sizes: Sequence[Argument], parameters: Sequence[Argument]
    ) -> None:
        """``seen_keys``, ``some_unseen`` and ``clear_unseen``, for tiles of ``rows`` keys."""
        if self.all_seen:
            return
        names = ", ".join(x for pair in self._bounds for x in pair)
        with jit_function(out, "seen_keys(batch, head, kv_head, sizes, parameters)"):
            out.line('"""Intervals of the keys that some query of this head sees."""')
            emit_unpack(out, "sizes", sizes)
            emit_unpack(out, "parameters", parameters)
            out.line("tile_first, tile_last = 0, q_len - 1")
            results: dict[str, Expr] = {}
            for (start, stop), x in zip(self._bounds, self.intervals, strict=True):
                results |= {start: x.start, stop: x.stop}
            values = Values(results, INDICES)
            values.emit(out, "program", tuple(results), Guard())
            for name, e in results.items():
                cast = ".to(tl.int32)" if e.type is I64 else ""
                out.line(f"{name} = tl.minimum({values.result(name)}, kv_len){cast}")
            out.line(f"return {names}")
        outside = [f"((start < {low}) | (end > {high}))" for low, high in self._bounds]
        inside = " | ".join(f"((keys >= {low}) & (keys < {high}))" for low, high in self._bounds)
        out.definition(f'''
@gluon.jit
def some_unseen(start, end, seen):
    """Whether the keys from ``start`` to ``end`` are not all in one of the intervals."""
    {names} = seen
    return {" & ".join(outside)}


@gluon.jit
def clear_unseen(rows_tile, start, seen):
    """Zeros in the rows of keys that no query sees; groups of warps that share a tile write the same."""
    {names} = seen
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    for first in gl.static_range(0, {rows}, 32):
        part = rows_tile.slice(first, 32)
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
