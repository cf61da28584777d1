"""What runs under compute-sanitizer, on the CPU; and how what the tool says is read, by a stand-in for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks import sanitizer


def test_every_call_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = {title: (sanitizer.FEW, *rest) for title, (_, *rest) in sanitizer.CALLS.items()}
    monkeypatch.setattr(sanitizer, "device", "cpu")
    monkeypatch.setattr(sanitizer, "CALLS", few)
    sanitizer.calls()
    assert capsys.readouterr().out.splitlines() == list(few)


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    # Its name is known only where it runs as a program.
    monkeypatch.setattr(sanitizer, "__spec__", sanitizer.__spec__, raising=False)


@pytest.mark.parametrize(
    ("summary", "errors"), [("ERROR SUMMARY: 0 errors", 0), ("RACECHECK SUMMARY: 3 hazards displayed", 3)]
)
def test_errors_are_counted(summary: str, errors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, f"echo 'split keys'; echo '========= {summary}' >&2")
    row = sanitizer.under("memcheck", 60.0)
    assert (row["errors"], row["exit_status"], row["calls"]) == (errors, 0, ["split keys"])


def test_a_tool_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended together with what it runs, and what it said until then is kept."""
    stand_in(tmp_path, monkeypatch, "echo classes; (sleep 600; echo late) & wait")
    row = sanitizer.under("racecheck", 1.0)
    assert row["errors"] is None and row["exit_status"] == -9
    assert row["calls"] == ["classes"] and row["output"] == "classes\n"
