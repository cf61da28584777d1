"""The pass ``align_positions``."""

from __future__ import annotations

from dataclasses import replace

from .. import build
from ..nodes import Expr, Index
from ..traverse import children, rewrite
from ..variant import Variant


def align_positions(v: Variant) -> Variant:
    """Writes ``q`` as a row index: where the last positions meet, ``q`` becomes ``q + (kv_len - q_len)``.

    Precondition: integer arithmetic is still i64 (before ``narrow_integers``).

    >>> from ..parser import parse_variant
    >>> from ..printer import print_variant
    >>> v, _ = parse_variant("attention causal() { keep q >= kv align end }")
    >>> print(print_variant(align_positions(v)))
    attention causal() {
      keep      q + (kv_len - q_len) >= kv
      normalize softmax
    }
    """
    if v.align == "start":
        return v
    offset = build.binary("sub", build.index("kv_len"), build.index("q_len"))

    def align(x: Expr) -> Expr:
        if isinstance(x, Index):
            return build.binary("add", x, offset, x.loc) if x.name == "q" else x
        return build.rebuilt(x, children(x))

    return replace(v, mask=rewrite(v.mask, align), scores=tuple(rewrite(e, align) for e in v.scores), align="start")
