"""Every short example runs; each ends in its own check against a dense computation."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = sorted(path for path in EXAMPLES.glob("*.py") if path.stem not in ("demo", "sentence_encoder", "speed"))


def test_there_are_enough() -> None:
    assert len(SHORT) >= 10


@pytest.mark.parametrize("path", SHORT, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    torch.manual_seed(0)
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    assert "torch.testing.assert_close" in text
    runpy.run_path(str(path), run_name="__main__")
