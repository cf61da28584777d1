"""Solving one atom of the mask for a position: ``kv <= bound`` or ``kv >= bound``, exactly, pair by pair.

The question is asked with two names: ``other`` is the position solved for, ``tile`` the position whose
tile is given. Bounds may depend on ``tile`` but never on ``other``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt
from typing import Literal

from ..build import binary, const, unary
from ..linear_form import Linear, Monomial, mentions, to_expr
from ..nodes import Binary, Cast, Const, Expr, Index, Select, Unary
from ..symbolic import linear
from .formula import All, Any, Atom, Formula, to_formula
from .overflow import is_exact

Axis = Literal["q", "kv"]
Direction = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Limit:
    """``other <= bound`` ("at most") or ``other >= bound`` ("at least").

    It does not matter where some ``difference <= 0`` among ``unless``, conditions on ``tile`` alone: the clamped
    ``min(q - 2, 5) <= kv`` is ``q <= kv + 2`` unless ``5 - kv <= 0``.
    """

    direction: Direction
    bound: Expr
    unless: tuple[Expr, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """``difference <= 0``, a condition on ``tile`` alone."""

    difference: Expr


@dataclass(frozen=True, slots=True)
class Free:
    """A condition on neither position: it holds for a whole tile or not at all."""

    condition: Expr


@dataclass(frozen=True, slots=True)
class Unsolved:
    """A condition with no closed form for ``other``."""

    condition: Expr


@dataclass(frozen=True, slots=True)
class Both:
    """All of ``parts``."""

    parts: tuple[Solution, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Some of ``parts``."""

    parts: tuple[Solution, ...]


Solution = Limit | Side | Free | Unsolved | Both | Either


def solve(f: Formula, tile: Axis, other: Axis) -> Solution:
    """``f`` with every atom solved for ``other``, as far as possible."""
    match f:
        case All():
            return Both(tuple(solve(p, tile, other) for p in f.parts))
        case Any():
            return Either(tuple(solve(p, tile, other) for p in f.parts))
        case Atom(condition=condition):
            return _atom(condition, tile, other) or Unsolved(condition)


@lru_cache(maxsize=4096)
def _atom(condition: Expr, tile: Axis, other: Axis) -> Solution | None:
    if not is_exact(condition):
        return None
    if not mentions(condition, tile) and not mentions(condition, other):
        return Free(condition)
    if not isinstance(condition, Binary) or not condition.a.type.is_integer:
        return None
    difference = binary("sub", condition.a, condition.b)
    opposite = unary("neg", difference)
    one = const(1)
    match condition.op:
        case "le":
            return _at_most_zero(difference, tile, other)
        case "lt":
            return _at_most_zero(binary("add", difference, one), tile, other)
        case "ge":
            return _at_most_zero(opposite, tile, other)
        case "gt":
            return _at_most_zero(binary("add", opposite, one), tile, other)
        case "eq":
            below, above = _at_most_zero(difference, tile, other), _at_most_zero(opposite, tile, other)
            return Both((below, above)) if below and above else None
        case "ne":
            below = _at_most_zero(binary("add", difference, one), tile, other)
            above = _at_most_zero(binary("add", opposite, one), tile, other)
            return Either((below, above)) if below and above else None
        case _:
            return None


@lru_cache(maxsize=4096)
def _at_most_zero(e: Expr, tile: Axis, other: Axis) -> Solution | None:
    """``e <= 0`` solved for ``other``; None where it has no closed form."""
    # kv - kv % w is linear in kv // w, while q % w alone is better left as it is: try both.
    plain, expanded = linear(e), linear(e, True)
    found = _collected(plain, tile, other)
    return _collected(expanded, tile, other) if found is None and expanded != plain else found


def _collected(form: Linear, tile: Axis, other: Axis) -> Solution | None:
    unknown = [t for t in form.terms if any(mentions(x, other) for x in t[0])]
    if not unknown:
        if form.depends_on(tile):
            return Side(to_expr(form))
        return Free(binary("le", to_expr(form), const(0)))
    chosen = unknown[0] if len(unknown) == 1 else next((t for t in unknown if _is_wrapped(t)), None)
    if chosen is None:
        return None
    if len(chosen[0]) > 1:
        return _square(chosen, form, tile, other)
    (term,), coefficient = chosen
    rest = Linear(form.constant, tuple(t for t in form.terms if t is not chosen))
    size = const(abs(coefficient))
    if coefficient > 0:  # term <= -rest / size, rounded down
        bound = binary("floordiv", unary("neg", to_expr(rest)), size)
        return _term(term, "at most", bound, tile, other)
    bound = binary("floordiv", binary("add", to_expr(rest), const(-coefficient - 1)), size)  # rounded up
    return _term(term, "at least", bound, tile, other)


def _square(chosen: tuple[Monomial, int], form: Linear, tile: Axis, other: Axis) -> Solution | None:
    """``form <= 0`` with one square of a distance, bounded by a constant or by another square of what is fixed."""
    rest = [t for t in form.terms if t is not chosen]
    match chosen, rest:
        case ((Unary(op="abs") as x, y), 1), [] if x == y:
            most: Expr = const(isqrt(-form.constant) if form.constant <= 0 else -1)
        case ((Unary(op="abs") as x, y), 1), [((r, s), -1)] if x == y and r == s and form.constant in (0, 1):
            # x * x <= r * r - 1 is x <= abs(r) - 1, also for r == 0: then there is none.
            most = binary("sub", unary("abs", r), const(form.constant))
            if mentions(r, tile) or mentions(r, other):
                return None
        case _:
            return None
    return _at_most_zero(binary("sub", x, most), tile, other)


def _is_wrapped(t: tuple[Monomial, int]) -> bool:
    """Whether the term can be peeled with ``other`` on both sides: ``abs(q - kv) + kv <= q``."""
    match t:
        case ((Unary(op="abs") | Binary(op=("min" | "max" | "floordiv")) | Select(),), (1 | -1)):
            return True
        case _:
            return False


def _or_sides(s: Solution, sides: tuple[Side, ...]) -> Solution | None:
    """``s``, or some of ``sides``, without a disjunction of limits."""
    match s:
        case Limit(unless=unless):
            return replace(s, unless=(*unless, *(x.difference for x in sides)))
        case Side() | Either() if all(isinstance(x, Side) for x in (s.parts if isinstance(s, Either) else (s,))):
            return Either((*(s.parts if isinstance(s, Either) else (s,)), *sides))
        case Both(parts=parts):
            found = tuple(_or_sides(p, sides) for p in parts)
            known = tuple(p for p in found if p is not None)
            return Both(known) if len(known) == len(found) else None
        case _:
            return None


def _term(term: Expr, direction: Direction, bound: Expr, tile: Axis, other: Axis) -> Solution | None:
    """``term`` bounded by ``bound``, peeled down to ``other`` itself."""

    def again(x: Expr, direction: Direction, bound: Expr) -> Solution | None:
        low, high = (x, bound) if direction == "at most" else (bound, x)
        return _at_most_zero(binary("sub", low, high), tile, other)

    def join(kind: type[Both] | type[Either], first: Expr, second: Expr) -> Solution | None:
        a = again(first, direction, bound)
        b = None if a is None else again(second, direction, bound)
        if a is None or b is None:
            return None
        sides = tuple(p for p in (a, b) if isinstance(p, Side))
        if kind is Either and len(sides) == 1:
            return _or_sides(a if isinstance(b, Side) else b, sides) or Either((a, b))
        return kind((a, b))

    at_most = direction == "at most"
    match term:
        case Index(name=name) if name == other:
            return Limit(direction, bound) if is_exact(bound) else None
        case Cast(x=x) if x.type.is_integer:
            return again(x, direction, bound)
        case Binary(op="floordiv", a=a, b=Const(value=w)) if w > 0:
            # a // w <= bound exactly where a <= w * bound + w - 1; a // w >= bound where a >= w * bound.
            product = binary("mul", const(int(w)), bound)
            return again(a, direction, binary("add", product, const(int(w) - 1)) if at_most else product)
        case Unary(op="abs", x=x):
            return join(Both if at_most else Either, x, unary("neg", x))
        case Binary(op=("min" | "max") as op, a=a, b=b):
            every = (op == "max") == at_most
            return join(Both if every else Either, a, b)
        case Select(condition=c, a=a, b=b):
            first = again(a, direction, bound)
            second = None if first is None else again(b, direction, bound)
            if first is None or second is None:
                return None
            yes, no = (solve(to_formula(c, negate), tile, other) for negate in (False, True))
            return Either((Both((yes, first)), Both((no, second))))
        case _:
            return None
