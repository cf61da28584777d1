"""Passes: functions from a variant to an equivalent one, each in the file of its name, and their order."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from ..variant import Variant
from ..verify import verify
from .align_positions import align_positions
from .inline_statics import inline_statics
from .lift_masks import lift_masks
from .narrow_integers import narrow, narrow_integers
from .push_negations import negation, push_negations
from .simplify import simplified, simplify

__all__ = [
    "PIPELINE",
    "after_pipeline",
    "align_positions",
    "inline_statics",
    "lift_masks",
    "narrow",
    "narrow_integers",
    "negation",
    "push_negations",
    "run_pipeline",
    "simplified",
    "simplify",
    "stages",
]

PIPELINE: tuple[Callable[[Variant], Variant], ...] = (
    inline_statics,
    align_positions,
    lift_masks,
    push_negations,
    simplify,
    narrow_integers,
)


def run_pipeline(v: Variant, *, check: bool = False) -> Variant:
    """``v`` after all passes; with ``check`` the verifier runs after each."""
    *_, last = stages(v, check=check).values()
    return last


@lru_cache(maxsize=64)
def after_pipeline(v: Variant) -> Variant:
    """:func:`run_pipeline` for who asks several times: of equal variants, in whatever place written, for the first."""
    return run_pipeline(v)


def stages(v: Variant, *, check: bool = False) -> dict[str, Variant]:
    """``v`` as it is (``"traced"``) and after each pass, by the name of the pass, in order."""
    found = {"traced": v}
    for apply in PIPELINE:
        v = apply(v)
        if check:
            verify(v)
        found[apply.__name__] = v
    return found
