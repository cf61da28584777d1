"""Decoding with grouped heads: one new token against a cache, 8 query heads on 2 key heads (Ainslie et al. 2023).

`align="end"` lets the last query meet the last key, so the same causal mask serves prompt and decoding.
"""

import torch

import regard as rg

attn = rg.attention(rg.sliding_window(left=511, right=0), align="end")
print(attn)
query = torch.randn(2, 8, 1, 64)
key, value = torch.randn(2, 2, 2, 1000, 64).unbind()
out, aux = attn(query, key, value, aux=("lse",))

# The same, written out densely: each key head serves four query heads, and the window is the last 512 keys.
keys = key[:, :, -512:].repeat_interleave(4, dim=1)
values = value[:, :, -512:].repeat_interleave(4, dim=1)
scores = query @ keys.mT / 64**0.5
torch.testing.assert_close(out, scores.softmax(-1) @ values, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(aux.lse, scores.logsumexp(-1), rtol=1e-4, atol=1e-5)
