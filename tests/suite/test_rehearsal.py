"""Benchmarks from their command lines to their reports, on the CPU at tiny sizes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import figure, kernels, patterns, published, report, run
from benchmarks.case import Case
from benchmarks.cases import build
from benchmarks.command import Benchmark, rehearsed
from benchmarks.contenders import AbsentError, contender
from benchmarks.suite import GROUPS

from regard.codegen.schedule import Target
from regard.runtime import engine

ROOT = Path(__file__).parents[2]
BENCHMARKS = (run.BENCHMARK, kernels.BENCHMARK, patterns.BENCHMARK, published.BENCHMARK)


def started(name: str, *arguments: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", f"benchmarks.{name}", "--rehearse", "--jobs", "0", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_run_and_what_it_leaves(tmp_path: Path) -> None:
    process = started("kernels", "--only", "causal B(16|2)", "--out", str(tmp_path / "made"))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    results = report.load(tmp_path / "made.json")
    assert [row["title"] for row in results["rows"]] == ["causal B2 H16 S8192 D128", "causal B16 H16 S1024 D64"]
    assert {"device", "torch", "triton", "commit", "date"} <= set(results["environment"])
    for row in results["rows"]:
        found = row["contenders"]["regard"]
        assert {"forward", "backward", "both"} <= set(found) and not found["wrong"]
    assert (tmp_path / "made.md").read_text().startswith("# ")


def test_who_is_told_to_end_reports_what_there_is(tmp_path: Path) -> None:
    process = started("published", "near2d", "distant", "windows2d", "near3d", "--out", str(tmp_path / "made"))
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("[1 of 4"):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "told to end" in rest, output + rest
    results = report.load(tmp_path / "made.json")
    (row, *_) = results["rows"]
    assert row["title"] == "near2d B1 H8 S16384 D128" and 0 <= row["full_tiles"] < 1
    assert "a program of its own" in row["contenders"]["regard-gluon"]["absent"]
    assert len(results["rows"]) + len(results["not_run"]) == 4
    assert "## Not run" in (tmp_path / "made.md").read_text()


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_every_case_can_be_rehearsed(benchmark: Benchmark) -> None:
    """All variants can be built small, and name contenders that there are."""
    tasks = {rehearsed(task).case: task for task in map(benchmark.task_of, benchmark.entries)}
    for small in tasks:
        if not small.variant.startswith("natten"):  # of one size only
            assert build(small, "cpu").regard.explain(*[(1, 2, small.length, 16)] * 3, target="cpu").counts
    names = {name for task in tasks.values() for name in task.names}
    for name in names:
        try:
            contender(name, Case("causal", 1, 2, 2, 64, 16), build(Case("causal", 1, 2, 2, 64, 16), "cpu"), "cpu")
        except (AbsentError, ImportError):
            continue


def test_every_contender_has_a_colour() -> None:
    assert set(figure.STYLES) == {name for names in GROUPS.values() for name in names}


def test_skeletons_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """On sm_90 both programs are made for both directions, whichever would be chosen."""
    pytest.importorskip("triton")
    monkeypatch.setattr(engine, "target_of", lambda device: Target("cuda", 90))
    monkeypatch.setattr(engine, "_fills", lambda *sizes: True)

    def programs(name: str, case: Case) -> dict[Any, bool]:
        made = contender(name, case, build(case, "cpu"), "cpu")
        edited = made.call._engine.edited  # type: ignore[attr-defined]
        assert made.differentiable == ("backward" in edited)
        return {direction: "gluon" in program.source for direction, program in edited.items()}

    case = Case("causal", 1, 2, 2, 512, 64)
    assert programs("regard-triton", case) == {"forward": False, "backward": False}
    assert programs("regard-gluon", case) == {"forward": True, "backward": True}
    assert programs("regard-gluon", Case("causal", 1, 2, 2, 512, 256)) == {"forward": True, "backward": True}
    assert programs("regard-gluon", Case("near2d", 1, 2, 2, 1024, 64)) == {"forward": True, "backward": True}
    with pytest.raises(AbsentError, match="gluon cannot run it"):
        programs("regard-gluon", Case("causal", 1, 2, 2, 512, 80))


def test_tensors_are_not_made_on_a_device_that_is_not_there() -> None:
    """A case names its device; nothing else may assume one."""
    for benchmark in BENCHMARKS:
        task = rehearsed(benchmark.task_of(benchmark.entries[0]))
        made = build(task.case, task.device)
        assert all(x.device == torch.device("cpu") for x in made.regard.binding.values() if hasattr(x, "device"))
