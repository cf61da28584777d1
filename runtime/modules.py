"""Generated source text becomes a module.

The text is executed as verified, never read again from disk, and never written as bytecode. It is registered
with :mod:`linecache` under its path, because Triton and tracebacks ask for source lines, and the file may have
been evicted or never written.
"""

from __future__ import annotations

import linecache
from types import ModuleType


def load_module(name: str, text: str, path: str) -> ModuleType:
    """Runs ``text`` as a module called ``name`` whose source lies (or would lie) at ``path``."""
    module = ModuleType(name)
    module.__file__ = path
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    # Without dont_inherit the annotations of kernels would become strings of strings, as in this file.
    exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
    return module
