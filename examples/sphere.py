"""Neighbourhoods on a sphere (Attention on the Sphere, Bonev et al. 2025): the points within an angle of a point.

Which points these are is data: rings of latitude and directions, as captured tensors. Tiles far north or south are left
out, by the first and last ring of each; inside of the others the angle itself is compared. Points count by their area.
"""

import math

import torch

import regard as rg

rows, columns, angle = 16, 32, 0.4
ring = torch.arange(rows, dtype=torch.int32).repeat_interleave(columns)
latitude = (ring + 0.5) / rows * math.pi - math.pi / 2
longitude = torch.arange(columns).repeat(rows) / columns * 2 * math.pi
points = torch.stack([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()], 1)


@rg.mask
def within(q, kv, points, ring, reach, cosine):
    along = sum(points[q, axis] * points[kv, axis] for axis in range(3))
    return (abs(ring[q] - ring[kv]) <= reach) & (along >= cosine)


query, key, value = torch.randn(3, 1, 2, rows * columns, 32).unbind()
near = within(points=points, ring=ring, reach=int(angle / math.pi * rows), cosine=math.cos(angle))
attn = rg.attention(near, rg.key_bias(latitude.cos().log()))
print(attn.explain(query, key, value))
out = attn(query, key, value)

# The same, written out densely, by the haversine formula.
north, east = (x[:, None].double() - x.double() for x in (latitude, longitude))
cosines = latitude[:, None].cos() * latitude.cos()
angles = 2 * ((north / 2).sin() ** 2 + cosines * (east / 2).sin() ** 2).sqrt().clamp(max=1).asin()
scores = (query @ key.mT / 32**0.5 + latitude.cos().log()).masked_fill(angles > angle, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
