"""Which engine runs a variant: equal variants share one, and those of recent variants are kept."""

from __future__ import annotations

import functools
import threading
from inspect import signature
from weakref import WeakValueDictionary

from ..codegen.schedule import Target
from ..ir.errors import UnsupportedError
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
    engine = Engine(variant)
    engine.edited["backward" if "grad_out" in signature(edited.run).parameters else "forward"] = edited
    text = f"{key_text(variant)}{EDITED}{path} {key}"
    with _engines_lock:
        return text, _engines.setdefault(text, engine)
