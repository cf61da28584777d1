"""The environment variables that Regard reads. Nothing else reads the environment.

==================== ==========================================================================
``REGARD_CACHE_DIR``  where compiled kernels are kept (default: ``regard`` in the user's cache)
``REGARD_CACHE_SIZE`` most bytes kept there, with a suffix K, M or G (default 2G; 0: no cache)
``REGARD_DEBUG``      comma-separated topics to print to stderr: ir, passes, plan, source, ptx, cache
==================== ==========================================================================

``TRITON_INTERPRET=1``, Triton's own switch, makes CPU tensors run the Triton kernels in its interpreter.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, get_args

from ..ir.errors import ParameterError

Topic = Literal["ir", "passes", "plan", "source", "ptx", "cache"]

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def cache_dir() -> Path:
    """The directory of the disk cache."""
    chosen = os.environ.get("REGARD_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regard"


def cache_size() -> int:
    """The most bytes that the disk cache may hold; 0 switches it off."""
    text = os.environ.get("REGARD_CACHE_SIZE", "2G").strip().upper()
    unit = _UNITS.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdecimal():
        raise ParameterError(
            f"REGARD_CACHE_SIZE is {text!r}",
            hint="write a number of bytes, or one with K, M or G: REGARD_CACHE_SIZE=2G",
        )
    return int(digits) * unit


def debug_topics() -> frozenset[str]:
    """What ``REGARD_DEBUG`` asks to print."""
    topics = frozenset(t.strip() for t in os.environ.get("REGARD_DEBUG", "").split(",") if t.strip())
    if unknown := topics - set(get_args(Topic)):
        raise ParameterError(
            f"REGARD_DEBUG has the unknown topic {sorted(unknown)[0]!r}",
            hint=f"the topics are {', '.join(get_args(Topic))}",
        )
    return topics


def interpret() -> bool:
    """Whether Triton kernels run in Triton's CPU interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def debug(topic: Topic, title: str, text: object) -> None:
    """Prints ``text`` to stderr under ``title`` if ``REGARD_DEBUG`` asks for ``topic``."""
    if topic in debug_topics():
        print(f"[regard {topic}] {title}\n{text}", file=sys.stderr, flush=True)
