"""Regard: an attention compiler.

Write which pairs may attend and how a score changes in a few lines of Python; Regard proves which tiles
are empty, full or partial, prints a readable kernel for exactly that structure, compiles and caches it,
and runs it forward and backward::

    import regard as rg

    @rg.mask
    def sliding_window(q, kv, window):
        return (q >= kv) & (q - kv < window)

    attn = rg.attention(sliding_window(window=1024), rg.softcap(30.0))
    out = attn(query, key, value)

Names are loaded when first used: importing this package loads neither torch, triton, sympy nor lark, so
that ``regard.ir`` works without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# Each name "as" itself: type checkers take that for an export.
if TYPE_CHECKING:
    from .dsl import *
    from .ir.errors import (
        ArgumentError as ArgumentError,
        IndexRangeError as IndexRangeError,
        InternalError as InternalError,
        ParameterError as ParameterError,
        RegardError as RegardError,
        TextError as TextError,
        TraceError as TraceError,
        TypeMismatchError as TypeMismatchError,
        UnsupportedError as UnsupportedError,
    )
    from .runtime.attention import (
        Attention as Attention,
        attention as attention,
        load_source as load_source,
        parse as parse,
    )

__version__ = "0.1.0"

# Everything that is not here is one of the front end's names (`regard.dsl.__all__`).
_HOMES = {
    "Attention": ".runtime.attention",
    "attention": ".runtime.attention",
    "load_source": ".runtime.attention",
    "parse": ".runtime.attention",
    "ArgumentError": ".ir.errors",
    "IndexRangeError": ".ir.errors",
    "InternalError": ".ir.errors",
    "ParameterError": ".ir.errors",
    "RegardError": ".ir.errors",
    "TextError": ".ir.errors",
    "TraceError": ".ir.errors",
    "TypeMismatchError": ".ir.errors",
    "UnsupportedError": ".ir.errors",
}


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    home = importlib.import_module(_HOMES.get(name, ".dsl"), __name__)
    if name not in _HOMES and name not in home.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    front = importlib.import_module(".dsl", __name__)
    return sorted({*globals(), *_HOMES, *front.__all__})
