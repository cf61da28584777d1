"""Causal attention: a token sees itself and what came before (Vaswani et al. 2017, section 3.2.3)."""

import torch

import regard as rg


@rg.mask
def causal(q, kv):
    return q >= kv


query, key, value = torch.randn(3, 2, 4, 300, 64).unbind()
attn = rg.attention(causal)
print(attn)
out = attn(query, key, value)

# The same, written out densely.
i = torch.arange(300)
scores = query @ key.mT / 64**0.5
scores = scores.masked_fill(i[:, None] < i[None, :], -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
