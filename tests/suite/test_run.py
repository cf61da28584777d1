"""The suite from start to end, with jobs that only pretend to measure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import report, run, session
from benchmarks.case import Task
from benchmarks.command import main
from benchmarks.suite import GROUPS, SUITE, Entry, shaped

from suite import benchmark_jobs as jobs

ENVIRONMENT = {"device": "None", "torch": "2", "triton": "3", "commit": "c0ffee", "date": "2026-01-01"}
FACTS: dict[str, Any] = {
    "environment": ENVIRONMENT,
    "matmul_tflops": 600.0,
    "l2": "overwritten",
}
ENTRIES = [Entry(shaped(variant, 8192, 128)) for variant in ("causal", "document", "prefix", "full")]


def measured(
    out: Path,
    entries: list[Entry],
    seconds: float = 600,
    job: Callable[..., Any] = jobs.row,
    compilers: int = 0,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Runs entries, and returns what is then on the disk."""
    made = session.Session(session.opened(resume, FACTS), 10.0, lambda results: report.save(results, out))
    # The time begins when the process runs.
    made.worker.run(jobs.process_id, timeout=60)
    made.deadline = time.monotonic() + seconds
    session.run_suite(entries, made, job, jobs.nothing, compilers, lambda entry: Task(entry.case, GROUPS[entry.group]))
    return report.load(out.with_name(f"{out.name}.json"))


@pytest.mark.parametrize("compilers", [0, 2])
def test_failures_stay_where_they_are(tmp_path: Path, compilers: int) -> None:
    """One contender crashes its process on the second case, the third raises; all others have figures."""
    results = measured(tmp_path / "run", ENTRIES, compilers=compilers)
    causal, document, prefix, full = results["rows"]
    assert [row["title"] for row in results["rows"]] == [entry.title for entry in ENTRIES]
    assert results["not_run"] == []
    assert document["contenders"]["flex"] == {"error": "the process ended with signal 6"}
    assert prefix["error"] == "RuntimeError: no memory for the inputs"
    for row in (causal, document, full):
        assert all("forward" in found for name, found in row["contenders"].items() if (name, row) != ("flex", document))


def test_time_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that is stopped has the first cases and lists the others."""
    entries = list(SUITE[:200])
    results = measured(tmp_path / "run", entries, seconds=2, job=jobs.slow_row)
    assert 0 < len(results["rows"]) < 200
    titles = [row["title"] for row in results["rows"]] + results["not_run"]
    assert titles == [entry.title for entry in entries]
    assert "[1 of 200, " in capsys.readouterr().out


def test_hanging_cases_end_with_the_time(tmp_path: Path) -> None:
    results = measured(tmp_path / "run", ENTRIES, seconds=2, job=jobs.hanging_row)
    assert results["rows"] == [] and results["not_run"] == [entry.title for entry in ENTRIES]


def test_hanging_contenders_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CASE_SECONDS", 6.0)
    results = measured(tmp_path / "run", ENTRIES[:1], job=jobs.hanging_row)
    found = results["rows"][0]["contenders"]
    assert found["flex"] == {"error": "not finished after 6 s"}
    assert "forward" in found["regard"]


def test_resume(tmp_path: Path) -> None:
    """Rows that are there stay as they are; what lacks is measured."""
    measured(tmp_path / "first", ENTRIES[:2])
    path = tmp_path / "first.json"
    kept = json.loads(path.read_text())
    kept["rows"][0]["seconds"] = 77.0
    path.write_text(json.dumps(kept))
    results = measured(tmp_path / "second", ENTRIES, resume=path)
    assert [row["title"] for row in results["rows"]] == [entry.title for entry in ENTRIES]
    assert results["rows"][0]["seconds"] == 77.0


@pytest.mark.parametrize("text, message", [
    ("{", "holds no results"),
    ('{"rows": []}', "holds no results: keys are missing"),
    (json.dumps(FACTS | {"environment": {**ENVIRONMENT, "commit": "other"}, "rows": [], "not_run": []}),
     "measured with commit other, this is c0ffee"),
    (json.dumps(FACTS | {"l2": "as left", "rows": [], "not_run": []}), "measured with the L2 cache as left"),
])  # fmt: skip
def test_resume_refuses(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        session.opened(path, FACTS)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(run.BENCHMARK, ["--list", "--only", "^(causal|full) .*S8192 D128$"])
    assert capsys.readouterr().out.splitlines() == [
        "causal B2 H16 S8192 D128", "full B2 H16 S8192 D128", "causal B2 H16:2 S8192 D128", "full B2 H16:2 S8192 D128",
    ]  # fmt: skip


def test_no_case_matches() -> None:
    with pytest.raises(SystemExit, match="no case matches 'nonesuch'; --list shows them"):
        main(run.BENCHMARK, ["--only", "nonesuch"])
