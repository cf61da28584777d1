"""Conditions that only depend on the block in which each position lies, such as a table of blocks.

Such a condition is decided for a pair of tiles by looking at one position of every block that a tile touches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from ..nodes import Binary, Cast, Const, Expr, Index
from ..symbolic import linear
from ..traverse import children

# Shorter blocks would take nearly as many looks as there are positions.
SHORTEST = 16


@lru_cache(maxsize=1024)
def steps(e: Expr) -> tuple[int, int] | None:
    """How long the blocks of queries and of keys are; None where ``e`` depends on positions in any other way.

    >>> from regard.ir.build import binary, const, index
    >>> q, kv = (binary("floordiv", index(x), const(64)) for x in ("q", "kv"))
    >>> steps(binary("eq", q, kv)), steps(binary("eq", q, index("kv")))
    ((64, 64), None)
    """
    queries, keys = step_along(e, "q"), step_along(e, "kv")
    return None if queries is None or keys is None else (queries, keys)


@lru_cache(maxsize=1024)
def step_along(e: Expr, axis: str) -> int | None:
    """How long the blocks of one axis are; None where ``e`` does not depend on its positions by one kind of blocks."""
    match [*set(_quotients(e, axis))]:
        case [Binary(b=Const(value=length))]:
            return int(length)
        case _:
            return None


@lru_cache(maxsize=1024)
def shifted(e: Expr, axis: str) -> bool:
    """Whether the blocks of an axis, in ``e`` of :func:`steps`, begin elsewhere than at multiples of their length."""
    return any(quotient is None or not _is_position(quotient.a, axis) for quotient in _quotients(e, axis))


def looks(block: int, step: int, shifted: bool = True) -> tuple[int, ...]:
    """Offsets in a tile of ``block`` positions of which one lies in every block of ``step`` that it touches.

    >>> looks(128, 64), looks(64, 128), looks(1, 16), looks(128, 64, shifted=False), looks(64, 128, shifted=False)
    ((0, 64, 127), (0, 63), (0,), (0, 64), (0,))
    """
    if not shifted and (block % step == 0 or step % block == 0):
        return tuple(range(0, block, step))
    return tuple(dict.fromkeys((*range(0, block, step), block - 1)))


def _quotients(e: Expr, axis: str) -> Iterator[Binary | None]:
    """The outermost ``(position + …) // length`` in ``e``, and None for a position that is read otherwise."""
    match e:
        case Index(name=name) if name == axis:
            yield None
        case Binary(op="floordiv", a=a, b=Const(value=n)) if n >= SHORTEST and _is_shifted(a, axis):
            yield e
        case _:
            for x in children(e):
                yield from _quotients(x, axis)


def _is_shifted(e: Expr, axis: str) -> bool:
    """Whether ``e`` is the position plus what depends on no position."""
    moving = [t for t in linear(e).terms if any(_mentions_position(x) for x in t[0])]
    return len(moving) == 1 and moving[0][1] == 1 and len(moving[0][0]) == 1 and _is_position(moving[0][0][0], axis)


def _is_position(e: Expr, axis: str) -> bool:
    match e:
        case Cast(x=x) if e.type.is_integer:
            return _is_position(x, axis)
        case _:
            return isinstance(e, Index) and e.name == axis


def _mentions_position(e: Expr) -> bool:
    return _is_position(e, "q") or _is_position(e, "kv") or any(_mentions_position(x) for x in children(e))
