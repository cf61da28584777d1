"""Shares of long rows of tiles in the backward kernels that repeat bit by bit, where few rows see far more than others.

A program does what a line of a work list says, see :mod:`.gluon_work`: a row of tiles, or a share of one. Sums of
shares are left in float32, and another kernel adds them up, in a fixed order. There are as many programs as a list may
have lines; those after the last line walk no tile and leave nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from .emitter import Emitter
from .gluon_backward import few_programs
from .gluon_grad_key import KeyConsumer
from .gluon_grad_loader import SIZES as KEY_SIZES
from .gluon_grad_query import QueryConsumer
from .gluon_grad_runs import OwnKeys
from .gluon_grad_wide import LoneKeyConsumer, LoneValueConsumer
from .gluon_module import emit_tables
from .gluon_tiles import KEYS, QUERIES, emit_unpack, emit_visits, jit_function
from .gluon_work import (
    NUMBERS,
    ORDER,
    emit_count,
    emit_count_launch,
    emit_merge_launch,
    emit_room,
    emit_share,
    emit_share_function,
    emit_work_list,
    few_are_long,
    has_one_list,
)
from .schedule import Problem, Schedule
from .triton_gradients import contributions
from .triton_module import Argument, user_names
from .triton_program import SIZES, uses_table
from .triton_split import emit_add_rows

_ADD, _COUNT_KEYS, _COUNT_QUERIES = "add_rows", "count_keys", "count_queries"
# The lists, in ``run``.
_BY_QUERY, _BY_KEY = "tiles[0][-1]", "tiles[1][-1]"
# The part of a row that a program walks, and its place: of a share, -1 for a whole row, -2 for nothing.
_SHARE = "begin, end, place"
_KEY_SHARE = f"batch, chunk, kv_head, tile_first, {_SHARE} = key_share(tl.program_id(0), sizes, work[0])"
# What the producer tells consumers, which would keep it in registers, and after how many starts of tiles it stands.
_TOLD = {name: f"STAGES + {i}" for i, name in enumerate(("begin", "end", "place", "batch", "chunk"))}
_QUERY_SHARE = f"entry, batch, head, kv_head, tile_first, {_SHARE} = query_share(tl.program_id(0), sizes, work[0])"
# How many tiles of a share need the mask.
_MASKED = "tl.minimum(tl.maximum(visits[0] - begin, 0), count)"


def in_shares(plan: TilePlan, problem: Problem, schedule: Schedule) -> Schedule:
    """``schedule`` with lists for those of its kernels whose rows of tiles may be uneven, and long rows in shares.

    Not where heads tell rows apart, or captured tensors have gradients, of which shares keep no sums.
    """
    assert schedule.grad_query is not None
    if contributions(plan, problem) or not has_one_list(plan):
        return schedule
    of_queries, of_keys = (uses_table(plan) or few_are_long(plan, x) for x in (plan.keys, plan.queries))

    def cut(x: Schedule, uneven: bool) -> Schedule:
        return replace(x, reverse=False, listed=True, split_keys=True) if uneven else x

    by_value = None if schedule.grad_value is None else cut(schedule.grad_value, of_keys)
    return replace(cut(schedule, of_keys), grad_query=cut(schedule.grad_query, of_queries), grad_value=by_value)


def with_shares(plan: TilePlan, problem: Problem, schedule: Schedule) -> Schedule:
    """The same where rows are uneven whatever tensors hold; elsewhere tuning tries it."""
    return schedule if any(loads(plan.variant.mask)) else in_shares(plan, problem, schedule)


def cuts_long_rows(plan: TilePlan) -> bool:
    """Whether few rows of tiles are sure to be far longer than the others, and may be cut into shares.

    Of a table the others may be long, too. Where it has both rows and columns that are seen whole, shares were measured
    faster than five products; where it has such columns only, slower.
    """
    if any(loads(plan.variant.mask)) or not has_one_list(plan):
        return False
    if uses_table(plan):
        return few_are_long(plan, plan.keys) and few_are_long(plan, plan.queries)
    return few_are_long(plan, plan.keys) or few_are_long(plan, plan.queries)


class _Shares(OwnKeys):
    """A program owns a tile of keys, and visits a share of the queries that see it."""

    constants_typed = constants_passed = ", work"
    starts = f"STAGES + {len(_TOLD)}"

    @property
    def work(self) -> list[Argument]:
        """The list, and where sums of shares go."""
        partials = (x.target.replace("grad", "partial") for x in self.sums)
        return [Argument("work", "", _BY_KEY), *(Argument(x, "", x) for x in partials)]

    def emit_tile_functions(self, out: Emitter, schedule: Schedule) -> None:
        """What a program does, and which tiles of queries keys visit."""
        with _share_function(out, "key_share", KEY_SIZES):
            out.line("chunk = entry % (heads // group)")
            out.line("kv_head = chunk * group // (heads // kv_heads)")
            out.line(f"return entry // (heads // group), chunk, kv_head, tile * BLOCK_N, {_SHARE}")
        emit_visits(out, self.plan, QUERIES, KEY_SIZES, self.parameters)
        if not uses_table(self.plan):
            emit_count(out, _COUNT_QUERIES, QUERIES, self.parameters[1:])

    def producer(self) -> dict[str, str]:
        """The same for a share."""
        return super().producer() | {
            "prologue": f"{', '.join(a.name for a in KEY_SIZES)} = sizes\n{_KEY_SHARE}\n"
            + "\n".join(f"write(starts, {cell}, {name})" for name, cell in _TOLD.items()),
            "count": "end - begin",
            "start": "start = visited_start(begin + t, visits)",
        }

    def emit_place(self, out: Emitter) -> None:
        """The same, and the share."""
        out.line(_KEY_SHARE)
        out.line("own_first = tile_first + GROUP * KEYS")

    def emit_counts(self, out: Emitter) -> None:
        """``masked`` and ``count`` of the share."""
        out.line("visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)")
        out.line(f"begin = {_told('begin')}")
        out.line(f"count = {_told('end')} - begin")
        out.line(f"masked = tl.where(tile_first + BLOCK_N > kv_len, count, {_MASKED})")

    def emit_gradients(self, out: Emitter) -> None:
        """The same for a whole row; sums of a share in float32."""
        for name in ("place", "batch", "chunk"):
            out.line(f"{name} = {_told(name)}")
        for i, x in enumerate(self.sums, 1):
            for p in x.parts:
                total = f"{x.name}{p.suffix}{x.factor}"
                emit_share(out, p, f"work[{i}]", total, x.layout, "KEYS", "BLOCK_N", x.size)
        super().emit_gradients(out)

    def emit_gradients_place(self, out: Emitter) -> str:
        """The same; past the end, where nothing is written, for a share."""
        return f"batch, chunk, {_emit_target(out, 'own_first', 'kv_len')}"


class SharedKeyConsumer(_Shares, KeyConsumer):
    """Prints the consumer for dK and dV."""


class SharedLoneKeyConsumer(_Shares, LoneKeyConsumer):
    """Prints the consumer for dK alone."""


class SharedLoneValueConsumer(_Shares, LoneValueConsumer):
    """Prints the consumer for dV alone."""


class SharedQueryConsumer(QueryConsumer):
    """Prints the kernel for dQ, a program of which visits a share of the keys that a tile of queries sees."""

    constants_typed = constants_passed = ", work"

    @property
    def work(self) -> list[Argument]:
        """The list, and where sums of shares go."""
        return [Argument("work", "", _BY_QUERY), Argument("partial_query", "", "partial_query")]

    def emit_programs(self, out: Emitter) -> str:
        """Makes room for sums of shares; a head has as many programs as the list may have lines."""
        tiles = super().emit_programs(out)
        partials = {"partial_query": f"{self.schedule.block_m}, {self.problem.head_dim}"}
        emit_room(out, _BY_QUERY, tiles, "batches * heads", partials, "query_parts")
        return f"({tiles} + query_parts)"

    def emit_tile_functions(self, out: Emitter) -> None:
        """What a program does, and which tiles of keys queries visit."""
        with _share_function(out, "query_share", SIZES):
            out.line("head = entry % heads")
            out.line(f"return entry, entry // heads, head, head // (heads // kv_heads), tile * BLOCK_M, {_SHARE}")
        emit_visits(out, self.plan, KEYS, SIZES, self.parameters)
        if not uses_table(self.plan):
            emit_count(out, _COUNT_KEYS, KEYS, self.parameters[1:])

    def producer(self) -> dict[str, str]:
        """The same for a share."""
        visits = "visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)"
        return {
            "prologue": f"{', '.join(a.name for a in SIZES)} = sizes\n{_QUERY_SHARE}\n{visits}",
            "count": "end - begin",
            "start": "start = visited_start(begin + t, visits)",
        }

    def emit_place(self, out: Emitter) -> None:
        """The same, and the share."""
        out.line(_QUERY_SHARE)

    def emit_counts(self, out: Emitter) -> None:
        """``partial_count`` and ``count`` of the share."""
        out.line("visits = visited_tiles(batch, head, kv_head, tile_first, sizes, parameters)")
        out.line("count = end - begin")
        out.line(f"partial_count = {_MASKED}")

    def emit_gradient(self, out: Emitter) -> None:
        """The same for a whole row; sums of a share in float32."""
        for p in self.head:
            emit_share(out, p, "work[1]", f"dq{p.suffix} * scale", "QUERY_SUMS", "ROWS", "BLOCK_M", "HEAD")
        super().emit_gradient(out)

    def emit_gradient_place(self, out: Emitter) -> str:
        """The same; past the end, where nothing is written, for a share."""
        return f"batch, head, {_emit_target(out, 'tile_first + GROUP * ROWS', 'q_len')}"


@contextmanager
def _share_function(out: Emitter, name: str, sizes: Sequence[Argument]) -> Iterator[None]:
    """The function ``name``: what a program does; what is written meanwhile returns it, from ``entry`` and ``tile``."""
    emit_share_function(out)
    with jit_function(out, f"{name}(program, sizes, work)"):
        out.line('"""Where the tile is that `program` owns, which part of its row it walks, and the place of that."""')
        emit_unpack(out, "sizes", sizes)
        out.line("items, places = tl.load(work), tl.load(work + 2)")
        out.line("last = items * all_heads - 1")
        share = "own_share(tl.minimum(program, last), items, places, all_heads, section, work)"
        out.line(f"entry, tile, {_SHARE} = {share}")
        out.comment("Programs after the last line of the list walk nothing and leave nothing.")
        out.line("end, place = tl.where(program > last, begin, end), tl.where(program > last, -2, place)")
        yield


def _told(name: str) -> str:
    return f"read(starts, {_TOLD[name]})"


def _emit_target(out: Emitter, first: str, length: str) -> str:
    out.line(f"target = tl.where(place == -1, {first}, {length})")
    return "target"


def emit_key_room(out: Emitter, schedule: Schedule, problem: Problem) -> None:
    """The part of ``run`` that makes room for sums of keys, and counts a program for each line of the list."""
    rows = schedule.block_n
    partials = {"partial_key": f"{rows}, {problem.head_dim}", "partial_value": f"{rows}, {problem.value_dim}"}
    emit_room(out, _BY_KEY, "tiles_of_keys", "batches * heads // group", partials, "key_parts")
    out.line("tiles_of_keys += key_parts  # programs of a head: so many lines its list may have")


def emit_sums_of_shares(out: Emitter, schedule: Schedule, problem: Problem) -> None:
    """The part of ``run`` that adds up shares, once all kernels were launched."""
    heads, rows = "batches * heads // group", schedule.block_n
    if schedule.listed:
        for x, width in (("key", problem.head_dim), ("value", problem.value_dim)):
            tensors = f"to_{x}", f"partial_{x}"
            emit_merge_launch(out, _ADD, tensors, _BY_KEY, heads, "kv_len", width, rows, "key_parts")
    by_query = schedule.grad_query
    if by_query is not None and by_query.listed:
        tensors, sizes = ("grad_query", "partial_query"), (problem.head_dim, by_query.block_m)
        emit_merge_launch(out, _ADD, tensors, _BY_QUERY, "batches * heads", "q_len", *sizes, "query_parts")


_HEADS_OF_PROGRAMS = '''
def heads_of_programs(heads, batches, kv_heads, tiles_of_keys, device):
    """Heads of which programs own keys: those of queries are apart where these are too few otherwise."""
    return heads if {few} else kv_heads
'''


def emit_lists(plan: TilePlan, schedule: Schedule, parameters: Sequence[Argument]) -> tuple[str, tuple[str, ...]]:
    """What makes tables of tiles and work lists, as text, and the names of its kernels, with those that add up shares.

    ``parameters`` are those of ``visited_tiles`` but for the scale.
    """
    by_query = schedule.grad_query
    assert by_query is not None
    rows = f"triton.cdiv(q_len, {by_query.block_m})", f"triton.cdiv(kv_len, {schedule.block_n})"
    entries = "batches * heads", f"batches * heads_of_programs(heads, batches, kv_heads, {rows[1]}, device)"
    wanted = by_query.listed, schedule.listed
    lists = tuple(f"work_list(counts, {x})" if w else "" for x, w in zip(entries, wanted, strict=True))
    tables, kernels = emit_tables(
        plan, (by_query.block_m, by_query.block_n), (schedule.block_m, schedule.block_n), listed=(lists[0], lists[1])
    )
    if not any(wanted):
        return tables, kernels
    out = Emitter()
    if schedule.listed:
        out.section(_HEADS_OF_PROGRAMS.format(few=few_programs(plan, "tiles_of_keys", "device_limits(device)[0]")))
    emit_work_list(out, split=True)
    emit_add_rows(out, _ADD, NUMBERS)
    if not uses_table(plan):
        kernels = _emit_classify(out, plan, rows, lists, parameters)
    return tables + out.text(), (*kernels, ORDER, _ADD)


def _emit_classify(
    out: Emitter, plan: TilePlan, rows: Sequence[str], lists: Sequence[str], parameters: Sequence[Argument]
) -> tuple[str, ...]:
    """``classify`` for ranges in closed form, whose only tables are the work lists; returns the kernels it launches."""
    inputs = ", ".join([*user_names(plan.variant), "batches, heads, kv_heads, q_len, kv_len, device"])
    counts = (_COUNT_KEYS, _COUNT_QUERIES)
    with out.define(f"classify({inputs})"):
        out.line('"""Work lists for `run`, by query and by key, where there are; they depend on sizes and scalars."""')
        out.line("table_batches = table_heads = 1")
        out.line("by_query = by_key = ()")
        for name, kernel, count, made in zip(("by_query", "by_key"), counts, rows, lists, strict=True):
            if made:
                emit_count_launch(out, kernel, count, parameters)
                out.line(f"{name} = ({made},)")
        out.line("return by_query, by_key")
    return tuple(kernel for kernel, made in zip(counts, lists, strict=True) if made)
