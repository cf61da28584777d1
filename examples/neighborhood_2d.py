"""Neighbourhood attention on an image (Hassani et al. 2022, arXiv:2204.07143): the 5 × 5 keys nearest to a pixel.

`rg.grid` gives the coordinates of a flattened position. Tiles of tokens are boxes of the grid, and the keys that a box
sees are a range along each axis, in closed form. `rg.neighborhood` adds dilation, strides and causal axes.
"""

import torch

import regard as rg

height, width, window = 24, 40, 5
image = rg.grid(height, width)


@rg.mask
def near(q, kv, window):
    (y, x), (j, i) = image(q), image(kv)
    top = rg.clamp(y - window // 2, 0, height - window)  # at borders the window is shifted, not cut
    left = rg.clamp(x - window // 2, 0, width - window)
    return (j >= top) & (j < top + window) & (i >= left) & (i < left + window)


query, key, value = torch.randn(3, 1, 4, height * width, 32).unbind()
attn = rg.attention(near(window=window))
print(attn.explain(query, key, value))
out = attn(query, key, value)
torch.testing.assert_close(rg.attention(rg.neighborhood(image, window))(query, key, value), out)

# The same, written out densely: every pixel attends to a 5 × 5 patch of the image.
first = [(torch.arange(n) - window // 2).clamp(0, n - window) for n in (height, width)]
y, x = (f[:, None] + torch.arange(window) for f in first)
places = (y[:, None, :, None] * width + x[None, :, None, :]).reshape(height * width, window**2)
scores = torch.einsum("bhqd,bhqkd->bhqk", query, key[:, :, places]) / 32**0.5
expected = torch.einsum("bhqk,bhqkd->bhqd", scores.softmax(-1), value[:, :, places])
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
