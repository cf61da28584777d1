"""Jobs in a process of their own: what they return, raise, and how they may end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from benchmarks.worker import Done, Lost, Raised, Worker

from suite import benchmark_jobs as jobs


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stop()


def test_one_process_runs_many_jobs(worker: Worker) -> None:
    first = worker.run(jobs.process_id, timeout=60)
    assert worker.run(jobs.fail, timeout=60) == Raised("ValueError: no such kernel")
    assert worker.run(jobs.process_id, timeout=60) == first


@pytest.mark.parametrize(
    "job, timeout, text",
    [
        (jobs.crash, 60, "the process ended with signal 6"),
        (jobs.hang, 5, "not finished after 5 s"),
        (jobs.lose_device, 60, "illegal memory access"),
    ],
)
def test_lost_processes_are_replaced(worker: Worker, job: Callable[..., Any], timeout: float, text: str) -> None:
    """Who was running is known, and the next job gets a new process."""
    assert worker.run(job, timeout=timeout) == Lost("peer", text)
    assert worker.run(jobs.echo, 3, timeout=60) == Done(3)


def test_jobs_see_the_environment() -> None:
    worker = Worker({"REGARD_TEST_WORKER": "yes"})
    try:
        assert worker.run(jobs.environment, "REGARD_TEST_WORKER", timeout=60) == Done("yes")
    finally:
        worker.stop()
