"""The pass ``expand_coordinates``."""

from __future__ import annotations

from dataclasses import replace

from ..nodes import Binary, Const, Coordinate, Expr
from ..traverse import rewrite
from ..variant import Variant


def expand_coordinates(v: Variant) -> Variant:
    """Writes the coordinates of grids as divisions and remainders, which every target computes.

    Not in ``PIPELINE``: the tile analysis reads coordinates, and applies this pass for the code generators.
    Precondition: none; after ``narrow_integers`` too nothing is built but what has the type of the position.

    >>> from ..parser import parse_variant
    >>> from ..printer import print_variant
    >>> v, _ = parse_variant("attention rows() { keep coordinate(q, 1, 4, 16, 32) == coordinate(kv, 1, 4, 16, 32) }")
    >>> print(print_variant(expand_coordinates(v)))
    attention rows() {
      keep      q // 32 % 16 == kv // 32 % 16
      normalize softmax
    }
    """
    return replace(v, mask=expanded(v.mask), scores=tuple(expanded(e) for e in v.scores))


def expanded(e: Expr) -> Expr:
    """``e`` without coordinates, of the same type and value."""
    return rewrite(e, _expand)


def _expand(e: Expr) -> Expr:
    if not isinstance(e, Coordinate):
        return e
    result = e.x
    for op, n in e.steps:
        if op == "mod" or n != 1:
            result = Binary(op, result, Const(n, e.type, e.loc), e.type, e.loc)
    return result
