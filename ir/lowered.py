"""Lowered IR: a straight line of named steps in which no work is written twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from .dependence import dependence
from .nodes import Const, Expr, Index, Load, Param, Reduction, Score, Value
from .traverse import children, share, substitute, walk, with_children


@dataclass(frozen=True, slots=True)
class Step:
    """``name = expr``; a :class:`Value` in ``expr`` is the result of an earlier step."""

    name: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class Lowered:
    """Steps, each after those that it reads, and what they yield by name: a :class:`Value` or a leaf."""

    steps: tuple[Step, ...]
    results: tuple[tuple[str, Expr], ...]


def lower(results: Mapping[str, Expr]) -> Lowered:
    """Names every sub-expression that is used twice or can be computed less often than its user.

    A step of its own has: each load and reduction; each sub-expression with several users; each whose
    :func:`dependence` differs from its user's (so that it can be hoisted); each result. Everything else
    stays nested. Leaves (literals, indices, parameters, the score) are never steps.

    >>> from . import build
    >>> from .printer import print_lowered
    >>> far = build.binary("sub", build.index("q"), build.index("kv"))
    >>> keep = build.binary("lt", build.binary("mul", far, far), build.const(9))
    >>> print(print_lowered(lower({"keep": keep})))
    lowered() {
      t0: i64 = i64(q)
      t1: i64 = i64(kv)
      t2: i64 = t0 - t1
      t3: bool = t2 * t2 < i64(9)
      yield keep: bool = t3
    }
    """
    roots = share(*results.values())
    order = list({id(x): x for root in roots for x in walk(root)}.values())
    uses = Counter(id(c) for x in order for c in children(x))
    depends = {id(x): dependence(x) for x in order}
    named = {id(root) for root in roots}
    for x in order:
        if isinstance(x, Load | Reduction) or uses[id(x)] > 1:
            named.add(id(x))
        named.update(id(c) for c in children(x) if depends[id(c)] != depends[id(x)])

    taken = {x.name for x in order if isinstance(x, Param | Value)} | {x.buffer for x in order if isinstance(x, Load)}
    steps: list[Step] = []
    done: dict[int, Expr] = {}
    count = 0
    for x in order:
        flat = with_children(x, tuple(done[id(c)] for c in children(x)))
        if id(x) in named and not isinstance(x, Const | Index | Param | Score | Value):
            while f"t{count}" in taken:
                count += 1
            steps.append(Step(f"t{count}", flat))
            flat = Value(f"t{count}", x.type, x.loc)
            count += 1
        done[id(x)] = flat
    return Lowered(tuple(steps), tuple((name, done[id(x)]) for name, x in zip(results, roots, strict=True)))


def inlined(lowered: Lowered) -> dict[str, Expr]:
    """The results as whole expressions again; the inverse of :func:`lower`."""
    table: dict[Expr, Expr] = {}
    for step in lowered.steps:
        table[Value(step.name, step.expr.type)] = substitute(step.expr, table)
    return {name: substitute(e, table) for name, e in lowered.results}
