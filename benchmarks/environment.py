"""What a measurement ran on: written into every results file."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

# Distributions, and the names they are known by.
PEERS = {"fa3-fwd": "FlashAttention-3", "flash-attn-4": "FlashAttention-4", "nvidia-cutlass-dsl": "CuTe DSL"}


def describe() -> dict[str, str]:
    """Device, versions, commit and date; of peers those that are installed."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    return {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        **({"cuDNN": str(torch.backends.cudnn.version())} if torch.cuda.is_available() else {}),
        **{title: version for name, title in PEERS.items() if (version := _installed(name))},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The checked-out commit, also where the tree was copied without git: then the file ``COMMIT``."""
    root = Path(__file__).resolve().parent.parent
    stamp = root / "COMMIT"
    if stamp.exists():
        return stamp.read_text().strip()
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def matmul_peak(device: str = "cuda", size: int = 8192) -> float:
    """TFLOP/s of one large bfloat16 matrix product on random data: the ceiling of the same run."""
    from .timing import interleaved

    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / interleaved({"matmul": lambda: a @ b})["matmul"].median / 1e9
