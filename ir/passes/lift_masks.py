"""The pass ``lift_masks``."""

from __future__ import annotations

import math
from dataclasses import replace

from .. import build
from ..dependence import dependence
from ..nodes import TRUE, Binary, Const, Expr, Load, Score, Select, Unary
from ..traverse import walk
from ..variant import Variant


def lift_masks(v: Variant) -> Variant:
    """Makes masks of conditions under which a score is −inf: such pairs may not attend, and tiles of them are skipped.

    A score is looked at if those after it leave −inf as it is. Precondition: parameters that are constant are (after
    ``inline_statics``).

    >>> from ..parser import parse_variant
    >>> from ..printer import print_variant
    >>> v, _ = parse_variant("attention a() { score where(q >= kv, s, -inf) score s + where(q < kv + 4, 0.0, -inf) }")
    >>> print(print_variant(lift_masks(v)))
    attention a() {
      keep      q < kv + 4 and q >= kv
      normalize softmax
    }
    """
    mask, scores = v.mask, list(v.scores)
    for i in reversed(range(len(scores))):
        scores[i], conditions = _lifted(scores[i])
        for condition in conditions:
            mask = condition if mask == TRUE else build.binary("and", mask, condition, condition.loc)
        if not _keeps_minus_inf(scores[i]):
            break
    return replace(v, mask=mask, scores=tuple(e for e in scores if not isinstance(e, Score)))


def _lifted(e: Expr) -> tuple[Expr, list[Expr]]:
    """``e`` where it may be finite, and the conditions for that."""
    match e:
        case Select(condition, a, b) if _can_be_mask(condition) and _is_minus_inf(b):
            rest, conditions = _lifted(a)
            return rest, [condition, *conditions]
        case Select(condition, a, b) if _can_be_mask(condition) and _is_minus_inf(a):
            rest, conditions = _lifted(b)
            return rest, [build.unary("not", condition, condition.loc), *conditions]
        case Binary("add", a, b):
            (a, of_a), (b, of_b) = _lifted(a), _lifted(b)
            if not of_a and not of_b:
                return e, []
            if _is_zero(a) or _is_zero(b):
                return (b if _is_zero(a) else a), of_a + of_b
            return build.binary("add", a, b, e.loc), of_a + of_b
        case _:
            return e, []


def _keeps_minus_inf(e: Expr) -> bool:
    """Whether a score ``e`` of −inf is −inf again."""
    match e:
        case Score():
            return True
        case Binary("add", a, b):
            return any(_keeps_minus_inf(x) and not _reads_score(y) for x, y in ((a, b), (b, a)))
        case Binary("sub", a, b):
            return _keeps_minus_inf(a) and not _reads_score(b)
        case Binary("mul" | "div", a, Const(factor)) | Binary("mul", Const(factor), a):
            return _keeps_minus_inf(a) and factor > 0
        case _:
            return False


def _can_be_mask(condition: Expr) -> bool:
    """Whether ``condition`` is one of positions and data for tokens; tables of pairs would be read twice."""
    read = (dependence(x) for x in walk(condition) if isinstance(x, Load))
    return not _reads_score(condition) and not any({"q", "kv"} <= x for x in read)


def _reads_score(e: Expr) -> bool:
    return "s" in dependence(e)


def _is_minus_inf(e: Expr) -> bool:
    match e:
        case Const(value):
            return value == -math.inf
        case Unary("neg", Const(value)):
            return value == math.inf
        case _:
            return False


def _is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 0
