"""Decay: the weight of a key falls by a fixed factor a step, one factor a head (RetNet, Sun et al. 2023, eq. 5).

In log space a factor gamma^(q - kv) is an addition to the score.
"""

import torch

import regard as rg


@rg.score
def decay(s, q, kv, head, log_gamma):
    return s + (q - kv) * log_gamma[head]


query, key, value = torch.randn(3, 1, 4, 301, 64).unbind()
gamma = 1 - torch.exp2(-5.0 - torch.arange(4))
attn = rg.attention(rg.causal, decay(log_gamma=gamma.log()))
print(attn)
out = attn(query, key, value)

# The same, written out densely: the weights themselves decay before they are normalised.
i = torch.arange(301)
distance = i[:, None] - i
weights = torch.exp(query @ key.mT / 64**0.5) * gamma[:, None, None] ** distance
weights = torch.where(distance >= 0, weights, 0.0)
torch.testing.assert_close(out, weights / weights.sum(-1, keepdim=True) @ value, rtol=1e-4, atol=1e-5)
