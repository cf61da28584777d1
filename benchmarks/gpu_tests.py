"""The tests that need a GPU, and a record of how they ended.

``python -m benchmarks.gpu_tests [--minutes N] [--out PATH] [arguments of pytest…]``. Writes PATH.json after every test:
what passed, failed (and how), was skipped, and was not reached in time.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from . import report
from .environment import describe


class Recorder:
    """A plugin of pytest that keeps the outcome of every test."""

    def __init__(self, out: Path) -> None:
        self.out, self.started = out, time.monotonic()
        self.results: dict[str, Any] = {
            "environment": describe(), "what": "pytest -m gpu", "passed": 0, "failed": {}, "skipped": {}, "not_run": [],
        }  # fmt: skip
        self._ended: dict[str, float] = {}

    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        self.results["not_run"] = [name for name in ids if name not in self._ended]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._ended[report.nodeid] = report.duration
            match report.outcome:
                case "passed":
                    self.results["passed"] += 1
                case "failed":
                    # xdist begins with the path of an interpreter, which is of this machine.
                    lines = [x for x in report.longreprtext.split("\n") if not x.startswith("[gw")]
                    self.results["failed"][report.nodeid] = "\n".join(lines)[-2000:]
                case "skipped":
                    # Place and reason; the place is a path of this machine.
                    place = report.longrepr
                    self.results["skipped"][report.nodeid] = str(place[2] if isinstance(place, tuple) else place)[-300:]
            if report.nodeid in self.results["not_run"]:
                self.results["not_run"].remove(report.nodeid)
            self.save()

    def save(self) -> None:
        slowest = sorted(self._ended, key=self._ended.__getitem__, reverse=True)[:10]
        self.results["seconds"] = round(time.monotonic() - self.started, 1)
        self.results["slowest_s"] = {name: round(self._ended[name], 1) for name in slowest}
        report.save(self.results, self.out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long; the rest is listed")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu_tests"), help="without suffix")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes of pytest")
    options, rest = parser.parse_known_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    recorder = Recorder(options.out)
    # As Ctrl-C: pytest ends its processes and reports what there is.
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, 60 * options.minutes))
    chosen = rest or ["tests/gpu"]
    status = pytest.main(
        ["-m", "gpu", "-q", "--numprocesses", str(options.jobs), "--dist", "worksteal", *chosen], plugins=[recorder]
    )
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    recorder.save()
    raise SystemExit(int(status))


if __name__ == "__main__":
    main()
