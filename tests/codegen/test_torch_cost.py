"""What the CPU's programs cost: work in proportion to the tiles, memory to the length, and nothing but torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import regard.dsl as rg
from oracle import Part
from printed_torch import Printed, printed

WIDTH = 256
CASES: dict[str, Callable[[int], Sequence[Part]]] = {
    "closed": lambda length: [rg.sliding_window(WIDTH - 1, 0)],
    "classified": lambda length: [rg.document(torch.arange(length, dtype=torch.int32)[None, :] // WIDTH)],
}

MEASURE = """
import resource, sys
import torch

torch.set_num_threads(1)
forward, backward, length = {}, {}, int(sys.argv[3])
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), forward)
exec(compile(open(sys.argv[2]).read(), sys.argv[2], "exec"), backward)
values = eval(sys.argv[4])

def attention(length):
    q, k, v = (torch.ones(1, 2, length, 64) for _ in range(3))
    out, lse = forward["run"](q, k, v, *values)
    backward["run"](q, k, v, out, lse, out, None, *values)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = attention(128)
print(attention(length) - before)
assert not any(name.split(".")[0] in ("regard", "triton") for name in sys.modules)
"""


@pytest.mark.parametrize("length", [4096, 16384])
def test_memory_has_no_square_of_the_length(length: int, tmp_path: Path) -> None:
    """Peak memory (KiB) of both passes in a process of its own, which has no regard in it."""
    program = printed([rg.sliding_window(WIDTH - 1, 0)], blocks=(128, 128), scores_at_a_time=1 << 20, sizes=(64, 64))
    paths = [tmp_path / "forward.py", tmp_path / "backward.py"]
    for path, source in zip(paths, program.sources, strict=True):
        path.write_text(source)
    command = [sys.executable, "-c", MEASURE, *map(str, paths), str(length), repr(program.values)]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    tensors = 12 * 2 * length * 64 * 4 // 1024  # q, k, v, out, their gradients, and as much again for a while
    assert growth < tensors + 64 * 1024
    if length == 16384:
        assert growth < length * length * 4 // 1024 // 4


def program_of(parts: Sequence[Part], block: int) -> Printed:
    return printed(parts, blocks=(block, block), scores_at_a_time=1 << 20, sizes=(32, 32))


def flops(program: Printed, length: int) -> tuple[int, int]:
    q, k, v = (torch.ones(1, 2, length, 32) for _ in range(3))
    counts = []
    with FlopCounterMode(display=False) as counter:
        out, lse = program(q, k, v)
    counts.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        program.gradients(q, k, v, out, lse, out)
    return counts[0], counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_work_grows_with_the_tiles_that_are_not_empty(case: str) -> None:
    lengths = (512, 1024, 2048)
    work = [flops(program_of(CASES[case](n), 128), n) for n in lengths]
    for (forward, backward), length in zip(work, lengths, strict=True):
        pairs = 2 * length * (WIDTH + 128)  # heads, rows, keys that a tile of 128 rows can see
        assert forward <= pairs * 4 * 32
        assert backward <= pairs * 10 * 32
    for first, second, third in zip(*work, strict=True):
        assert abs((third - second) / (second - first) - 2) < 0.02  # linear, but for the first rows


MASKS: tuple[Sequence[Part], ...] = ([rg.causal], [])


def test_work_of_a_causal_mask_is_half() -> None:
    causal, full = (flops(program_of(parts, 64), 1024)[0] for parts in MASKS)
    assert 0.5 < causal / full < 0.56
