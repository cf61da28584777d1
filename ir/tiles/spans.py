"""Unions of position intervals with symbolic ends."""

from __future__ import annotations

from dataclasses import dataclass

from ..build import binary, const, select
from ..nodes import FALSE, TRUE, Expr, Index
from ..symbolic import at_least, simplify
from ..types import I32
from .plan import Interval
from .solve import Axis


@dataclass(frozen=True, slots=True)
class Span:
    """Positions ``start <= x < stop`` where ``guard`` holds, else none. A missing end is no bound."""

    start: Expr | None = None
    stop: Expr | None = None
    guard: Expr = TRUE


Union = tuple[Span, ...]
EVERYTHING: Union = (Span(),)


def intersect(a: Union, b: Union) -> Union:
    """Positions in both unions."""
    return _tidy(
        tuple(
            Span(_meet("max", x.start, y.start), _meet("min", x.stop, y.stop), _both(x.guard, y.guard))
            for x in a
            for y in b
        )
    )


def unite(a: Union, b: Union) -> Union:
    """Positions in either union; ``a`` is tidy already."""
    return _tidy(b, a)


def guarded(u: Union, condition: Expr) -> Union:
    """``u`` where ``condition`` (free of the position) holds, else nothing."""
    return _tidy(tuple(Span(s.start, s.stop, _both(s.guard, condition)) for s in u))


def at_most(u: Union, limit: int) -> Union:
    """A superset of ``u`` with at most ``limit`` intervals."""
    if len(u) <= limit:
        return u
    *kept, hull = u[:limit]
    for s in u[limit:]:
        start, stop = _join("min", hull.start, s.start), _join("max", hull.stop, s.stop)
        hull = Span(start, stop, simplify(binary("or", hull.guard, s.guard)))
    return (*kept, hull)


def finish(u: Union, other: Axis) -> tuple[Interval, ...]:
    """Plain intervals: missing ends become 0 and the length, guards become a choice of ``stop``."""
    length = Index(f"{other}_len", I32)
    stops: dict[Expr, Expr] = {}
    # Unguarded spans first: a guarded one of the same start then only moves the stop.
    for s in sorted(u, key=lambda s: s.guard != TRUE):
        start: Expr = const(0) if s.start is None else s.start
        below = stops.get(start, const(0))
        stop = length if s.stop is None else s.stop if start not in stops else binary("max", below, s.stop)
        stops[start] = simplify(select(s.guard, stop, below))
    return tuple(Interval(start, stop) for start, stop in stops.items())


def _meet(op: str, a: Expr | None, b: Expr | None) -> Expr | None:
    if a is None or b is None:
        return a or b
    return _end(op, a, b)


def _end(op: str, a: Expr, b: Expr) -> Expr:
    return simplify(binary("min" if op == "min" else "max", a, b))


def _both(a: Expr, b: Expr) -> Expr:
    return simplify(binary("and", a, b))


def _tidy(u: Union, tidy: Union = ()) -> Union:
    """``tidy`` and ``u`` without spans that are proved empty; pairs whose union is one span are merged."""
    result = list(tidy)
    for s in u:
        if s.guard == FALSE or (s.start is not None and s.stop is not None and at_least(s.start, s.stop)):
            continue
        merged = True
        while merged:
            merged = False
            for other in result:
                together = _merge(other, s)
                if together is not None:
                    result.remove(other)
                    s, merged = together, True
                    break
        result.append(s)
    return tuple(result)


def _merge(a: Span, b: Span) -> Span | None:
    """One span that holds exactly the positions of both, if that is proved."""
    for x, y in ((a, b), (b, a)):
        if x.guard in (TRUE, y.guard) and _starts_before(x, y) and _ends_after(x, y):
            return x
    if a.start == b.start and a.stop == b.stop:
        return Span(a.start, a.stop, simplify(binary("or", a.guard, b.guard)))
    if a.guard == b.guard:
        if a.start == b.start:
            return Span(a.start, _join("max", a.stop, b.stop), a.guard)
        if a.stop == b.stop:
            return Span(_join("min", a.start, b.start), a.stop, a.guard)
        for x, y in ((a, b), (b, a)):
            # x starts first and reaches the start of y, so nothing lies between them even if y is empty.
            if _starts_before(x, y) and (x.stop is None or (y.start is not None and at_least(x.stop, y.start))):
                return Span(x.start, _join("max", a.stop, b.stop), a.guard)
    return None


def _join(op: str, a: Expr | None, b: Expr | None) -> Expr | None:
    return None if a is None or b is None else _end(op, a, b)


def _starts_before(a: Span, b: Span) -> bool:
    return a.start is None or (b.start is not None and at_least(b.start, a.start))


def _ends_after(a: Span, b: Span) -> bool:
    return a.stop is None or (b.stop is not None and at_least(a.stop, b.stop))
