"""FlexAttention's functions as they are (Dong et al. 2024, arXiv:2412.05496): packed documents with ALiBi.

No block mask is made, so nothing is computed again when documents or lengths change.
"""

import torch
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention

import regard as rg

ids = torch.arange(3).repeat_interleave(torch.tensor([50, 120, 30]))
slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def document(b, h, q_idx, kv_idx):
    return ids[q_idx] == ids[kv_idx]


def alibi(score, b, h, q_idx, kv_idx):
    return score + slopes[h] * (kv_idx - q_idx)


query, key, value = torch.randn(3, 2, 4, 200, 32).unbind()
attn = rg.attention(rg.mask_mod(causal) & rg.mask_mod(document), rg.score_mod(alibi))
print(attn)
out = attn(query, key, value)

# FlexAttention itself, which computes all pairs unless it is compiled.
block_mask = create_block_mask(and_masks(causal, document), None, None, 200, 200, device="cpu")
expected = flex_attention(query, key, value, alibi, block_mask)
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
