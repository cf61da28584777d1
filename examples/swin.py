"""Shifted windows (Swin Transformer, Liu et al. 2021, arXiv:2103.14030, section 3.2), with its relative position bias.

The windows are classes: each is a dense tile of its own. Nothing is rolled, cut up or padded.
"""

import torch

import regard as rg

height, width, size, shift, heads = 14, 21, 7, 3, 2
image = rg.grid(height, width)
table = torch.randn(heads, 2 * size - 1, 2 * size - 1, requires_grad=True)


@rg.score
def relative_position(s, q, kv, head, table):
    (y, x), (j, i) = image(q), image(kv)
    dy, dx = (rg.clamp(d, 1 - size, size - 1) for d in (y - j, x - i))  # pairs of other windows never read
    return s + table[head, dy + size - 1, dx + size - 1]


query, key, value = torch.randn(3, 1, heads, height * width, 32).unbind()
attn = rg.attention(rg.windows(image, size, shift), relative_position(table=table))
print(attn)
out = attn(query, key, value)

# The same, written out densely. In each row and column, borders are at 3, 10, 17 …
y, x = image(torch.arange(height * width))
window = (y - shift).div(size, rounding_mode="floor") * 100 + (x - shift).div(size, rounding_mode="floor")
dy, dx = (i[:, None] - i[None, :] for i in (y, x))
bias = table[:, dy.clamp(1 - size, size - 1) + size - 1, dx.clamp(1 - size, size - 1) + size - 1]
scores = query @ key.mT / 32**0.5 + bias
scores = scores.masked_fill(window[:, None] != window[None, :], -torch.inf)
expected = scores.softmax(-1) @ value
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
(grad,) = torch.autograd.grad(out.sum() + out.square().sum(), table)
(wanted,) = torch.autograd.grad(expected.sum() + expected.square().sum(), table)
torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-4)
