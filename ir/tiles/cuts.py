"""Where tiles may begin anew: where data that the mask compares changes, so that no tile holds two documents.

A tile that starts wherever a multiple of its size happens to be holds the end of one document and the start of the
next: it visits the keys of both, and asks the mask about every pair. Cut there, the comparison is the same for all
pairs of two tiles, so that what is visited needs only what is left of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..build import cast, conjunction, const
from ..nodes import Binary, Expr, Load
from ..traverse import joined, rewrite
from .classify import positions
from .overflow import is_exact


@dataclass(frozen=True, slots=True)
class Cuts:
    """``by_query`` and ``by_key``: tiles of queries, and of keys, begin anew where one of these changes.

    ``same``: what is then constant in every pair of tiles; ``rest``: the other conditions of the mask.
    """

    by_query: tuple[Expr, ...]
    by_key: tuple[Expr, ...]
    same: Expr
    rest: Expr

    @staticmethod
    def of(mask: Expr) -> Cuts | None:
        """None where the mask does not compare data of queries with data of keys for equality.

        >>> from ..parser import parse_expr
        >>> from ..printer import print_expr
        >>> from ..nodes import Param
        >>> from ..types import I32
        >>> found = Cuts.of(parse_expr("q >= kv and doc[q] == doc[kv]", [Param("doc", I32, ("L",))]))
        >>> print_expr(found.same), print_expr(found.rest)
        ('doc[q] == doc[kv]', 'q >= kv')
        """
        same, rest = [], []
        by: dict[str, dict[Expr, None]] = {"q": {}, "kv": {}}
        for term in joined(mask, "and"):
            sides = _compared(term)
            if sides is None:
                rest.append(term)
                continue
            same.append(term)
            for side in sides:
                by[positions(side)][side] = None
        if not same:
            return None
        return Cuts(tuple(by["q"]), tuple(by["kv"]), conjunction(same), conjunction(rest))


def _compared(e: Expr) -> Sequence[Expr] | None:
    """Both sides of an equality of integers that are data: one of the query, one of the key."""
    match e:
        case Binary("eq", a, b) if a.type.is_integer and is_exact(e, compared=True):
            if {positions(a), positions(b)} == {"q", "kv"} and _is_data(a) and _is_data(b):
                return a, b
    return None


def _is_data(e: Expr) -> bool:
    """Whether positions matter only through what is loaded by them."""
    return positions(rewrite(e, lambda x: cast(const(0), x.type) if isinstance(x, Load) else x)) == "none"
