from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "src"

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty disk cache for each test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("REGARD_CACHE_DIR", str(path))
    monkeypatch.delenv("REGARD_CACHE_SIZE", raising=False)
    monkeypatch.delenv("REGARD_DEBUG", raising=False)
    monkeypatch.setattr("regard.runtime.cache._warned", set())
    return path


@pytest.fixture
def run_python() -> RunPython:
    """Runs code in a fresh process, with this one's cache; asserts that it succeeds."""

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


class Driver:
    """As much of a Triton driver as compiling and launching needs."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.loads = 0
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448}, load_binary=self.load_binary
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 17

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        assert binary.startswith(b"\x7fELF")
        self.loads += 1
        return 1, 2, 168, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: self.launches.append((metadata.name, *arguments))


@pytest.fixture
def driver() -> Iterator[Driver]:
    pytest.importorskip("triton")
    from triton.runtime import driver as active

    fake = Driver()
    before = active._active
    active.set_active(fake)
    yield fake
    active._active = before


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels compiled by Triton."""
    names: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        assert not cache_hit
        names.append(src.name)

    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    return names
