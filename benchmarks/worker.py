"""A process that runs cases: it may crash, hang or lose its device without taking the benchmark along."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


class ProcessLost(Exception):
    """Raised by a job after which its process is of no more use; ``place`` is what the job was at."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(place, text)
        self.place, self.text = place, text


@dataclass(frozen=True)
class Done:
    """What the job returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The job raised; the process lives on."""

    text: str


@dataclass(frozen=True)
class Lost:
    """The process ended or was ended at ``place``, the last that it told."""

    place: str
    text: str


Reply = Done | Raised | Lost


class Worker:
    """One process at a time, started when a job comes, and again after it was lost.

    A job is a function of a module; it is called with its arguments and a function to tell the place it is at, which
    returns when that was heard, by ``hearing`` too.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, hearing: Callable[[str], object] = lambda place: None
    ) -> None:
        self._environment, self._hearing = dict(environment or {}), hearing
        self._process: Any = None
        self._connection: Connection | None = None
        self._place = "start"

    def submit(self, job: Callable[..., Any], *arguments: Any) -> None:
        """Starts a job; the worker must be idle."""
        if self._process is None or not self._process.is_alive():
            self.stop()
            context = get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._environment), daemon=True)
            self._process.start()
            theirs.close()
        self._place = "start"
        assert self._connection is not None
        self._connection.send((job, arguments))

    def reply(self, timeout: float) -> Reply | None:
        """The end of the job, or None after ``timeout`` seconds."""
        assert self._connection is not None
        deadline = time.monotonic() + timeout
        while self._connection.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, content = self._connection.recv()
            except (EOFError, ConnectionResetError):
                self._process.join()
                code = self._process.exitcode
                how = f"signal {-code}" if code < 0 else f"code {code}"
                return self._lost(f"the process ended with {how}")
            match kind:
                case "place":
                    self._place = content
                    self._hearing(content)
                    with suppress(BrokenPipeError):  # then its end is what comes next
                        self._connection.send(None)
                case "done":
                    return Done(content)
                case "raised":
                    return Raised(content)
                case "lost":
                    self._place, text = content
                    return self._lost(text)
        return None

    def run(self, job: Callable[..., Any], *arguments: Any, timeout: float) -> Reply:
        """A job from start to end; after ``timeout`` seconds its process is killed."""
        self.submit(job, *arguments)
        reply = self.reply(timeout)
        return reply if reply is not None else self._lost(f"not finished after {timeout:.0f} s")

    def pause(self) -> None:
        """Stops the process where it is, until :meth:`resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def _lost(self, text: str) -> Lost:
        self.stop()
        return Lost(self._place, text)


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)

    def tell(place: str) -> None:
        connection.send(("place", place))
        connection.recv()

    while True:
        try:
            job, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", job(*arguments, tell)))
        except ProcessLost as lost:
            connection.send(("lost", (lost.place, lost.text)))
        except Exception as error:
            connection.send(("raised", f"{type(error).__name__}: {error}"[:2000]))
