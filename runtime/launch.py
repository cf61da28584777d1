"""Launching Triton kernels: compiled once per module and signature, kept on disk, called with little overhead.

A generated module calls ``launch(kernel, grid, *args, **options)``, by itself ``kernel[grid](*args, **options)``.
The runtime puts a :class:`Launcher` in its place, which differs in two ways. It finds binaries in Regard's disk
cache without asking Triton's compiler, whose own key hashes hundreds of megabytes in every process; and from
the second call on it goes straight to the driver.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.cache import CacheManager, FileCacheManager

from ..codegen.schedule import COMPILER_OPTIONS
from ..ir.errors import InternalError
from . import cache, config, toolchain


class Ready(NamedTuple):
    """A kernel that is loaded on one device, and what each of its launches needs."""

    kernel: CompiledKernel
    run: Any
    function: int
    metadata: object
    trailing: tuple[object, ...]


class Launch(NamedTuple):
    """One launch that took place."""

    ready: Ready
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


class Launcher:
    """``launch`` of one generated module; ``module_key`` names its source."""

    def __init__(self, module_key: str) -> None:
        self._module_key = module_key
        self._ready: dict[tuple[object, ...], Ready] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    @contextmanager
    def recording(self) -> Iterator[list[Launch]]:
        """Collects this thread's launches."""
        launches: list[Launch] = []
        self._thread.launches = launches
        try:
            yield launches
        finally:
            self._thread.launches = None

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: object) -> None:
        """Launches ``kernel`` on the current device and stream."""
        active = driver.active
        device = active.get_current_device()
        # All that Triton specialises on: dtype and 16-byte alignment of tensors, width of integers, constants.
        signature: list[object] = [kernel.__name__, device]
        for a in args:
            if type(a) is int:
                signature.append(-(2**31) <= a < 2**31)
            elif isinstance(a, Tensor):
                signature.append(a.dtype if a.data_ptr() % 16 == 0 else (a.dtype,))
            elif type(a) is float:
                signature.append(float)
            else:  # a constant, or a tensor descriptor, whose base is aligned by construction
                signature.append((a.base.dtype, *a.block_shape) if hasattr(a, "block_shape") else a)
        signature += options.values()
        key = tuple(signature)
        ready = self._ready.get(key)
        if ready is None:
            with self._lock:
                ready = self._ready.get(key)
                if ready is None:
                    ready = self._ready[key] = _prepare(kernel, self._module_key, device, args, options)
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        described = None
        if getattr(enter, "calls", enter):
            described = ready.kernel.launch_metadata(grid, active.get_current_stream(device), *args, *ready.trailing)
        else:
            enter = None
        x, y, z = (*grid, 1, 1)[:3]
        launches = getattr(self._thread, "launches", None)
        if launches is not None:
            launches.append(Launch(ready, (x, y, z), args))
        ready.run(
            x, y, z, active.get_current_stream(device), ready.function, ready.metadata, described,
            enter, leave if getattr(leave, "calls", leave) else None, *args, *ready.trailing,
        )  # fmt: skip


def _prepare(kernel: Any, module_key: str, device: int, args: tuple[object, ...], options: dict[str, object]) -> Ready:
    """Compiles ``kernel`` for these arguments, or takes it from the disk cache, and loads it."""
    # The same steps as triton.runtime.jit.JITFunction.run up to its compilation.
    _, _, target, backend, binder = kernel.device_caches[device]
    keywords = {
        **COMPILER_OPTIONS,
        **options,
        "debug": kernel.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }
    bound, specialization, rest = binder(*args, **keywords)
    parsed, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialization, rest)
    source = kernel.ASTSource(kernel, signature, constants, attributes)
    if not all(p.is_constexpr for p in kernel.params[len(args) :]):
        raise InternalError(f"{kernel.__name__} is launched with a run-time argument by keyword")
    key = cache.key_of(
        "kernel", module_key, kernel.__name__, repr(signature), repr(constants), repr(attributes), parsed.hash(),
        repr(target), backend.hash(), toolchain.versions(),
    )  # fmt: skip
    compiled = _restore(key, source) or _compile(key, kernel, source, target, parsed)
    if "ptx" in compiled.asm:
        config.debug("ptx", kernel.__name__, compiled.asm["ptx"])
    trailing = tuple(bound.values())[len(args) :]
    return Ready(compiled, compiled.run, compiled.function, compiled.packed_metadata, trailing)


def _restore(key: str, source: Any) -> CompiledKernel | None:
    entry = cache.load(key)
    if entry is None:
        return None
    group = {name: str(entry.path / name) for name in entry.files if not name.endswith(".so")}
    metadata = next(content for name, content in entry.files.items() if name.endswith(".json"))
    try:
        with _files_in(entry.path, writable=False):
            compiled = CompiledKernel(source, group, json.loads(metadata)["hash"])
            compiled._init_handles()
    except FileNotFoundError:
        return None  # evicted by another process since it was verified
    return compiled


def _compile(key: str, kernel: Any, source: Any, target: Any, options: Any) -> CompiledKernel:
    with tempfile.TemporaryDirectory(prefix="regard-") as directory:
        with _files_in(Path(directory)):
            compiled: CompiledKernel = kernel.compile(source, target=target, options=options.__dict__)
            compiled._init_handles()
        cache.store(key, {name: Path(directory, name).read_bytes() for name in os.listdir(directory)})
    return compiled


@contextmanager
def _files_in(directory: Path, writable: bool = True) -> Iterator[None]:
    """Within it, what Triton compiles in this thread (kernels, host stubs) is taken from ``directory``.

    What is not there is put there too, or, unless it is ``writable``, where Triton would put it by itself.
    """
    outer = knobs.cache.manager_class or FileCacheManager
    thread = threading.get_ident()

    def manager(key: str, override: bool = False, dump: bool = False) -> CacheManager:
        usual = functools.partial(outer, key, override=override, dump=dump)
        if override or dump or threading.get_ident() != thread:
            chosen: CacheManager = usual()
            return chosen
        return _Files(directory, None if writable else usual)

    with knobs.cache.scope():
        knobs.cache.manager_class = manager
        yield


class _Files(CacheManager):  # type: ignore[misc]
    """Triton's view of one directory; what it writes goes to what ``writer`` makes, if there is one."""

    def __init__(self, directory: Path, writer: Callable[[], CacheManager] | None) -> None:
        self._directory, self._writer = directory, writer

    def get_file(self, filename: str) -> str | None:
        path = self._directory / filename
        return str(path) if path.exists() else None

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:
        if self._writer is not None:
            written: str = self._writer().put(data, filename, binary)
            return written
        path = self._directory / filename
        path.write_bytes(data if isinstance(data, bytes) else str(data).encode())
        return str(path)

    def get_group(self, filename: str) -> dict[str, str] | None:
        return None

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """Nothing to do: every file in the directory belongs to the group."""
