"""Kernel speed on a few cases, forward and backward, beside FlexAttention and cuDNN in the same run.

``python -m benchmarks.kernels [--minutes N] [--resume FILE] [--out PATH]`` needs a GPU. It writes PATH.json after every
case, and PATH.md and PATH.png (with matplotlib) at the end. ``benchmarks.run`` has more cases and peers.
"""

from __future__ import annotations

from . import report
from .case import Case, Task
from .command import Benchmark, main
from .suite import PLAIN, Entry

CASES = (
    *(Case(variant, 4, 16, 16, 4096, dim) for dim in (128, 64) for variant in PLAIN),
    Case("causal", 2, 16, 16, 8192, 128),
    Case("causal", 4, 32, 4, 4096, 128),
    Case("causal", 16, 16, 16, 1024, 64),
    Case("window", 1, 16, 16, 32768, 64),
)
CONTENDERS = ("regard", "sdpa-cudnn", "flex")
BENCHMARK = Benchmark(
    "kernels", __doc__, tuple(map(Entry, CASES)), lambda entry: Task(entry.case, CONTENDERS), report.line, report.write
)

if __name__ == "__main__":
    main(BENCHMARK)
