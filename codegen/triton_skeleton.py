"""What all kernels of one variant share: its problem, tiles of its tensors, and the keys to keep out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ..ir.nodes import TRUE, Expr
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem
from .triton_module import Argument, Part, buffer_arguments, head_parts, scalar_arguments
from .triton_program import INDICES, Tiles, emit_columns, emit_place, precision, uses_table
from .triton_seen import hull_is_exact
from .triton_tiles import Masked, TileLoops, emit_exact_loops, emit_ranges, emit_table, emit_tile_loops
from .triton_values import Guard, Values


class Skeleton:
    """Base of the kernels; ``results`` are the expressions that they evaluate, by name.

    A program owns a tile of one axis and visits tiles of the other. What a tile is, and which are visited, is said
    here alone, for runs of positions; :mod:`.triton_box_skeleton` says it for boxes.
    """

    # Which queries and keys exist, as columns or rows of a tile of pairs, and which tiles of a merged loop are masked.
    q_exists = "(q_index < q_len)"
    kv_exists = "(kv_index < kv_len)"
    is_partial = "t >= full_count"
    # Rows to load of the tile that is visited; where the owned tile starts, and which of its ``rows`` exist.
    key_rows = "(start + keys[:, None] < kv_len)"
    query_rows = "(start + queries[:, None] < q_len)"
    first_row = " + tile_first"
    inside = "tile_first + rows < q_len"
    constants: tuple[str, ...] = ("BLOCK_M", "BLOCK_N")
    # What tells the kernels of a module apart that do the same for different rows or keys.
    suffix = ""
    # Whether programs visit shares of what the tile that they own sees.
    in_shares = False
    # How sums between kernels begin, and their type.
    fresh, sum_type = "empty", "query.dtype"

    def __init__(self, plan: TilePlan, problem: Problem, descriptors: bool, results: dict[str, Expr]) -> None:
        self.plan, self.problem, self.descriptors, self.results = plan, problem, descriptors, results
        self.head, self.value = head_parts(problem.head_dim), head_parts(problem.value_dim)
        self.value_columns = "columns" if self.head == self.value else "value_columns"
        self.tiles = Tiles(problem, descriptors)
        self.precision = precision(problem)
        self.exact_hull = plan.method == "closed" and hull_is_exact(plan.variant.mask)

    @property
    def has_mask(self) -> bool:
        return self.plan.variant.mask != TRUE

    @property
    def has_scores(self) -> bool:
        return bool(self.plan.variant.scores)

    @property
    def fused(self) -> bool:
        """Whether exponents are one fused multiplication and subtraction, in units of log2.

        That rounds large products, which is nothing beside products of 16-bit or TF32 numbers, but more than
        IEEE products may err. For those scores stay in natural units.
        """
        return self.problem.dtype != "f32" or self.problem.tf32

    @property
    def mask_result(self) -> tuple[str, ...]:
        """The name of the mask among the results, if it is one: of what is visited, or of all before that is known."""
        return ("mask",) if self.has_mask else ()

    def values(self) -> Values:
        """The expressions for one kernel."""
        return Values(self.results, INDICES, debug=self.problem.debug)

    @property
    def unit(self) -> str:
        """What a fused exponent multiplies ``s`` by: the scale too, unless scores come between."""
        return "LOG2E" if self.has_scores else "unit"

    def emit_unit(self, out: Emitter) -> None:
        """``unit``, where exponents need it."""
        if self.fused and not self.has_scores:
            out.line("unit = scale * LOG2E")

    def emit_scaled(self, out: Emitter) -> None:
        """Scales the product ``s``, unless the exponent does."""
        if self.has_scores or not self.fused:
            out.line("s *= scale")

    def exponential(self, score: str, subtrahend: str) -> str:
        """exp(score - subtrahend) as text; ``subtrahend`` is in units of log2 where exponents are fused."""
        if self.fused:
            return f"tl.exp2({score} * {self.unit} - {subtrahend})"
        return f"precise_exp({score} - {subtrahend})"

    def columns(self, parts: tuple[Part, ...]) -> str:
        return "columns" if parts == self.head else self.value_columns

    def emit_columns(self, out: Emitter) -> None:
        """The column numbers of heads."""
        emit_columns(out, "columns", self.head)
        if self.value_columns != "columns":
            emit_columns(out, "value_columns", self.value)

    def emit_program(self, out: Emitter) -> None:
        """``program``, the number of a tile, and which ``share`` of it this is where there are several."""
        out.line("program = tl.program_id(0)")
        if self.in_shares:
            out.line("share = program % shares")
            out.line("program = program // shares")

    def emit_query_place(self, out: Emitter, *, reverse: bool) -> None:
        """The identities and positions of a program that owns a tile of queries, from ``program``."""
        emit_place(out, length="q_len", block="BLOCK_M", reverse=reverse)
        out.line("batch, head = entry // heads, entry % heads")
        out.line("kv_head = head // (heads // kv_heads)")
        out.line()
        out.line("tile_first = tile * BLOCK_M")
        out.line("tile_last = tl.minimum(tile_first + BLOCK_M, q_len) - 1")
        out.line("rows = tl.arange(0, BLOCK_M)")
        out.line("keys = tl.arange(0, BLOCK_N)")
        out.line("q_index = tile_first + rows[:, None]")
        self.emit_columns(out)

    def emit_chunk(self, out: Emitter) -> None:
        """Batch and heads of a program that owns a tile of keys, from ``entry``."""
        out.line("chunks = heads // group")
        out.line("batch, chunk = entry // chunks, entry % chunks")
        out.line("kv_head = chunk * group // (heads // kv_heads)")
        out.line()

    def emit_key_tiles(self, out: Emitter) -> TileLoops:
        """Which tiles of keys a tile of queries visits."""
        if uses_table(self.plan):
            out.comment("This tile's row in the table of tiles.")
            return emit_table(out)
        out.comment("Keys that this tile of queries may see, and those that all of it sees.")
        return emit_ranges(out, self.plan.keys, INDICES, "BLOCK_N", "kv_len")

    def emit_kv_index(self, out: Emitter) -> None:
        """Positions of the keys that are visited."""
        out.line("kv_index = start + keys[None, :]")

    def emit_visits(
        self, out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None], *,
        share: tuple[str, str] | None = None, merged: bool = False,
    ) -> None:  # fmt: skip
        """The loops over the tiles that are visited; ``step`` writes the body from what to mask."""
        emit_tile_loops(out, loops, block, step, share=share, merged=merged)

    def emit_exact_visits(
        self, out: Emitter, loops: TileLoops, block: str, step: Callable[[Masked], None],
        share: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """As :meth:`emit_visits`, for code that hardly ever runs."""
        emit_exact_loops(out, loops, block, step, share)

    def arguments_after_tensors(self, entries: str, section: str) -> list[Argument]:
        """Captured tensors, scalars and sizes."""
        return [
            *buffer_arguments(self.plan),
            Argument("scale", "fp32", "scale"),
            *scalar_arguments(self.plan),
            Argument("heads", "i32", "heads"),
            Argument("kv_heads", "i32", "kv_heads"),
            Argument("q_len", "i32", "q_len"),
            Argument("kv_len", "i32", "kv_len"),
            Argument("all_heads", "i32", entries),
            Argument("section", "i32", section),
        ]

    def emit_allowed(self, out: Emitter, values: Values, done: frozenset[str]) -> frozenset[str]:
        """``allowed``: pairs that exist and that the mask keeps."""
        out.line(f"allowed = {self.q_exists} & {self.kv_exists}")
        for mask in self.mask_result:
            done = values.emit(out, "pair", (mask,), Guard(pair="allowed"), done)
            out.line(f"allowed &= {values.result(mask)}")
        return done

    def stored(self, place: str, name: str) -> str:
        """What is stored at ``place`` for the sum ``name`` of each row, as text."""
        return name

    def store_gradient(
        self, out: Emitter, name: str, tensor: str, head: str, block: str, parts: tuple[Part, ...], inside: str,
        text: str,
    ) -> None:  # fmt: skip
        """Writes the gradient ``name`` of the owned tile; ``text`` wraps it."""
        columns = self.columns(parts)
        self.tiles.open(out, tensor, head, "rows", columns, parts)
        self.tiles.store(out, name, tensor, "tile_first", columns, parts, inside, text)

    def rows_in_hull(self, loops: TileLoops) -> str:
        """Which rows of a partial tile of keys to read: those that some query sees, where that is an interval."""
        if not self.exact_hull or loops.hull is None:
            return self.key_rows
        start, stop = loops.hull
        below = f"(start + keys[:, None] < {stop})"
        return below if start == "0" else f"(start + keys[:, None] >= {start}) & {below}"

    @property
    def optimistic(self) -> bool:
        """Whether loops go without :meth:`emit_unseen`, and run again with it where their sums are not finite.

        What a query sees is then known only from the mask of the tile; to zero rows by it, they would have to
        pass through registers on their way to the tensor cores.
        """
        return not self.exact_hull

    def emit_again(self, out: Emitter, name: str, parts: tuple[Part, ...]) -> AbstractContextManager[None]:
        """A block that runs if the sums ``name`` have a number that is not finite."""
        out.comment("Not finite: rows that no query sees may be the reason, as 0 * NaN is NaN. Again without them.")
        return out.block(f"if {' + '.join(f'tl.sum({name}{p.suffix} * 0.0)' for p in parts)} != 0.0:")

    def emit_unseen(self, out: Emitter, name: str, parts: tuple[Part, ...], rows: str, weights: str) -> None:
        """Zeroes rows of a partial tile of keys that no query sees, unless loads by ``rows`` did: 0 * NaN is NaN.

        The rows are about to be summed with ``weights``, which are 0 where a query does not see a row.
        """
        if self.exact_hull and not self.descriptors:
            return
        out.comment("Rows that no query of the tile sees may hold anything, even NaN.")
        out.line(f"seen = {rows if self.exact_hull else f'tl.max(tl.abs({weights}), 0)[:, None] != 0.0'}")
        for p in parts:
            out.line(f"{name}{p.suffix} = tl.where(seen, {name}{p.suffix}, 0.0)")
