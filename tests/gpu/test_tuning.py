"""The search for fast schedules, on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regard as rg
from oracle import assert_close_to_oracle, eager, oracle
from regard.runtime import tuned

pytestmark = pytest.mark.gpu

LATER = """
import torch, regard as rg
x = torch.randn(1, 2, 300, 64, device="cuda", dtype=torch.bfloat16)
print(rg.attention(rg.sliding_window(50)).explain(x, x, x).kernels[0].reason)
"""


def test_the_fastest_is_found_and_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGARD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuned, "_found", {})
    torch.manual_seed(0)
    x = [torch.randn(1, 2, 300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    parts = (rg.sliding_window(50),)
    attn = rg.attention(*parts)
    before = attn(*x)
    found = attn.tune(*x, seconds=12)
    for direction in ("forward", "backward"):
        trials = [t for t in found.trials if t.direction == direction]
        timed = [t for t in trials if t.milliseconds is not None]
        (chosen,) = (t for t in trials if t.chosen)
        (default,) = (t for t in trials if t.default)
        assert len(timed) >= 3
        assert chosen.milliseconds is not None and default.milliseconds is not None
        assert chosen.milliseconds <= default.milliseconds
        assert not [t for t in trials if t.failure and "result differs" in t.failure]
        (kernel,) = (k for k in attn.explain(*x).kernels if k.direction == direction)
        assert kernel.schedule == chosen.schedule
    out = attn(*x, tune=True)  # searches nothing, as it is known
    assert_close_to_oracle(out, oracle(parts, *x)[0], eager(parts, *x)[0])
    torch.testing.assert_close(out, before, rtol=2e-2, atol=2e-2)
    torch.autograd.grad(out.sum(), x)
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    later = subprocess.run([sys.executable, "-c", LATER], env=environment, capture_output=True, text=True, check=True)
    assert later.stdout.strip() == "the fastest when it was tuned on this kind of GPU"


def test_the_mask_at_hand_is_what_is_timed() -> None:
    ids = (torch.arange(500, device="cuda") // 40).int()
    x = [torch.randn(1, 2, 500, 32, device="cuda", dtype=torch.float16) for _ in range(3)]
    attn = rg.attention(rg.causal(), rg.document(ids))
    found = attn.tune(*x, seconds=3)
    assert {t.direction for t in found.trials} == {"forward"}
    torch.testing.assert_close(attn(*x), eager((rg.causal(), rg.document(ids)), *x)[0], rtol=2e-2, atol=2e-2)
