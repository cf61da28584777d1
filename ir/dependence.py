"""What an expression depends on, and what follows the diagonals of the attention matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from . import build
from .nodes import COMPARISONS, DIAGONAL, LOGIC, Binary, Cast, Const, Expr, Index, Load, Reduction, Score, Unary, Value
from .traverse import children
from .types import BOOL

LoadClass = Literal["batch_head", "query", "key", "diagonal", "pair"]

_KV, _Q = build.index("kv"), build.index("q")
_VARYING = frozenset(("q", "kv", "s"))


def dependence(e: Expr, values: Mapping[str, frozenset[str]] | None = None) -> frozenset[str]:
    """Names of the indices that ``e`` depends on, also through loads, and ``"s"`` for the score.

    Scalar parameters are not listed: they vary with nothing. A :class:`Reduction` over ``q`` no longer
    depends on ``q`` but on the tile: ``"q_tile"``. ``values`` says what earlier steps depend on.

    >>> q = build.index("q")
    >>> sorted(dependence(build.binary("mul", build.cast(q, build.F32), Score())))
    ['q', 's']
    """
    found: set[str] = set()
    stack = [e]
    seen: set[int] = set()
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        match x:
            case Index(name):
                found.add(name)
            case Score():
                found.add("s")
            case Reduction():
                axes = {"q", "kv"} if x.axis == "both" else {x.axis}
                found |= dependence(x.x, values) - axes | {f"{axis}_tile" for axis in axes}
            case Value(name):
                found |= values[name] if values else frozenset()
            case _:
                stack.extend(children(x))
    return frozenset(found)


def load_class(load: Load) -> LoadClass:
    """Over which pairs the index of ``load`` is constant.

    ``batch_head``: everywhere but for batch and head; ``query`` and ``key``: along a row or column;
    ``diagonal``: where ``kv - q`` is; ``pair``: nowhere that could be proved.
    """
    match sorted(dependence(load) & _VARYING):
        case []:
            return "batch_head"
        case ["q"]:
            return "query"
        case ["kv"]:
            return "key"
        case ["kv", "q"] if all(_on_diagonal(x) is not None for x in load.indices):
            return "diagonal"
        case _:
            return "pair"


def diagonal_form(load: Load) -> tuple[Expr, ...]:
    """The indices of a load of class ``diagonal``, over ``Index("diagonal")``, which is ``kv - q``.

    Equal to the original indices wherever ``diagonal == kv - q``. Raises ``ValueError`` for a load that is
    not of that class.

    >>> from .types import F32
    >>> distance = build.binary("sub", build.index("q"), build.index("kv"))
    >>> from .printer import print_expr
    >>> print_expr(diagonal_form(Load("bias", (distance,), F32))[0])
    '-diagonal'
    """
    forms = []
    for x in load.indices:
        form = _on_diagonal(x)
        if form is None:
            raise ValueError(f"an index of `{load.buffer}` does not depend on kv - q alone")
        forms.append(form)
    return tuple(forms)


def constant_along_diagonals(e: Expr) -> bool:
    """Whether ``e`` depends on q and kv through ``kv - q`` alone, provided that no integer wraps.

    >>> q, kv = build.index("q"), build.index("kv")
    >>> constant_along_diagonals(build.binary("ge", q, kv))
    True
    >>> constant_along_diagonals(build.binary("ge", q, build.const(2)))
    False
    """
    match e:
        case Binary(op, a, b) if op in COMPARISONS and a.type.is_integer:
            return _on_diagonal(build.binary("sub", a, b)) is not None
        case Binary(op, a, b) if op in LOGIC and e.type is BOOL:  # chains of which are long
            return constant_along_diagonals(a) and constant_along_diagonals(b)
        case _ if _on_diagonal(e) is not None:
            return True
        case _:
            operands = children(e)
            return e.type is BOOL and bool(operands) and all(map(constant_along_diagonals, operands))


def _on_diagonal(e: Expr) -> Expr | None:
    """``e`` as a function of ``kv - q``, or None where q and kv also enter otherwise."""
    if not dependence(e) & _VARYING:
        return e
    if e.type.is_integer and isinstance(e, Index | Cast | Unary | Binary):
        terms, constant = _linear(e)
        step = terms.pop(_KV, 0)
        if step + terms.pop(_Q, 0) != 0:
            return None
        if set(terms) != {e}:  # else e is no sum: rewrite its operands below
            return _sum(step, terms, constant)
    operands = children(e)
    forms = [_on_diagonal(x) for x in operands]
    found = tuple(x for x in forms if x is not None)
    return build.rebuilt(e, found) if operands and len(found) == len(forms) else None


def _sum(step: int, terms: dict[Expr, int], constant: int) -> Expr | None:
    """``step * diagonal + terms + constant`` with the terms rewritten too."""
    parts: list[tuple[int, Expr]] = [(step, build.index(DIAGONAL))] if step else []
    for term, factor in terms.items():
        form = _on_diagonal(term)
        if form is None:
            return None
        parts.append((factor, form))
    total: Expr | None = build.const(constant) if constant or not parts else None
    for factor, part in parts:
        size = part if abs(factor) == 1 else build.binary("mul", build.const(abs(factor)), part)
        if total is None:
            total = size if factor > 0 else build.unary("neg", size)
        else:
            total = build.binary("add" if factor > 0 else "sub", total, size)
    return total


def _linear(e: Expr) -> tuple[dict[Expr, int], int]:
    """``e`` as a sum of integer multiples of other expressions, and a constant.

    Integer arithmetic is a ring even where it wraps, so the sum is equal to ``e``, not only close.
    """
    match e:
        case Const(int() as value):
            return {}, value
        case Cast(x, type) if type.is_integer and x.type.is_integer:
            return _linear(x)
        case Unary("neg", x):
            return _scaled(_linear(x), -1)
        case Binary("add" | "sub" as op, a, b):
            (left, c), (right, d) = _linear(a), _scaled(_linear(b), 1 if op == "add" else -1)
            total = Counter(left)
            total.update(right)
            return {x: n for x, n in total.items() if n}, c + d
        case Binary("mul", a, b):
            for x, y in ((a, b), (b, a)):
                terms, factor = _linear(x)
                if not terms:
                    return _scaled(_linear(y), factor)
    return {e: 1}, 0


def _scaled(form: tuple[dict[Expr, int], int], factor: int) -> tuple[dict[Expr, int], int]:
    terms, constant = form
    return {x: n * factor for x, n in terms.items() if n * factor}, constant * factor
