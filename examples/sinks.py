"""Attention sinks: a window plus the first four tokens (StreamingLLM, Xiao et al. 2024, section 3.2)."""

import torch

import regard as rg


@rg.mask
def window(q, kv, size):
    return q - kv < size


@rg.mask
def sinks(kv, count):
    return kv < count


query, key, value = torch.randn(3, 1, 4, 450, 64).unbind()
attn = rg.attention(rg.causal & (window(size=96) | sinks(count=4)))
print(attn)
out = attn(query, key, value)

# The same, written out densely.
i = torch.arange(450)
distance = i[:, None] - i
allowed = (distance >= 0) & ((distance < 96) | (i < 4))
scores = (query @ key.mT / 64**0.5).masked_fill(~allowed, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
