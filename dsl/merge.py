"""Joins the parameters of several parts: bound ones stay private, open ones of one name become one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

import torch

from ..ir.errors import ParameterError
from ..ir.nodes import Expr, Load, Param
from ..ir.traverse import rewrite
from ..ir.types import BufferType
from ..ir.variant import BufferParameter, Parameter, StaticParameter
from ..ir.verify import RESERVED
from .trace import Traced, numbered

Values = dict[str, int | float | torch.Tensor]

# Keywords of a call of the attention; an open parameter of such a name could never be passed.
CALL_KEYWORDS = frozenset(("query", "key", "value", "aux", "deterministic", "tune"))


def merge(parts: Sequence[Traced]) -> tuple[list[Expr], tuple[Parameter, ...], Values]:
    """Their expressions over one set of parameters, those parameters, and the values of the bound ones.

    A bound parameter whose name is taken is renamed (``window``, ``window_1``), unless it is the very tensor
    that has the name already. Raises :class:`ParameterError` where open parameters of one name differ in type.
    """
    opened: dict[str, Parameter] = {}
    for part in parts:
        for p in _open(part):
            opened[p.name] = _unified(opened[p.name], p) if p.name in opened else p
    placed: dict[str, Parameter] = {}
    values: Values = {}
    expressions = []
    for part in parts:
        names = {p.name: p.name for p in _open(part)}
        for p in part.parameters:
            if p.name in names:
                placed.setdefault(p.name, opened[p.name])
                continue
            name = names[p.name] = _place(p, part.values.get(p.name), values, placed.keys() | opened.keys() | RESERVED)
            placed[name] = _relabelled(placed[name], p) if name in placed else replace(p, name=name)
            if p.name in part.values:
                values[name] = part.values[p.name]
        expressions.append(_renamed(part.expr, names))
    return expressions, tuple(placed.values()), values


def _open(part: Traced) -> Iterable[Parameter]:
    for p in part.parameters:
        if not isinstance(p, StaticParameter) and p.name not in part.values:
            if p.name in CALL_KEYWORDS | RESERVED:
                raise ParameterError(
                    f"`{p.name}` cannot be the name of an open parameter: it means something else "
                    f"{'at the call' if p.name in CALL_KEYWORDS else 'in the text language'}",
                    location=p.loc,
                    hint="rename the argument",
                )
            yield p


def _place(p: Parameter, value: object, values: Values, taken: Set[str]) -> str:
    """The name for bound parameter ``p``: its own, that of the same tensor, or its own with a number."""
    base = _unnumbered(p.name)
    if isinstance(p, BufferParameter):
        for name, other in values.items():
            if other is value and _unnumbered(name) == base:
                return name
    return p.name if p.name not in taken else next(n for n in numbered(base) if n not in taken)


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _unified(a: Parameter, b: Parameter) -> Parameter:
    """One open parameter for two of the same name."""
    if isinstance(a, BufferParameter) and isinstance(b, BufferParameter):
        if a.type.element is b.type.element and a.type.rank == b.type.rank:
            return _relabelled(a, b)
    elif type(a) is type(b) and a.type == b.type:
        return a
    raise ParameterError(
        f"open parameter `{a.name}` is {a.type} in one part and {b.type} in another",
        location=b.loc,
        hint="rename one of them, or annotate both alike",
    )


def _relabelled(a: Parameter, b: Parameter) -> Parameter:
    """``a``, which ``b`` also reads: an axis keeps its label where both agree."""
    if not (isinstance(a, BufferParameter) and isinstance(b, BufferParameter)):
        return a
    axes = tuple(x if x == y else "_" for x, y in zip(a.type.axes, b.type.axes, strict=True))
    return replace(a, type=BufferType(a.type.element, axes))


def _renamed(e: Expr, names: dict[str, str]) -> Expr:
    if all(old == new for old, new in names.items()):
        return e

    def rename(x: Expr) -> Expr:
        match x:
            case Param() if names[x.name] != x.name:
                return replace(x, name=names[x.name])
            case Load() if names[x.buffer] != x.buffer:
                return replace(x, buffer=names[x.buffer])
            case _:
                return x

    return rewrite(e, rename)
