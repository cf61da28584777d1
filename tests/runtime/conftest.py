from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
