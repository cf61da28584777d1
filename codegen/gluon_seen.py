"""Keys that no query sees: their values may be anything, even NaN, and zero times NaN is NaN.

A tile of V that a query tile loads may hold such rows only if the tile is partial. Where the mask is a union
of bands, the keys that some query sees are a union of intervals, known before the first tile; nearly always
every tile lies inside one of them. In a tile that does not, the consumers write zeros over the other rows in
shared memory. Both write the same, so that neither has to wait for the other. Where lengths and scalars alone say
that all keys are seen, the host knows, and such calls run a kernel without any of this.

For other masks the weights say which keys of a tile are seen. They are asked unless each key of the tile is known to be
seen, in self-attention by the query at its own position, and only if some value of the tile is not finite: to look
through a tile costs a fraction of a product, to rewrite it several.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from ..ir.build import binary, index
from ..ir.nodes import FALSE, TILE_NAMES, TRUE, Binary, Const, Expr, Index, Load
from ..ir.passes import narrow
from ..ir.symbolic import simplify
from ..ir.tiles.plan import Interval, TilePlan
from ..ir.traverse import index_names, joined, substitute, walk
from ..ir.types import I64
from .emitter import Emitter
from .gluon_tiles import emit_unpack, jit_function
from .print_torch import print_torch
from .triton_box_options import host_inputs, host_scope
from .triton_module import Argument
from .triton_program import INDICES
from .triton_seen import hull_is_exact
from .triton_values import Guard, Values

# Rows of a tile of queries that there are, as text.
QUERIES_EXIST = "(q_index < q_len)"
_ON_HOST = {"q_len", "kv_len", *TILE_NAMES}


class Unseen(Protocol):
    """How a forward kernel keeps out values of keys that no query sees."""

    @property
    def all_seen(self) -> bool:
        """Whether every key is seen, whatever the lengths: then there is nothing to do."""

    @property
    def asked_on_host(self) -> bool:
        """Whether kernels have a constant ``ALL_SEEN``."""

    def emit_all_seen(self, out: Emitter, plan: TilePlan) -> None:
        """``all_seen``, for the host, if it is asked."""

    @property
    def told(self) -> bool:
        """Whether the producer tells which tiles hold keys that may not be seen, in ``hides``."""

    @property
    def some_unseen(self) -> str:
        """Whether the tile that begins at ``start`` may hold an unseen key, as text."""

    def emit_functions(
        self, out: Emitter, barrier: str, rows: str, sizes: Sequence[Argument], parameters: Sequence[Argument]
    ) -> None:
        """What the rest calls, for tiles of ``rows`` keys."""

    def emit_bounds(self, out: Emitter) -> None:
        """``seen``, for each tile of queries."""

    def emit_clear(self, out: Emitter, tiles: Sequence[str], rows: str = QUERIES_EXIST) -> None:
        """Clears ``tiles``, the parts of the values of a tile whose weights are ``p``; ``rows``: those that exist."""


@dataclass(frozen=True, slots=True)
class UnseenKeys:
    """``intervals`` hold exactly the keys that some query sees, if the tile is taken to be all queries."""

    intervals: tuple[Interval, ...]

    @staticmethod
    def of(plan: TilePlan) -> UnseenKeys | None:
        """None where the keys seen are no union of intervals known in closed form."""
        if not plan.keys.may or not all(hull_is_exact(mask) for mask in joined(plan.variant.mask, "or")):
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
    def asked_on_host(self) -> bool:
        """Whether lengths and scalars say whether every key is seen."""
        ends = [e for x in self.intervals for e in (x.start, x.stop)]
        known = not any(isinstance(x, Load) for e in ends for x in walk(e))
        return known and not self.all_seen and all(index_names(e) <= _ON_HOST for e in ends)

    def emit_all_seen(self, out: Emitter, plan: TilePlan) -> None:
        """``all_seen``, for the host."""
        scope = host_scope(plan)
        ends = [(print_torch(x.start, scope).text, print_torch(x.stop, scope).text) for x in self.intervals]
        with out.define(f"all_seen({', '.join(host_inputs(plan))})"):
            out.line('"""Whether every key is seen by some query."""')
            out.line("tile_first, tile_last = 0, q_len - 1")
            out.line(f"return {' or '.join(f'({start}) <= 0 and ({stop}) >= kv_len' for start, stop in ends)}")

    told = False
    some_unseen = "some_unseen(start, tl.minimum(start + BLOCK_N, kv_len), seen)"

    def emit_bounds(self, out: Emitter) -> None:
        """``seen``: the intervals."""
        out.line("seen = seen_keys(batch, head, kv_head, sizes, parameters)")

    def emit_clear(self, out: Emitter, tiles: Sequence[str], rows: str = QUERIES_EXIST) -> None:
        """Both groups of warps write the same, so that neither has to wait for the other."""
        for tile in tiles:
            out.line(f"clear_unseen({tile}, start, seen)")

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


@dataclass(frozen=True, slots=True)
class UnseenByWeights:
    """``own``: under which condition a key is seen by the query at its own position, which positions meet at the
    start or, ``from_end``, at the end. Where it is false, ``of_key`` may still say it of a key: then the producer tells
    in the lowest bit of where a tile starts whether it holds one that is not seen. ``dtype``: of values, in PTX.
    """

    own: Expr
    from_end: bool
    dtype: str
    of_key: Expr = FALSE

    @staticmethod
    def of(plan: TilePlan, dtype: str, *, told: bool = False) -> UnseenByWeights:
        """For any plan; ``told``: there is a producer that looks at keys."""
        kv, shift = index("kv"), binary("sub", index("kv_len"), index("q_len"))
        found = UnseenByWeights(FALSE, False, dtype)
        for from_end, position in ((False, kv), (True, binary("sub", kv, shift))):
            of_key = simplify(substitute(plan.variant.mask, {index("q"): position}))
            own = _wherever(of_key)
            if own != FALSE:
                return UnseenByWeights(own, from_end, dtype)
            if told and found.of_key == FALSE and not index_names(of_key) & {"q"}:
                found = UnseenByWeights(FALSE, from_end, dtype, narrow(of_key))
        return found

    all_seen = False

    @property
    def asked_on_host(self) -> bool:
        """Whether lengths say whether every key is seen: where all queries see the key at their own position."""
        return self.own == TRUE

    def emit_all_seen(self, out: Emitter, plan: TilePlan) -> None:
        """``all_seen``, for the host."""
        with out.define(f"all_seen({', '.join(host_inputs(plan))})"):
            out.line('"""Whether every key is seen by some query."""')
            out.line("return q_len >= kv_len")

    @property
    def told(self) -> bool:
        return self.of_key != FALSE

    @property
    def some_unseen(self) -> str:
        """Whether the tile reaches past the keys that are known to be seen."""
        if self.told:
            return "hides != 0"
        if self.own == FALSE:
            return "start < kv_len"
        return "start < seen" if self.from_end else "tl.minimum(start + BLOCK_N, kv_len) > seen"

    def emit_bounds(self, out: Emitter) -> None:
        """``seen``: from which key on, or up to which key, all are known to be seen."""
        if self.own == FALSE:
            return
        bound, nothing = ("tl.maximum(kv_len - q_len, 0)", "kv_len") if self.from_end else ("q_len", "0")
        if self.own != TRUE:
            values = Values({"own": self.own}, INDICES, prefix="own_")
            values.emit(out, "program", ("own",), Guard())
            bound = f"tl.where({values.result('own')}, {bound}, {nothing})"
        out.line(f"seen = {bound}  # keys {'from' if self.from_end else 'up to'} here are seen")

    def emit_clear(self, out: Emitter, tiles: Sequence[str], rows: str = QUERIES_EXIST) -> None:
        """Both groups of warps find the same, say which keys have weights, and wait for each other."""
        # Tiles that reach past the keys known to be seen are few.
        asks = "" if self.own != FALSE else " or ".join(f"not all_finite({tile})" for tile in tiles)
        with out.block(f"if {asks}:") if asks else nullcontext():
            out.line("own_weights = weighty.index(cleared % 2 * 2 + GROUP)")
            # Rows past the end may have weights of anything.
            out.line(f"own_weights.store(tl.max(((p != 0.0) & {rows}).to(tl.int32), 0))")
            out.line("mbarrier.arrive(weighty_ready)")
            out.line("mbarrier.wait(weighty_ready, cleared & 1)")
            out.line("seen_by_0, seen_by_1 = weighty.index(cleared % 2 * 2), weighty.index(cleared % 2 * 2 + 1)")
            for tile in tiles:
                out.line(f"clear_unseen({tile}, seen_by_0, seen_by_1)")
            out.line("cleared += 1")

    def emit_functions(
        self, out: Emitter, barrier: str, rows: str, sizes: Sequence[Argument], parameters: Sequence[Argument]
    ) -> None:
        """``all_finite``, ``clear_unseen`` and ``hides_keys``, for tiles of ``rows`` keys."""
        if self.told:
            self._emit_hides_keys(out, rows, sizes, parameters)
        if self.own == FALSE:
            out.definition(f'''
@gluon.jit
def add_nothing(total, x):
    """``total`` + 0 ``x``, two numbers at once: NaN from where ``x`` is not finite."""
    return gl.inline_asm_elementwise(
        "{{ .reg .b32 zero; mov.b32 zero, 0; fma.rn.{self.dtype}x2 $0, $2, zero, $1; }}", "=r,r,r", [total, x],
        dtype=gl.{"bfloat16" if self.dtype == "bf16" else "float16"}, is_pure=True, pack=2,
    )


@gluon.jit
def all_finite(rows_tile):
    """Whether no value of a tile is infinite or NaN."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    WIDTH: gl.constexpr = rows_tile.shape[1]
    total = gl.zeros([16, WIDTH], ELEMENT, LAYOUT)
    for first in gl.static_range(0, {rows}, 16):
        total = add_nothing(total, rows_tile.slice(first, 16).load(LAYOUT))
    return gl.sum(gl.sum(total.to(gl.float32), 1), 0) == 0.0
''')
        out.definition(f'''
@gluon.jit
def clear_unseen(rows_tile, seen_by_0, seen_by_1):
    """Zeros in the rows of keys that have no weight in either group of warps; both write the same."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    KEYS: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    for first in gl.static_range(0, {rows}, 32):
        part = rows_tile.slice(first, 32)
        some_query_sees = seen_by_0.slice(first, 32).load(KEYS) + seen_by_1.slice(first, 32).load(KEYS) > 0
        part.store(gl.where(some_query_sees[:, None], part.load(LAYOUT), 0.0))
    fence_async_shared()
    {barrier}()
''')


    def _emit_hides_keys(
        self, out: Emitter, rows: str, sizes: Sequence[Argument], parameters: Sequence[Argument]
    ) -> None:
        values = Values({"own": self.of_key}, INDICES)
        with jit_function(out, "hides_keys(start, asked, batch, head, kv_head, sizes, parameters)"):
            out.line('"""1 if the query at its own position does not see some key of the tile; by one warp."""')
            emit_unpack(out, "sizes", sizes)
            emit_unpack(out, "parameters", parameters)
            out.line(f"kv_index = start + tl.arange(0, {rows}, tl.BlockedLayout([1], [32], [1], [0]))")
            out.line("exists = asked & (kv_index < kv_len)")
            place = "kv_index >= kv_len - q_len" if self.from_end else "kv_index < q_len"
            out.line(f"meets_query = exists & ({place})")
            done = values.emit(out, "program", ("own",), Guard())
            values.emit(out, "key", ("own",), Guard(key="meets_query"), done)
            out.line(f"return tl.max((exists & ~(meets_query & ({values.result('own')}))).to(tl.int32), 0)")


def may_hide_keys(plan: TilePlan) -> bool:
    """Whether any tile may hold keys that no query sees, as far as is known before its keys are looked at."""
    return UnseenKeys.of(plan) is None and UnseenByWeights.of(plan, "").own == FALSE


def _wherever(own: Expr) -> Expr:
    """A condition on no position under which ``own`` holds for all of them."""
    match own:
        case Binary(op=("and" | "or") as op, a=a, b=b):
            return simplify(Binary(op, _wherever(a), _wherever(b), own.type))
        case _:
            return FALSE if index_names(own) & {"q", "kv"} else own
