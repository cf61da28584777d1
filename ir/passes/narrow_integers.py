"""The pass ``narrow_integers``."""

from __future__ import annotations

from dataclasses import replace

from ..bounds import Range, intervals
from ..nodes import Binary, Cast, Const, Coordinate, Expr, Reduction, Select, Unary
from ..traverse import children, walk, with_children
from ..types import F32, I32, I64
from ..variant import Variant

_LEAST, _MOST = -(2**31), 2**31 - 1


def narrow_integers(v: Variant) -> Variant:
    """Computes integers in i32 wherever intervals prove that nothing is lost.

    Precondition: the last pass, because afterwards arithmetic of two i32 may be i32. What positions, lengths
    and parameters are assumed to lie in is in :mod:`regard.ir.bounds`, and checked at the call.

    >>> from ..parser import parse_variant
    >>> from ..lowered import lower
    >>> from ..printer import print_lowered
    >>> v, _ = parse_variant("attention a(window: int) { keep q - kv < window * window }")
    >>> print(print_lowered(lower({"mask": narrow_integers(v).mask})))
    lowered(window: i32) {
      t0: i64 = i64(window)
      t1: i64 = t0 * t0
      t2: bool = i64(q - kv) < t1
      yield mask: bool = t2
    }
    """
    return replace(v, mask=narrow(v.mask), scores=tuple(narrow(e) for e in v.scores))


def narrow(e: Expr) -> Expr:
    """``e`` with the same value, in i32 where that is proved to suffice; the result's type may narrow too."""
    ranges = intervals(e, {})
    done: dict[int, Expr] = {}
    for x in walk(e):
        operands = children(x)
        fits = _fits(x, ranges[id(x)], [ranges[id(c)] for c in operands])
        done[id(x)] = _narrowed(x, tuple(done[id(c)] for c in operands), fits)
    return done[id(e)]


def _fits(e: Expr, exact: Range, operands: list[Range]) -> bool:
    """Whether ``e`` is right in i32 if its operands are i32; ``exact`` is its value's interval."""
    match e:
        case Binary("floordiv" | "mod"):
            # No quotient or remainder is larger than an operand, except -2**31 // -1.
            return operands[0][0] > _LEAST
        case Binary("shl" | "shr") if operands[1][1] > 31:
            return False
        case _:
            return exact[0] >= _LEAST and exact[1] <= _MOST


def _narrowed(e: Expr, operands: tuple[Expr, ...], fits: bool) -> Expr:
    match e:
        case Const() if e.type is I64 and fits:
            return replace(e, type=I32)
        case Cast(x, type) if type is I64 and x.type is not F32:
            return operands[0] if operands[0].type.is_integer else replace(e, type=I32)
        case Unary() | Binary() if e.type.is_integer:
            common = _common(operands, fits)
            return replace(with_children(e, common), type=common[0].type)
        case Binary(_, a) if a.type.is_integer:  # a comparison
            return with_children(e, _common(operands))
        case Select() if e.type.is_integer:
            a, b = _common(operands[1:])
            return replace(e, condition=operands[0], a=a, b=b, type=a.type)
        case Coordinate() | Reduction():
            return replace(e, x=operands[0], type=operands[0].type)
        case _:
            return with_children(e, operands)


def _common(operands: tuple[Expr, ...], fits: bool = True) -> tuple[Expr, ...]:
    """The operands in i32 if all are and the result is, else in i64."""
    if fits and all(x.type is I32 for x in operands):
        return operands
    return tuple(_wide(x) for x in operands)


def _wide(e: Expr) -> Expr:
    if e.type is I64:
        return e
    return replace(e, type=I64) if isinstance(e, Const) else Cast(e, I64, e.loc)
