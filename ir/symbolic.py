"""Linear forms and simplification of integer expressions: sums and products, collected.

Results are never trusted blindly: every bound derived from them is checked by the property tests of the tile analysis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from .bounds import POSITION, Range, interval
from .build import binary, cast, const, select, unary
from .linear_form import Linear, Monomial, Terms, order, to_expr
from .nodes import (
    COMPARISONS,
    FALSE,
    LOGIC,
    TRUE,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Expr,
    Index,
    Reduction,
    Select,
    Unary,
)
from .traverse import children, with_children
from .types import BOOL, F32, I32, I64

NEGATED: dict[BinaryOp, BinaryOp] = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "le": "gt", "gt": "le"}
TILE_FIRST, TILE_LAST = Index("tile_first", I32), Index("tile_last", I32)


def linear(e: Expr, expand_mod: bool = False) -> Linear:
    """``e`` (an integer) expanded and collected; with ``expand_mod``, ``x % w`` becomes ``x - w * (x // w)``.

    >>> from regard.ir.build import binary, const, index
    >>> q, kv = index("q"), index("kv")
    >>> form = linear(binary("sub", binary("mul", const(2), binary("sub", q, kv)), binary("sub", q, const(3))))
    >>> form.constant, [(monomial[0].name, coefficient) for monomial, coefficient in form.terms]
    (3, [('q', 1), ('kv', -2)])
    """
    known = None if expand_mod else _known_sum(e)
    return _linear(e, expand_mod) if known is None else known


def combined(form: Linear, x: Expr, times: int) -> Linear:
    """``form + times * x``, collected."""
    return _ordered(_sum(_collected(x, False), _terms(form), times))


def _known_sum(e: Expr) -> Linear | None:
    """What ``e`` is the normal form of, if it is known to be one."""
    return getattr(e, "known_sum", None)


def _normal(form: Linear) -> Expr:
    """The normal form of what is ``form``, a result of :func:`linear`: it is not collected again."""
    e = to_expr(form)
    object.__setattr__(e, "known_sum", form)
    return e


@lru_cache(maxsize=4096)
def _linear(e: Expr, expand_mod: bool) -> Linear:
    return _ordered(_collected(e, expand_mod))


def _ordered(terms: Terms) -> Linear:
    found = [(monomial, n) for monomial, n in terms.items() if n and monomial]
    if len(found) > 1:
        found.sort(key=lambda t: (t[1] < 0, [order(x) for x in t[0]]))
    return Linear(terms.get((), 0), tuple(found))


def _unordered(terms: Terms) -> Linear:
    return Linear(terms.get((), 0), tuple((monomial, n) for monomial, n in terms.items() if n and monomial))


def _difference(a: Expr, b: Expr) -> Terms:
    """What :func:`linear` collects of ``a - b``, which are integers."""
    return _sum(_collected(b, False), _collected(a, False), -1)


def _collected(x: Expr, expand_mod: bool) -> Terms:
    known = None if expand_mod else _known_sum(x)
    if known is not None:
        return {**dict(known.terms), (): known.constant}
    match x:
        case Const(value=value):
            return {(): int(value)}
        case Cast(x=inner) if inner.type.is_integer:
            return _collected(inner, expand_mod)
        case Unary(op="neg", x=inner):
            return _sum(_collected(inner, expand_mod), {}, -1)
        case Binary(op="add", a=a, b=b):
            return _sum(_collected(b, expand_mod), _collected(a, expand_mod), 1)
        case Binary(op="sub", a=a, b=b):
            return _sum(_collected(b, expand_mod), _collected(a, expand_mod), -1)
        case Binary(op="mul", a=a, b=b):
            return _product(_collected(a, expand_mod), _collected(b, expand_mod))
        case Binary(op="floordiv", a=a, b=Const(value=w)) if w > 0:
            return _terms(_divide(linear(a, expand_mod), int(w)))
        case Binary(op="mod", a=a, b=Const(value=w)) if w > 0:
            form = linear(a, expand_mod)
            if expand_mod:
                return _sum(_terms(_divide(form, int(w))), _terms(form), -int(w))
            return _terms(_remainder(form, int(w)))
        case Binary(op=("min" | "max") as op):
            return _terms(_extremum(op, x))
        case _:
            return {(_simplify_children(x),): 1}


def _terms(form: Linear) -> Terms:
    """``form``, in which a monomial may stand twice: ``(kv % 6) // 6`` is ``kv // 6 - kv // 6``."""
    result: Terms = {(): form.constant}
    for monomial, n in form.terms:
        result[monomial] = result.get(monomial, 0) + n
    return result


def _sum(added: Terms, to: Terms, times: int) -> Terms:
    result = dict(to)
    for monomial, n in added.items():
        result[monomial] = result.get(monomial, 0) + times * n
    return result


def _product(a: Terms, b: Terms) -> Terms:
    result: Terms = {}
    for x, n in a.items():
        for y, m in b.items():
            monomial = tuple(sorted((*x, *y), key=order)) if x and y else x or y
            result[monomial] = result.get(monomial, 0) + n * m
    return {monomial: n for monomial, n in result.items() if n}


def _divide(form: Linear, w: int) -> Linear:
    """``form // w``: multiples of ``w`` leave the division exactly."""
    outside = [(m, c // w) for m, c in form.terms if c % w == 0]
    inside = Linear(form.constant % w, tuple((m, c) for m, c in form.terms if c % w))
    if inside.terms and w > 1:
        quotient = Binary("floordiv", _as_i64(_normal(inside)), const(w), I64)
        outside.append(((quotient,), 1))
    return Linear(form.constant // w, tuple(outside))


def _remainder(form: Linear, w: int) -> Linear:
    """``form % w``: multiples of ``w`` vanish."""
    inside = Linear(form.constant % w, tuple((m, c) for m, c in form.terms if c % w))
    if not inside.terms:
        return Linear(inside.constant, ())
    return Linear(0, (((Binary("mod", _as_i64(_normal(inside)), const(w), I64),), 1),))


def _extremum(op: Literal["min", "max"], x: Binary) -> Linear:
    """``min`` or ``max``, flattened, without operands that another one dominates."""

    def flatten(y: Expr) -> Iterator[Expr]:
        form = linear(y)
        match form.terms:
            case (((Binary(op=o, a=a, b=b),), 1), *others) if o == op:  # min(a, b) + c is min(a + c, b + c)
                rest = to_expr(Linear(form.constant, tuple(others)))
                yield from flatten(Binary("add", _as_i64(a), _as_i64(rest), I64))
                yield from flatten(Binary("add", _as_i64(b), _as_i64(rest), I64))
            case _:
                yield _normal(form)

    kept: list[Expr] = []
    for y in (*flatten(x.a), *flatten(x.b)):
        if not any(_dominates(op, z, y) for z in kept):
            kept = [z for z in kept if not _dominates(op, y, z)] + [y]
    if len(kept) == 1:
        return linear(kept[0])
    first, *rest = sorted(kept, key=order)
    for y in rest:
        first = Binary(op, _as_i64(first), _as_i64(y), I64)
    return Linear(0, (((first,), 1),))


def _dominates(op: str, a: Expr, b: Expr) -> bool:
    return at_least(a, b) if op == "max" else at_least(b, a)


def _simplify_children(x: Expr) -> Expr:
    old = children(x)
    return with_children(x, tuple(_like(simplify(c), c) for c in old)) if old else x


def _like(new: Expr, old: Expr) -> Expr:
    return new if old.type is BOOL else cast(new, old.type)


def _as_i64(x: Expr) -> Expr:
    return cast(x, I64)


@lru_cache(maxsize=4096)
def simplify(e: Expr) -> Expr:
    """``e`` with integer arithmetic in normal form and decided conditions folded; i64 where it is an integer.

    >>> from regard.ir.build import binary, const, index
    >>> first = index("tile_first")
    >>> simplify(binary("max", const(0), binary("sub", binary("add", first, const(3)), const(3)))) == first
    True
    """
    if e.type.is_integer:
        match e:
            case Select(condition=c, a=a, b=b):
                c, a, b = simplify(c), simplify(a), simplify(b)
                if c == TRUE or a == b:
                    return a
                return b if c == FALSE else select(c, a, b)
            case Cast(x=inner) if inner.type is BOOL or inner.type is F32:
                return cast(simplify(inner), e.type)
            case _:
                return e if _known_sum(e) is not None else _normal(linear(e))
    if e.type is BOOL:
        match e:
            case Binary(op=op, a=a, b=b) if op in COMPARISONS and a.type.is_integer:
                return _simplify_comparison(e)
            case Binary(op=op, a=a, b=b) if op in LOGIC:
                return _simplify_logic(op, simplify(a), simplify(b))
            case Unary(op="not", x=x):
                return _negation(simplify(x))
            case _:
                return _simplify_children(e)
    return _simplify_children(e)


def _contrary(a: Expr, b: Expr) -> bool:
    """Whether two comparisons, both simplified, are each other's contrary."""
    match a:
        case Binary(op=op, a=x) if op in NEGATED and x.type.is_integer:
            return simplify(_negation(a)) == b
        case _:
            return False


def _negation(e: Expr) -> Expr:
    """``not e`` pushed to where it is shortest; comparisons of floats keep it because of NaN."""
    match e:
        case Const(value=value):
            return const(not value)
        case Unary(op="not", x=x):
            return x
        case Binary(op=("and" | "or") as op, a=a, b=b):
            return _simplify_logic("or" if op == "and" else "and", _negation(a), _negation(b))
        case Binary(op=op, a=a, b=b) if op in NEGATED and a.type.is_integer:
            return binary(NEGATED[op], a, b)
        case Reduction(op=("any" | "all") as op, x=x):
            return replace(e, op="all" if op == "any" else "any", x=_negation(x))
        case _:
            return unary("not", e)


def _simplify_comparison(e: Binary) -> Expr:
    """Decided, or with whatever is added on one side and subtracted on the other in its place."""
    a, b = simplify(e.a), simplify(e.b)
    match e.op:
        case "lt":
            return _at_most(b, a, 1)
        case "le":
            return _at_most(b, a, 0)
        case "gt":
            return _at_most(a, b, 1)
        case "ge":
            return _at_most(a, b, 0)
        case _:
            same, different = a == b, at_least(a, b, 1) or at_least(b, a, 1)
            if same or different:
                return const(same == (e.op == "eq"))
            return binary(e.op, a, b)


def _at_most(larger: Expr, smaller: Expr, margin: int) -> Expr:
    """``smaller + margin <= larger`` in normal form."""
    form = _ordered(_difference(smaller, larger))
    if _is_at_least(Linear(-form.constant, tuple((m, -c) for m, c in form.terms)), margin):
        return TRUE
    if _is_at_least(form, 1 - margin):
        return FALSE
    divisor = math.gcd(*(c for _, c in form.terms))
    room = (-form.constant - margin) // divisor
    left = Linear(0, tuple((m, c // divisor) for m, c in form.terms if c > 0))
    right = Linear(0, tuple((m, -c // divisor) for m, c in form.terms if c < 0))
    if not left.terms:
        return binary("ge", to_expr(right), const(-room))
    if room == -1 and right.terms:
        return binary("lt", to_expr(left), to_expr(right))
    return binary("le", to_expr(left), to_expr(Linear(room, right.terms)))


def _simplify_logic(op: str, a: Expr, b: Expr) -> Expr:
    match op:
        case "and":
            if a == FALSE or b == FALSE or _contrary(a, b):
                return FALSE
            return b if a in (TRUE, b) else a if b == TRUE else binary("and", a, b)
        case "or":
            if a == TRUE or b == TRUE or _contrary(a, b):
                return TRUE
            return b if a in (FALSE, b) else a if b == FALSE else binary("or", a, b)
        case _:
            return binary("xor", a, b)


@lru_cache(maxsize=8192)
def at_least(a: Expr, b: Expr, margin: int = 0) -> bool:
    """Whether ``a >= b + margin`` is proved for all positions, lengths and parameters within their limits.

    Knows that positions and lengths are not negative and that ``tile_first <= tile_last``.
    """
    return _is_at_least(_unordered(_difference(a, b)), margin)


def _is_at_least(form: Linear, margin: int) -> bool:
    divides = any(isinstance(m[0], Binary) and m[0].op == "floordiv" for m, _ in form.terms)
    return _lowest(form) >= margin or (divides and _lowest(_without_division(form)) >= margin)


def _without_division(form: Linear) -> Linear:
    """A lower bound of ``form`` in which ``w * (x // w)`` is replaced by its limits ``x - w + 1`` and ``x``."""
    result: Terms = {(): form.constant}
    for monomial, coefficient in form.terms:
        match monomial:
            case (Binary(op="floordiv", a=a, b=Const(value=w)),) if coefficient % w == 0:
                n = coefficient // int(w)
                result = _sum(_terms(linear(a)), result, n)
                result[()] += n * (1 - int(w)) if n > 0 else 0
            case _:
                result[monomial] = result.get(monomial, 0) + coefficient
    return _unordered(result)


def _lowest(form: Linear) -> float:
    """A lower bound of ``form``, minus infinity where there is none."""
    lowest: float = form.constant
    first = width = 0
    for monomial, n in form.terms:
        match monomial:
            case (Index("tile_first"),):
                first = n
            case (Index("tile_last"),):
                width = n
            case _:
                low, high = _limits(monomial)
                lowest += n * (low if n > 0 else high)
    # tile_last is tile_first plus a width >= 0; without this tile_last - tile_first would be anything.
    return lowest + POSITION[1] * (min(first + width, 0) + min(width, 0))


def _limits(monomial: Monomial) -> Range:
    low, high = interval(monomial[0], {})
    for factor in monomial[1:]:
        corners = [x * y if x and y else 0.0 for x in (low, high) for y in interval(factor, {})]  # 0 * inf is 0 here
        low, high = min(corners), max(corners)
    return low, high
