"""Captured tensors as they are stored: any integer or boolean dtype serves for any integer or boolean parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..dsl.forms import ELEMENTS
from ..ir import build
from ..ir.nodes import Expr, Load
from ..ir.traverse import children, rewrite
from ..ir.types import BOOL, F32, BufferType, ScalarType
from ..ir.variant import BufferParameter, Parameter, Variant


def as_stored(v: Variant, dtypes: Sequence[str]) -> Variant:
    """``v`` with the element types that ``dtypes`` (of its buffers, in torch's names) have in the language.

    No value changes: elements are converted after they are read. A tokenizer's int64 ids, for a parameter declared
    i32, stay 64-bit; where a boolean is declared, an integer counts as ``!= 0``. ``v`` is as traced or parsed.

    >>> from regard.ir.parser import parse_variant
    >>> from regard.ir.printer import print_variant
    >>> v, _ = parse_variant("attention a(ids: i32[q], seen: bool[kv]) { keep ids[q] == kv and seen[kv] }")
    >>> print(print_variant(as_stored(v, ("int64", "int8"))))
    attention a(ids: i64[q], seen: i32[kv]) {
      keep      ids[q] == kv and seen[kv] != 0
      normalize softmax
    }
    """
    declared = {p.name: p.type.element for p in v.buffers}
    stored = {name: ELEMENTS[getattr(torch, dtype)] for name, dtype in zip(declared, dtypes, strict=True)}
    if stored == declared:
        return v

    def reread(e: Expr) -> Expr:
        if not isinstance(e, Load):
            return build.rebuilt(e, children(e))
        return _converted(replace(e, type=stored[e.buffer]), e.type)

    return replace(
        v,
        mask=rewrite(v.mask, reread),
        scores=tuple(rewrite(e, reread) for e in v.scores),
        parameters=tuple(_stored(p, stored) for p in v.parameters),
    )


def _stored(p: Parameter, elements: dict[str, ScalarType]) -> Parameter:
    return replace(p, type=BufferType(elements[p.name], p.type.axes)) if isinstance(p, BufferParameter) else p


def _converted(x: Expr, wanted: ScalarType) -> Expr:
    """``x`` as a ``wanted``; between integers the type of what is stored does."""
    if wanted is BOOL and x.type.is_integer:
        return build.binary("ne", x, build.const(0), x.loc)
    if x.type is BOOL or (wanted is F32) != (x.type is F32):
        return build.cast(x, wanted, x.loc)
    return x
