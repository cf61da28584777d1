"""Block-sparse attention from a table: which blocks of 32 meet is data (BigBird, Zaheer et al. 2020, section 2)."""

import torch

import regard as rg

query, key, value = torch.randn(3, 1, 2, 320, 64).unbind()
table = torch.rand(2, 10, 10) < 0.3
table[:, :, 0] = True  # a global block
table |= torch.eye(10, dtype=torch.bool)
attn = rg.attention(rg.tiles(table, 32))
print(attn)
out = attn(query, key, value)

# The same, written out densely.
allowed = table.repeat_interleave(32, 1).repeat_interleave(32, 2)
scores = (query @ key.mT / 64**0.5).masked_fill(~allowed, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
