"""What is loaded when: heavy packages wait until something needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

RunPython = Callable[..., Any]

LOADED = "import sys; print(*(n for n in ('torch', 'triton', 'sympy', 'lark', 'numpy') if n in sys.modules))"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import regard", ""),
        ("import regard; regard.RegardError", ""),
        ("import regard.ir.nodes, regard.ir.build, regard.ir.errors", ""),
        ("import regard.ir.printer", "numpy"),
        ("import regard; regard.causal, regard.attention, regard.Attention", "torch numpy"),
        ("import regard as rg; str(rg.attention(rg.causal(), rg.softcap(3.0)))", "torch numpy"),
        ("import regard as rg; rg.parse('attention a() { keep q >= kv }')", "torch lark numpy"),
    ],
)
def test_what_is_loaded(run_python: RunPython, code: str, expected: str) -> None:
    assert run_python(f"{code}\n{LOADED}").stdout.strip() == expected


# The whole analysis, from text to a plan, where importing torch or triton fails.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["triton"] = None
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.printer import print_plan
variant, _ = parse_variant("attention a(window: int) { keep q >= kv and q - kv < window }")
print(make_plan(run_pipeline(variant)).method)
"""


def test_the_analysis_needs_no_torch(run_python: RunPython) -> None:
    assert run_python(WITHOUT_TORCH).stdout == "closed\n"


# Triton's interpreter runs the very kernels that a GPU would, on CPU tensors.
INTERPRETED = """
import sys, torch
import regard as rg
torch.manual_seed(0)
x = [torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3)]
out = rg.attention(rg.sliding_window(9, 2), rg.softcap(4.0))(*x)
torch.save((out.detach(), torch.autograd.grad(out.square().sum(), x)), sys.argv[1])
"""


def test_triton_interpreter_and_printed_torch_agree(run_python: RunPython, tmp_path: Any) -> None:
    import torch

    for name, interpret in (("triton", "1"), ("torch", "0")):
        run_python(INTERPRETED, str(tmp_path / name), TRITON_INTERPRET=interpret)
    (out, grads), (expected, expected_grads) = (torch.load(tmp_path / name) for name in ("triton", "torch"))
    for a, b in zip((out, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
