"""The pass ``push_negations``."""

from __future__ import annotations

from dataclasses import replace

from ..nodes import FALSE, TRUE, Binary, BinaryOp, Const, Expr, Select, Unary
from ..traverse import rewrite
from ..types import BOOL, F32
from ..variant import Variant

_OPPOSITE: dict[BinaryOp, BinaryOp] = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "le": "gt", "gt": "le"}


def push_negations(v: Variant) -> Variant:
    """Brings masks and conditions into negation normal form: ``not`` stands only before atoms.

    An order comparison of floats is such an atom: its opposite differs for NaN. Precondition: none.

    >>> from ..parser import parse_variant
    >>> from ..printer import print_variant
    >>> v, _ = parse_variant("attention a() { keep not (q < kv or q == 5 and not kv == 2) }")
    >>> print(print_variant(push_negations(v)))
    attention a() {
      keep      q >= kv and (q != 5 or kv == 2)
      normalize softmax
    }
    """

    def push(x: Expr) -> Expr:
        return negation(x.x) if isinstance(x, Unary) and x.op == "not" else x

    return replace(v, mask=rewrite(v.mask, push), scores=tuple(rewrite(e, push) for e in v.scores))


def negation(e: Expr) -> Expr:
    """The opposite of ``e``, a boolean expression in negation normal form, in that form."""
    match e:
        case Const(value):
            return FALSE if value else TRUE
        case Unary("not", x):
            return x
        case Binary("and" | "or" as op, a, b):
            return replace(e, op="or" if op == "and" else "and", a=negation(a), b=negation(b))
        case Binary("xor", a, b):
            return replace(e, op="eq")
        case Binary("eq", a, b) if a.type is BOOL:
            return replace(e, op="xor")
        case Binary("ne", a, b) if a.type is BOOL:
            return replace(e, op="eq")
        case Binary(op, a) if op in ("eq", "ne") or (op in _OPPOSITE and a.type is not F32):
            return replace(e, op=_OPPOSITE[op])
        case Select(_, a, b):
            return replace(e, a=negation(a), b=negation(b))
        case _:
            return Unary("not", e, BOOL, e.loc)
