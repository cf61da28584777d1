"""Prefix language model: the prompt sees all of itself, the rest is causal (T5, Raffel et al. 2020, section 3.2.1).

The prefix differs from sequence to sequence: it is read from a tensor, with one length a batch entry.
"""

import torch

import regard as rg


@rg.mask
def prefix_lm(q, kv, batch, prefix):
    return (q >= kv) | (kv < prefix[batch])


query, key, value = torch.randn(3, 2, 4, 257, 64).unbind()
prefix = torch.tensor([100, 31])
attn = rg.attention(prefix_lm)  # `prefix` stays open and comes with the call
print(attn)
out = attn(query, key, value, prefix=prefix)

# The same, written out densely.
i = torch.arange(257)
allowed = (i[:, None] >= i) | (i < prefix[:, None, None, None])
scores = (query @ key.mT / 64**0.5).masked_fill(~allowed, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
