"""Which engine runs a variant: equal variants share one, and those of recent variants are kept."""

from __future__ import annotations

import functools
import threading
from inspect import Signature, signature
from weakref import WeakValueDictionary

from ..codegen.defaults import Direction
from ..codegen.schedule import Target
from ..ir.errors import ParameterError, UnsupportedError
from ..ir.limits import check_size, finite_stack
from ..ir.printer import print_variant
from ..ir.variant import Variant
from . import config
from .bounded import Bounded
from .cache import key_of
from .compile import load
from .engine import Engine

# What tells the text of an attention with an edited source from that of the variant; a comment in the language.
EDITED = ";# edited: "


def key_text(variant: Variant) -> str:
    """The variant's text in one line, as operators carry it: inductor (torch 2.11) breaks lines inside strings."""
    return print_variant(variant).replace("\n", ";")


# Variants whose engines outlive their attentions: a mask that is made again for new data is no new mask.
_KEPT_LIMIT = 64
# Attentions keep their engines alive.
_engines: WeakValueDictionary[str, Engine] = WeakValueDictionary()
_engines_lock = threading.Lock()
_kept = Bounded[tuple[object, ...], tuple[str, Engine]](_KEPT_LIMIT)


def engine_for(variant: Variant) -> tuple[str, Engine]:
    """The text of a variant in one line, and the engine it is found by."""
    # Labels are part of the text, but not of equality; numbers in parameters are equal to others that print otherwise.
    numbers = (repr(variant.scale), *(repr(p.value) for p in variant.statics))
    key = (variant, variant.name, numbers, config.interpret(), config.debug_topics())
    found = _kept.get(key)
    if found is None:
        check_size(variant.mask, *variant.scores)
        with finite_stack(variant):
            text = key_text(variant)
            found = text, engine_of(text, variant)
        _kept.put(key, found)
    return found


def engine_of(text: str, variant: Variant | None = None) -> Engine:
    """The engine for a variant, given as text and, where it is at hand, parsed already."""
    with _engines_lock:
        found = _engines.get(text)
        if found is None and variant is not None:
            found = _engines[text] = Engine(variant)
    return found or _parsed(text)


@functools.lru_cache(256)
def _parsed(text: str) -> Engine:
    """For a graph that came from elsewhere, with its variant as text."""
    from ..ir.parser import parse_variant  # loads lark

    if EDITED in text:
        raise UnsupportedError("the attention with an edited source, which this graph was traced with, is gone")
    return Engine(parse_variant(text.replace(";", "\n"))[0])


def edited_engine(variant: Variant, path: str, source: str) -> tuple[str, Engine]:
    """An engine that runs the module ``source`` in place of a generated one, and the text it is found by."""
    key = key_of("edited", source)
    target = Target("cuda" if "import triton" in source else "cpu")
    edited = load(key, source, path, target)
    direction = _check_edited(variant, path, signature(edited.run))
    engine = Engine(variant)
    engine.edited[direction] = edited
    text = f"{key_text(variant)}{EDITED}{path} {key}"
    with _engines_lock:
        return text, _engines.setdefault(text, engine)


def _check_edited(variant: Variant, path: str, run: Signature) -> Direction:
    """What a module with this ``run`` computes. Raises :class:`ParameterError` if it was made for another attention."""
    direction: Direction = "backward" if "grad_out" in run.parameters else "forward"
    names = [*(p.name for p in variant.buffers), *(p.name for p in variant.scalars)]
    tensors = 7 if direction == "backward" else 3
    try:
        run.bind(*[None] * (tensors + len(names)), scale=None, tiles=None)
    except TypeError as error:
        raise ParameterError(
            f"{path} was made for another attention: {variant.name} has {', '.join(names) or 'no parameters'}, and "
            f"its `run`: {error}",
            hint="edit what attn.source(...) gives of this one",
        ) from None
    return direction
