"""Scores of products in as few operations as there are: what is the same for all pairs is multiplied once a row.

Without that a product is scaled, the scores are computed, and their results are multiplied by log2(e) beside what is
subtracted from them. Reassociating rounds differently, which is nothing beside products of 16-bit numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..ir.build import binary
from ..ir.dependence import dependence
from ..ir.differentiate import partials
from ..ir.factors import cost, factored, gathered, with_positive_factor
from ..ir.nodes import Const, Expr, Score, Value
from ..ir.passes.simplify import simplified
from ..ir.traverse import substitute
from ..ir.types import F32
from .triton_values import Level

ONE, _LOG2E = Const(1.0, F32), Const(math.log2(math.e), F32)
# What kernels have of it: the factor of products.
_SCALE = Value("scale", F32)
SCALE: dict[str, Level] = {"scale": "program"}


@dataclass(frozen=True, slots=True)
class FoldedScores:
    """Exponents are ``unit * core`` in units of log2, and scores' derivatives by scaled products are ``slope``.

    All are functions of the product as it comes, which the score stands for, and of :data:`SCALE`.
    """

    core: Expr
    unit: Expr
    slope: Expr

    def results(self) -> dict[str, Expr]:
        """The expressions that a forward kernel evaluates, by name."""
        return {"score": self.core, "unit": self.unit}


def folded_scores(scores: tuple[Expr, ...], *, slopes: bool) -> FoldedScores | None:
    """What to compute instead of ``scores``; None where that takes no fewer multiplications and divisions.

    Without ``slopes`` the unit is not negative, so that the largest core of a row has the largest exponent.
    """
    product = binary("mul", Score(), _SCALE)
    slope: Expr = ONE
    before: Expr = Score()
    for e in scores:
        factor = substitute(partials(e).score, {Score(): before})
        slope = factor if slope == ONE else slope if factor == ONE else binary("mul", slope, factor)
        before = substitute(e, {Score(): before})
    whole, slope = (substitute(e, {Score(): product}) for e in (before, slope))
    if "s" not in dependence(whole):
        return None
    factor, core = factored(whole)
    if not slopes:
        slope = ONE
        factor, core = with_positive_factor(factor, core) or (ONE, gathered(whole))
    folded = gathered(slope)
    if cost(core, folded) >= cost(whole, slope):
        return None
    return FoldedScores(simplified(core), simplified(binary("mul", factor, _LOG2E)), simplified(folded))
