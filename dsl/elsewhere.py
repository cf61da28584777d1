"""What other libraries call the arguments of masks and scores."""

from __future__ import annotations

# FlexAttention's ``mask_mod(b, h, q_idx, kv_idx)`` and ``score_mod(score, b, h, q_idx, kv_idx)``, and usual others.
_HERE = {
    "b": "batch", "h": "head", "q_idx": "q", "kv_idx": "kv", "k_idx": "kv", "k": "kv", "i": "q", "j": "kv", "score": "s"
}  # fmt: skip


def elsewhere(name: str) -> str:
    """What to write for ``name`` where it was meant as one of those; empty for others."""
    if name not in _HERE:
        return ""
    return f"what FlexAttention calls `{name}` is `{_HERE[name]}` here; rg.mask_mod takes its functions as they are"
