"""Which kernels walk boxes of a token space (``TilePlan.boxes``) instead of runs of positions."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np

from ..ir.build import binary, const
from ..ir.interpret import evaluate
from ..ir.nodes import TILE_NAMES, ZERO, Binary, Const, Expr, Index, Select
from ..ir.symbolic import simplify
from ..ir.tiles.box_count import box_counter
from ..ir.tiles.box_walk import Tiles, names_in, products, walk_boxes
from ..ir.tiles.count import tile_counts
from ..ir.tiles.numeric import Sizes, Values, leaves, runs
from ..ir.tiles.plan import BoxTerm, TilePlan
from ..ir.traverse import loads, parameter_names, walk
from ..ir.types import F32, I32
from .box_groups import Group, Letter, groups_of
from .box_sides import box_shapes
from .schedule import Target

# Queries and keys of a tile, and by how much kernels are faster on these than on boxes whose axes depend on each other:
# windows that narrow with the distance of frames took 1.2 times as long forward, and 1.75 times as long backward.
_TILE, _FASTER = (128, 64), 1.2
# Of grids whose outermost axis is as long as a call says; how many tokens of a grid are looked at; what parameters are
# taken to be, unless they bound positions.
_ROWS, _LONG, _VALUE = 16, 16384, 16
# Products of the kernels for gradients, and by how many times more boxes of keys visit where they are seen as too long.
_OWNERS: tuple[Letter, Letter] = ("k", "q")
_KEY_PRODUCTS, _QUERY_PRODUCTS, _AMISS = 4, 3, 2


def walks_boxes(plan: TilePlan, target: Target) -> bool:
    """Whether tiles are boxes: where these decide more than runs of positions, and kernels can walk them."""
    return plan.boxes_decide_more and why_not_boxes(plan, target) is None


def why_not_boxes(plan: TilePlan, target: Target) -> str | None:
    """Why kernels for ``target`` cannot walk the boxes of a plan that has some; None where they can."""
    if target.backend == "cpu":
        return None
    origins = [origin for term in plan.boxes for origin in (term.query_origin, term.key_origin)]
    if any(isinstance(x, Select) or not _is_sum(x) for e in origins for x in walk(e)):
        return "a grid of theirs begins at a position that is more than a sum of lengths and parameters"
    if (target.backend, target.arch) == ("cuda", 90) and _is_nested(plan) and _are_hardly_fewer(plan):
        return "they hold hardly fewer pairs than tiles from a table, and kernels were measured faster on these"
    return None


def gradients_walk_boxes(plan: TilePlan, target: Target) -> bool:
    """The same for the backward pass."""
    return walks_boxes(plan, target) and why_not_boxes_of_gradients(plan, target) is None


def why_not_boxes_of_gradients(plan: TilePlan, target: Target) -> str | None:
    """Why gradients do not walk boxes that the forward pass can; None where they do."""
    if target.backend == "cpu" or not _gradients_visit_more(plan):
        return None
    return "boxes of keys, seen as the runs of positions that they lie in, would visit hardly fewer pairs than tiles do"


def _is_nested(plan: TilePlan) -> bool:
    return len(plan.boxes) == 1 and plan.boxes[0].is_nested and plan.method == "classified"


@lru_cache(maxsize=64)
def _are_hardly_fewer(plan: TilePlan) -> bool:
    """Whether boxes of one term whose axes depend on each other hold nearly as many pairs as tiles do.

    Counted where the mask reads no parameters and rows are no shorter than a tile, of as many as such grids may have.
    """
    (term,) = plan.boxes
    sides = term.axes[0].query, term.axes[0].key
    if parameter_names(plan.variant.mask) or (term.query_origin, term.key_origin) != (ZERO, ZERO):
        return False
    if min(s.stride for s in sides) < max(_TILE):
        return False
    sizes, few = _few_rows(term, _ROWS)
    shapes = box_shapes(term.axes, "q", *_TILE)
    count = box_counter(few, sizes, {})
    pairs = min(count(s.queries, s.keys)[0] * prod((*s.queries, *s.keys)) for s in shapes)
    return tile_counts(plan, sizes, {}, *_TILE).tile_pairs <= _FASTER * pairs


def _few_rows(term: BoxTerm, usual: int = _LONG) -> tuple[Sizes, BoxTerm]:
    """One head with whole rows of the outermost axis, not too many, and ``term`` on these.

    ``usual``: how many rows there are if only a call says so.
    """
    axis, lengths = term.axes[0], []
    sides = []
    for side in (axis.query, axis.key):
        most = max(_LONG // side.stride, 1)
        rows = min(int(side.size.value), most) if isinstance(side.size, Const) else min(usual, most)
        sides.append(replace(side, size=const(rows)) if isinstance(side.size, Const) else side)
        lengths.append(rows * side.stride)
    axis = replace(axis, query=sides[0], key=sides[1])
    return Sizes(1, 1, 1, *lengths), replace(term, axes=(axis, *term.axes[1:]))


@lru_cache(maxsize=64)
def _gradients_visit_more(plan: TilePlan) -> bool:
    """Whether boxes of keys visit far more than boxes of queries do, so that gradients take hardly less than by tiles.

    Where terms over positions share programs with those of a grid, a box counts as the run of positions that it lies
    in; one that spans several rows of the grid may so visit what nearly none of its tokens is seen by.
    """
    groups = groups_of(plan.boxes, "k").groups
    lines = [w.term.axes[0].queries for g in groups for w in g.walks if w.on_line]
    if not names_in(lines) & set(TILE_NAMES) or loads(plan.variant.mask):
        return False
    (grid,) = (g.walks[0].term for g in groups if any(w.on_line for w in g.walks))
    if any(a.has_classes for a in grid.axes) or any(p.type == F32 for p in plan.variant.scalars):
        return False
    of_lines = {name for r in lines for i in r.may for e in (i.start, i.stop) for name in parameter_names(e)}
    row = max(s.stride for s in (grid.axes[0].query, grid.axes[0].key))
    sizes, few = _few_rows(grid)
    terms = [few if term is grid else term for term in plan.boxes]
    values = {p.name: row if p.name in of_lines else _VALUE for p in plan.variant.scalars}
    by_keys, by_queries = (
        sum(_pairs_of_boxes(g, own, sizes, values) for g in groups_of(terms, own).groups) for own in _OWNERS
    )
    if by_keys < _AMISS * by_queries:
        return False
    pairs = (_KEY_PRODUCTS * by_keys + _QUERY_PRODUCTS * by_queries) / (_KEY_PRODUCTS + _QUERY_PRODUCTS)
    return tile_counts(plan, sizes, values, *_TILE).tile_pairs <= _FASTER * pairs


def _pairs_of_boxes(group: Group, own: Letter, sizes: Sizes, values: Values) -> int:
    """Pairs in the boxes that all boxes of ``own`` visit; there are no classes."""
    grid, env = group.walks[0].term, leaves(sizes, values)
    shape = box_shapes(grid.axes, own, *(_TILE if own == "q" else _TILE[::-1]))[0]
    sides, others = (shape.queries, shape.keys) if own == "q" else (shape.keys, shape.queries)
    owned = [a.query if own == "q" else a.key for a in grid.axes]
    other_sizes = [int(evaluate((a.key if own == "q" else a.query).size, env)) for a in grid.axes]
    along = [_tiles(int(evaluate(s.size, env)), n, end) for s, n, end in zip(owned, sides, other_sizes, strict=True)]
    origin = int(evaluate(grid.query_origin if own == "q" else grid.key_origin, env))
    length, other_length = (sizes.q_len, sizes.kv_len) if own == "q" else (sizes.kv_len, sizes.q_len)
    count = 0
    for boxes in products(along):
        ends = ([getattr(t, end) for t in boxes] for end in ("first", "last"))
        first, last = (origin + sum(s.stride * x for s, x in zip(owned, end, strict=True)) for end in ends)
        for visit in group.walks:
            axes = visit.term.axes
            ranges = [(a.keys_within or a.keys) if own == "q" else (a.queries_within or a.queries) for a in axes]
            if visit.on_line:
                found = runs(ranges[0].may, np.maximum(first, 0), np.minimum(last, length - 1), other_length, env)
                count += int((-(-(found.stops - found.starts) // prod(others))).sum())
            else:
                repeated = [np.full(len(first), n) for n in others]
                count += int(walk_boxes(ranges, boxes, repeated, env, "q" if own == "q" else "kv").visited.sum())
    return count * prod((*sides, *others))


def _tiles(size: int, side: int, other: int) -> Tiles:
    """Runs of ``side`` coordinates along an axis without classes, which visit one of ``other`` coordinates."""
    first = np.arange(0, size, side)
    zero, one = np.zeros_like(first), np.ones_like(first)
    return Tiles(zero, zero, first, np.minimum(first + side, size) - 1, zero, other * one, one)


def _is_sum(x: Expr) -> bool:
    match x:
        case Binary("mod", a, Const()):  # keys before the first query, of a call that has no fewer keys than queries
            return a == simplify(binary("sub", Index("kv_len", I32), Index("q_len", I32)))
        case Binary(op):
            return op in ("add", "sub", "mul", "min", "max")
        case _:
            return True
