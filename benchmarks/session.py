"""A run of many cases within a time limit, whose results are on the disk after each of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import report
from .case import Task
from .suite import Entry
from .worker import Done, Lost, Raised, Worker

# Compiling a case of FlexAttention's search takes minutes; a hanging kernel should not take more.
CASE_SECONDS = 300.0
# Compiled ahead in one wave, for each process: few, so that figures come early.
WAVE = 2


class Session:
    """What is left of the time, the results so far, and the process that measures."""

    def __init__(self, results: dict[str, Any], minutes: float, save: Callable[[dict[str, Any]], object]) -> None:
        self.results, self.save = results, save
        self.started = time.monotonic()
        self.deadline = self.started + 60 * minutes
        self.worker = Worker()
        self._seconds: list[float] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def fits(self) -> bool:
        """Whether a case like those before would end in time."""
        return self.left > (statistics.median(self._seconds) if self._seconds else 0.0)

    def row(self, task: Task, job: Callable[..., Any]) -> dict[str, Any] | None:
        """Measures one case; None where the time ran out. Contenders that end the process are left out and said."""
        started = time.monotonic()
        excluded: dict[str, str] = {}
        while True:
            limit = min(CASE_SECONDS, self.left)
            if limit <= 0:
                return None
            match self.worker.run(job, replace(task, excluded=dict(excluded)), timeout=limit):
                case Done(row):
                    self._seconds.append(time.monotonic() - started)
                    return dict(row)
                case Raised(text):
                    return {"error": text}
                case Lost(place, text):
                    if self.left <= 0:
                        return None
                    if place in excluded or place not in task.names:
                        return {"error": f"{text}, at {place}"}
                    excluded[place] = text


def run_suite(
    entries: Sequence[Entry],
    session: Session,
    measuring: Callable[..., Any],
    warming: Callable[..., Any],
    jobs: int,
    task_of: Callable[[Entry], Task],
    line: Callable[[dict[str, Any]], str] = report.line,
) -> None:
    """Measures the entries in order until the time is over, saving after each; what was not reached is listed.

    ``measuring`` and ``warming`` take what ``task_of`` makes of an entry, in a worker; ``jobs`` workers run the latter
    ahead. ``line`` shows a row.
    """
    rows = session.results["rows"]
    done = {row["title"] for row in rows}
    todo = [entry for entry in entries if entry.title not in done]
    session.results["not_run"] = [entry.title for entry in todo]
    jobs = max(0, jobs)
    compilers = [Worker({"TORCHINDUCTOR_COMPILE_THREADS": "1"}) for _ in range(jobs)]
    try:
        for start in range(0, len(todo), max(1, WAVE * jobs)):
            wave = todo[start : start + max(1, WAVE * jobs)]
            tasks = [task_of(entry) for entry in wave]
            # A search that times kernels must not run beside others.
            ahead = [task for entry, task in zip(wave, tasks, strict=True) if entry.group != "autotune"]
            if jobs and session.fits():
                _compile_ahead(ahead, compilers, session, warming)
            for entry, task in zip(wave, tasks, strict=True):
                found = session.row(task, measuring) if session.fits() else None
                if found is None:
                    return
                peak = session.results["matmul_tflops"]
                rows.append({"title": entry.title, "group": entry.group, "matmul_tflops": peak} | found)
                session.results["not_run"].remove(entry.title)
                session.save(session.results)
                at = time.monotonic() - session.started
                print(f"[{len(rows)} of {len(rows) + len(session.results['not_run'])}, {at:.0f} s] "
                      f"{line(rows[-1])}", flush=True)  # fmt: skip
    finally:
        for worker in (*compilers, session.worker):
            worker.stop()
        session.save(session.results)


def _compile_ahead(tasks: list[Task], workers: list[Worker], session: Session, job: Callable[..., Any]) -> None:
    """Runs ``job`` on all tasks, side by side. What fails here is met again, and reported, when it is measured."""
    print(f"compiling {len(tasks)} cases", end=" ", flush=True)
    waiting, busy = list(tasks), dict[int, float]()
    # Never more than half of what is left: without measuring, nothing is gained.
    until = time.monotonic() + session.left / 2
    while (waiting or busy) and time.monotonic() < until:
        for i, worker in enumerate(workers):
            if i in busy:
                if worker.reply(0.05) is not None:
                    print(".", end="", flush=True)
                    del busy[i]
                elif time.monotonic() - busy[i] > CASE_SECONDS:
                    worker.stop()
                    del busy[i]
            if i not in busy and waiting:
                worker.submit(job, waiting.pop(0))
                busy[i] = time.monotonic()
    for i in busy:
        workers[i].stop()
    print(flush=True)


def opened(path: Path | None, facts: dict[str, Any]) -> dict[str, Any]:
    """New results, or those of a file to go on with. Raises SystemExit if they are of another machine or version."""
    if path is None:
        return facts | {"rows": [], "not_run": []}
    earlier = report.load(path)
    for name in ("device", "torch", "triton", "commit"):
        then, now = earlier["environment"].get(name), facts["environment"].get(name)
        if then != now:
            raise SystemExit(f"{path}: measured with {name} {then}, this is {now}; figures of one table must agree")
    if earlier["l2"] != facts["l2"]:
        raise SystemExit(f"{path}: measured with the L2 cache {earlier['l2']}; --warm-l2 must be as it was")
    return earlier | {"matmul_tflops": facts["matmul_tflops"], "not_run": []}


def opened_session(
    minutes: float, out: Path, resume: Path | None = None, l2: str = "overwritten", device: str = "cuda"
) -> Session:
    """A session that saves to ``out``.json and knows its machine. Raises SystemExit where there is no device."""
    from .measure import machine

    session = Session({}, minutes, lambda results: report.save(results, out))
    match session.worker.run(machine, device, timeout=CASE_SECONDS):
        case Done(facts):
            session.results = opened(resume, facts | {"l2": l2})
        case Raised(text) | Lost(_, text):
            session.worker.stop()
            raise SystemExit(f"the device cannot be used: {text}")
    environment = facts["environment"]
    print(f"{environment['device']}, bf16 matmul {facts['matmul_tflops']:.0f} TFLOP/s", flush=True)
    return session
