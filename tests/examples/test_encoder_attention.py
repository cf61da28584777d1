"""Regard inside transformers, with a small random model: what the demo shows, without the demo's weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import regard as rg

transformers = pytest.importorskip("transformers")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def sentence_encoder() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "sentence_encoder.py"
    spec = importlib.util.spec_from_file_location("sentence_encoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("device", DEVICES)
def test_hidden_states_equal_those_of_sdpa(device: str, sentence_encoder: ModuleType) -> None:
    """Padding on the right, on the left and in the middle."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96
    )
    model = transformers.BertModel(config).eval().to(device)
    tokens = torch.randint(50, (4, 19), device=device)
    visible = torch.ones(4, 19, dtype=torch.long, device=device)
    visible[0, 12:] = visible[1, :7] = visible[2, 5:9] = 0

    attention = sentence_encoder.RegardAttention()
    attention.register("regard-random")
    hidden = {}
    with torch.no_grad():
        for name in ("sdpa", "regard-random"):
            model.set_attn_implementation(name)
            hidden[name] = model(tokens, attention_mask=visible).last_hidden_state[visible.bool()]
    torch.testing.assert_close(hidden["regard-random"], hidden["sdpa"], rtol=0, atol=1e-5)
    assert attention.calls == 2


def test_further_parts_are_applied(sentence_encoder: ModuleType) -> None:
    query, key, value = torch.randn(3, 2, 2, 30, 32).unbind()
    visible = torch.arange(30) < torch.tensor([[30], [21]])
    attention = sentence_encoder.RegardAttention(rg.sliding_window(3, 3))
    out, weights = attention(torch.nn.Module(), query, key, value, visible, scaling=0.2)
    i = torch.arange(30)
    allowed = visible[:, None, None] & ((i[:, None] - i).abs() <= 3)
    expected = (query @ key.mT * 0.2).masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num() @ value
    assert weights is None
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_masks_that_are_not_bidirectional_are_refused(sentence_encoder: ModuleType) -> None:
    with pytest.raises(ValueError, match="bidirectional encoders"):
        sentence_encoder.RegardAttention().visible_keys(
            mask_function=lambda b, h, q, kv: q >= kv, attention_mask=None
        )


def test_dropout_is_refused(sentence_encoder: ModuleType) -> None:
    query = torch.zeros(1, 1, 4, 32)
    with pytest.raises(ValueError, match="no dropout"):
        sentence_encoder.RegardAttention()(torch.nn.Module(), query, query, query, None, dropout=0.1)
