"""Scores of products in as few operations as there are.

What is the same for all pairs is multiplied once, not for each pair: without that a product is scaled, the scores are
computed, and their results are multiplied by log2(e) beside what is subtracted from them. And where no score is large,
nothing needs to be subtracted. Both round differently, which is nothing beside products of 16-bit numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.build import binary, cast, select
from ..ir.dependence import dependence
from ..ir.differentiate import partials
from ..ir.factors import cost, factored, gathered, with_positive_factor
from ..ir.magnitude import magnitude
from ..ir.nodes import Const, Expr, Param, Score, Value
from ..ir.passes.simplify import simplified
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import substitute
from ..ir.types import F32
from .emitter import Emitter
from .print_torch import Printed, Scope, print_torch
from .schedule import Problem
from .triton_box_options import host_inputs
from .triton_values import Level, user_name

ONE = Const(1.0, F32)
_LOG2E = math.log2(math.e)
# What kernels have of it: the factor of products.
_SCALE = Value("scale", F32)
SCALE: dict[str, Level] = {"scale": "program"}
# A factor of exponents that is not less keeps those of masked pairs infinite.
_LEAST = 1e-30
# How large exponents of weights may be, in powers of two: a million of the largest can be added up, times values up to
# 4e9, and the least times values down to 5e-16 is a normal number.
_MOST = 75.0


@dataclass(frozen=True, slots=True)
class FoldedScores:
    """Exponents are ``unit * core`` in units of log2, and scores' derivatives by scaled products are ``slope``.

    All are functions of the product as it comes, which the score stands for, and of :data:`SCALE`. ``bound``: what no
    exponent exceeds, if scalars tell.
    """

    core: Expr
    unit: Expr
    slope: Expr = ONE
    bound: Expr | None = None

    def results(self) -> dict[str, Expr]:
        """The expressions that a kernel evaluates, by name."""
        return {"score": self.core, "unit": self.unit}

    def emit_bounded(self, out: Emitter, plan: TilePlan) -> str:
        """``bounded``, for the host; returns how it is called, as text."""
        assert self.bound is not None
        known: dict[Expr, Printed] = {}
        for p in plan.variant.scalars:
            x = Param(p.name, p.type)
            known |= {x: Printed(user_name(p.name)), cast(x, F32): Printed(user_name(p.name))}
        call = f"bounded({', '.join(host_inputs(plan))})"
        with out.define(call):
            out.line('"""Whether weights can be added up that are not in units of the largest of their row."""')
            out.line(f"return {print_torch(self.bound, Scope(known, {})).text} <= {_MOST}")
        return call


def folded_scores(scores: Sequence[Expr]) -> FoldedScores | None:
    """What to compute instead of ``scores`` and their slopes; None where it takes no less for each pair."""
    whole, slope = _of_products(scores)
    factor, core = factored(whole)
    folded = gathered(slope)
    if not scores or "s" not in dependence(whole) or cost(core, folded) >= cost(whole, slope):
        return None
    return FoldedScores(simplified(core), _unit(factor), simplified(folded))


def folded_exponents(scores: Sequence[Expr], *, bounds: bool) -> FoldedScores | None:
    """What to compute instead of ``scores`` for their exponents; None where it takes no less for each pair.

    The unit is positive, so that the largest core of a row has the largest exponent. ``bounds``: whether it is of use
    that no score is large.
    """
    whole, _ = _of_products(scores)
    if not scores or "s" not in dependence(whole):
        return None
    bound = magnitude(whole) if bounds else None
    factor, core = with_positive_factor(*factored(whole)) or (ONE, gathered(whole))
    if bound is None and cost(core) >= cost(whole):
        return None
    unit = _unit(factor)
    if not isinstance(unit, Const):
        unit = select(binary("lt", unit, Const(_LEAST, F32)), Const(_LEAST, F32), unit)
    return FoldedScores(simplified(core), unit, bound=None if bound is None else _unit(bound))


def are_bounded(scores: Sequence[Expr], problem: Problem) -> bool:
    """Whether weights may be more than 1, which takes the exponents of bfloat16, and scalars may tell how large."""
    whole, _ = _of_products(scores)
    return problem.dtype == "bf16" and "s" in dependence(whole) and magnitude(whole) is not None


def _unit(factor: Expr) -> Expr:
    return simplified(binary("mul", factor, Const(_LOG2E, F32)))


def _of_products(scores: Sequence[Expr]) -> tuple[Expr, Expr]:
    """The last of ``scores`` and its derivative by the scaled product, as functions of the product."""
    slope: Expr = ONE
    before: Expr = Score()
    for e in scores:
        factor = substitute(partials(e).score, {Score(): before})
        slope = factor if slope == ONE else slope if factor == ONE else binary("mul", slope, factor)
        before = substitute(e, {Score(): before})
    product = binary("mul", Score(), _SCALE)
    return substitute(before, {Score(): product}), substitute(slope, {Score(): product})
