"""The pass ``simplify``."""

from __future__ import annotations

from dataclasses import replace

from ..interpret import evaluate
from ..nodes import COMPARISONS, FALSE, TRUE, Binary, Cast, Const, Coordinate, Expr, Select, Unary
from ..traverse import children, rewrite
from ..types import BOOL, F32, I32, I64
from ..variant import Variant
from .push_negations import negation

# Float operations that every target rounds correctly, so that folding them changes no result.
_FOLDED_FLOATS = frozenset(("add", "sub", "mul", "min", "max", "neg", "abs", "floor"))


def simplify(v: Variant) -> Variant:
    """Folds constants and applies the identities of integers and booleans.

    No float result changes: neither ``x * 0.0`` nor ``x + 0.0`` is touched (NaN, -0.0), and nothing is
    reassociated. Precondition: none.

    >>> from ..parser import parse_variant
    >>> from ..printer import print_variant
    >>> v, _ = parse_variant("attention a() { keep q + 0 >= kv * 1 and (3 < 4 or kv == 7) score s * 1.0 + 0.5 * 2.0 }")
    >>> print(print_variant(simplify(v)))
    attention a() {
      keep      q >= kv
      score     s + 1.0
      normalize softmax
    }
    """
    return replace(v, mask=simplified(v.mask), scores=tuple(simplified(e) for e in v.scores))


def simplified(e: Expr) -> Expr:
    """``e`` with the same type and value, by the rules of :func:`simplify`."""
    return rewrite(e, _rule)


def _rule(e: Expr) -> Expr:
    match e:
        case Binary() | Unary() | Cast() if all(isinstance(c, Const) for c in children(e)):
            return _folded(e)
        case Coordinate(Const()):
            return Const(evaluate(e, {}).item(), e.type, e.loc)
        case Unary("not" | "neg" as op, Unary(inner, x)) if op == inner:
            return x
        case Cast(x, type) if x.type is type:
            return x
        case Select(Const(value), a, b):
            return a if value else b
        case Select(_, a, b) if a == b:
            return a
        case Select(condition, Const(True), Const(False)) if e.type is BOOL:
            return condition
        case Select(condition, Const(False), Const(True)) if e.type is BOOL:
            return negation(condition)
        case Binary(op) if op in COMPARISONS:
            return _comparison(e)
        case Binary() if e.type is BOOL:
            return _logic(e)
        case Binary() if e.type is F32:
            return _float(e)
        case Binary():
            return _integer(e)
        case _:
            return e


def _folded(e: Binary | Unary | Cast) -> Expr:
    op = "" if isinstance(e, Cast) else e.op
    operands = children(e)
    if F32 in (e.type, *(c.type for c in operands)) and op not in _FOLDED_FLOATS | COMPARISONS:
        return e
    match operands:
        case (_, Const(value)) if (op in ("floordiv", "mod") and value == 0) or (op in ("shl", "shr") and value < 0):
            return e  # undefined: there is nothing to fold it to
    return Const(evaluate(e, {}).item(), e.type, e.loc)


def _is(e: Expr, value: bool | int | float) -> bool:
    return isinstance(e, Const) and e == Const(value, e.type)


def _comparison(e: Binary) -> Expr:
    match e.a, e.b:
        case (Cast(a), Cast(b)) if e.a.type is I64 and a.type is b.type is I32:
            return _comparison(replace(e, a=a, b=b))
    if e.a.type is not F32 and e.a == e.b:  # NaN is not equal to itself
        return TRUE if e.op in ("eq", "le", "ge") else FALSE
    if e.op in ("eq", "ne") and e.a.type is BOOL:
        for x, y in ((e.a, e.b), (e.b, e.a)):
            if isinstance(y, Const):
                return x if bool(y.value) == (e.op == "eq") else negation(x)
    return e


def _logic(e: Binary) -> Expr:
    a, b = e.a, e.b
    if a == b:
        return FALSE if e.op == "xor" else a
    for x, y in ((a, b), (b, a)):
        if isinstance(y, Const):
            match e.op:
                case "and":
                    return x if y.value else FALSE
                case "or":
                    return TRUE if y.value else x
                case _:
                    return negation(x) if y.value else x
    return e


def _integer(e: Binary) -> Expr:
    a, b = e.a, e.b
    zero = Const(0, e.type, e.loc)
    match e.op:
        case "add" | "bitor" | "bitxor" if _is(a, 0):
            return b
        case "add" | "sub" | "bitor" | "bitxor" | "shl" | "shr" if _is(b, 0):
            return a
        case "sub" | "bitxor" if a == b:
            return zero
        case "min" | "max" | "bitand" | "bitor" if a == b:
            return a
        case "mul" | "bitand" if _is(a, 0) or _is(b, 0):
            return zero
        case "mul" if _is(a, 1):
            return b
        case "mul" | "floordiv" if _is(b, 1):
            return a
        case "mod" if _is(b, 1):
            return zero
        case _:
            return e


def _float(e: Binary) -> Expr:
    match e.op:
        case "mul" if _is(e.a, 1.0):
            return e.b
        case "mul" | "div" if _is(e.b, 1.0):
            return e.a
        case "sub" if _is(e.b, 0.0):
            return e.a
        case _:
            return e
