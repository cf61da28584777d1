"""T5's relative position bias: learned, shared by all distances of a bucket (Raffel et al. 2020, section 2.1).

The bucket of every distance is tabulated once; the kernel looks it up. T5 does not scale its scores.
"""

import math

import torch

import regard as rg


def bucket(relative):
    """32 buckets: a half for each sign, in it 8 for single distances and 8 that grow to 128 logarithmically."""
    distance = relative.abs()
    far = 8 + (torch.log(distance.clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
    return torch.where(distance < 8, distance, far.clamp(max=15)) + torch.where(relative > 0, 16, 0)


@rg.score
def t5_bias(s, q, kv, head, table, buckets):
    return s + table[buckets[rg.clamp(kv - q, -128, 128) + 128], head]


query, key, value = (0.3 * torch.randn(3, 1, 4, 300, 64)).unbind()
table = torch.randn(32, 4, requires_grad=True)
attn = rg.attention(t5_bias(table=table, buckets=bucket(torch.arange(-128, 129)).int()), scale=1.0)
print(attn)
out = attn(query, key, value)
(gradient,) = torch.autograd.grad(out.square().sum(), table)

# The same, written out densely.
i = torch.arange(300)
scores = query @ key.mT + table[bucket(i - i[:, None])].permute(2, 0, 1)
expected = scores.softmax(-1) @ value
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
(expected_gradient,) = torch.autograd.grad(expected.square().sum(), table)
torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4)
