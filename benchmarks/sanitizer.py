"""Every kernel skeleton under NVIDIA's compute-sanitizer, at small odd sizes, forward and backward.

``python -m benchmarks.sanitizer [--minutes N] [--out PATH] [--tools memcheck,racecheck]`` needs a GPU and
``compute-sanitizer``.
PyTorch's caching allocator is off, so that an access past the end of a tensor leaves its allocation. Prints lines and
writes PATH.json; the exit status is 1 where a tool found an error, or did not come to the end. Before ``racecheck`` a
kernel runs under it whose accesses mbarriers alone order (``benchmarks/handover.py``): where the tool reports hazards
there, it does not know of mbarriers, and what it reports of kernels says nothing; it is kept, but is no error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import regard as rg

from . import report
from .environment import describe
from .timing import wait

TOOLS = ("memcheck", "racecheck")
# Wide enough for the kernels that want a tile of 128 queries for every multiprocessor.
MANY = (4, 16)
FEW = (1, 2)

device = "cuda"

Parts = Callable[[], tuple[Any, ...]]


def _documents(length: int = 301) -> torch.Tensor:
    return (torch.arange(length, device=device) // 37).int()


@rg.mask
def _local_or_distant(q: Any, kv: Any) -> Any:
    return (q >= kv) & ((q - kv < 20) | ((q - kv) % 16 == 0))


# Title: (batch and heads, lengths of queries and keys, head size, parts of the attention, gradients: none, in the order
# that is faster, repeatable)
CALLS: dict[str, tuple[tuple[int, int], tuple[int, int], int, Parts, str]] = {
    "closed ranges, large": (MANY, (301, 301), 128, lambda: (rg.causal(),), "fast"),
    "closed ranges, large, D 64": (MANY, (301, 301), 64, lambda: (rg.sliding_window(70),), "fast"),
    "closed ranges, small": (FEW, (301, 301), 64, lambda: (rg.causal(), rg.softcap(5.0)), "fast"),
    "table of tiles": (FEW, (301, 301), 64, lambda: (rg.causal(), rg.document(_documents())), "fast"),
    "table of tiles, large": (MANY, (301, 301), 128, lambda: (rg.causal(), rg.document(_documents())), "fast"),
    "boxes": (FEW, (540, 540), 64, lambda: (rg.neighborhood(rg.grid(20, 27), (5, 7)),), "fast"),
    "boxes, large": (MANY, (540, 540), 128, lambda: (rg.neighborhood(rg.grid(20, 27), (5, 7)),), "fast"),
    "classes": (FEW, (517, 517), 64, lambda: (rg.causal(), rg.dilated(4)), "fast"),
    "several terms": (FEW, (301, 301), 64, lambda: (_local_or_distant(),), "fast"),
    "heads in parts": (MANY, (301, 301), 192, lambda: (rg.causal(),), "fast"),
    "repeatable gradients": (MANY, (301, 301), 128, lambda: (rg.causal(),), "repeatable"),
    "split keys": (FEW, (1, 4099), 128, lambda: (rg.causal(),), "none"),
}


def calls() -> None:
    """What runs under the tool."""
    for title, ((batch, heads), (q_len, kv_len), dim, parts, gradients) in CALLS.items():
        print(title, flush=True)
        query, key, value = (
            torch.ones(
                batch, heads, length, dim, device=device, dtype=torch.bfloat16, requires_grad=gradients != "none"
            )
            for length in (q_len, kv_len, kv_len)
        )
        attn = rg.attention(*parts(), align="end" if q_len == 1 else "start")
        out = attn(query, key, value, deterministic=gradients == "repeatable")
        if gradients != "none":
            out.sum().backward()
        wait()


def under(tool: str, seconds: float, what: str = "--calls") -> dict[str, Any]:
    """One run of all calls, or of the ``--control``, under ``tool``, ended after so many seconds: errors, and how far
    it came.
    """
    command = [
        "compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=attention", "--print-limit", "20",
        sys.executable, "-m", __spec__.name, what,
    ]  # fmt: skip
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # A session of its own: where the tool is ended, what it runs must not go on.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    found = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", output)
    return {
        "tool": tool,
        "errors": int(found[-1]) if found else None,
        "exit_status": process.returncode,
        "calls": [title for title in CALLS if title in output.splitlines()],
        "report": [line for line in output.splitlines() if line.startswith("=========")][:40],
        **({} if found else {"output": output[-2000:]}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sanitizer"), help="without suffix")
    parser.add_argument("--minutes", type=float, default=8.0, help="shared by the tools, after compiling")
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated tools of compute-sanitizer")
    parser.add_argument("--calls", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.sanitizer needs a CUDA device")
    if options.calls:
        calls()
        return
    if options.control:
        from . import handover

        handover.run()
        return
    if shutil.which("compute-sanitizer") is None:
        sys.exit("compute-sanitizer is not on the path; it comes with the CUDA toolkit")
    # Compiled beforehand: what runs under the tool finds the kernels in the cache.
    subprocess.run([sys.executable, "-m", __spec__.name, "--calls"], check=True)
    results: dict[str, Any] = {"environment": describe(), "runs": []}
    tools, until = options.tools.split(","), time.monotonic() + 60 * options.minutes
    for i, tool in enumerate(tools):
        control = under(tool, 60.0, "--control")["errors"] if tool == "racecheck" else 0
        seconds = max(1.0, (until - time.monotonic()) / (len(tools) - i))
        row: dict[str, Any] = {"control": control} | under(tool, seconds)
        results["runs"].append(row)
        known = f"; {control} in a kernel without any" if control else ""
        print(f"{tool}: {row['errors']} errors in {len(row['calls'])} of {len(CALLS)} calls{known}", flush=True)
        report.save(results, options.out)
    sys.exit(any((row["errors"] != 0 and not row["control"]) or row["exit_status"] != 0 for row in results["runs"]))


if __name__ == "__main__":
    main()
