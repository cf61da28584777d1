"""Circular windows on an image behind text (CLEAR, Liu et al. 2024, arXiv:2412.16112).

A pixel attends to the pixels less than a radius away; text sees all and is seen by all.
"""

import torch

import regard as rg

text, height, width, radius = 20, 18, 24, 5
image = rg.grid(height, width)


@rg.mask
def circle(q, kv, text, radius):
    (y, x), (j, i) = image(q - text), image(kv - text)
    near = (y - j) * (y - j) + (x - i) * (x - i) < radius * radius
    return (q < text) | (kv < text) | near


query, key, value = torch.randn(3, 1, 2, text + height * width, 32).unbind()
attn = rg.attention(circle(text=text, radius=radius))
print(attn)
out = attn(query, key, value)

# The same, written out densely: an image of distances for every pixel.
y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
places = torch.stack([y, x], -1).view(-1, 2).double()
allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
allowed[text:, text:] = torch.cdist(places, places) < radius - 1e-9
scores = (query @ key.mT / 32**0.5).masked_fill(~allowed, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
