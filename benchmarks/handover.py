"""A kernel whose only order is an mbarrier: one warp hands numbers to a group of four through one place.

What ``racecheck`` says of it tells what its reports on the warp-specialised kernels are worth, which hand over in this
way: reads and writes of the place alternate, so that every hazard that is reported here is none.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

ROUNDS = gl.constexpr(64)


@gluon.jit
def _take(place, ready, empty, out):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    total = 0
    for i in range(0, ROUNDS):
        mbarrier.wait(ready, i & 1)
        total += gl.max(place.load(LAYOUT), 0)
        mbarrier.arrive(empty)
    gl.store(out, total)


@gluon.jit
def _give(place, ready, empty):
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    for i in range(0, ROUNDS):
        mbarrier.wait(empty, (i & 1) ^ 1)
        place.store(gl.full([1], i, gl.int32, LAYOUT))
        mbarrier.arrive(ready)


@gluon.jit
def attention_control(out):
    place = gl.allocate_shared_memory(gl.int32, [1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(ready, count=1)
    mbarrier.init(empty, count=1)
    gl.warp_specialize([(_take, (place, ready, empty, out)), (_give, (place, ready, empty))], [1], [24])


def run() -> None:
    """Runs it, and checks the sum of what was handed over. Raises AssertionError where that is wrong."""
    out = torch.zeros(1, dtype=torch.int32, device="cuda")
    attention_control[(1,)](out, num_warps=4)
    assert int(out) == sum(range(int(ROUNDS.value)))
