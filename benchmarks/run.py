"""The benchmark suite: every case against every peer that can be imported, in one run.

``python -m benchmarks.run [--minutes N] [--only REGEX] [--resume FILE] [--out PATH]`` needs a GPU. It writes PATH.json
after every case, and PATH.md and PATH.png (with matplotlib) at the end. ``--list`` shows the cases in their order,
which is that of suite.py.
"""

from __future__ import annotations

from . import report
from .case import Task
from .command import Benchmark, main
from .suite import GROUPS, SUITE

BENCHMARK = Benchmark(
    "run", __doc__, SUITE, lambda entry: Task(entry.case, GROUPS[entry.group]), report.line, report.write
)

if __name__ == "__main__":
    main(BENCHMARK)
