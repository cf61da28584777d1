"""Soft-capped logits: scores squeezed into (-cap, cap) by tanh (Gemma 2, 2024, section 2)."""

import torch

import regard as rg


@rg.score
def softcap(s, cap):
    return cap * rg.tanh(s / cap)


query, key, value = torch.randn(3, 2, 4, 222, 64).unbind()
attn = rg.attention(rg.causal, softcap(cap=5.0))
print(attn)
out = attn(query, key, value)

# The same, written out densely.
i = torch.arange(222)
scores = 5.0 * torch.tanh(query @ key.mT / 64**0.5 / 5.0)
scores = scores.masked_fill(i[:, None] < i, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
