"""ALiBi: a bias that falls linearly with distance, one slope a head (Press et al. 2022, section 3).

The slopes are a captured tensor; because they require a gradient, they get one.
"""

import torch

import regard as rg

query, key, value = torch.randn(3, 1, 8, 200, 64).unbind()
slopes = torch.exp2(-torch.arange(1, 9)).requires_grad_()


@rg.score
def alibi(s, q, kv, head):
    return s - slopes[head] * (q - kv)


attn = rg.attention(rg.causal, alibi)
print(attn)
out = attn(query, key, value)
(gradient,) = torch.autograd.grad(out.square().sum(), slopes)

# The same, written out densely.
i = torch.arange(200)
distance = i[:, None] - i
scores = query @ key.mT / 64**0.5 - slopes[:, None, None] * distance
expected = scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ value
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
(expected_gradient,) = torch.autograd.grad(expected.square().sum(), slopes)
torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-3)
