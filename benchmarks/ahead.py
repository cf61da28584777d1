"""Compiling ahead: in processes of their own, contender by contender, while another process measures."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .case import Task
from .worker import Done, Lost, Raised, Worker

# Of one contender of a case, forward and backward, while nobody is paused: many times what most of them take.
COMPILE_SECONDS = 90.0
# Until what paused processes had queued on the device has run.
SETTLE_SECONDS = 0.15
# Others call kernels of a library.
_COMPILED = ("regard", "flex", "fa4")


@dataclass
class Compiled:
    """What compiling one case took, in seconds by contender, and who took too long, with the reason."""

    seconds: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)


@dataclass
class _Slot:
    """A process, and what it compiles: a case, a contender, seconds so far."""

    worker: Worker
    at: int | None = None
    name: str = ""
    spent: float = 0.0


class Ahead:
    """Runs ``job`` on the contenders of all tasks, in order, side by side; cases are ready in any order.

    A task that is None is not compiled ahead: it is ready when no case before it is left, as all tasks are where there
    are no processes. What fails here is met again, and reported, when it is measured.
    """

    def __init__(self, tasks: Sequence[Task | None], job: Callable[..., Any], jobs: int) -> None:
        self._tasks, self._job = tasks, job
        self._left = list(range(len(tasks)))
        self._compiled = [Compiled() for _ in tasks]
        named = [task.names if task is not None and jobs else () for task in tasks]
        self._waiting = deque(
            (at, name) for at, names in enumerate(named) for name in names if name.startswith(_COMPILED)
        )
        self._missing = [set[str]() for _ in tasks]
        for at, name in self._waiting:
            self._missing[at].add(name)
        self._ordered = [not names for names in named]
        self._slots = [_Slot(Worker({"TORCHINDUCTOR_COMPILE_THREADS": "1"})) for _ in range(jobs)]
        self._lock, self._ended, self._paused = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, Compiled] | None:
        """The first case that is ready, and no longer left; None where none is yet."""
        with self._lock:
            for at in self._left:
                if not self._missing[at] and (not self._ordered[at] or at == self._left[0]):
                    self._left.remove(at)
                    return at, self._compiled[at]
        return None

    def pause(self) -> None:
        """Stops all processes where they are, so that times are measured on a machine that does nothing else."""
        with self._lock:
            self._paused = True
            for slot in self._slots:
                slot.worker.pause()
        if self._slots:
            time.sleep(SETTLE_SECONDS)

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            for slot in self._slots:
                slot.worker.resume()

    def stop(self) -> None:
        """Ends all processes, whatever they do."""
        self._ended.set()
        self._thread.join()
        for slot in self._slots:
            slot.worker.stop()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(0.02):
            now = time.monotonic()
            with self._lock:
                if not self._paused:
                    for slot in self._slots:
                        self._advance(slot, now - last)
            last = now

    def _advance(self, slot: _Slot, seconds: float) -> None:
        if slot.at is not None:
            slot.spent += seconds
            match slot.worker.reply(0.0):
                case Done() | Raised() | Lost():
                    self._end(slot)
                case None if slot.spent > COMPILE_SECONDS:
                    slot.worker.stop()
                    self._compiled[slot.at].excluded[slot.name] = f"not compiled after {COMPILE_SECONDS:.0f} s"
                    self._end(slot)
        if slot.at is None and self._waiting:
            slot.at, slot.name = self._waiting.popleft()
            slot.spent = 0.0
            task = self._tasks[slot.at]
            assert task is not None
            slot.worker.submit(self._job, replace(task, names=(slot.name,)))

    def _end(self, slot: _Slot) -> None:
        assert slot.at is not None
        self._compiled[slot.at].seconds[slot.name] = round(slot.spent, 1)
        self._missing[slot.at].remove(slot.name)
        slot.at = None
