"""Barriers of the emulator of Gluon: threads stand for partitions of a program, and may meet at the same two kinds."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import threading

# How long a partition waits before a barrier counts as one that nobody completes.
SECONDS = 30.0
condition = threading.Condition()
failures: list[BaseException] = []
# Of each thread: number and count of programs, its warps, and the named barriers of its program.
program = threading.local()


class Barrier:
    """An mbarrier, or a row of them: completes a phase when all have arrived and all bytes are there."""

    def __init__(self, count=1):
        self.row = [self] if count == 1 else [Barrier() for _ in range(count)]
        self.count = self.pending = self.missing = self.phase = 0

    def index(self, i):
        return self.row[int(i)]

    def change(self, arrivals, missing):
        with condition:
            self.pending -= arrivals
            self.missing += missing
            assert self.pending >= 0, "more arrivals than the barrier counts"
            if self.pending == 0 and self.missing == 0:
                self.phase ^= 1
                self.pending = self.count
            condition.notify_all()


class BarrierLayout:
    pass


class mbarrier:
    MBarrierLayout = BarrierLayout

    @staticmethod
    def init(barrier, count):
        barrier.count = barrier.pending = int(count)

    @staticmethod
    def expect(barrier, size):
        barrier.change(1, int(size))

    @staticmethod
    def arrive(barrier):
        barrier.change(1, 0)

    @staticmethod
    def wait(barrier, parity):
        with condition:
            done = condition.wait_for(lambda: failures or barrier.phase != int(parity), SECONDS)
        if failures or not done:
            raise TimeoutError("another partition failed" if failures else "a barrier was never completed")


class NamedBarriers:
    """Those of one program: complete when the threads that an instruction names have come, all waiting or not."""

    def __init__(self):
        self.arrived: dict[int, int] = {}
        self.turns: dict[int, int] = {}

    def arrive(self, number, threads):
        with condition:
            turn = self.turns.get(number, 0)
            self.arrived[number] = self.arrived.get(number, 0) + 32 * program.warps
            assert number < 16 and self.arrived[number] <= threads, "more threads than the barrier counts"
            if self.arrived[number] == threads:
                self.arrived[number], self.turns[number] = 0, turn + 1
            condition.notify_all()
        return turn

    def sync(self, number, threads):
        turn = self.arrive(number, threads)
        with condition:
            done = condition.wait_for(lambda: failures or self.turns.get(number, 0) > turn, SECONDS)
        if failures or not done:
            raise TimeoutError("another partition failed" if failures else "a barrier was never completed")
