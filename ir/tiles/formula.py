"""The mask as a formula: ``all``/``any`` trees over atoms, with negations pushed into the atoms."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import assert_never

from ..build import binary, cast, const, unary
from ..nodes import Binary, BinaryOp, Cast, Const, Expr, Select, Unary
from ..symbolic import NEGATED
from ..traverse import children, walk
from ..types import BOOL


@dataclass(frozen=True, slots=True)
class Atom:
    """A boolean expression that is not taken apart: an integer comparison, a load, a float comparison …"""

    condition: Expr


@dataclass(frozen=True, slots=True)
class All:
    """True where every part is; true where there are none."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """True where some part is; false where there are none."""

    parts: tuple[Formula, ...]


# Expanding nested ``xor`` doubles the formula at each level: beyond this many leaves it stays one atom.
LARGEST = 64

Formula = Atom | All | Any


def to_formula(e: Expr, negate: bool = False) -> Formula:
    """``e`` (or its negation) as a formula: De Morgan, and ``xor``, ``==`` and selects of booleans expanded.

    The negation of a comparison of floats is kept as it is, because ``not (a < b)`` also holds for NaN.
    """
    match e:
        case Const(value=value):
            return All(()) if bool(value) != negate else Any(())
        case Unary(op="not", x=x):
            return to_formula(x, not negate)
        case Binary(op=("and" | "or") as op, a=a, b=b):
            parts = (to_formula(a, negate), to_formula(b, negate))
            return conjoin(parts) if (op == "and") != negate else disjoin(parts)
        case Binary(op=("xor" | "ne" | "eq") as op, a=a, b=b) if a.type is BOOL and expands(e):
            # a xor b: one holds and the other does not. Equality is its negation.
            differ = (op != "eq") != negate
            return disjoin(
                (
                    conjoin((to_formula(a), to_formula(b, differ))),
                    conjoin((to_formula(a, True), to_formula(b, not differ))),
                )
            )
        case Select(condition=c, a=a, b=b) if expands(e):
            return disjoin(
                (
                    conjoin((to_formula(c), to_formula(a, negate))),
                    conjoin((to_formula(c, True), to_formula(b, negate))),
                )
            )
        case Cast(x=x) if x.type.is_integer:
            return to_formula(binary("ne", x, cast(const(0), x.type), e.loc), negate)
        case Binary(op=op, a=a, b=b) if negate and op in NEGATED and a.type.is_integer:
            return Atom(Binary(NEGATED[op], a, b, BOOL, e.loc))
        case _:
            return Atom(unary("not", e, e.loc) if negate else e)


def expands(e: Expr) -> bool:
    """Whether ``e``, with ``xor``, equality and selects of booleans written out, has at most ``LARGEST`` leaves."""
    sizes: dict[int, int] = {}
    for x in walk(e):
        of = [sizes[id(c)] for c in children(x)]
        match x:
            case Binary(op=("xor" | "eq" | "ne"), a=a) if a.type is BOOL:
                sizes[id(x)] = 2 * sum(of)
            case Select(type=type) if type is BOOL:
                sizes[id(x)] = of[0] + sum(of)
            case _ if x.type is BOOL and all(c.type is BOOL for c in children(x)):
                sizes[id(x)] = max(sum(of), 1)
            case _:
                sizes[id(x)] = 1
    return sizes[id(e)] <= LARGEST


def conjoin(parts: tuple[Formula, ...]) -> Formula:
    """All of ``parts``, flattened."""
    flat = tuple(q for p in parts for q in (p.parts if isinstance(p, All) else (p,)))
    return Any(()) if Any(()) in flat else flat[0] if len(flat) == 1 else All(flat)


def disjoin(parts: tuple[Formula, ...]) -> Formula:
    """Any of ``parts``, flattened."""
    flat = tuple(q for p in parts for q in (p.parts if isinstance(p, Any) else (p,)))
    return All(()) if All(()) in flat else flat[0] if len(flat) == 1 else Any(flat)


def negated(f: Formula) -> Formula:
    """The opposite of ``f``."""
    match f:
        case Atom():
            return to_formula(f.condition, True)
        case All():
            return disjoin(tuple(negated(p) for p in f.parts))
        case Any():
            return conjoin(tuple(negated(p) for p in f.parts))
        case _:
            assert_never(f)


def to_condition(f: Formula) -> Expr:
    """``f`` as a boolean expression."""
    match f:
        case Atom():
            return f.condition
        case All() | Any():
            op: BinaryOp = "and" if isinstance(f, All) else "or"
            conditions = [to_condition(p) for p in f.parts]
            return functools.reduce(lambda a, b: binary(op, a, b), conditions) if conditions else const(op == "and")
        case _:
            assert_never(f)


def atoms(f: Formula) -> tuple[Expr, ...]:
    """The distinct atoms of ``f``, in order."""
    match f:
        case Atom():
            return (f.condition,)
        case All() | Any():
            return tuple(dict.fromkeys(a for p in f.parts for a in atoms(p)))
        case _:
            assert_never(f)
