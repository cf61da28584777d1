"""A plan's classification as numbers: what is read of single tiles, and the classes of pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from itertools import product
from math import prod

import numpy as np

from ..build import binary
from ..nodes import BinaryOp, Expr, Index, Reduction, Value
from ..symbolic import TILE_FIRST
from ..traverse import index_names, share, substitute, taken_apart, value_names, walk
from ..types import F32, I32
from .numeric import MOST_COPIES, Array, Sizes, Values, chunks, copies_of, each_copy, leaves, read
from .plan import Classification
from .steps import looks, shifted, step_along, steps
from .stretches import Pieces, pieces_of_rows, reduced
from .turns import Pairs, runs_of_columns

# Looks at a pair of tiles that are written out.
_LOOKS = 16
# For so many positions, and one batch item and head, expressions as functions of these.
PiecesOf = Callable[..., Callable[[Expr], Pieces | None]]


@dataclass(frozen=True, slots=True)
class TileFacts:
    """``may`` and ``must`` of a classification over facts of single tiles, which they read by name.

    ``rows`` are of tiles of queries, arrays (batch or 1, head or 1, rows, 1), ``columns`` of tiles of keys,
    (batch or 1, head or 1, 1, columns), ``pairs`` of pairs of large tiles, (batch or 1, head or 1, rows, columns).
    """

    may: Expr
    must: Expr
    rows: dict[str, Array]
    columns: dict[str, Array]
    pairs: dict[str, Array]


def tile_facts(plan: Classification, sizes: Sizes, values: Values, block_m: int, block_n: int) -> TileFacts:
    """Everything that depends on one tile alone, evaluated."""
    env = leaves(sizes, values)
    table: dict[Expr, Expr] = {}
    rows: dict[str, Array] = {}
    columns: dict[str, Array] = {}
    pairs: dict[str, Array] = {}

    @cache
    def pieces(length: int, *at: tuple[str, int]) -> Callable[[Expr], Pieces | None]:
        return pieces_of_rows(length, {**env, **dict(at)})

    for x in (x for e in (plan.may, plan.must) for x in walk(e)):
        if not isinstance(x, Reduction) or x in table:
            continue
        name = f"{x.axis} tile {len(table)}"
        if x.axis == "both" and _looks(x, block_m, block_n) <= _LOOKS:
            table[x] = _looked(x, sizes, block_m, block_n, rows, columns)
            continue
        table[x] = Value(name, x.type)
        if x.axis == "both":
            pairs[name] = _over_pairs(x, sizes, env, block_m, block_n)
        else:
            found = _reduced(x, sizes, env, block_m if x.axis == "q" else block_n, pieces)
            (rows if x.axis == "q" else columns)[name] = found
    groups = {"row": frozenset(rows), "column": frozenset(columns)}
    (may, must), parts = taken_apart([substitute(e, table) for e in (plan.may, plan.must)], groups, value_names)
    of_rows, same_rows = _distinct({x: read(e, {**env, **rows}) for e, x in parts["row"].items()})
    of_columns, same_columns = _distinct({x: read(e, {**env, **columns}) for e, x in parts["column"].items()})
    if same_rows or same_columns:
        may, must = share(*(substitute(e, same_rows | same_columns) for e in (may, must)))
    return TileFacts(may, must, of_rows, of_columns, pairs)


def _distinct(facts: Mapping[Value, Array]) -> tuple[dict[str, Array], dict[Expr, Expr]]:
    """Facts by name, each once, and which of them stands for the others that are the same."""
    first: dict[tuple[object, ...], Value] = {}
    same: dict[Expr, Expr] = {
        name: first.setdefault((x.shape, x.dtype.str, x.tobytes()), name) for name, x in facts.items()
    }
    return {name.name: facts[name] for name in first.values()}, {a: b for a, b in same.items() if a is not b}


def decide(plan: Classification, sizes: Sizes, values: Values, block_m: int, block_n: int) -> Iterator[Array]:
    """Classes of tiles (0 empty, 1 partial, 2 full), as int8 (batch or 1, head or 1, some rows, columns)."""
    env = leaves(sizes, values)
    facts = tile_facts(plan, sizes, values, block_m, block_n)
    rows, columns = -(-sizes.q_len // block_m), -(-sizes.kv_len // block_n)
    copies = copies_of(index_names(plan.may) | index_names(plan.must), sizes)
    for part in chunks(rows, prod(copies) * columns):
        some = {name: x[..., part, :] for name, x in (facts.rows | facts.pairs).items()}
        possible, certain = (read(e, {**env, **some, **facts.columns}) for e in (facts.may, facts.must))
        yield _classes(possible, certain, part.stop - part.start, columns)


def _classes(possible: Array, certain: Array, rows: int, columns: int) -> Array:
    classes = possible.astype(np.int8) + (possible & certain)
    shape = (1,) * (4 - classes.ndim) + classes.shape
    return np.broadcast_to(classes.reshape(shape), (*shape[:2], rows, columns))


def _places(x: Reduction, block_m: int, block_n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where in a tile of queries, and of keys, to look, so that one pair of all blocks that they touch is seen."""
    found = steps(x.x)
    assert found is not None
    return looks(block_m, found[0], shifted(x.x, "q")), looks(block_n, found[1], shifted(x.x, "kv"))


def _looks(x: Reduction, block_m: int, block_n: int) -> int:
    return prod(map(len, _places(x, block_m, block_n)))


def _positions(length: int, block: int, offsets: tuple[int, ...]) -> Array:
    """Places in every tile, (tiles, offsets); what lies beyond the last position is taken for it."""
    return np.asarray(np.minimum(np.arange(0, length, block)[:, None] + np.array(offsets), length - 1))


def _looked(
    x: Reduction, sizes: Sizes, block_m: int, block_n: int, rows: dict[str, Array], columns: dict[str, Array]
) -> Expr:
    """A reduction over pairs of tiles, over positions in each of them that are looked at."""
    op: BinaryOp = "or" if x.op == "any" else "and"
    places = _places(x, block_m, block_n)
    rows |= {f"q + {i}": _positions(sizes.q_len, block_m, (i,)).reshape(1, 1, -1, 1) for i in places[0]}
    columns |= {f"kv + {j}": _positions(sizes.kv_len, block_n, (j,)).reshape(1, 1, 1, -1) for j in places[1]}
    seen = [
        substitute(x.x, {Index("q", I32): Value(f"q + {i}", I32), Index("kv", I32): Value(f"kv + {j}", I32)})
        for i, j in product(*places)
    ]
    return reduce(lambda a, b: binary(op, a, b), seen)


def _over_pairs(x: Reduction, sizes: Sizes, env: Values, block_m: int, block_n: int) -> Array:
    """The same for large tiles, (batch or 1, head or 1, rows, columns): by runs of keys, or look by look."""
    places = _places(x, block_m, block_n)
    q, kv = (
        _positions(length, block, offsets)
        for length, block, offsets in zip((sizes.q_len, sizes.kv_len), (block_m, block_n), places, strict=True)
    )
    names = {"row": frozenset(["q"]), "column": frozenset(["kv"])}
    whole = substitute(x.x, {Index(axis, I32): Value(axis, I32) for axis in ("q", "kv")})
    found = None
    if not index_names(whole) & {"batch", "head", "kv_head"}:
        condition, parts = taken_apart([whole], names, value_names)
        rows, columns = (
            {v.name: np.broadcast_to(read(e, {**env, axis: at.ravel()}), at.size) for e, v in parts[name].items()}
            for name, axis, at in (("row", "q", q), ("column", "kv", kv))
        )
        of_columns = {name: y[None] for name, y in columns.items()}
        pairs = Pairs(tuple(condition), rows, of_columns, np.ones(q.size, np.int64), kv.size, env)
        found = runs_of_columns(pairs)
    if found is None or any(len(f.counts) > 1 for f in found):
        combine = np.logical_or if x.op == "any" else np.logical_and
        return reduce(combine, (
            np.atleast_2d(read(x.x, {**env, "q": q[:, [i]], "kv": kv[:, j]}))
            for i, j in product(range(q.shape[1]), range(kv.shape[1]))
        ))  # fmt: skip
    # How many of the queries that are looked at see each of the keys.
    seen = np.zeros((len(q), kv.size + 1), np.int32)
    for f in found:
        holds = f.conditions[0][0]
        tile = f.rows[holds] // q.shape[1]
        np.add.at(seen, (tile, f.starts[holds]), 1)
        np.add.at(seen, (tile, f.stops[holds]), -1)
    of_keys = np.cumsum(seen, axis=1)[:, :-1].reshape(len(q), *kv.shape)
    some, every = (of_keys > 0).any(2), (of_keys == q.shape[1]).all(2)
    return np.asarray(some if x.op == "any" else every)[None, None]


def _reduced(x: Reduction, sizes: Sizes, env: Values, block: int, pieces: PiecesOf) -> Array:
    """One reduction over all tiles of its axis: (batch or 1, head or 1, rows, 1), or (…, 1, columns) for keys."""
    assert x.axis != "both"
    length = sizes.length(x.axis)
    combine = {"min": np.minimum, "max": np.maximum, "any": np.logical_or, "all": np.logical_and}[x.op]
    step = step_along(x.x, x.axis)
    offsets = () if step is None else looks(block, step, shifted(x.x, x.axis))
    if 0 < len(offsets) <= _LOOKS:
        places = _positions(length, block, offsets)
        seen = read(x.x, {**env, x.axis: places})
        seen = np.broadcast_to(seen, np.broadcast_shapes(seen.shape, (1, 1, *places.shape)))
        values = np.asarray(combine.reduce(seen, axis=-1))
        return values[..., None] if x.axis == "q" else values[..., None, :]
    of_row = substitute(x.x, {Index(x.axis, I32): TILE_FIRST})
    copies = copies_of(index_names(of_row), sizes)
    if length and 0 < prod(copies) <= MOST_COPIES and x.type is not F32:
        each = [pieces(length, *at.items())(of_row) for at in each_copy(index_names(of_row), sizes)]
        known = [reduced(p, block, x.op) for p in each if p is not None]
        if len(known) == len(each):
            return np.stack(known).reshape(*copies, *((-1, 1) if x.axis == "q" else (1, -1)))
    values = read(x.x, {**env, x.axis: np.arange(length)})
    values = np.broadcast_to(values, np.broadcast_shapes(values.shape, (1, 1, 1, length)))
    found = combine.reduceat(values, np.arange(0, length, block), axis=-1) if length else values
    return np.swapaxes(found, -1, -2) if x.axis == "q" else found
