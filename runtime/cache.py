"""The disk cache: directories of files, named by what they were made from, verified by one digest.

An entry is a directory ``<root>/<key>`` with the files that were stored (generated source, metadata in JSON,
kernel binaries, intermediate forms to read) and ``DIGEST``, a SHA-256 over all their names and contents. It is
written beside its place and renamed, so that other processes see a whole entry or none; it never changes
afterwards. A truncated or altered entry does not match its digest: it is removed, and built again by the caller.
Nothing in an entry is unpickled. Where the directory cannot be used (read-only, full, someone else's), Regard
works without it and warns once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import config

_DIGEST = "DIGEST"
_TEMPORARY = ".tmp-"
_ABANDONED_AFTER = 3600.0  # seconds; a temporary directory this old was left by a killed process


@dataclass(frozen=True, slots=True)
class Entry:
    """The verified contents of one entry, and the directory that holds them."""

    path: Path
    files: Mapping[str, bytes]


def key_of(*parts: str) -> str:
    """The name of the entry made from ``parts`` (SHA-256, in hexadecimal)."""
    return _digest({str(i): part.encode() for i, part in enumerate(parts)})


def load(key: str) -> Entry | None:
    """The entry ``key``, or None if there is none (or was one that is damaged)."""
    root = _root()
    if root is None:
        return None
    path = root / key
    try:
        files = {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}
    except OSError:
        return None
    if files.pop(_DIGEST, b"").decode("ascii", "replace") != _digest(files):
        config.debug("cache", "damaged entry removed", path)
        _remove(path)
        return None
    with suppress(OSError):  # a read-only cache is still a cache
        os.utime(path)  # the time of last use, for `_evict`
    config.debug("cache", "hit", path)
    return Entry(path, files)


def store(key: str, files: Mapping[str, bytes]) -> Entry | None:
    """Stores ``files`` as the entry ``key``; None where the cache cannot be written.

    If another process stored the same key in the meantime, its entry stays and is as good.
    """
    root = _root()
    if root is None:
        return None
    temporary: str | None = None
    try:
        temporary = tempfile.mkdtemp(prefix=_TEMPORARY, dir=root)
        for name, content in {**files, _DIGEST: _digest(files).encode()}.items():
            Path(temporary, name).write_bytes(content)
        os.rename(temporary, root / key)
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            _warn(f"cannot write {root}: {error.strerror}")
            return None
    else:
        config.debug("cache", "stored", root / key)
    _evict(root, keep=key)
    return Entry(root / key, files)


def discard(key: str) -> None:
    """Removes the entry ``key``, if there is one: what it was made from gives something else now."""
    root = _root()
    if root is not None and (root / key).exists():
        _remove(root / key)


def _digest(files: Mapping[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()


def _root() -> Path | None:
    """The cache directory, created if need be; None where it must not or cannot be used."""
    if config.cache_size() == 0:
        return None
    root = config.cache_dir()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
    except OSError as error:
        _warn(f"cannot create {root}: {error.strerror}")
        return None
    if found.st_uid != os.geteuid():
        _warn(f"{root} belongs to another user")
        return None
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _warn(f"others may write to {root}; take that away with: chmod go-w {root}")
        return None
    return root


_warned: set[str] = set()


def _warn(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"Regard works without its disk cache, so kernels are compiled again in each process: {reason}. "
            "REGARD_CACHE_DIR names another directory.",
            RuntimeWarning,
            stacklevel=2,
        )


def _remove(path: Path) -> None:
    """Takes an entry away in one step (others see it whole or not at all), then deletes its files."""
    with suppress(OSError):  # another process may be faster, or the cache read-only
        doomed = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=path.parent))
        try:
            os.rename(path, doomed / path.name)
        finally:
            shutil.rmtree(doomed, ignore_errors=True)


def _evict(root: Path, keep: str) -> None:
    """Removes the least recently used entries until the rest fits, and what killed processes left."""
    entries: list[tuple[float, int, Path]] = []
    try:
        for path in root.iterdir():
            used = path.stat().st_mtime
            if not path.name.startswith(_TEMPORARY):
                entries.append((used, sum(f.stat().st_size for f in path.iterdir()), path))
            elif time.time() - used > _ABANDONED_AFTER:
                shutil.rmtree(path, ignore_errors=True)
        excess = sum(size for _, size, _ in entries) - config.cache_size()
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if path.name != keep:
                config.debug("cache", "evicted", path)
                _remove(path)
                excess -= size
    except OSError as error:
        # Other processes evict too; what vanished under us needs no eviction.
        config.debug("cache", "eviction stopped early", error)
