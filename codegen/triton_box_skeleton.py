"""What kernels over boxes of a token space have instead of runs of positions; see :mod:`.triton_skeleton`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..ir.passes.narrow_integers import narrow
from ..ir.tiles.plan import BoxAxis, BoxTerm, Interval, Ranges, TilePlan
from ..ir.traverse import index_names
from .emitter import Emitter
from .triton_box_space import Letter
from .triton_box_tiles import BoxTiles
from .triton_box_visits import BoxVisits
from .triton_program import emit_entry
from .triton_skeleton import Skeleton
from .triton_tiles import Masked, TileLoops
from .triton_values import Values


def plan_of_boxes(plan: TilePlan) -> TilePlan:
    """``plan`` as its only term of boxes has it: its ranges are those of the axes, nothing is tabulated."""
    (term,) = plan.boxes
    term = replace(term, axes=tuple(map(_narrow_axis, term.axes)))

    def ranges(all_ranges: list[Ranges]) -> Ranges:
        return Ranges(tuple(i for r in all_ranges for i in r.may), tuple(i for r in all_ranges for i in r.must))

    keys, queries = ranges([a.keys for a in term.axes]), ranges([a.queries for a in term.axes])
    return replace(plan, method="closed", keys=keys, queries=queries, proofs=term.proofs, boxes=(term,))


def _narrow_axis(axis: BoxAxis) -> BoxAxis:
    query, key = (replace(side, size=narrow(side.size)) for side in (axis.query, axis.key))
    return replace(axis, query=query, key=key, keys=_narrow(axis.keys), queries=_narrow(axis.queries))


def _narrow(ranges: Ranges) -> Ranges:
    """The same in 32-bit integers where these suffice: every row evaluates its ends."""
    return Ranges(*(tuple(Interval(narrow(i.start), narrow(i.stop)) for i in u) for u in (ranges.may, ranges.must)))


class OverBoxes(Skeleton):
    """Overrides what a tile is; ``space`` knows the box that a program owns and those that it visits."""

    is_partial = "not full"
    inside = "inside"
    first_row = ""
    key_rows = query_rows = "visible[:, None]"
    visited_rows, visited_exist = "queries", "visible"

    def walk(self, term: BoxTerm, own: Letter, descriptors: bool) -> None:
        """Makes a kernel one over boxes, at the end of its constructor."""
        self.space = BoxVisits(term, own)
        self.visited = "keys" if own == "q" else "queries"
        self.box_tiles = BoxTiles(self.problem, descriptors, self.space, self.visited)
        self.tiles = self.box_tiles
        self.exact_hull = False
        if self.space.is_product:
            self.results.pop("mask")
        self.q_exists, self.kv_exists = "inside[:, None]", "visible[None, :]"
        if own == "k":
            self.q_exists, self.kv_exists = "visible[None, :]", "inside[:, None]"
        sides = (*self.space.sides("q"), *self.space.sides("k"))
        self.constants = ("BLOCK_M", "BLOCK_N", *sides, *(("TILED",) if self.box_tiles.chooses else ()))

    @property
    def has_mask(self) -> bool:
        """Whether the mask is an expression of positions, and not the product of the axes."""
        return "mask" in self.results

    @property
    def needs_positions(self) -> bool:
        """Whether every box needs the positions that are visited, and not only one that is not loaded by TMA."""
        position = "kv" if self.space.own == "q" else "q"
        reads = any(position in index_names(e) for e in self.results.values())
        return reads or self.space.own == "k" or not self.box_tiles.descriptors

    def emit_query_place(self, out: Emitter, *, reverse: bool) -> None:
        """The identities and positions of a program that owns a box of queries, from ``program``."""
        self._emit_tiles(out, reverse)
        out.line("batch, head = entry // heads, entry % heads")
        out.line("kv_head = head // (heads // kv_heads)")
        out.line()
        self.emit_own(out)
        out.line("q_index = rows[:, None]")

    def emit_key_place(self, out: Emitter, *, reverse: bool) -> None:
        """The identities and positions of a program that owns a box of keys, from ``program``."""
        self._emit_tiles(out, reverse)
        self.emit_chunk(out)
        self.emit_own(out)
        out.line("kv_index = rows[:, None]")

    def _emit_tiles(self, out: Emitter, reverse: bool) -> None:
        self.space.emit_tiles(out)
        out.comment("Heads run in sections whose keys and values fit in the L2 cache, box by box.")
        emit_entry(out, reverse=reverse)

    def emit_own(self, out: Emitter) -> None:
        """Where the box of the program is, and all that does not change from box to box."""
        self.space.emit_own(out)
        self.space.emit_other(out)
        if self.box_tiles.descriptors:
            for letter in ("q", "k"):
                self.space.emit_places(out, letter)
        self.emit_columns(out)

    def emit_key_tiles(self, out: Emitter) -> TileLoops:
        """Which boxes a box visits."""
        out.comment("Along each axis: what this box may see, what all of it sees, and boxes of that.")
        self.space.emit_visits(out)
        if self.space.is_product:
            self.space.emit_bounds(out)
        reads = any(self.values().reads(x, "pair") for x in self.results if x != "mask")
        merged = self.space.has_full_boxes and not reads
        return TileLoops("", "", "count", "", merged=merged)

    emit_query_tiles = emit_key_tiles

    def emit_visits(
        self, out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None], *,
        share: tuple[str, str] | None = None, merged: bool = False,
    ) -> None:  # fmt: skip
        """The loop over the boxes that are visited; ``step`` writes the body from what to mask."""
        if merged:
            out.comment("The mask is left out where all pairs of a box are allowed.")
        self.space.emit_loop(out, "range({}, {})", step, "some" if merged else "all", lambda: self._emit_positions(out))

    def emit_exact_visits(
        self, out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None],
        share: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """As :meth:`emit_visits`, for code that hardly ever runs."""
        numbers = "tl.range({}, {}, num_stages=1)"
        self.space.emit_loop(out, numbers, step, "all", lambda: self._emit_positions(out))

    def _emit_positions(self, out: Emitter) -> None:
        if self.needs_positions:
            self.space.emit_positions(out, self.visited)
        elif self.box_tiles.chooses:
            with out.block("if not TILED:"):
                self.space.emit_positions(out, self.visited)

    def emit_kv_index(self, out: Emitter) -> None:
        """Positions of the keys that are visited."""
        if self.needs_positions:
            out.line("kv_index = keys[None, :]")

    def emit_q_index(self, out: Emitter) -> None:
        """Positions of the queries that are visited."""
        out.line("q_index = queries[None, :]")

    def emit_allowed(self, out: Emitter, values: Values, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs that exist and that the mask keeps."""
        if not self.space.is_product:
            return super().emit_allowed(out, values, done)
        self.space.emit_product(out)
        return done
