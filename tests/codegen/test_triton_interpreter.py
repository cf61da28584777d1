"""Runs ``triton_interpreted.py`` where Triton interprets instead of compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_generated_kernels_under_the_interpreter() -> None:
    cases = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=cases.parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "failed" not in done.stdout
