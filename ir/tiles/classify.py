"""Interval arithmetic for pairs of tiles: the mask over minima and maxima of what depends on one position.

Every maximal sub-expression of ``q`` alone, or of ``kv`` alone, becomes a :class:`Reduction` over its tile.
Only ``must`` has rules, each a proof that a condition holds for all pairs; ``may`` is "not must not". So a
case without a rule, and every comparison with NaN, errs on the safe side. Float reductions must propagate
NaN, as those of torch and numpy do.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Literal

from .. import bounds
from ..build import binary, cast, const, unary
from ..linear_form import Linear, mentions, to_expr
from ..nodes import FALSE, TRUE, Binary, BinaryOp, Cast, Expr, Load, Reduction, ReductionOp, Select, Unary
from ..symbolic import NEGATED, linear, simplify
from ..types import BOOL, F32
from .arithmetic import Extremes, chosen, interval
from .formula import expands
from .overflow import is_exact
from .plan import Classification
from .solve import Axis
from .steps import steps

_LARGEST = float(2**128 - 2**104)  # of float32


def classify(mask: Expr) -> Classification:
    """The two conditions that decide a pair of tiles: not ``may`` is empty, ``must`` is full."""
    return Classification(simplify(unary("not", _must(mask, True))), simplify(_must(mask, False)))


def decides(atom: Expr) -> bool:
    """Whether intervals can ever prove ``atom``, or its negation, for a pair of tiles."""
    return classify(atom) != Classification(TRUE, FALSE)


def positions(e: Expr) -> Literal["none", "q", "kv", "both"]:
    """Which positions ``e`` depends on."""
    q, kv = mentions(e, "q"), mentions(e, "kv")
    return "both" if q and kv else "q" if q else "kv" if kv else "none"


def _must(e: Expr, negate: bool) -> Expr:
    """Proves that ``e`` (its negation with ``negate``) holds for all pairs of two tiles."""
    axis = positions(e)
    if axis != "both":
        condition = unary("not", e) if negate else e
        if not is_exact(e, compared=True):
            return FALSE
        return condition if axis == "none" else _reduction("all", condition, axis)
    match e:
        case Unary(op="not", x=x):
            return _must(x, not negate)
        case Binary(op=("and" | "or") as op, a=a, b=b):
            every = (op == "and") != negate
            return binary("and" if every else "or", _must(a, negate), _must(b, negate))
        case Binary(op=("xor" | "ne" | "eq") as op, a=a, b=b) if a.type is BOOL and expands(e):
            differ = (op != "eq") != negate
            return binary(
                "or",
                binary("and", _must(a, False), _must(b, differ)),
                binary("and", _must(a, True), _must(b, not differ)),
            )
        case Select(condition=c, a=a, b=b) if expands(e):
            first, second = _must(a, negate), _must(b, negate)
            return binary(
                "or",
                binary("and", binary("or", _must(c, False), second), first),
                binary("and", _must(c, True), second),
            )
        case Cast(x=x) if x.type.is_integer:
            return _must(binary("ne", x, cast(const(0), x.type)), negate)
        case Load() | Binary() if is_exact(e, compared=True) and steps(e):
            return Reduction("all", simplify(unary("not", e) if negate else e), "both", BOOL)
        case Binary(op=op, a=a, b=b) if op in NEGATED and is_exact(e, compared=True):
            finite: list[Expr] = []
            proof = _comparison(NEGATED[op] if negate else op, *_sides(a, b, finite))
            return reduce(partial(binary, "and"), finite, proof)
        case _:
            return FALSE


def _sides(a: Expr, b: Expr, finite: list[Expr]) -> tuple[Extremes | None, Extremes | None]:
    """Bounds of both sides; positions are first moved apart, ``q`` left and ``kv`` right, where sums allow.

    What must hold besides for bounds of floats goes to ``finite``.
    """
    if not a.type.is_integer:
        return _float_bounds(a, finite), _float_bounds(b, finite)
    form = linear(binary("sub", a, b))
    kinds = [positions(_product(monomial)) for monomial, _ in form.terms]
    if "both" in kinds:
        return interval(to_expr(Linear(0, form.terms)), _leaf), (const(-form.constant),) * 2
    left = tuple(t for t, kind in zip(form.terms, kinds, strict=True) if kind == "q")
    free = tuple(t for t, kind in zip(form.terms, kinds, strict=True) if kind == "none")
    right = tuple((m, -c) for (m, c), kind in zip(form.terms, kinds, strict=True) if kind == "kv")
    rest = to_expr(Linear(form.constant, free))
    low, high = _reductions(to_expr(Linear(0, left)), "q")
    return (binary("add", low, rest), binary("add", high, rest)), _reductions(to_expr(Linear(0, right)), "kv")


def _float_bounds(e: Expr, finite: list[Expr]) -> Extremes | None:
    """Bounds of a float of both positions, for operations that are exact or rounded once, and so monotone.

    Products and quotients are none of them: a kernel may round a product and a sum together. Two infinities may give
    NaN inside of a tile whose ends do not show it: then a sum is infinite at one end, which ``finite`` excludes.
    """
    known = _leaf(e)
    if known is not None:
        return known
    match e:
        case Cast(x=x) if x.type.is_integer:
            inner = interval(x, _leaf)
            return None if inner is None else (cast(inner[0], F32), cast(inner[1], F32))
        case Unary(op="neg", x=x):
            inner = _float_bounds(x, finite)
            return None if inner is None else (unary("neg", inner[1]), unary("neg", inner[0]))
        case Unary(op="abs", x=x):
            inner = _float_bounds(x, finite)
            if inner is None:
                return None
            low, high = inner
            lower = binary("max", binary("max", low, unary("neg", high)), const(0.0))
            return lower, binary("max", unary("neg", low), high)
        case Binary(op=("add" | "sub" | "min" | "max") as op, a=a, b=b):
            left, right = _float_bounds(a, finite), _float_bounds(b, finite)
            if left is None or right is None:
                return None
            first, last = (right[1], right[0]) if op == "sub" else right
            low, high = binary(op, left[0], first), binary(op, left[1], last)
            if op in ("add", "sub"):
                finite += [binary("ge", low, const(-_LARGEST)), binary("le", high, const(_LARGEST))]
            return low, high
        case _:
            return None


def _product(monomial: tuple[Expr, ...]) -> Expr:
    return to_expr(Linear(0, ((monomial, 1),)))


def _comparison(op: BinaryOp, left: Extremes | None, right: Extremes | None) -> Expr:
    """``left op right`` for all values between the bounds."""
    if left is None or right is None:
        return FALSE
    (a_low, a_high), (b_low, b_high) = left, right
    match op:
        case "lt" | "le":
            return binary(op, a_high, b_low)
        case "gt" | "ge":
            return binary(op, a_low, b_high)
        case "eq":  # both sides are one and the same value
            return binary("and", binary("le", a_high, b_low), binary("le", b_high, a_low))
        case _:
            return binary("or", binary("lt", a_high, b_low), binary("lt", b_high, a_low))


def _leaf(e: Expr) -> Extremes | None:
    axis = positions(e)
    if axis == "both":
        return _choice(e) if isinstance(e, Select) and e.type.is_integer else None
    if axis == "none":
        return e, e
    return _reductions(e, axis) if e.type.is_integer or e.type is F32 else None


def _choice(e: Select) -> Extremes | None:
    """Bounds of a choice that is made pair by pair: where a tile decides it, those of one side."""
    first, second = interval(e.a, _leaf), interval(e.b, _leaf)
    if first is None or second is None:
        return None
    low, high = bounds.interval(e, {})
    always = const(int(low)), const(int(high))
    # Twice: at first negations are taken into what is reduced, where they are then taken into comparisons.
    some = simplify(simplify(unary("not", _must(e.condition, True))))
    return chosen(some, _must(e.condition, False), first, second, always)


def _reductions(e: Expr, axis: Axis) -> Extremes:
    x = simplify(e)
    return _reduction("min", x, axis), _reduction("max", x, axis)


def _reduction(op: ReductionOp, e: Expr, axis: Axis) -> Expr:
    """``e`` reduced over the tile; ``e`` itself where simplification shows that it is constant there."""
    x = simplify(e)
    while isinstance(x, Cast) and x.type.is_integer and x.x.type.is_integer:
        x = x.x
    return x if positions(x) == "none" else Reduction(op, x, axis, x.type)
