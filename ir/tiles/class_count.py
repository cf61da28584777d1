"""Counting pairs of tiles by their classes where a classification decides them, without looking at every pair.

Along a row of tiles a class changes where one of the sums that the classification compares changes its sign: between
such places one column stands for all. Where too many sums of too many columns do, as with coordinates of a grid, rows
and columns are taken apart into grids of their own, of which only pairs that differ are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..build import binary, const, unary
from ..nodes import COMPARISONS, Binary, Const, Expr, Select, Unary, Value
from ..symbolic import Linear, linear, to_expr
from ..traverse import children, index_names, taken_apart, value_names, walk
from ..types import BOOL
from .decide import TileFacts, tile_facts
from .numeric import CHUNK, Array, Sizes, Values, different, leaves, read
from .plan import Classification

# Sums that are followed along a row, pieces in which they rise or fall, and kinds of columns, at most.
_SUMS, _PIECES, _KINDS = 64, 8, 16
# Pairs of places in the outer of two grids, at most.
_OUTER = 2**16
_OF_CALL = frozenset(("batch", "head", "kv_head"))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of tiles, classified by ``may`` and ``must`` over ``rows``, (rows,), and ``columns``, (copies, columns).

    ``weights``: for how many rows each one stands; ``length``: columns.
    """

    may: Expr
    must: Expr
    rows: Mapping[str, Array]
    columns: Mapping[str, Array]
    weights: Array
    length: int
    env: Values

    def part(self, rows: slice, columns: slice) -> _Pairs:
        return replace(
            self,
            rows={name: x[rows] for name, x in self.rows.items()},
            columns={name: x[:, columns] for name, x in self.columns.items()},
            weights=self.weights[rows],
            length=len(range(*columns.indices(self.length))),
        )


def count_classes(
    plan: Classification, sizes: Sizes, values: Values, block_m: int, block_n: int
) -> tuple[int, int] | None:
    """Partial and full pairs of tiles over all batch items and heads; None where each must be looked at."""
    if not min(sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len):
        return 0, 0
    facts = tile_facts(plan, sizes, values, block_m, block_n)
    pairs = _pairs(facts, sizes, values, -(-sizes.q_len // block_m), -(-sizes.kv_len // block_n))
    if pairs is None:
        return None
    copies = len(pairs.weights) // -(-sizes.q_len // block_m) * max((len(x) for x in pairs.columns.values()), default=1)
    found = _by_runs(pairs)
    for period in _periods(plan) if found is None and copies == 1 else ():
        if period % block_m == 0 == period % block_n and found is None:
            found = _by_period(pairs, period // block_m, period // block_n)
    if found is None:
        return None
    partial, full = (n * (sizes.batch * sizes.heads // copies) for n in found)
    return partial, full


def _pairs(facts: TileFacts, sizes: Sizes, values: Values, rows: int, columns: int) -> _Pairs | None:
    """``facts`` with heads and batch items one after the other; None where both rows and columns differ in these."""
    env = leaves(sizes, values)
    names = (index_names(facts.may) | index_names(facts.must)) & _OF_CALL
    of_rows = {**facts.rows, **{name: np.asarray(env[name]) for name in names}}
    copies = [np.broadcast_shapes((1, 1), *(x.shape[:2] for x in every.values())) for every in (of_rows, facts.columns)]
    if min(map(prod, copies)) > 1:
        return None
    return _Pairs(
        facts.may,
        facts.must,
        {name: np.broadcast_to(x, (*copies[0], rows, 1)).ravel() for name, x in of_rows.items()},
        {name: _copied(x, copies[1], columns) for name, x in facts.columns.items()},
        np.ones(prod(copies[0]) * rows, np.int64),
        columns,
        {name: x for name, x in env.items() if name not in _OF_CALL},
    )


def _copied(x: Array, copies: tuple[int, ...], columns: int) -> Array:
    """``x``, (batch or 1, head or 1, 1, columns), as (copies, columns), or (1, columns) where all have the same."""
    return np.broadcast_to(x, (*(copies if prod(x.shape[:2]) > 1 else (1, 1)), 1, columns)).reshape(-1, columns)


def _periods(plan: Classification) -> list[int]:
    """What positions are divided by, the largest first."""
    nodes = (x for e in (plan.may, plan.must) for x in walk(e))
    divisors = {x.b for x in nodes if isinstance(x, Binary) and x.op in ("floordiv", "mod")}
    return sorted((int(x.value) for x in divisors if isinstance(x, Const)), reverse=True)


def _one_by_one(p: _Pairs) -> tuple[int, int] | None:
    """Partial and full pairs where they are few enough to look at each."""
    if len(p.weights) * p.length > CHUNK or any(len(x) > 1 for x in p.columns.values()):
        return None
    shape = len(p.weights), p.length
    env = {**p.env, **{name: x[:, None] for name, x in p.rows.items()}, **{name: x[0] for name, x in p.columns.items()}}
    may, must = (np.broadcast_to(read(e, env), shape) for e in (p.may, p.must))
    visited, full = (int((x.sum(1) * p.weights).sum()) for x in (may, may & must))
    return visited - full, full


# --- along rows ---


def _by_runs(p: _Pairs) -> tuple[int, int] | None:
    """Partial and full pairs, from one column of every run of columns along which no sum changes its sign."""
    sums = [*dict.fromkeys((*_sums(p.may, p), *_sums(p.must, p)))]
    if None in sums or len(sums) > _SUMS:
        return None
    kinds = _kinds(p)
    starts = [np.zeros(len(p.weights), np.int64)]
    for form in sums:
        found = None if form is None else _turns(form, p)
        if found is None or kinds is None:
            return None
        starts += found
    if kinds is None:
        return None
    of_kind, up_to = kinds
    partial = full = 0
    step = max(CHUNK // (8 * len(starts) * len(up_to)), 1)
    for first in range(0, len(p.weights), step):
        places = np.sort(np.stack([x[first : first + step] for x in starts], 1), axis=1)
        ends = np.append(places[:, 1:], np.full((len(places), 1), p.length), 1)
        row, run = np.nonzero(places < ends)
        start, end = places[row, run], ends[row, run]
        row += first
        env = {name: x[row][:, None] for name, x in p.rows.items()}
        env |= {name: x[0, start][:, None] for name, x in p.columns.items() if name not in of_kind}
        may, must = (
            np.broadcast_to(read(e, {**p.env, **env, **of_kind}), (len(row), len(up_to))) for e in (p.may, p.must)
        )
        count = (up_to[:, end] - up_to[:, start]).T * p.weights[row][:, None]
        certain = int(count[may & must].sum())
        partial += int(count[may].sum()) - certain
        full += certain
    return partial, full


def _kinds(p: _Pairs) -> tuple[dict[str, Array], Array] | None:
    """Conditions on columns alone, by kind of column, and how many columns of each kind come before every column.

    None where there are too many kinds, or columns differ between heads in more than such conditions.
    """
    names = value_names(p.may) | value_names(p.must)
    conditions = {name: x for name, x in p.columns.items() if x.dtype == bool and name in names}
    if any(len(x) > 1 for name, x in p.columns.items() if name not in conditions):
        return None
    code = np.zeros((1, p.length), np.int64)
    for i, x in enumerate(conditions.values()):
        code = code | x.astype(np.int64) << i
    kinds = np.unique(code)
    if len(conditions) > _SUMS - 2 or len(kinds) > _KINDS:
        return None
    up_to = np.cumsum((code == kinds[:, None, None]).sum(1), axis=1)
    of_kind = {name: (kinds >> i & 1).astype(bool) for i, name in enumerate(conditions)}
    return of_kind, np.append(np.zeros((len(kinds), 1), np.int64), up_to, 1)


def _sums(e: Expr, p: _Pairs) -> Iterator[Linear | None]:
    """Sums that change their signs wherever ``e``, which is boolean, changes along a row; None for what is no sum."""
    match e:
        case Value() | Const():
            return
        case Binary(op, a, b) if op in COMPARISONS and a.type.is_integer:
            yield from _taken_apart(linear(binary("sub", a, b)), p)
        case Binary() | Unary("not") | Select() if all(x.type is BOOL for x in children(e)):
            for x in children(e):
                yield from _sums(x, p)
        case _ if value_names(e):
            yield None


def _taken_apart(form: Linear, p: _Pairs) -> Iterator[Linear | None]:
    """``form`` with each of the numbers that its extremes, distances and choices may be."""
    for term in form.terms:
        monomial, c = term
        if not any(value_names(x) & p.columns.keys() for x in monomial) or all(isinstance(x, Value) for x in monomial):
            continue
        match monomial:
            case (Binary("min" | "max", a, b),):
                numbers = [a, b]
            case (Unary("abs", x),):
                numbers = [x, unary("neg", x)]
            case (Select(condition, a, b),):
                yield from _sums(condition, p)
                numbers = [a, b]
            case _:
                yield None
                return
        rest = to_expr(Linear(form.constant, tuple(t for t in form.terms if t is not term)))
        for x in numbers:
            yield from _taken_apart(linear(binary("add", rest, binary("mul", const(c), x))), p)
        return
    yield form


def _turns(form: Linear, p: _Pairs) -> list[Array] | None:
    """Columns from which on the sign of ``form`` may be another, (rows,) each; None where they are too many."""
    of_columns = [t for t in form.terms if any(value_names(x) & p.columns.keys() for x in t[0])]
    if any(len(monomial) > 1 for monomial, _ in of_columns):
        return None
    of_rows = Linear(form.constant, tuple(t for t in form.terms if t not in of_columns))
    columns = {name: x[0] for name, x in p.columns.items()}
    values = read(to_expr(Linear(0, tuple(of_columns))), {**p.env, **columns}).astype(np.int64)
    if not of_columns:
        return []
    wanted = -np.broadcast_to(read(to_expr(of_rows), {**p.env, **p.rows}).astype(np.int64), p.weights.shape)
    steps = np.diff(values)
    moves = np.flatnonzero(steps)
    turns = moves[1:][np.sign(steps[moves[1:]]) != np.sign(steps[moves[:-1]])]
    if len(turns) >= _PIECES:
        return None
    found = [np.full(len(wanted), turn) for turn in turns]
    for first, end in zip([0, *turns], [*turns, len(values)], strict=True):
        piece = values[first:end]
        sign = 1 if piece[0] <= piece[-1] else -1
        found += [first + np.searchsorted(sign * piece, sign * wanted, side) for side in ("left", "right")]
    return found


# --- grids of rows and of columns ---


def _by_period(p: _Pairs, rows: int, columns: int) -> tuple[int, int] | None:
    """The same where all facts repeat after so many rows and columns, or are alike in them."""
    counts = len(p.weights) // rows, p.length // columns
    if prod(counts) < 2 or prod(counts) > _OUTER:
        return None
    outer: dict[str, Array] = {}
    inner: tuple[dict[str, Array], dict[str, Array]] = {}, {}
    every = p.rows, {name: x[0] for name, x in p.columns.items()}
    for of_tiles, of_inner, count, period, turned in zip(every, inner, counts, (rows, columns), (-1, 1), strict=True):
        for name, x in of_tiles.items():
            grid = x[: count * period].reshape(count, period)
            if (grid == grid[:, :1]).all():
                outer[name] = grid[:, 0][:, None] if turned == -1 else grid[:, 0]
            elif (grid == grid[:1]).all():
                of_inner[name] = grid[0]
            else:
                return None
    groups = {"outer": frozenset(outer), "row": frozenset(inner[0]), "column": frozenset(inner[1])}
    (may, must), parts = taken_apart((p.may, p.must), groups, value_names)
    facts = [
        {x.name: read(e, {**p.env, **known}) for e, x in parts[name].items()}
        for name, known in zip(groups, (outer, *inner), strict=True)
    ]
    which, kind = different([np.broadcast_to(x, counts).ravel() for x in facts[0].values()], prod(counts))
    weights = np.bincount(kind)
    alike = {name: np.repeat(np.broadcast_to(x, counts).ravel()[which], rows) for name, x in facts[0].items()}
    of_rows = {name: np.tile(np.broadcast_to(x, rows), len(which)) for name, x in facts[1].items()}
    of_columns = {name: np.broadcast_to(x, (1, columns)) for name, x in facts[2].items()}
    inside = _Pairs(may, must, alike | of_rows, of_columns, np.repeat(weights, rows), columns, p.env)
    end, stop = counts[0] * rows, counts[1] * columns
    rest = p.part(slice(0, end), slice(stop, None)), p.part(slice(end, None), slice(0, None))
    found = [_by_runs(x) or _one_by_one(x) for x in (inside, *rest) if x.length and len(x.weights)]
    known = [n for n in found if n is not None]
    return (sum(n for n, _ in known), sum(n for _, n in known)) if len(known) == len(found) else None
