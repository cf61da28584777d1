"""Packed documents: causal attention that stays inside a document (Llama 3, 2024, section 3.2).

The document ids come with every call; one pass over them finds the tiles that need work.
"""

import torch

import regard as rg


@rg.mask
def same_document(q, kv, batch, doc):
    return (doc[batch, q] == doc[batch, kv]) & (q >= kv)


query, key, value = torch.randn(3, 2, 4, 400, 64).unbind()
lengths = torch.tensor([[150, 30, 220], [10, 200, 190]])
doc = torch.stack([torch.repeat_interleave(torch.arange(3), row) for row in lengths])
attn = rg.attention(same_document)
print(attn)
out = attn(query, key, value, doc=doc)

# The same, written out densely.
i = torch.arange(400)
allowed = (doc[:, None, :, None] == doc[:, None, None, :]) & (i[:, None] >= i)
scores = (query @ key.mT / 64**0.5).masked_fill(~allowed, -torch.inf)
torch.testing.assert_close(out, scores.softmax(-1) @ value, rtol=1e-4, atol=1e-5)
