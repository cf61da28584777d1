"""Dilated attention: every fourth token of a window (Longformer, Beltagy et al. 2020, section 3.1).

`rg.static` bakes the dilation into the kernel, because the proof of what it skips needs it.
"""

import torch

import regard as rg


@rg.mask
def dilated(q, kv, dilation, reach):
    return (q >= kv) & (q - kv < reach) & ((q - kv) % dilation == 0)


query, key, value = torch.randn(3, 1, 2, 333, 32).unbind()
attn = rg.attention(dilated(dilation=rg.static(4), reach=128))
print(attn)
out = attn(query, key, value)

# The same, written out densely.
i = torch.arange(333)
distance = i[:, None] - i[None, :]
allowed = (distance >= 0) & (distance < 128) & (distance % 4 == 0)
scores = (query @ key.mT / 32**0.5).masked_fill(~allowed, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
