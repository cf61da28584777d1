"""Sharper limits where a residue is fixed: ``(q - kv) % 4 == 0 and q - kv < 16`` means ``q - kv <= 12``."""

from __future__ import annotations

from ..build import binary, const, unary
from ..linear_form import Linear, to_expr
from ..nodes import Binary, Const, Expr
from ..symbolic import linear
from .classify import positions
from .formula import All, Any, Atom, Formula
from .overflow import is_exact

Residue = tuple[Expr, int, int]


def tighten(f: Formula) -> Formula:
    """``f`` with order comparisons rounded to the residues that hold beside them; equal to ``f`` pair by pair."""
    match f:
        case All():
            residues = [r for p in f.parts if isinstance(p, Atom) for r in _residue(p.condition)]
            return All(tuple(_rounded(p, residues) if isinstance(p, Atom) else tighten(p) for p in f.parts))
        case Any():
            return Any(tuple(tighten(p) for p in f.parts))
        case Atom():
            return f


def _residue(condition: Expr) -> list[Residue]:
    """``x, d, r`` for ``x % d == r`` with constant ``d`` and ``0 <= r < d``."""
    match condition:
        case Binary(op="eq", a=Binary(op="mod", a=x, b=Const(value=d)), b=Const(value=r)) if 0 <= r < d:
            return [(x, int(d), int(r))] if is_exact(condition) else []
        case _:
            return []


def _rounded(atom: Atom, residues: list[Residue]) -> Atom:
    """A comparison of ``x`` with something free of both positions, rounded inward to ``x % d == r``."""
    match atom.condition:
        case Binary(op=("lt" | "le" | "gt" | "ge") as op, a=a, b=b) if a.type.is_integer and is_exact(atom.condition):
            strict = const(1 if op in ("lt", "gt") else 0)
            low, high = (a, b) if op in ("lt", "le") else (b, a)
        case _:
            return atom
    difference = linear(binary("add", binary("sub", low, high), strict))  # difference <= 0
    for x, d, r in residues:
        for sign in (1, -1):
            rest = linear(binary("sub", to_expr(difference), x if sign > 0 else unary("neg", x)))
            if not any(positions(factor) != "none" for monomial, _ in rest.terms for factor in monomial):
                return Atom(_round(x, d, r, sign, rest))
    return atom


def _round(x: Expr, d: int, r: int, sign: int, rest: Linear) -> Expr:
    """``sign * x + rest <= 0`` for an ``x`` that is ``r`` modulo ``d``."""
    divisor, remainder = const(d), const(r)
    # x <= -rest, or -x <= -rest; the largest x (or -x) of its residue below that.
    limit = unary("neg", to_expr(rest))
    shift = remainder if sign > 0 else unary("neg", remainder)
    steps = binary("floordiv", binary("sub", limit, shift), divisor)
    largest = binary("add", binary("mul", divisor, steps), shift)
    return binary("le", x if sign > 0 else unary("neg", x), largest)
