"""What compiled code depends on besides its input: versions of the tools, and Regard's own sources."""

from __future__ import annotations

import functools
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@functools.cache
def versions() -> str:
    """One line for cache keys, such as ``cpython-312, torch 2.13.0, triton 3.7.1, regard 1f0c…``.

    Python counts because Triton's host stubs, which are kept with the binaries, are extension modules.
    """
    packages = [f"{name} {_version(name)}" for name in ("torch", "triton")]
    return ", ".join([str(sys.implementation.cache_tag), *packages, f"regard {_own_sources()}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _own_sources() -> str:
    """Digest of everything that decides what is generated: while Regard is worked on, its version stays."""
    home = Path(__file__).resolve().parents[1]
    whole = hashlib.sha256()
    for folder in ("ir", "codegen"):
        base = home / folder
        for path in sorted(p for p in base.rglob("*") if p.suffix in (".py", ".lark")):
            whole.update(path.relative_to(home).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:16]
