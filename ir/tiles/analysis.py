"""The tile plan of a variant: what any tile of the attention matrix may and must hold."""

from __future__ import annotations

from functools import lru_cache

from ..build import binary, const
from ..nodes import Expr, Index, Load
from ..passes.expand_coordinates import expand_coordinates, expanded
from ..symbolic import at_least
from ..traverse import substitute, walk
from ..types import I32
from ..variant import Variant
from .boxes import find_boxes
from .classify import classify, decides, positions
from .formula import Atom, Formula, atoms, to_formula
from .overflow import with_bounded_loads
from .plan import BoxTerm, Fit, Method, TilePlan
from .proofs import is_coarse, prove
from .ranges import is_solved, must_attend, tile_ranges
from .steps import steps


def make_plan(v: Variant, fit: Fit = "any") -> TilePlan:
    """The tile structure of ``v``, which has been through the pipeline (statics inlined, rows aligned).

    Takes milliseconds and no values: the plan holds for all parameters, tile sizes and lengths; its boxes for lengths
    of which ``fit`` is true.
    """
    boxes = find_boxes(v.mask, fit)
    v = expand_coordinates(v)
    mask = with_bounded_loads(v.mask)
    formula = to_formula(mask)
    return TilePlan(
        variant=v,
        method=lambda: _method(formula),
        keys=lambda: tile_ranges(formula, "q", "kv"),
        queries=lambda: tile_ranges(formula, "kv", "q"),
        classification=lambda: classify(mask) if _method(formula) == "classified" else None,
        proofs=lambda: tuple(prove(a) for a in atoms(formula)),
        rows_never_empty=lambda: _rows_never_empty(formula)[0],
        rows_reason=lambda: _rows_never_empty(formula)[1],
        boxes=boxes,
        boxes_decide_more=_decide_more(boxes, formula),
    )


def _decide_more(boxes: tuple[BoxTerm, ...], formula: Formula) -> bool:
    proofs = [p for term in boxes for p in term.proofs if p.verdict != "partial"]
    decided = {with_bounded_loads(expanded(p.atom)) for p in proofs}
    return any(a in decided and not is_solved(Atom(a)) for a in reversed(atoms(formula)))


@lru_cache(maxsize=64)
def _method(formula: Formula) -> Method:
    """``exact`` and ``classified`` only where an atom without a closed form makes them worth their price."""
    unsolved = [a for a in atoms(formula) if not is_solved(Atom(a))]
    stepwise = [a for a in unsolved if steps(a)]
    others = [a for a in unsolved if a not in stepwise]
    read_by = {a: {positions(x) for x in walk(a) if isinstance(x, Load)} - {"none"} for a in others}
    of_data = [a for a in others if read_by[a]]
    if any("both" in read_by[a] for a in of_data) or (of_data and not stepwise and not any(map(decides, of_data))):
        return "exact"
    return "classified" if stepwise or of_data or any(is_coarse(a) for a in unsolved) else "closed"


@lru_cache(maxsize=64)
def _rows_never_empty(formula: Formula) -> tuple[bool, str]:
    """Whether key 0 is allowed for every query: then no row is empty, unless there are no keys at all."""
    length = Index("kv_len", I32)
    table: dict[Expr, Expr] = {length: binary("add", length, const(1))}  # at least one key
    for interval in must_attend(formula, "q", "kv"):
        if at_least(const(0), substitute(interval.start, table)) and at_least(
            substitute(interval.stop, table), const(1)
        ):
            return True, "every query may attend to key 0 (there is one if kv_len > 0)"
    return False, "no key is proved to be allowed for every query"
