"""A run of many cases within a time limit, whose results are on the disk after each of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import case, report
from .ahead import Ahead
from .case import Task
from .suite import Entry
from .worker import Done, Lost, Raised, Worker

# Compiling a case of FlexAttention's search takes minutes; a hanging kernel should not take more.
CASE_SECONDS = 300.0


class Session:
    """What is left of the time, the results so far, and the process that measures."""

    def __init__(self, results: dict[str, Any], minutes: float, save: Callable[[dict[str, Any]], object]) -> None:
        self.results, self.save = results, save
        self.started = time.monotonic()
        self.deadline = self.started + 60 * minutes
        self.worker = Worker(hearing=self._hear)
        self._ahead: Ahead | None = None
        self._seconds: list[float] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def fits(self) -> bool:
        """Whether a case like those before would end in time."""
        return self.left > (statistics.median(self._seconds) if self._seconds else 0.0)

    def row(self, task: Task, job: Callable[..., Any], ahead: Ahead, alone: bool = False) -> dict[str, Any] | None:
        """Measures one case; None where the time ran out. Contenders that end the process are left out and said.

        ``ahead`` is paused while the job times, or all along where the case must be ``alone``.
        """
        started = time.monotonic()
        excluded = dict(task.excluded)
        self._ahead = ahead
        if alone:
            ahead.pause()
        try:
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
        finally:
            ahead.resume()

    def _hear(self, place: str) -> None:
        match self._ahead, place:
            case Ahead() as ahead, case.TIMING:
                ahead.pause()
            case Ahead() as ahead, case.TIMED:
                ahead.resume()


def run_suite(
    entries: Sequence[Entry],
    session: Session,
    measuring: Callable[..., Any],
    warming: Callable[..., Any],
    jobs: int,
    task_of: Callable[[Entry], Task],
    line: Callable[[dict[str, Any]], str] = report.line,
) -> None:
    """Measures the entries until the time is over, each when it is compiled, saving after each; the rest is listed.

    ``measuring`` and ``warming`` take what ``task_of`` makes of an entry, in a worker; ``jobs`` workers run the latter
    ahead, in the order of the entries. ``line`` shows a row.
    """
    rows, order = session.results["rows"], {entry.title: i for i, entry in enumerate(entries)}
    done = {row["title"] for row in rows}
    todo = [entry for entry in entries if entry.title not in done]
    session.results["not_run"] = [entry.title for entry in todo]
    tasks = [task_of(entry) for entry in todo]
    # A search that times kernels must not run beside others.
    alone = [entry.group == "autotune" for entry in todo]
    ahead = Ahead([None if x else task for x, task in zip(alone, tasks, strict=True)], warming, max(0, jobs))
    try:
        while session.results["not_run"] and session.fits():
            if (taken := ahead.take()) is None:
                time.sleep(0.02)
                continue
            at, compiled = taken
            entry, task = todo[at], replace(tasks[at], excluded=compiled.excluded)
            found = session.row(task, measuring, ahead, alone[at])
            if found is None:
                return
            facts = {"title": entry.title, "group": entry.group, "matmul_tflops": session.results["matmul_tflops"]}
            row = facts | {"compile_seconds": compiled.seconds} | found
            rows.append(row)
            rows.sort(key=lambda x: order.get(x["title"], -1))
            session.results["not_run"].remove(entry.title)
            session.save(session.results)
            seconds = time.monotonic() - session.started
            print(f"[{len(rows)} of {len(rows) + len(session.results['not_run'])}, {seconds:.0f} s] "
                  f"{line(row)}", flush=True)  # fmt: skip
    finally:
        ahead.stop()
        session.worker.stop()
        session.save(session.results)


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
