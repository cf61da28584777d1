"""How large and how deeply nested the expressions of a variant may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UnsupportedError
from .nodes import Expr
from .traverse import children, walk
from .variant import Variant

# Text, kernels and proofs write out what a function uses twice: each use counts.
MAX_OPERATIONS = 50_000
# Passes recurse over expressions, and Python's stack is finite.
MAX_DEPTH = 300


def check_size(*expressions: Expr) -> None:
    """Raises :class:`UnsupportedError` for what is too large to be written out, or nested too deeply."""
    for expr in expressions:
        operations, depth = _extent(expr)
        if operations > MAX_OPERATIONS:
            raise UnsupportedError(
                f"written out, this is {_count(operations)} operations, of at most {_count(MAX_OPERATIONS)}",
                location=expr.loc,
                hint="a value that is used several times counts each time: compute what belongs to one token "
                "beforehand, and read it from a tensor: values[q]",
            )
        if depth > MAX_DEPTH:
            raise _too_deep(expr, depth)


@contextmanager
def finite_stack(variant: Variant) -> Iterator[None]:
    """Says :class:`UnsupportedError` where Python's stack ends while the variant's expressions are followed."""
    try:
        yield
    except RecursionError:
        depth, deepest = max(((_extent(e)[1], e) for e in (variant.mask, *variant.scores)), key=lambda x: x[0])
        raise _too_deep(deepest, depth) from None


def _extent(expr: Expr) -> tuple[int, int]:
    """Operations, counted wherever they are used, and levels."""
    known: dict[int, tuple[int, int]] = {}
    for x in walk(expr):
        below = [known[id(c)] for c in children(x)]
        known[id(x)] = 1 + sum(n for n, _ in below), 1 + max((d for _, d in below), default=0)
    return known[id(expr)]


def _too_deep(expr: Expr, depth: int) -> UnsupportedError:
    return UnsupportedError(
        f"the expression is nested {depth} levels deep, too deep for Python's stack",
        location=expr.loc,
        hint="a long chain is data: read it from a tensor, or combine its parts in pairs, and these in pairs",
    )


def _count(n: int) -> str:
    return f"{n:,}" if n < 10**9 else f"{n:.1e}"
