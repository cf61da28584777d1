"""The pass ``inline_statics``."""

from __future__ import annotations

from dataclasses import replace

from .. import build
from ..nodes import Expr, Param
from ..traverse import children, rewrite
from ..variant import StaticParameter, Variant


def inline_statics(v: Variant) -> Variant:
    """Replaces static parameters by their values, and drops them from the parameters.

    Precondition: integer arithmetic is still i64 (before ``narrow_integers``). Raises
    :class:`TypeMismatchError` for a division by a static zero.

    >>> from ..parser import parse_variant
    >>> from ..printer import print_variant
    >>> v, _ = parse_variant("attention a(d: static int = 4) { keep (q - kv) % d == 0 }")
    >>> print(print_variant(inline_statics(v)))
    attention a() {
      keep      (q - kv) % 4 == 0
      normalize softmax
    }
    """
    values = {p.name: p.value for p in v.statics}

    def inline(x: Expr) -> Expr:
        if isinstance(x, Param):
            return build.const(values[x.name], x.loc) if x.name in values else x
        return build.rebuilt(x, children(x))  # which checks divisors and converts literals on the spot

    return replace(
        v,
        mask=rewrite(v.mask, inline),
        scores=tuple(rewrite(e, inline) for e in v.scores),
        parameters=tuple(p for p in v.parameters if not isinstance(p, StaticParameter)),
    )
