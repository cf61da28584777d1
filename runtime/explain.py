"""``explain``: what the compiler proved about a variant, what it will run, and what that costs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import prod
from textwrap import indent
from typing import TYPE_CHECKING, Any, assert_never

import torch
from torch import Tensor

from ..codegen.defaults import Direction
from ..codegen.schedule import DType, Schedule, Target
from ..codegen.skeletons import Choice, choose, fills, is_long, schedule_for, walks_boxes
from ..codegen.triton_box_options import boxes_of_call
from ..ir.dependence import load_class
from ..ir.location import Location
from ..ir.nodes import TRUE, Const, Expr, Index
from ..ir.printer import print_boxes, print_expr
from ..ir.tiles import Interval, Proof, TilePlan
from ..ir.tiles.count import PairCount, TileCounts, Work, box_counts, pair_count, tile_counts, work
from ..ir.tiles.rows import sees_itself
from ..ir.traverse import loads, parameter_names, substitute
from ..ir.types import I32
from ..ir.variant import Variant
from .compile import TUNED, Request
from .inspection import Setting, Shape, check_inputs, plan_of, setting
from .reads import Read, reads
from .tuned import tuned_here

if TYPE_CHECKING:
    from .attention import Attention

_ITEM_SIZES: dict[DType, int] = {"f16": 2, "bf16": 2, "f32": 4}
_STORED = (
    "four integers for a row of tiles, and on a GPU a list only for a row with gaps, of which 16 MiB, or 256 tiles for "
    "each row, are kept: a longer one is visited from its first tile to its last"
)
_METHODS = {
    "closed": "closed form: the kernel computes the ranges below; nothing is stored, whatever the length",
    "classified": "classified: every pair of tiles is decided from minima and maxima of the data of each tile; "
    f"stored are {_STORED}",
    "exact": f"exact: the mask is evaluated for every pair of positions, in chunks; stored are {_STORED}",
}
_BOXES = (
    "boxes: a tile is a box of coordinates, and keys are ranges along each axis, for a run first … last of queries "
    "of one class; nothing is stored, whatever the length"
)
# Characters of a line of the report.
_LONGEST = 600
# Shorter names for the ends of a tile, as the report explains them.
_TILE_ENDS: dict[Expr, Expr] = {Index(f"tile_{end}", I32): Index(end, I32) for end in ("first", "last")}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What runs in one direction, and whether its result repeats bit for bit."""

    direction: Direction
    skeleton: str
    schedule: Schedule
    deterministic: bool
    reason: str = ""

    def __str__(self) -> str:
        repeats = "repeatable bit by bit" if self.deterministic else "last bits vary (sums in order of arrival)"
        head = f"{self.direction}: {self.skeleton}, {repeats}"
        if self.reason:
            head += f"\n  {self.reason}"
        if self.schedule.grad_query is None:
            return f"{head}\n  {_describe(self.schedule, self.skeleton)}"
        kernels = {"keys and values": self.schedule, "queries": self.schedule.grad_query}
        if self.schedule.grad_value is not None:
            kernels = {"keys": self.schedule, "values": self.schedule.grad_value, "queries": self.schedule.grad_query}
        return "\n  ".join([head, *(f"for {name}: {_describe(x, self.skeleton)}" for name, x in kernels.items())])


@dataclass(frozen=True, slots=True)
class Counts:
    """What one call of the given shapes costs.

    ``sees_itself``: whether every query may attend to the key at its own position, so that no row is empty; None where
    that was not looked at.
    """

    pairs: PairCount
    tiles: TileCounts
    work: Work
    sees_itself: bool | None

    @property
    def speedup_bound(self) -> float:
        """Pairs of all tiles over those of visited ones: how much faster than dense attention this can be."""
        return self.tiles.speedup_bound


@dataclass(frozen=True, slots=True)
class Explanation:
    """The report of :func:`explain`. ``str()`` prints it; the fields hold what it is made of.

    ``counts`` is None where no shapes were given, or where the mask reads ``missing`` parameters.
    """

    variant_text: str
    plan: TilePlan
    reads: tuple[Read, ...]
    setting: Setting
    kernels: tuple[Kernel, ...]
    counts: Counts | None
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"

    def text(self, with_variant: bool = True) -> str:
        """The report; without the variant's own text if that stands beside it already."""
        blocks = [
            *([self.variant_text] if with_variant else []),
            _block("Tiles", self._tiles()),
            _block("Proofs", self._proofs()),
            _block("Captured tensors", map(str, self.reads)),
            _block(f"Kernels for {self.setting.target}, {self._problem()}", map(str, self.kernels)),
            _block(self._counts_title(), self._counts()),
        ]
        return "\n\n".join(block for block in blocks if block)

    def _tiles(self) -> Iterator[str]:
        if self._walks_boxes:
            yield _BOXES
            yield from _short(print_boxes(self.plan.boxes)).splitlines()
            return
        yield _METHODS[self.plan.method]
        for own, other, ranges in (("queries", "keys", self.plan.keys), ("keys", "queries", self.plan.queries)):
            yield f"for a tile of {own} first … last:"
            yield f"  {other} that some of them pair with  {_union(ranges.may) or 'none'}"
            yield f"  {other} that all of them pair with   {_union(ranges.must) or 'none for certain'}"
        if self.plan.classification is not None:
            yield f"a pair of tiles may hold allowed pairs if  {print_expr(self.plan.classification.may)}"
            yield f"it is full if  {print_expr(self.plan.classification.must)}"
        if self.plan.boxes_decide_more:
            yield f"boxes of a grid would decide more, but kernels for {self.setting.target} walk runs of positions:"
            yield from (f"  {line}" for line in _short(print_boxes(self.plan.boxes)).splitlines())

    @property
    def _walks_boxes(self) -> bool:
        return walks_boxes(self.plan, self.setting.target)

    def _proofs(self) -> Iterator[str]:
        proofs = self._proofs_of_what_runs()
        if not proofs:
            full = self.plan.variant.mask == TRUE
            yield "every pair is allowed: all tiles are full" if full else "no pair is allowed: all tiles are empty"
        for proof in proofs:
            place = f"  ({_place(proof.loc)})" if proof.loc is not None else ""
            yield f"{print_expr(proof.atom)}: {proof.verdict}; {_short(proof.reason)}{place}"
        if proofs:
            yield f"proved for all {self._lengths()} and integer parameters within ±2**30; calls check both"
            if self.plan.fit != "any":
                yield "calls of other lengths, which may cut grids short that nobody declares, run another program"
        yield self._contiguity()
        if not self.plan.rows_never_empty and self.counts is not None and self.counts.sees_itself:
            yield "no row of this call is empty: every query may attend to the key at its own position"
            return
        rows = "no row is empty" if self.plan.rows_never_empty else "rows may be empty (they give 0)"
        yield f"{rows}: {self.plan.rows_reason}"

    def _lengths(self) -> str:
        """What lengths must be for all that is said of tiles."""
        below = "lengths below 2**28"
        match self.plan.fit:
            case "grid":
                return f"{below} that are whole rows of the grids which positions are divided into"
            case "repeats":
                return f"{below} that are several of the grids which positions are divided into"
            case "any":
                grid = any(isinstance(term.axes[0].query.size, Const) for term in self.plan.boxes)
                return f"{below} that fit the grid" if grid else below
            case other:
                assert_never(other)

    def _contiguity(self) -> str:
        """Whether what a tile visits is one stretch of keys, or several."""
        if self._walks_boxes:
            count = sum(prod(max(len(a.keys.may), 1) for a in term.axes) for term in self.plan.boxes)
            if any(term.is_nested for term in self.plan.boxes):
                return "keys of a box: along inner axes those that each box along the axes before leaves"
            return "keys of a box: one box, without holes" if count == 1 else f"keys of a box: up to {count} boxes"
        if self.plan.method != "closed":
            return "keys of a tile: tiles in any places, as listed"
        count = len(self.plan.keys.may)
        if count == 0:
            return "keys of a tile: none"
        return "keys of a tile: one run, without holes" if count == 1 else f"keys of a tile: up to {count} runs"

    def _proofs_of_what_runs(self) -> tuple[Proof, ...]:
        if not self._walks_boxes:
            return self.plan.proofs
        return tuple(dict.fromkeys(proof for term in self.plan.boxes for proof in term.proofs))

    def _problem(self) -> str:
        s = self.setting
        size = f"{s.head_dim}" if s.head_dim == s.value_dim else f"{s.head_dim} (values {s.value_dim})"
        return f"{s.dtype}, head size {size}"

    def _counts_title(self) -> str:
        sizes = self.setting.sizes
        if sizes is None:
            return "Counts"
        kv = f" ({sizes.kv_heads} of keys)" if sizes.kv_heads != sizes.heads else ""
        return f"Counts for batch {sizes.batch}, {sizes.heads} heads{kv}, {sizes.q_len} queries × {sizes.kv_len} keys"

    def _counts(self) -> Iterator[str]:
        if self.counts is not None:
            yield str(self.counts.pairs)
            yield str(self.counts.tiles)
            if self.counts.tiles.boxes and self.setting.target.backend == "cpu":
                yield "  (the shapes that visit the fewest; a CPU's program takes all keys that a box sees at once)"
            yield str(self.counts.work)
            yield f"at most {self.counts.speedup_bound:.1f} × as fast as dense attention with the same tiles"
            if not self.counts.pairs.exact:
                yield "exact=True counts the pairs by evaluating the mask on all of them"
        elif self.missing:
            yield f"the mask reads {', '.join(self.missing)}: pass values by keyword to count"
        else:
            yield "give query, key and value, or their shapes, to count pairs, tiles, FLOPs and bytes"


def explain(
    attn: Attention,
    *inputs: Tensor | Shape,
    target: Target | str | None = None,
    dtype: DType | torch.dtype | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    exact: bool = False,
    deterministic: bool = False,
    **parameters: Any,
) -> Explanation:
    """What is proved about the tiles of ``attn``, which kernels run, and exact counts; nothing is run.

    ``inputs``: query, key and value, or their shapes (batch, heads, length, head size), or one shape for all
    three, or nothing: then there are no counts. ``parameters``: values of open parameters. ``target``
    ("cpu", "sm_90" …) defaults to the tensors' device, else to this machine's. ``exact`` counts pairs by evaluating
    the mask where no closed form gives them: O(Lq · Lkv) time, bounded memory. ``deterministic``: as for a call.

    Raises the errors of a call with such inputs, but for computed indices: what they are is reported.
    """
    what = setting(
        attn, inputs, target=target, dtype=dtype, head_dim=head_dim, value_dim=value_dim, parameters=parameters,
        deterministic=deterministic,
    )  # fmt: skip
    check_inputs(attn, what)
    plan = plan_of(attn, what)
    kernels = tuple(_kernel(attn.variant, plan, what, direction) for direction in ("forward", "backward"))
    missing = tuple(sorted(parameter_names(plan.variant.mask) - set(what.values)))
    return Explanation(
        variant_text=str(attn),
        plan=plan,
        reads=reads(plan.variant, what),
        setting=what,
        kernels=kernels,
        counts=None if what.sizes is None or missing else _count(plan, what, kernels[0].schedule, exact),
        missing=missing,
    )


def _count(plan: TilePlan, what: Setting, schedule: Schedule, exact: bool) -> Counts:
    assert what.sizes is not None  # the caller checked
    values = what.numbers()
    blocks = schedule.block_m, schedule.block_n
    if walks_boxes(plan, what.target):
        # The CPU's program gathers boxes of any sides; kernels are compiled for a few.
        on_cpu = what.target.backend == "cpu"
        chosen = () if on_cpu else boxes_of_call(plan, schedule, what.sizes, values)
        tiles = box_counts(plan, what.sizes, values, *blocks, chosen)
    else:
        tiles = tile_counts(plan, what.sizes, values, *blocks, exact or plan.method == "exact")
    pairs = pair_count(plan, what.sizes, values, exact)
    if not pairs.exact:  # nothing is allowed outside of the tiles
        pairs = replace(pairs, pairs=min(pairs.pairs, tiles.tile_pairs))
    cost = work(pairs, what.sizes, values, tiles, what.head_dim, what.value_dim, _ITEM_SIZES[what.dtype])
    return Counts(pairs, tiles, cost, sees_itself(plan, what.sizes, values))


def _kernel(variant: Variant, plan: TilePlan, what: Setting, direction: Direction) -> Kernel:
    problem = what.problem(variant, direction)
    # Without sizes, calls are taken to be large.
    sizes = what.sizes
    length = None if sizes is None else sizes.q_len if direction == "forward" else sizes.kv_len
    fills_gpu = sizes is None or length is None or fills(length, sizes.batch, sizes.heads)
    masked = plan.variant.mask != TRUE
    long = fills_gpu and sizes is not None and is_long(sizes.q_len, sizes.kv_len, problem, masked=masked)
    request = Request(replace(variant, scale=None), problem, what.target, direction, fills_gpu=fills_gpu, long=long)
    pinned = tuned_here(request)
    if pinned is not None:
        choice, schedule = Choice(pinned.skeleton, TUNED), pinned.schedule
    else:
        choice = choose(plan, problem, what.target, direction, fills_gpu, long)
        schedule = schedule_for(choice, plan, problem, what.target, direction, long)
    on_cpu = what.target.backend == "cpu"
    gradients = problem.buffer_gradients or (False,) * len(plan.variant.buffers)
    differentiated = {p.name for p, wanted in zip(plan.variant.buffers, gradients, strict=True) if wanted}
    score_loads = [load for score in plan.variant.scores for load in loads(score)]
    scattered = any(load.buffer in differentiated and load_class(load) == "pair" for load in score_loads)
    tiles = "boxes" if walks_boxes(plan, what.target) else "tiles"
    skeleton = f"PyTorch program over {tiles}" if on_cpu else f"{choice.skeleton}_{direction}"
    reason = "" if on_cpu else choice.reason
    in_order = (direction, choice.skeleton) != ("backward", "gluon") or schedule.grad_query is not None
    repeatable = on_cpu or (in_order and not scattered)
    return Kernel(direction, skeleton, schedule, deterministic=repeatable, reason=reason)


def _union(intervals: Sequence[Interval]) -> str:
    def shown(e: Expr) -> str:
        return print_expr(substitute(e, _TILE_ENDS))

    return " or ".join(f"[{shown(i.start)}, {shown(i.stop)})" for i in intervals)


def _short(reason: str) -> str:
    return reason.replace("tile_first", "first").replace("tile_last", "last")


def _place(loc: Location) -> str:
    return f"{os.path.basename(loc.file)}:{loc.line}"


def _describe(schedule: Schedule, skeleton: str) -> str:
    tiles = f"tiles of {schedule.block_m} queries × {schedule.block_n} keys"
    if not skeleton.startswith("triton"):
        facts = {
            "begun anew where data changes": schedule.cut,
            "those of queries overlap": schedule.ahead,
            "rows of tiles from a list, the heaviest first": schedule.listed,
            "long rows shared by several programs": schedule.listed and schedule.split_keys,
        }
    else:
        facts = {
            f"{schedule.num_warps} warps": True,
            f"{schedule.num_stages} stages": True,
            "tensor descriptors": schedule.descriptors,
            "heaviest first": schedule.reverse,
            "keys split where there are few queries": schedule.split_keys,
        }
    return ", ".join([tiles, *(fact for fact, holds in facts.items() if holds)])


def _clipped(line: str) -> str:
    """A line that can still be read: formulas of a few thousand characters cannot."""
    if len(line) <= _LONGEST:
        return line
    return f'{line[: _LONGEST - 60]} … ({len(line):,} characters; attn.ir("plan") has all)'


def _block(title: str, lines: Iterable[str]) -> str:
    body = indent("\n".join(map(_clipped, lines)), "  ")
    return f"{title}\n{body}" if body else ""
