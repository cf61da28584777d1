"""What a condition on several axes says about one of them, once the boxes along the axes before it are known.

Each coordinate of an axis before is then an interval, that of the queries or of the keys of a pair of boxes: what
depends on it has bounds, as expressions of its ends. They stand in the condition under names until it is solved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf, isqrt
from typing import Literal

from ..bounds import SCALAR, Range, interval
from ..build import binary, cast, const, select, unary
from ..linear_form import Linear, Monomial, to_expr
from ..nodes import COMPARISONS, FALSE, TRUE, Binary, Const, Expr, Index, Param, Select, Unary
from ..symbolic import combined, linear, simplify
from ..traverse import index_names, parameter_names, substitute
from ..types import BOOL, F32, I32
from . import arithmetic
from .arithmetic import Extremes
from .digits import digit
from .formula import All, Any, Atom, Formula, conjoin, disjoin, to_formula
from .plan import Interval
from .several_axes import at_most_zero, axes_in

# Roots of larger numbers are not exact in float32 with one correction.
_LONGEST = 2**17
# Of numbers below this one, the squares of roots add up in 32 bits.
_LIMIT = 2**28
# Terms that are taken apart in turn, each into two.
_SPLITS = 4
_COORDINATE = re.compile(r"(q|kv) (\d+)")


def run_of(position: str, axis: int) -> tuple[Index, Index]:
    """First and last coordinate of a run of queries ("q"), or of keys ("kv"), along ``axis``, inside of a class."""
    return digit(f"{position} first {axis}"), digit(f"{position} last {axis}")


def is_run(name: str) -> bool:
    """Whether ``name`` is the end of a run along another axis."""
    return name.startswith(("q first ", "q last ", "kv first ", "kv last "))


class Narrowing:
    """Conditions on ``axis`` that follow from conditions on several, or suffice for them.

    Runs along the axes before it are known; coordinates of the others have the ``limits`` that they always have.
    """

    def __init__(self, axis: int, limits: Mapping[str, Range]) -> None:
        self._axis = axis
        self._limits = dict(limits)
        for before in range(axis):
            for position in ("q", "kv"):
                for end in run_of(position, before):
                    self._limits[end.name] = limits[f"{position} {before}"]
        self._names: dict[Param, Expr] = {}

    def implied(self, f: Formula) -> Formula:
        """What ``f`` says about the axis where some pair of the runs along the others allows most."""
        return self._about(f, easiest=True)

    def sufficient(self, f: Formula) -> Formula:
        """What about the axis makes ``f`` true for every pair of the runs along the others."""
        return self._about(f, easiest=False)

    def in_full(self, union: tuple[Interval, ...], table: Mapping[Expr, Expr]) -> tuple[Interval, ...]:
        """``union`` with the bounds that stand in it under names; names in these are changed as ``table`` says."""
        bounds: dict[Expr, Expr] = {name: substitute(e, table) for name, e in self._names.items()}
        return tuple(Interval(substitute(i.start, bounds), substitute(i.stop, bounds)) for i in union)

    def is_used(self, union: tuple[Interval, ...]) -> bool:
        """Whether ``union`` depends on where runs along other axes are."""
        named = {name.name for name, e in self._names.items() if any(map(is_run, index_names(e)))}
        return any(parameter_names(e) & named for i in union for e in (i.start, i.stop))

    def _about(self, f: Formula, *, easiest: bool) -> Formula:
        match f:
            case All() | Any():
                parts = tuple(self._about(p, easiest=easiest) for p in f.parts)
                return conjoin(parts) if isinstance(f, All) else disjoin(parts)
            case Atom(condition):
                axes = axes_in(condition)
                if axes <= {self._axis}:
                    return f
                if self._axis in axes:
                    return self._sums(condition, easiest=easiest)
                some, every = self._decided(condition)
                return to_formula(self._named(some if easiest else every))

    def _sums(self, condition: Expr, *, easiest: bool) -> Formula:
        forms = at_most_zero(condition)
        if not forms:  # says nothing that is known
            return All(()) if easiest else Any(())
        return conjoin(tuple(self._split(form, _SPLITS, easiest=easiest) for form in forms))

    def _split(self, form: Linear, depth: int, *, easiest: bool) -> Formula:
        """``form <= 0``, where terms that mix the axis with others are taken apart: distances, extremes and choices."""
        for term in form.terms if depth else ():
            monomial, c = term
            parts = _parts(monomial) if {self._axis} < set[int]().union(*map(axes_in, monomial)) else None
            if parts is None:
                continue
            condition, a, b = parts
            rest = Linear(form.constant, tuple(t for t in form.terms if t is not term))
            sums = (combined(rest, x, c) for x in (a, b))
            first, second = (self._split(x, depth - 1, easiest=easiest) for x in sums)
            match condition:
                case "largest" | "smallest":
                    return (conjoin if (condition == "largest") == (c > 0) else disjoin)((first, second))
                case _:
                    yes, no = (self._about(to_formula(condition, x), easiest=easiest) for x in (False, True))
                    return disjoin((conjoin((yes, first)), conjoin((no, second))))
        return self._sum(form, easiest=easiest)

    def _sum(self, form: Linear, *, easiest: bool) -> Formula:
        """``form <= 0``, where what does not belong to the axis is at its least, or at its most."""
        own = tuple(t for t in form.terms if set[int]().union(*map(axes_in, t[0])) == {self._axis})
        others = Linear(form.constant, tuple(t for t in form.terms if t not in own))
        bound = self._bounds(others)[0 if easiest else 1]
        if not any(map(is_run, index_names(bound))):
            return Atom(simplify(binary("le", binary("add", to_expr(Linear(0, own)), bound), const(0))))
        match own:
            case (((Unary(op="abs") as x, y), c),) if x == y and self._range(x)[1] < _LONGEST:
                # c * x * x <= -bound, for a distance x along the axis; no more is asked of roots than its largest.
                most = int(self._range(x)[1]) + 1
                bound = self._of_squares(others, bound, easiest=easiest) if c > 0 else bound
                rest = unary("neg", bound) if c > 0 else binary("sub", bound, const(1))
                rest = rest if abs(c) == 1 else binary("floordiv", rest, const(abs(c)))
                rest = binary("min", rest, const(most * most))
                return Atom(binary("le" if c > 0 else "gt", x, self._named(_root(rest), (-1, most))))
        own_form = to_expr(Linear(0, own))
        low, high = self._range(own_form)
        found = self._range(bound)
        if found[0] < SCALAR[0] or found[1] > SCALAR[1]:  # beyond what makes the comparison true, or false, anyway
            found = max(found[0], -high), min(found[1], 1 - low)
            if not SCALAR[0] <= found[0] <= found[1] <= SCALAR[1]:
                return All(()) if easiest else Any(())
            bound = binary("max", binary("min", bound, const(int(found[1]))), const(int(found[0])))
        return Atom(simplify(binary("le", own_form, unary("neg", self._named(bound, found)))))

    def _of_squares(self, form: Linear, bound: Expr, *, easiest: bool) -> Expr:
        """The ``bound`` of squares less a number, each cut at its root, so that it fits in 32 bits; of others as it is.

        The difference is asked for its sign, and for its value only where it is less than 0.
        """
        if not -_LIMIT < form.constant <= 0:
            return bound
        found: Expr = const(form.constant)
        for monomial, c in form.terms:
            match monomial:
                case (Unary(op="abs") as x, y) if x == y and c > 0:
                    end = self._extremes(x)[0 if easiest else 1]
                    root = binary("min", end, const(isqrt(-form.constant) + 1))
                    found = binary("add", found, binary("mul", const(c), binary("mul", root, root)))
                case _:
                    return bound
        return simplify(found)

    def _named(self, e: Expr, range_of_it: Range = (0, 1)) -> Expr:
        """A name for ``e``, which the rules of one axis take for a parameter; ``e`` itself if it is a constant."""
        e = simplify(e)
        if isinstance(e, Const):
            return e
        for name, known in self._names.items():
            if known == e:
                return name
        name = Param(f"bound {len(self._names)} of axis {self._axis}", BOOL if e.type is BOOL else I32)
        self._names[name] = e
        return name

    # --- bounds of what depends on other axes ---

    def _range(self, e: Expr) -> Range:
        low, high = interval(e, self._limits)
        return (low, high) if e.type.is_integer else (-inf, inf)

    def _bounds(self, form: Linear) -> Extremes:
        """The least and the largest value of a sum."""
        low: Expr = const(form.constant)
        high: Expr = const(form.constant)
        for monomial, c in form.terms:
            ends = self._extremes(to_expr(Linear(0, ((monomial, 1),))))
            least, most = (binary("mul", const(abs(c)), x) for x in ends)
            low, high = (
                (binary("add", low, least), binary("add", high, most))
                if c > 0
                else (binary("sub", low, most), binary("sub", high, least))
            )
        return simplify(low), simplify(high)

    def _extremes(self, e: Expr) -> Extremes:
        found = arithmetic.interval(e, self._leaf)
        return self._always(e) if found is None else found

    def _always(self, e: Expr) -> Extremes:
        low, high = self._range(e)
        return const(int(low)), const(int(high))

    def _leaf(self, e: Expr) -> Extremes | None:
        if not _coordinates_in(e):
            return e, e
        match e:
            case Index(name):
                position, axis = _COORDINATE.findall(name)[0]
                return run_of(position, int(axis)) if int(axis) < self._axis else self._always(e)
            case Binary("mul", Unary("abs") as a, b) if a == b:
                low, high = self._extremes(a)
                return binary("mul", low, low), binary("mul", high, high)
            case Select(c, a, b) if e.type.is_integer:
                return arithmetic.chosen(*self._decided(c), self._extremes(a), self._extremes(b), self._always(e))
            case _:
                return None

    def _decided(self, condition: Expr) -> tuple[Expr, Expr]:
        """Whether ``condition`` holds for some pair, and for every pair; the first may be true, the second false."""
        if not _coordinates_in(condition):
            return condition, condition
        match condition:
            case Unary("not", x):
                some, every = self._decided(x)
                return unary("not", every), unary("not", some)
            case Binary("and" | "or" as op, a, b):
                (first, one), (second, other) = self._decided(a), self._decided(b)
                return binary(op, first, second), binary(op, one, other)
            case Binary(op, a, b) if op in COMPARISONS and a.type.is_integer:
                low, high = self._bounds(linear(binary("sub", a, b)))
                return _compared(op, low, high)
            case _:
                return TRUE, FALSE


def _parts(monomial: Monomial) -> tuple[Expr | Literal["largest", "smallest"], Expr, Expr] | None:
    """Which of two sums a product is: by a condition, or the larger or smaller one."""
    match monomial:
        case (Unary("abs", x),):
            return "largest", x, unary("neg", x)
        case (Binary("max" | "min" as op, a, b),):
            return ("largest" if op == "max" else "smallest"), a, b
    for i, factor in enumerate(monomial):
        if isinstance(factor, Select):
            others: Expr = const(1)
            for x in (*monomial[:i], *monomial[i + 1 :]):
                others = binary("mul", others, x)
            return factor.condition, binary("mul", others, factor.a), binary("mul", others, factor.b)
    return None


def _compared(op: str, low: Expr, high: Expr) -> tuple[Expr, Expr]:
    """Whether ``x op 0`` for some, and for every ``x`` from ``low`` to ``high``."""
    zero = const(0)
    match op:
        case "le" | "lt":
            return binary(op, low, zero), binary(op, high, zero)
        case "ge" | "gt":
            return binary(op, high, zero), binary(op, low, zero)
        case _:
            around = binary("and", binary("le", low, zero), binary("ge", high, zero))
            alone = binary("and", binary("ge", low, zero), binary("le", high, zero))
            return (around, alone) if op == "eq" else (unary("not", alone), unary("not", around))


def _coordinates_in(e: Expr) -> bool:
    """Whether ``e`` depends on a coordinate, and not only on the class of the boxes."""
    return any(map(_COORDINATE.fullmatch, index_names(e)))


def _root(e: Expr) -> Expr:
    """The largest integer whose square is at most ``e``, -1 where there is none; ``e`` is at most 2**35.

    The root of a float32 is too large by less than one, after a step upwards that makes up for all roundings.
    """
    positive = cast(binary("max", e, const(0)), F32)
    root = cast(binary("mul", unary("sqrt", positive), const(1.0 + 2.0**-20)), I32)
    root = select(binary("gt", binary("mul", root, root), e), binary("sub", root, const(1)), root)
    return select(binary("lt", e, const(0)), const(-1), root)
