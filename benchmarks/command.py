"""The command line of all benchmarks that measure cases: which of them, how long, and how to go on with a stopped run.

What is measured is saved after every case. Cases run in a process of their own, replaced when it crashes or hangs;
other processes compile ahead, and stand still while something is timed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .case import Case, Task
from .session import opened_session, run_suite
from .suite import Entry

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Benchmark:
    """Cases in the order in which time is spent on them, and what is made of each.

    ``name`` is that of the module and of the file in benchmarks/results. ``tiles``: rows also say how many pairs the
    tiles hold that are visited. ``line`` shows a row in the terminal, ``write`` makes the report of all results at a
    path without suffix.
    """

    name: str
    description: str
    entries: tuple[Entry, ...]
    task_of: Callable[[Entry], Task]
    line: Callable[[dict[str, Any]], str]
    write: Callable[[dict[str, Any], Path], object]
    tiles: bool = False

    def selected(self, variants: Sequence[str] = (), pattern: str = "") -> list[Entry]:
        """Entries of these variants (all, where none is named) whose title contains the regular expression.

        Raises SystemExit where there is none of a name, or none at all.
        """
        known = dict.fromkeys(entry.case.variant for entry in self.entries)
        if wrong := set(variants) - set(known):
            raise SystemExit(f"no case is called {', '.join(sorted(wrong))}; there are {', '.join(known)}")
        named = [entry for entry in self.entries if entry.case.variant in (variants or known)]
        found = [entry for entry in named if re.search(pattern, entry.title)]
        if not found:
            raise SystemExit(f"no case matches {pattern!r}; --list shows them")
        return found


def parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}", description=benchmark.description)
    made.add_argument("variants", nargs="*", help="by name, e.g. causal; default: all")
    made.add_argument("--minutes", type=float, default=24 * 60.0, help="stop after so long; the rest is listed")
    made.add_argument("--only", default="", metavar="REGEX", help="cases whose title contains it, e.g. 'S8192 D128$'")
    made.add_argument("--resume", type=Path, metavar="FILE", help="JSON of an earlier run: measure what it lacks")
    made.add_argument("--out", type=Path, help=f"without suffix; default: --resume, or {RESULTS / benchmark.name}")
    made.add_argument("--jobs", type=int, default=min(14, (os.cpu_count() or 1) - 2), help="processes that compile")
    made.add_argument("--warm-l2", action="store_true", help="do not overwrite the L2 cache before every call")
    made.add_argument("--rehearse", action="store_true", help="tiny cases on the CPU, only to see that everything runs")
    made.add_argument("--list", action="store_true", help="show the cases and stop")
    return made


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark as the command line says; ``arguments`` in place of those of the process."""
    options = parser(benchmark).parse_args(arguments)
    entries = benchmark.selected(options.variants, options.only)
    if options.list:
        print("\n".join(entry.title for entry in entries))
        return
    # Only now, because worker processes import this module before they have their own environment.
    from .measure import measure, measure_sparse, warm

    # FlashAttention-4 keeps what it compiles only on request.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    folder = Path(tempfile.gettempdir(), "rehearsal") if options.rehearse else RESULTS
    out = options.out or (options.resume.with_suffix("") if options.resume else folder / benchmark.name)
    l2, device = "as left" if options.warm_l2 else "overwritten", "cpu" if options.rehearse else "cuda"
    session = opened_session(options.minutes, out, options.resume, l2, device)

    def task_of(entry: Entry) -> Task:
        task = replace(benchmark.task_of(entry), flush=not options.warm_l2)
        return rehearsed(task) if options.rehearse else task

    # Who is told to end still writes the report.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    try:
        measuring = measure_sparse if benchmark.tiles else measure
        run_suite(entries, session, measuring, warm, options.jobs, task_of, benchmark.line)
    finally:
        benchmark.write(session.results, out)


def rehearsed(task: Task) -> Task:
    """The task on the CPU, as small as its variant can be; without peers whose compilation there takes long."""
    case = task.case
    on_grid = 16384 if case.variant == "tiles3d" else 4096
    length = on_grid if case.variant.endswith(("2d", "3d")) else 1024
    small = Case(case.variant, 1, 2 * case.heads // case.kv_heads, 2, length, 16)
    names = tuple(name for name in task.names if not name.startswith("flex"))
    return replace(task, case=small, names=names, rounds=1, budget_ms=0.1, device="cpu")
