"""A plan's classification as numbers: what is read of single tiles, and the classes of pairs of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

import numpy as np

from ..build import binary
from ..nodes import BinaryOp, Expr, Index, Reduction, Value
from ..symbolic import TILE_FIRST
from ..traverse import index_names, substitute, taken_apart, value_names, walk
from ..types import I32
from .numeric import MOST_COPIES, Array, Sizes, Values, chunks, copies_of, each_copy, leaves, read
from .plan import Classification
from .steps import looks, shifted, steps
from .stretches import reduced


@dataclass(frozen=True, slots=True)
class TileFacts:
    """``may`` and ``must`` of a classification over facts of single tiles, which they read by name.

    ``rows`` are of tiles of queries, arrays (batch or 1, head or 1, rows, 1), ``columns`` of tiles of keys,
    (batch or 1, head or 1, 1, columns).
    """

    may: Expr
    must: Expr
    rows: dict[str, Array]
    columns: dict[str, Array]


def tile_facts(plan: Classification, sizes: Sizes, values: Values, block_m: int, block_n: int) -> TileFacts:
    """Everything that depends on one tile alone, evaluated."""
    env = leaves(sizes, values)
    table: dict[Expr, Expr] = {}
    rows: dict[str, Array] = {}
    columns: dict[str, Array] = {}
    for x in (x for e in (plan.may, plan.must) for x in walk(e)):
        if not isinstance(x, Reduction) or x in table:
            continue
        if x.axis == "both":
            table[x] = _looked(x, sizes, block_m, block_n, rows, columns)
        else:
            name = f"{x.axis} tile {len(table)}"
            table[x] = Value(name, x.type)
            found = _reduced(x, sizes, env, block_m if x.axis == "q" else block_n)
            (rows if x.axis == "q" else columns)[name] = found
    groups = {"row": frozenset(rows), "column": frozenset(columns)}
    (may, must), parts = taken_apart([substitute(e, table) for e in (plan.may, plan.must)], groups, value_names)
    facts = ({x.name: read(e, {**env, **known}) for e, x in parts[name].items()}
             for name, known in (("row", rows), ("column", columns)))  # fmt: skip
    return TileFacts(may, must, *facts)


def decide(plan: Classification, sizes: Sizes, values: Values, block_m: int, block_n: int) -> Iterator[Array]:
    """Classes of tiles (0 empty, 1 partial, 2 full), as int8 (batch or 1, head or 1, some rows, columns)."""
    env = leaves(sizes, values)
    facts = tile_facts(plan, sizes, values, block_m, block_n)
    rows, columns = -(-sizes.q_len // block_m), -(-sizes.kv_len // block_n)
    copies = copies_of(index_names(plan.may) | index_names(plan.must), sizes)
    for part in chunks(rows, prod(copies) * columns):
        some = {name: x[..., part, :] for name, x in facts.rows.items()}
        possible, certain = (read(e, {**env, **some, **facts.columns}) for e in (facts.may, facts.must))
        yield _classes(possible, certain, part.stop - part.start, columns)


def _classes(possible: Array, certain: Array, rows: int, columns: int) -> Array:
    classes = possible.astype(np.int8) + (possible & certain)
    shape = (1,) * (4 - classes.ndim) + classes.shape
    return np.broadcast_to(classes.reshape(shape), (*shape[:2], rows, columns))


def _looked(
    x: Reduction, sizes: Sizes, block_m: int, block_n: int, rows: dict[str, Array], columns: dict[str, Array]
) -> Expr:
    """A reduction over pairs of tiles: one pair of all blocks that they touch is looked at."""
    found = steps(x.x)
    assert found is not None
    op: BinaryOp = "or" if x.op == "any" else "and"
    pairs = product(*(
        looks(block, step, shifted(x.x, axis))
        for block, step, axis in zip((block_m, block_n), found, ("q", "kv"), strict=True)
    ))  # fmt: skip
    places = []
    for at in pairs:
        table: dict[Expr, Expr] = {}
        for axis, of_tiles, offset, block in zip(("q", "kv"), (rows, columns), at, (block_m, block_n), strict=True):
            name = f"{axis} + {offset}"
            if name not in of_tiles:
                # Positions beyond the last one are taken for it.
                length = sizes.q_len if axis == "q" else sizes.kv_len
                every = np.minimum(np.arange(0, length, block) + offset, length - 1)
                of_tiles[name] = every.reshape((1, 1, -1, 1) if axis == "q" else (1, 1, 1, -1))
            table[Index(axis, I32)] = Value(name, I32)
        places.append(substitute(x.x, table))
    return reduce(lambda a, b: binary(op, a, b), places)


def _reduced(x: Reduction, sizes: Sizes, env: Values, block: int) -> Array:
    """One reduction over all tiles of its axis: (batch or 1, head or 1, rows, 1), or (…, 1, columns) for keys."""
    assert x.axis != "both"
    length = sizes.length(x.axis)
    of_row = substitute(x.x, {Index(x.axis, I32): TILE_FIRST})
    copies = copies_of(index_names(of_row), sizes)
    if length and 0 < prod(copies) <= MOST_COPIES:
        each = [reduced(of_row, length, block, {**env, **at}, x.op) for at in each_copy(index_names(of_row), sizes)]
        known = [r for r in each if r is not None]
        if len(known) == len(each):
            return np.stack(known).reshape(*copies, *((-1, 1) if x.axis == "q" else (1, -1)))
    values = read(x.x, {**env, x.axis: np.arange(length)})
    values = np.broadcast_to(values, np.broadcast_shapes(values.shape, (1, 1, 1, length)))
    combine = {"min": np.minimum, "max": np.maximum, "any": np.logical_or, "all": np.logical_and}[x.op]
    found = combine.reduceat(values, np.arange(0, length, block), axis=-1) if length else values
    return np.swapaxes(found, -1, -2) if x.axis == "q" else found
