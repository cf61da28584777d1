"""The launcher without a GPU: the driver compiles for sm_90, loads nothing and notes what it is told to launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import regard as rg
from regard.codegen.schedule import Problem, Target
from regard.runtime import cache
from regard.runtime.compile import Program, Request, generate, load
from regard.runtime.modules import load_module

triton = pytest.importorskip("triton")


def program() -> Program:
    """A fresh copy of the causal forward program for head size 16 in float16, as a new process would load it."""
    request = Request(rg.attention(rg.causal()).variant, Problem("f16", 16, 16), Target("cuda", 90), "forward")
    return load(request.key, generate(request)[0].text, f"<{request.key}>", request.target)


def inputs(length: int = 64, batch: int = 1) -> list[torch.Tensor]:
    return [torch.zeros(batch, 2, length, 16, dtype=torch.float16) for _ in range(3)]


def test_lengths_and_heads_share_a_binary(driver: Any, compiled: list[str]) -> None:
    run = program().run
    # Few queries, few tiles (their keys are split over programs), many tiles: each has its way to be launched.
    for length, batch in ((1, 1), (257, 3), (2000, 64)):
        run(*inputs(length, batch))
    count, launched = len(compiled), len(driver.launches)
    assert count == driver.loads <= 4
    for length, batch in ((3, 2), (16, 1), (64, 1), (300, 2), (3000, 64), (2047, 63)):
        run(*inputs(length, batch))
    assert len(compiled) == driver.loads == count
    assert len(driver.launches) >= launched + 6


def test_a_new_process_takes_binaries_from_the_cache(
    driver: Any, compiled: list[str], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program().run(*inputs())
    first, count = driver.launches[:], len(compiled)
    monkeypatch.setattr("triton.compiler.compiler.get_cache_key", None)  # hashes all of Triton, so must not be called
    program().run(*inputs())
    assert len(compiled) == count
    assert [launch[0] for launch in driver.launches[len(first) :]] == [launch[0] for launch in first]
    entries = [cache.load(path.name) for path in cache_dir.iterdir()]
    assert all(entry is not None for entry in entries)
    assert any(name.endswith(".cubin") for entry in entries if entry for name in entry.files)


def test_a_damaged_binary_is_compiled_again(driver: Any, compiled: list[str], cache_dir: Path) -> None:
    program().run(*inputs())
    count = len(compiled)
    for binary in cache_dir.rglob("*.cubin"):
        binary.write_bytes(binary.read_bytes()[:-1])
    program().run(*inputs())
    assert len(compiled) == 2 * count


def test_other_threads_keep_their_cache(driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from triton.runtime.cache import FileCacheManager, get_cache_manager

    from regard.runtime.launch import _files_in

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "triton"))
    seen: list[object] = []
    with _files_in(tmp_path):
        thread = threading.Thread(target=lambda: seen.append(get_cache_manager("00")))
        thread.start()
        thread.join()
        seen.append(get_cache_manager("00"))
    assert isinstance(seen[0], FileCacheManager) and not isinstance(seen[1], FileCacheManager)
    assert isinstance(get_cache_manager("00"), FileCacheManager)


@pytest.mark.parametrize("who", ["runtime", "module", "inspection"])
def test_fusing_products_with_sums_does_not_depend_on_the_release(
    who: str, driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fused: list[bool] = []
    monkeypatch.setattr(triton.knobs.language, "default_fp_fusion", False)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "triton"))
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda *, metadata, **_: fused.append(metadata["enable_fp_fusion"])
    )
    made = program()
    match who:
        case "runtime":
            made.run(*inputs())
        case "module":
            load_module("standing_alone", made.source, str(tmp_path / "alone.py")).run(*inputs())
        case _:
            rg.attention(rg.causal()).ptx(target="sm_90", head_dim=16, dtype="f16")
    assert fused and all(fused)


def test_launches_go_to_the_current_stream(driver: Any, compiled: list[str]) -> None:
    program().run(*inputs())
    for _, x, y, z, stream, function, *_ in driver.launches:
        assert x > 0 and (y, z, stream, function) == (1, 1, 17, 2)
