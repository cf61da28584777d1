"""Sliding window: a token sees the last `window` tokens (Mistral 7B, Jiang et al. 2023, section 2).

The window is a run-time scalar: the second variant below uses the kernel of the first.
"""

import torch

import regard as rg


@rg.mask
def sliding_window(q, kv, window):
    return (q >= kv) & (q - kv < window)


query, key, value = torch.randn(3, 1, 4, 500, 64).unbind()
i = torch.arange(500)
for window in (64, 100):
    attn = rg.attention(sliding_window(window=window))
    print(attn)
    out = attn(query, key, value)

    # The same, written out densely.
    distance = i[:, None] - i[None, :]
    scores = query @ key.mT / 64**0.5
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
