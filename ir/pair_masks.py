"""Masks that are evaluated pair by pair, in as few operations on pairs as possible."""

from __future__ import annotations

from functools import reduce

from .build import binary, conjunction, const, select
from .dependence import dependence
from .nodes import Binary, Const, Expr
from .squares import small_squares, values_of
from .traverse import joined, rewrite

# More than what sums are compared with, and so little that both add up in 32 bits.
_MORE = 2**30


def few_operations(e: Expr) -> Expr:
    """``e`` with the same value: coordinates by shifts, small squares, and a comparison that decides for all.

    >>> from .parser import parse_expr
    >>> from .printer import print_expr
    >>> print_expr(few_operations(parse_expr("(q - kv) * (q - kv) < 9 and q > 5")))
    'max(min(q - kv, 4), -4) * max(min(q - kv, 4), -4) < where(q > 5, 9, -1)'
    >>> print_expr(few_operations(parse_expr("kv % 8 > 2 and q % 8 + kv % 8 <= 9")))
    'where(kv & 7 > 2, 0, 1073741824) + ((q & 7) + (kv & 7)) <= 9'
    """
    return _decided_by_one(rewrite(small_squares(e), _by_shifts))


def _by_shifts(e: Expr) -> Expr:
    """A quotient or remainder by a power of two, which rounds down as a shift does."""
    match e:
        case Binary("floordiv" | "mod" as op, x, Const(divisor)) if x.type.is_integer and _is_power_of_two(divisor):
            if op == "mod":
                return binary("bitand", x, const(int(divisor) - 1), e.loc)
            return binary("shr", x, const(int(divisor).bit_length() - 1), e.loc)
        case _:
            return e


def _is_power_of_two(x: float) -> bool:
    return x == int(x) and 1 < x <= 2**30 and int(x) & (int(x) - 1) == 0


def _decided_by_one(e: Expr) -> Expr:
    """A conjunction whose comparison of a sum of pairs with a number stands for what rows and columns ask alone.

    Where a column is out, the sum is more than any number that it is compared with; where a row is, the number is less.
    """
    parts = joined(e, "and")
    found = next((x for x in parts if _is_sum_below(x)), None)
    if found is None:
        return e
    assert isinstance(found, Binary)
    levels = [dependence(x) & {"q", "kv"} for x in parts]
    rows = [x for x, level in zip(parts, levels, strict=True) if level == {"q"}]
    columns = [x for x, level in zip(parts, levels, strict=True) if level == {"kv"}]
    total, limit = found.a, found.b
    if rows:
        limit = select(conjunction(rows), limit, const(-1))
    if columns:
        total = binary("add", select(conjunction(columns), const(0), const(_MORE)), total)
    alone = [*rows, *columns]
    others = [x for x in parts if x is not found and all(x is not y for y in alone)]
    return reduce(lambda a, b: binary("and", a, b), others, binary(found.op, total, limit, found.loc))


def _is_sum_below(e: Expr) -> bool:
    """Whether ``e`` compares a sum of pairs, which is not below 0, with a number; both are below :data:`_MORE`."""
    match e:
        case Binary("lt" | "le", a, Const(limit)) if a.type.is_integer and {"q", "kv"} <= dependence(a):
            low, high = values_of(a)
            return low >= 0 and high < _MORE and 0 <= limit < _MORE
        case _:
            return False
