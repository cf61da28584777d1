"""Where conditions on pairs of rows and columns change along a row.

A condition changes where one of the sums that it compares changes its sign. These places are looked up in what the
columns give to the sum, as long as that rises and falls in few pieces: between two of them one column stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..build import binary, unary
from ..linear_form import Linear, to_expr
from ..nodes import COMPARISONS, Binary, Const, Expr, Select, Unary, Value
from ..symbolic import combined, linear
from ..traverse import children, value_names
from ..types import BOOL
from .numeric import CHUNK, Array, Values, read, read_all

# Sums that are followed along a row, pieces in which they rise or fall, and kinds of columns, at most.
_SUMS, _PIECES, _KINDS = 64, 8, 16
# So many times more numbers than columns are looked up one by one.
_DENSE = 4


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of rows and columns, and ``conditions`` over facts of both: arrays (rows,), and (copies, columns).

    ``weights``: for how many rows each one stands; ``length``: columns.
    """

    conditions: tuple[Expr, ...]
    rows: Mapping[str, Array]
    columns: Mapping[str, Array]
    weights: Array
    length: int
    env: Values

    def part(self, rows: slice, columns: slice) -> Pairs:
        return replace(
            self,
            rows={name: x[rows] for name, x in self.rows.items()},
            columns={name: x[:, columns] for name, x in self.columns.items()},
            weights=self.weights[rows],
            length=len(range(*columns.indices(self.length))),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """Runs of columns, arrays (runs,), in which nothing changes but the kind of column.

    ``conditions``: of the pairs, (kinds, runs); ``counts``: columns of each kind in a run, of all copies together.
    """

    rows: Array
    starts: Array
    stops: Array
    conditions: tuple[Array, ...]
    counts: Array


def runs_of_columns(p: Pairs) -> list[Found] | None:
    """All runs of all rows, some rows at a time; None where conditions change in too many places, or cannot be told."""
    sums = _few_sums(p.conditions, frozenset(p.columns))
    kinds = None if sums is None else _kinds(p)
    if sums is None or kinds is None:
        return None
    starts = [np.zeros(len(p.weights), np.int64)]
    for form in sums:
        turns = _turns(form, p)
        if turns is None:
            return None
        starts += turns
    of_kind, up_to = kinds
    step = max(CHUNK // (8 * len(starts) * len(up_to)), 1)
    found = []
    for first in range(0, len(p.weights), step):
        places = np.sort(np.stack([x[first : first + step] for x in starts], 1), axis=1)
        ends = np.append(places[:, 1:], np.full((len(places), 1), p.length), 1)
        row, run = np.nonzero(places < ends)
        start, end = places[row, run], ends[row, run]
        row += first
        env = {name: x.take(row) for name, x in p.rows.items()}
        env |= {name: x[0].take(start) for name, x in p.columns.items() if name not in of_kind}
        env |= {name: x[:, None] for name, x in of_kind.items()}
        shape = len(up_to), len(row)
        conditions = tuple(np.broadcast_to(x, shape) for x in read_all(p.conditions, {**p.env, **env}))
        found.append(Found(row, start, end, conditions, np.stack([x.take(end) - x.take(start) for x in up_to])))
    return found


def _kinds(p: Pairs) -> tuple[dict[str, Array], Array] | None:
    """Conditions on columns alone, by kind of column, and how many columns of each kind come before every column.

    None where there are too many kinds, or columns differ between heads in more than such conditions.
    """
    names = frozenset[str]().union(*map(value_names, p.conditions))
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


@lru_cache(maxsize=64)
def _few_sums(conditions: tuple[Expr, ...], columns: frozenset[str]) -> tuple[Linear, ...] | None:
    """Sums that change their signs wherever conditions do; None where these compare what is no sum, or too many.

    ``columns``: names of what is read of columns.
    """
    found: dict[Linear, None] = {}
    for form in (form for e in conditions for form in _sums(e, columns)):
        if form is None:
            return None
        found[form] = None
        if len(found) > _SUMS:
            return None
    return tuple(found)


def _sums(e: Expr, columns: frozenset[str]) -> Iterator[Linear | None]:
    """Sums that change their signs wherever ``e``, which is boolean, changes along a row; None for what is no sum."""
    match e:
        case Value() | Const():
            return
        case Binary(op, a, b) if op in COMPARISONS and a.type.is_integer:
            yield from _taken_apart(linear(binary("sub", a, b)), columns)
        case Binary() | Unary("not") | Select() if all(x.type is BOOL for x in children(e)):
            for x in children(e):
                yield from _sums(x, columns)
        case _ if value_names(e):
            yield None


def _taken_apart(form: Linear, columns: frozenset[str]) -> Iterator[Linear | None]:
    """``form`` with each of the numbers that its extremes, distances and choices may be."""
    for term in form.terms:
        monomial, c = term
        if not any(value_names(x) & columns for x in monomial) or all(isinstance(x, Value) for x in monomial):
            continue
        match monomial:
            case (Binary("min" | "max", a, b),):
                numbers = [a, b]
            case (Unary("abs", x),):
                numbers = [x, unary("neg", x)]
            case (Select(condition, a, b),):
                yield from _sums(condition, columns)
                numbers = [a, b]
            case _:
                yield None
                return
        rest = Linear(form.constant, tuple(t for t in form.terms if t is not term))
        for x in numbers:
            yield from _taken_apart(combined(rest, x, c), columns)
        return
    yield form


def _turns(form: Linear, p: Pairs) -> list[Array] | None:
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
        found += [first + x for x in _between(sign * piece, sign * wanted)]
    return found


def _between(rising: Array, wanted: Array) -> tuple[Array, Array]:
    """Where numbers that do not fall reach what is ``wanted``, and where they exceed it."""
    step = int(rising[1] - rising[0]) if len(rising) > 1 else 0
    if step and (np.diff(rising) == step).all():
        apart = wanted - rising[0]
        return np.clip(-(-apart // step), 0, len(rising)), np.clip(apart // step + 1, 0, len(rising))
    low, high = int(rising[0]), int(rising[-1])
    if high - low > _DENSE * len(rising):
        return np.searchsorted(rising, wanted, "left"), np.searchsorted(rising, wanted, "right")
    # Looked up once for every number in between: those wanted are many, and in any order.
    reached = np.searchsorted(rising, np.arange(low, high + 2))
    return reached[np.clip(wanted - low, 0, high - low + 1)], reached[np.clip(wanted + 1 - low, 0, high - low + 1)]
