"""A variant from text, as a configuration file or a client may send it: parsed, never evaluated as Python."""

import torch

import regard as rg

TEXT = """
attention local_with_temperature(radius: int = 40, temperature: float = 0.7) {
  keep      abs(q - kv) <= radius
  score     s / temperature
  normalize softmax
}
"""
attn = rg.parse(TEXT)
assert rg.parse(str(attn)) == attn
print(attn)
query, key, value = torch.randn(3, 1, 4, 270, 64).unbind()
out = attn(query, key, value)

# The same, written out densely.
i = torch.arange(270)
scores = query @ key.mT / 64**0.5 / 0.7
scores = scores.masked_fill((i[:, None] - i).abs() > 40, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
