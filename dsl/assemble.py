"""From parts to a variant and the values of its parameters."""

from __future__ import annotations

import math
import numbers

import torch

from ..ir import build
from ..ir.errors import ParameterError
from ..ir.grids import check_grids
from ..ir.variant import Align, Normalizer, Softmax, Variant
from . import stock
from .binding import Binding
from .callsite import caller
from .merge import merge
from .part import MaskFunction, MaskPart, ScoreFunction, ScorePart

Part = MaskFunction | MaskPart | ScoreFunction | ScorePart | Normalizer


def softmax() -> Normalizer:
    """Rows are normalised by softmax over the allowed keys; this is the default."""
    return Softmax()


def assemble(
    *parts: Part, name: str | None = None, align: Align = "start", scale: float | None = None
) -> tuple[Variant, Binding]:
    """ANDs the masks among ``parts``, applies the scores in order, and takes at most one normaliser.

    ``align``: "start" lets query 0 meet key 0, "end" the last query the last key. ``scale`` multiplies the scores
    before anything else sees them; None means D**-0.5. ``name`` is a label, made of the names of the parts
    by default. Raises :class:`ParameterError` for anything that is no part, a second normaliser, open
    parameters or grids that disagree, and bad options.
    """
    if align not in ("start", "end"):
        raise ParameterError(f'align is "start" or "end", got {align!r}', location=caller())
    if scale is not None and not (isinstance(scale, numbers.Real) and math.isfinite(scale)):
        raise ParameterError(f"scale is a finite number or None, got {scale!r}", location=caller())
    if name is not None and not name.isidentifier():
        raise ParameterError(f"a name is an identifier, got {name!r}", location=caller())
    built = [part() if isinstance(part, MaskFunction | ScoreFunction) else part for part in parts]
    normalizers = []
    applied: list[MaskPart | ScorePart] = []
    for position, part in enumerate(built):
        match part:
            case MaskPart() | ScorePart():
                applied.append(part)
            case Softmax():
                normalizers.append(part)
            case _:
                raise ParameterError(
                    f"argument {position} of attention is no part: {getattr(part, '__name__', type(part).__name__)}",
                    location=caller(),
                    hint=_instead(part),
                )
    if len(normalizers) > 1:
        raise ParameterError("an attention has one normaliser", location=caller(), hint="drop the others")
    expressions, parameters, values = merge([part.traced for part in applied])
    both = list(zip(applied, expressions, strict=True))
    variant = Variant(
        mask=build.conjunction([e for part, e in both if isinstance(part, MaskPart)]),
        scores=tuple(e for part, e in both if isinstance(part, ScorePart)),
        parameters=parameters,
        normalizer=normalizers[0] if normalizers else Softmax(),
        align=align,
        scale=None if scale is None else float(scale),
        name=name or "_".join(dict.fromkeys(part.name for part in applied)) or "attention",
    )
    check_grids(variant)
    return variant, Binding(values)


def _instead(part: object) -> str:
    """What to write for what is no part."""
    name = getattr(part, "__name__", "")
    if getattr(stock, name, None) is part:
        return f"call it: rg.{name}(…)"
    match part:
        case torch.Tensor():
            return (
                "a mask is a function: rg.key_mask(visible) takes booleans by key, rg.tiles(blocks) by block, and "
                "@rg.mask def f(q, kv, table): return table[q, kv] any tensor"
            )
        case list() | tuple():
            return "give the parts one by one: rg.attention(*parts)"
        case _ if callable(part):
            return "write rg.mask(f) or rg.score(f), or for FlexAttention's functions rg.mask_mod(f), rg.score_mod(f)"
        case _:
            return "decorate functions with @rg.mask or @rg.score; call stock parts, e.g. rg.softcap(30.0)"
