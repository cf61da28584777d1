"""Jobs that stand in for measuring, for the tests of the benchmark's processes: no torch, no device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.worker import ProcessLost


def echo(value: int, entering: Callable[[str], object]) -> int:
    entering("echo")
    return value


def process_id(entering: Callable[[str], object]) -> int:
    return os.getpid()


def fail(entering: Callable[[str], object]) -> None:
    raise ValueError("no such kernel")


def crash(entering: Callable[[str], object]) -> None:
    entering("peer")
    os.abort()


def hang(entering: Callable[[str], object]) -> None:
    entering("peer")
    time.sleep(600)


def lose_device(entering: Callable[[str], object]) -> None:
    raise ProcessLost("peer", "illegal memory access")


def row(task: Any, entering: Callable[[str], object]) -> dict[str, Any]:
    """A row for all of a task's names; what the case's variant says goes wrong with "flex"."""
    found: dict[str, Any] = {}
    for name in task.names:
        if name in task.excluded:
            found[name] = {"error": task.excluded[name]}
            continue
        entering(name)
        if name == "flex" and task.case.variant == "document":
            os.abort()
        time_of = {"ms": 2.0, "low": 1.9, "high": 2.1, "tflops": 300.0 if name == "regard" else 200.0}
        found[name] = {"wrong": False, "deviation": {"out": 0.002}, "forward": time_of}
    if task.case.variant == "prefix":
        raise RuntimeError("no memory for the inputs")
    case = {name: getattr(task.case, name) for name in ("variant", "batch", "heads", "kv_heads", "length", "head_dim")}
    return {"case": case, "pairs": 10, "contenders": found, "seconds": 0.1}


def slow_row(task: Any, entering: Callable[[str], object]) -> dict[str, Any]:
    time.sleep(0.3)
    return row(task, entering)


def nothing(task: Any, entering: Callable[[str], object]) -> None:
    """Compiles nothing ahead; where "flex" would crash, this crashes too."""
    if task.case.variant == "document":
        os.abort()


def environment(name: str, entering: Callable[[str], object]) -> str | None:
    return os.environ.get(name)


def hanging_row(task: Any, entering: Callable[[str], object]) -> dict[str, Any]:
    """Like :func:`row`, but "flex" never ends."""
    if "flex" not in task.excluded:
        entering("flex")
        time.sleep(600)
    return row(task, entering)


def compiled(task: Any, entering: Callable[[str], object]) -> None:
    """Compiling for whom "flex" never ends on documents."""
    if task.names == ("flex",) and task.case.variant == "document":
        time.sleep(600)


def count(path: str, entering: Callable[[str], object]) -> None:
    """Makes a file longer and longer."""
    entering("start")
    for _ in range(6000):
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.01)
