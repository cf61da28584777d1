"""What kernels over boxes of a token space have instead of runs of positions; see :mod:`.triton_skeleton`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..ir.nodes import ZERO, Expr
from ..ir.pair_masks import few_operations
from ..ir.passes.narrow_integers import narrow
from ..ir.tiles.plan import BoxAxis, BoxTerm, Interval, Ranges, TilePlan
from ..ir.traverse import index_names
from .box_groups import Groups, Letter
from .emitter import Emitter
from .triton_box_nest import NestedVisits
from .triton_box_tiles import BoxTiles
from .triton_box_visits import BoxVisits
from .triton_module import Part
from .triton_program import emit_entry
from .triton_skeleton import Skeleton
from .triton_tiles import Masked, TileLoops
from .triton_values import Values


def plan_of_boxes(plan: TilePlan) -> TilePlan:
    """``plan`` as its terms of boxes have it: its ranges are those of their axes, nothing is tabulated."""
    terms = tuple(map(_narrow_term, plan.boxes))
    axes = [a for term in terms for a in term.axes]

    def ranges(all_ranges: list[Ranges]) -> Ranges:
        return Ranges(tuple(i for r in all_ranges for i in r.may), tuple(i for r in all_ranges for i in r.must))

    keys = ranges([a.keys_within or a.keys for a in axes])
    queries = ranges([a.queries_within or a.queries for a in axes])
    proofs = tuple(dict.fromkeys(p for term in terms for p in term.proofs))
    return replace(plan, method="closed", keys=keys, queries=queries, proofs=proofs, boxes=terms)


def _narrow_term(term: BoxTerm) -> BoxTerm:
    return replace(
        term,
        mask=narrow(term.mask),
        axes=tuple(map(_narrow_axis, term.axes)),
        query_origin=_narrow_origin(term.query_origin),
        key_origin=_narrow_origin(term.key_origin),
    )


def _narrow_origin(origin: Expr) -> Expr:
    return origin if origin == ZERO else narrow(origin)


def _narrow_axis(axis: BoxAxis) -> BoxAxis:
    query, key = (replace(side, size=narrow(side.size)) for side in (axis.query, axis.key))
    within = [None if r is None else _narrow(r) for r in (axis.keys_within, axis.queries_within)]
    offset, shift = (e if e == ZERO else narrow(e) for e in (axis.offset, axis.shift))
    keys, queries = (_narrow(r) for r in (axis.keys, axis.queries))
    return BoxAxis(query, key, axis.block, offset, axis.residue, shift, keys, queries, *within)


def _narrow(ranges: Ranges) -> Ranges:
    """The same in 32-bit integers where these suffice: every row evaluates its ends."""
    return Ranges(*(tuple(Interval(narrow(i.start), narrow(i.stop)) for i in u) for u in (ranges.may, ranges.must)))


class OverBoxes(Skeleton):
    """Overrides what a tile is; ``space`` knows the box that a program owns, ``walks`` those that it visits."""

    is_partial = "not full"
    inside = "inside"
    first_row = ""
    key_rows = query_rows = "visible[:, None]"
    visited_rows, visited_exist = "queries", "visible"

    def walk(self, groups: Groups, number: int, own: Letter, descriptors: bool, *, shares: bool) -> None:
        """Makes a kernel one over the boxes of a group, at the end of its constructor.

        ``shares``: where it is of rows outside of a grid, programs may visit shares of what these see.
        """
        self.groups, self.group = groups, groups.groups[number]
        self.in_shares = shares and self.group.outside
        self.suffix = f"_{number}" if number else ""
        self.walks = [
            NestedVisits(w.term, own) if w.term.is_nested else BoxVisits(w.term, own, w.on_line)
            for w in self.group.walks
        ]
        self.space = self.walks[0]
        # The walk whose loop is being written.
        self._here: BoxVisits | None = None
        self.lines = [w for w in self.walks if w.on_line]
        self.visited = "keys" if own == "q" else "queries"
        self.box_tiles = BoxTiles(self.problem, descriptors, self.space, self.visited, bool(self.lines))
        self.tiles = self.box_tiles
        if self.in_shares:
            self.box_tiles.stored_rows = "(rows - first_shared)"
        self.exact_hull = False
        self.results.pop("mask", None)
        found = zip(self._masks, self.group.walks, self.walks, strict=True)
        masks = {name: w.term.mask for name, w, visits in found if not visits.is_product}
        self.results = {name: narrow(few_operations(mask)) for name, mask in masks.items()} | self.results
        if groups.add_up or not groups.complete:
            self.fresh = "zeros"
        if groups.add_up:
            self.sum_type = "torch.float32"
        self.q_exists, self.kv_exists = "inside[:, None]", "visible[None, :]"
        if own == "k":
            self.q_exists, self.kv_exists = "visible[None, :]", "inside[:, None]"
        sides = (*self.space.sides("q"), *self.space.sides("k"))
        self.constants = ("BLOCK_M", "BLOCK_N", *sides, *(("TILED",) if self.box_tiles.chooses else ()))

    @property
    def _masks(self) -> list[str]:
        """Names of the masks of all walks, some of which are the product of their axes."""
        return ["mask"] if len(self.walks) == 1 else [f"mask_{i}" for i in range(len(self.walks))]

    @property
    def mask_result(self) -> tuple[str, ...]:
        """The mask of the walk that is being written, before that those of all."""
        found = zip(self._masks, self.walks, strict=True)
        return tuple(x for x, w in found if x in self.results and self._here in (None, w))

    @property
    def has_mask(self) -> bool:
        """Whether the mask is an expression of positions, and not the product of the axes."""
        return bool(self.mask_result)

    @property
    def needs_positions(self) -> bool:
        """Whether every box needs the positions that are visited, and not only one that is not loaded by TMA."""
        position = "kv" if self.space.own == "q" else "q"
        names = [x for x in self.results if x not in self._masks] + [*self.mask_result]
        reads = any(position in index_names(self.results[x]) for x in names)
        space = self._here or self.space
        return (
            reads or self.space.own == "k" or not self.box_tiles.descriptors or space.ends_unevenly(space.other)
        )

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
        if self.space.by_head:
            out.line("head = chunk  # its classes are its own: the only one of the program")
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
        if self.lines:
            out.comment("Runs of positions are visited too, by the run that this box lies in.")
            self.space.emit_run(out)
            self.lines[0].emit_other(out)
        self.emit_columns(out)

    def emit_key_tiles(self, out: Emitter) -> TileLoops:
        """Which boxes a box visits; several walks say that before their loops."""
        if len(self.walks) == 1:
            self._emit_walk(out, self.space)
        reads = any(self.values().reads(x, "pair") for x in self.results if x not in self._masks)
        merged = any(w.has_full_boxes for w in self.walks) and not reads
        return TileLoops("", "", "count", "", merged=merged)

    emit_query_tiles = emit_key_tiles

    def _emit_walk(self, out: Emitter, walk: BoxVisits) -> None:
        out.comment("Along each axis: what this box may see, what all of it sees, and boxes of that.")
        walk.emit_visits(out, self.space)
        if walk.is_product:
            walk.emit_bounds(out)

    def emit_visits(
        self, out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None], *,
        share: tuple[str, str] | None = None, merged: bool = False,
    ) -> None:  # fmt: skip
        """The loops over the boxes that are visited; ``step`` writes the body from what to mask."""
        self._emit_loops(out, "range({}, {})", step, merged=merged)

    def emit_exact_visits(
        self, out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None],
        share: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """As :meth:`emit_visits`, for code that hardly ever runs."""
        self._emit_loops(out, "tl.range({}, {}, num_stages=1)", step, merged=False)

    def _emit_loops(self, out: Emitter, numbers: str, step: Callable[[Masked], None], *, merged: bool) -> None:
        if self.in_shares:
            numbers = numbers.format("count * share // shares", "count * (share + 1) // shares")
        for walk in self.walks:
            self._here, self.box_tiles.on_line = walk, walk.on_line
            if len(self.walks) > 1:
                self._emit_walk(out, walk)
            branches = merged and walk.has_full_boxes
            if branches:
                out.comment("The mask is left out where all pairs of a box are allowed.")
            walk.emit_loop(out, numbers, step, "some" if branches else "all", lambda: self._emit_positions(out))
        self._here, self.box_tiles.on_line = None, False

    def _emit_positions(self, out: Emitter) -> None:
        assert self._here is not None
        if self.needs_positions:
            self._here.emit_positions(out, self.visited)
        elif self.box_tiles.chooses and not self._here.on_line:
            with out.block("if not TILED:"):
                self._here.emit_positions(out, self.visited)

    def emit_kv_index(self, out: Emitter) -> None:
        """Positions of the keys that are visited."""
        if self.needs_positions:
            out.line("kv_index = keys[None, :]")

    def emit_q_index(self, out: Emitter) -> None:
        """Positions of the queries that are visited."""
        out.line("q_index = queries[None, :]")

    def emit_allowed(self, out: Emitter, values: Values, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs that exist and that the mask keeps."""
        assert self._here is not None
        if not self._here.is_product:
            return super().emit_allowed(out, values, done)
        self._here.emit_product(out)
        return done

    def stored(self, place: str, name: str) -> str:
        """What is stored at ``place`` for the sum ``name`` of each row, as text."""
        return f"{name} + tl.load({place}, mask=inside, other=0.0)" if self.group.adds else name

    def store_gradient(
        self, out: Emitter, name: str, tensor: str, head: str, block: str, parts: tuple[Part, ...], inside: str,
        text: str,
    ) -> None:  # fmt: skip
        """Writes the gradient ``name`` of the owned tile, or adds it to what other kernels found."""
        if self.in_shares:
            out.line(f"{tensor} += share * {tensor}_share")
        if not self.group.adds:
            super().store_gradient(out, name, tensor, head, block, parts, inside, text)
            return
        columns = self.columns(parts)
        self.tiles.open(out, tensor, head, "rows", columns, parts)
        self.tiles.load(out, "before", tensor, head, "tile_first", block, columns, parts, inside)
        for p in parts:
            out.line(f"{name}{p.suffix} = {text.format(f'{name}{p.suffix}')} + before{p.suffix}")
        self.tiles.store(out, name, tensor, "tile_first", columns, parts, inside)
