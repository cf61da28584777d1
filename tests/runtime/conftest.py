from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from regard.codegen.schedule import Target
from replays import TensorMap

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
def shared_cache(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One disk cache for all tests of replayed calls, instead of an empty one for each."""
    monkeypatch.setenv("REGARD_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "replays"))


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


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
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=self.load_binary,
            unload_module=lambda module: None,  # from Triton 3.8 on, when a kernel is collected
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
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    pytest.importorskip("triton")
    from triton.compiler import CompiledKernel
    from triton.runtime import driver as active

    fake, made, make = Driver(), list[Any](), CompiledKernel.__init__

    def noted(kernel: Any, *arguments: Any) -> None:
        made.append(kernel)
        make(kernel, *arguments)

    monkeypatch.setattr(CompiledKernel, "__init__", noted)
    before = active._active
    active.set_active(fake)
    yield fake
    active._active = before
    # From Triton 3.8 on a loaded kernel that is collected asks for a driver. Where there is none that raises, at any
    # place: while Python 3.11 parses, it makes the parser fail.
    for kernel in made:
        kernel.module = None


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


@pytest.fixture
def launches(driver: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Arguments of the C function, for calls on the CPU that take it for an H100."""
    from triton.backends.nvidia.driver import CudaLauncher, wrap_handle_tensordesc

    from regard.runtime import compile, engine, engines
    from regard.runtime.bounded import Bounded

    noted: list[tuple[Any, ...]] = []

    class CFunction:
        def __call__(self, *arguments: Any) -> None:
            *front, last = arguments
            passed = (*front, *last) if isinstance(last, list | tuple) else arguments
            noted.append(tuple(x.data_ptr() if hasattr(x, "data_ptr") else x for x in passed))
            driver.launched(noted[-1])

    def encode(*arguments: Any) -> TensorMap:
        driver.encoded += 1
        return TensorMap(tuple(x) if isinstance(x, list | tuple) else x for x in arguments)

    def launcher(source: Any, metadata: Any) -> Any:
        # Without the constructor, which compiles C in Triton 3.6 and takes the signature apart for it from 3.7 on.
        made = object.__new__(CudaLauncher)
        made.launch = wrap_handle_tensordesc(CFunction(), dict(source.signature), metadata.tensordesc_meta)
        made.num_ctas, made.launch_cooperative_grid, made.launch_pdl = 1, False, False
        made.global_scratch_size = made.profile_scratch_size = 0
        made.global_scratch_align = made.profile_scratch_align = 1
        made.arg_annotations, made.kernel_signature, made.gsan_enabled = "annotations", b"signature", False
        return made

    monkeypatch.setattr(compile, "_programs", {})
    monkeypatch.setattr(engines, "_engines", weakref.WeakValueDictionary())
    monkeypatch.setattr(engines, "_kept", Bounded(64))
    driver.encoded, driver.launched = 0, lambda launch: None
    driver.launcher_cls = launcher
    driver.utils.fill_tma_descriptor = driver.utils.fill_tma_descriptor_tiled = encode
    monkeypatch.setattr(engine, "target_of", lambda device: Target("cuda", 90))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return noted


@pytest.fixture(params=["direct", "ordinary"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """To the C function, or to the launcher of a version of Triton that is not known."""
    from regard.runtime import direct

    if request.param == "ordinary":
        monkeypatch.setattr(direct, "_KNOWN", ())
    return request.param
