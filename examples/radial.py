"""Radial attention on a video (Li et al. 2025, arXiv:2506.19852): the window narrows as frames lie further apart.

At a distance of 1, 2, 4 … frames a token sees a half, a quarter, an eighth … of the places around its own. Once that
is less than a place, it sees its own place in every second, fourth … frame. The first frame is seen by all.
"""

import torch

import regard as rg

video = rg.grid(40, 16)  # frames, places


@rg.mask
def radial(q, kv):
    frames, places = video.sizes
    (t, place), (s, other) = video(q), video(kv)
    apart, reach, step = abs(t - s), places, 1
    for octave in range(1, frames.bit_length() + 1):
        farther = apart >= 2 ** (octave - 1)
        reach = rg.where(farther, max(places >> octave, 1), reach)
        step = rg.where(farther, max(2**octave // places, 1), step)
    return (abs(place - other) < reach) & (apart % step == 0) | (s == 0)


query, key, value = torch.randn(3, 1, 2, 640, 32).unbind()
attn = rg.attention(radial)
print(attn)
out = attn(query, key, value)
# The same, written out densely, frame by frame.
allowed = torch.zeros(40, 16, 40, 16, dtype=torch.bool)
distance = (torch.arange(16)[:, None] - torch.arange(16)).abs()
for t in range(40):
    for s in range(40):
        part = 16 / 2 ** abs(t - s).bit_length()
        if part >= 1 or abs(t - s) % int(1 / part) == 0:
            allowed[t, :, s] = distance < max(part, 1)
allowed[:, :, 0] = True
scores = (query @ key.mT / 32**0.5).masked_fill(~allowed.view(640, 640), -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
