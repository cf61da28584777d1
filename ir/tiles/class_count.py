"""Counting pairs of tiles by their classes where a classification decides them, without looking at every pair.

Along a row of tiles one column stands for a run of them (``turns.py``). Where there are too many runs, as with
coordinates of a grid, rows and columns are taken apart into grids of their own, whose outer pairs that agree in all
that matters are looked at once.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ..nodes import Binary, Const
from ..traverse import index_names, taken_apart, value_names, walk
from .decide import TileFacts, tile_facts
from .numeric import CHUNK, Array, Sizes, Values, different, leaves, read, read_all
from .plan import Classification
from .turns import Pairs, runs_of_columns

# Pairs of places in the outer of two grids, at most.
_OUTER = 2**16
# So few pairs are looked at one by one before anything is asked about runs.
_FEW = 2**16
_OF_CALL = frozenset(("batch", "head", "kv_head"))


def count_classes(
    plan: Classification, sizes: Sizes, values: Values, block_m: int, block_n: int
) -> tuple[int, int] | None:
    """Partial and full pairs of tiles over all batch items and heads; None where each must be looked at."""
    if not min(sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len):
        return 0, 0
    facts = tile_facts(plan, sizes, values, block_m, block_n)
    if facts.pairs:
        return None
    pairs = _pairs(facts, sizes, values, -(-sizes.q_len // block_m), -(-sizes.kv_len // block_n))
    if pairs is None:
        return None
    copies = len(pairs.weights) // -(-sizes.q_len // block_m) * max((len(x) for x in pairs.columns.values()), default=1)
    found = _one_by_one(pairs, _FEW) or _by_runs(pairs)
    for period in _periods(plan) if found is None and copies == 1 else ():
        if period % block_m == 0 == period % block_n and found is None:
            found = _by_period(pairs, period // block_m, period // block_n)
    if found is None:
        return None
    partial, full = (n * (sizes.batch * sizes.heads // copies) for n in found)
    return partial, full


def _pairs(facts: TileFacts, sizes: Sizes, values: Values, rows: int, columns: int) -> Pairs | None:
    """``facts`` with heads and batch items one after the other; None where both rows and columns differ in these."""
    env = leaves(sizes, values)
    names = (index_names(facts.may) | index_names(facts.must)) & _OF_CALL
    of_rows = {**facts.rows, **{name: np.asarray(env[name]) for name in names}}
    copies = [np.broadcast_shapes((1, 1), *(x.shape[:2] for x in every.values())) for every in (of_rows, facts.columns)]
    if min(map(prod, copies)) > 1:
        return None
    return Pairs(
        (facts.may, facts.must),
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


def _one_by_one(p: Pairs, most: int = CHUNK) -> tuple[int, int] | None:
    """Partial and full pairs where they are few enough to look at each."""
    if len(p.weights) * p.length > most or any(len(x) > 1 for x in p.columns.values()):
        return None
    shape = len(p.weights), p.length
    env = {**p.env, **{name: x[:, None] for name, x in p.rows.items()}, **{name: x[0] for name, x in p.columns.items()}}
    may, must = (np.broadcast_to(x, shape) for x in read_all(p.conditions, env))
    visited, full = (int((x.sum(1) * p.weights).sum()) for x in (may, may & must))
    return visited - full, full


def _by_runs(p: Pairs) -> tuple[int, int] | None:
    """Partial and full pairs, from one column of every run."""
    found = runs_of_columns(p)
    if found is None:
        return None
    visited = full = 0
    for x in found:
        counts, (may, must) = x.counts * p.weights[x.rows], x.conditions
        visited += int((counts * may).sum())
        full += int((counts * (may & must)).sum())
    return visited - full, full


def _by_period(p: Pairs, rows: int, columns: int) -> tuple[int, int] | None:
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
    conditions, parts = taken_apart(p.conditions, groups, value_names)
    facts = [
        {x.name: read(e, {**p.env, **known}) for e, x in parts[name].items()}
        for name, known in zip(groups, (outer, *inner), strict=True)
    ]
    which, kind = different([np.broadcast_to(x, counts).ravel() for x in facts[0].values()], prod(counts))
    weights = np.bincount(kind)
    alike = {name: np.repeat(np.broadcast_to(x, counts).ravel()[which], rows) for name, x in facts[0].items()}
    of_rows = {name: np.tile(np.broadcast_to(x, rows), len(which)) for name, x in facts[1].items()}
    of_columns = {name: np.broadcast_to(x, (1, columns)) for name, x in facts[2].items()}
    inside = Pairs(tuple(conditions), alike | of_rows, of_columns, np.repeat(weights, rows), columns, p.env)
    end, stop = counts[0] * rows, counts[1] * columns
    rest = p.part(slice(0, end), slice(stop, None)), p.part(slice(end, None), slice(0, None))
    found = [_by_runs(x) or _one_by_one(x) for x in (inside, *rest) if x.length and len(x.weights)]
    known = [n for n in found if n is not None]
    return (sum(n for n, _ in known), sum(n for _, n in known)) if len(known) == len(found) else None
