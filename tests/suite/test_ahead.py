"""Compiling ahead: which cases are ready, who took too long, and that all stands still while times are taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import ahead
from benchmarks.ahead import Ahead, Compiled
from benchmarks.case import Case, Task
from benchmarks.worker import Worker

from suite import benchmark_jobs as jobs


def task(variant: str, *names: str) -> Task:
    return Task(Case(variant, 1, 2, 2, 64, 16), names)


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition says when it holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := condition()) is not None and found is not False:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def test_slow_contenders_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first case waits for its "flex", up to the limit; the second is ready before."""
    monkeypatch.setattr(ahead, "COMPILE_SECONDS", 6.0)
    made = Ahead([task("document", "regard", "flex", "fa3"), task("causal", "regard", "flex")], jobs.compiled, 2)
    try:
        at, compiled = until(made.take)
        assert at == 1 and set(compiled.seconds) == {"regard", "flex"} and compiled.excluded == {}
        at, compiled = until(made.take)
        assert at == 0 and compiled.excluded == {"flex": "not compiled after 6 s"}
        assert set(compiled.seconds) == {"regard", "flex"} and compiled.seconds["flex"] >= 6
        assert made.take() is None
    finally:
        made.stop()


def test_what_is_not_compiled_comes_in_its_order() -> None:
    made = Ahead([task("causal", "regard"), None, task("full", "fa3")], jobs.compiled, 1)
    try:
        # Nothing of the last is compiled; the one in the middle waits for the first.
        assert made.take() == (2, Compiled())
        assert made.take() is None
        assert [until(made.take)[0] for _ in range(2)] == [0, 1]
    finally:
        made.stop()


def test_without_processes_cases_come_in_order() -> None:
    made = Ahead([task("causal", "regard"), None, task("full", "flex")], jobs.compiled, 0)
    assert [made.take() for _ in range(4)] == [(0, Compiled()), (1, Compiled()), (2, Compiled()), None]
    made.stop()


def test_paused_processes_stand_still(tmp_path: Path) -> None:
    path = tmp_path / "counted"
    worker = Worker()
    worker.submit(jobs.count, str(path))
    try:
        until(lambda: worker.reply(0.0) is None and path.exists())
        worker.pause()
        time.sleep(0.1)
        size = path.stat().st_size
        time.sleep(0.3)
        assert path.stat().st_size == size
        worker.resume()
        until(lambda: path.stat().st_size > size)
        worker.pause()
    finally:
        worker.stop()


def test_jobs_go_on_when_they_were_heard(tmp_path: Path) -> None:
    path, heard = tmp_path / "counted", []
    worker = Worker(hearing=lambda place: heard.append((place, path.exists())))
    worker.submit(jobs.count, str(path))
    try:
        until(lambda: worker.reply(0.0) is None and path.exists())
        assert heard == [("start", False)]
    finally:
        worker.stop()
