"""Functions written for FlexAttention are taken as they are, and mean what they mean there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import (
    and_masks,
    create_block_mask,
    flex_attention,
    noop_mask,
    or_masks,
)

import regard as rg
from oracle import Part, assert_close_to_oracle, eager, oracle

WINDOW, PREFIX = 7, 5
DOCUMENT = torch.arange(50) // 17
LENGTHS = torch.tensor([50, 31])
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx - kv_idx <= WINDOW


def prefix(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx <= PREFIX


def documents(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return DOCUMENT[q_idx] == DOCUMENT[kv_idx]


def padding(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx < LENGTHS[b]


def alibi(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + SLOPES[h] * (kv_idx - q_idx)


def softcap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return 20 * torch.tanh(score / 20)


def causal_as_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx >= kv_idx, score, -float("inf"))


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, 50, 32), torch.randn(2, 2, 50, 32), torch.randn(2, 2, 50, 32)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("mask", "score"),
    [
        (causal, None),
        (and_masks(causal, window), None),
        (and_masks(causal, or_masks(window, prefix), documents), alibi),
        (and_masks(padding, noop_mask), softcap),
        (noop_mask, causal_as_score),
    ],
)  # fmt: skip
def test_the_result_is_that_of_flex_attention(mask: Any, score: Callable[..., Any] | None) -> None:
    query, key, value = inputs()
    block_mask = create_block_mask(mask, 2, 4, 50, 50, device="cpu")
    expected = flex_attention(query, key, value, score, block_mask, enable_gqa=True)
    parts: list[Part] = [rg.mask_mod(mask), *([rg.score_mod(score)] if score else [])]
    torch.testing.assert_close(rg.attention(*parts)(query, key, value), expected, rtol=1e-4, atol=1e-5)


def test_mods_combine_and_numbers_of_closures_are_parameters() -> None:
    parts: list[Part] = [rg.mask_mod(causal) & (rg.mask_mod(window) | rg.mask_mod(prefix)), rg.score_mod(alibi)]
    attn = rg.attention(*parts)
    assert str(attn).splitlines()[1] == "  keep      q >= kv and (q - kv <= WINDOW or kv <= PREFIX)"
    query, key, value = inputs()
    (exact, _), (plain, _) = (compute(parts, query, key, value) for compute in (oracle, eager))
    assert_close_to_oracle(attn(query, key, value), exact, plain)
    wider = attn.with_values(WINDOW=20)
    assert str(wider) == str(attn).replace("WINDOW: int = 7", "WINDOW: int = 20")


def test_further_arguments_are_parameters() -> None:
    @rg.mask_mod
    def near(b: Any, h: Any, q_idx: Any, kv_idx: Any, radius: int) -> Any:
        return (q_idx - kv_idx).abs() <= radius

    assert rg.attention(near(radius=3)) == rg.attention(rg.mask(lambda q, kv, radius: abs(q - kv) <= radius)(radius=3))


class Near:
    """A mask with a state, as a method and as an object."""

    def __init__(self, radius: int) -> None:
        self.radii = torch.full((4,), radius)

    def mask_mod_of(self, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return (q_idx - kv_idx).abs() <= self.radii[h]

    __call__ = mask_mod_of


def test_methods_and_objects_are_called() -> None:
    text = str(rg.attention(rg.mask_mod(Near(3).mask_mod_of), name="near"))
    assert text.splitlines()[1] == "  keep      abs(q - kv) <= radii[head]"
    assert str(rg.attention(rg.mask_mod(Near(3)), name="near")) == text
    assert str(rg.attention(rg.mask_mod(partial(Near.mask_mod_of, Near(3))), name="near")) == text
    scaled = rg.score_mod(partial(lambda by, score, b, h, q_idx, kv_idx: by * score, 2.0))
    assert str(rg.attention(scaled)).splitlines()[1] == "  score     2.0 * s"


def test_names_do_not_matter() -> None:
    crossed = rg.mask_mod(lambda kv, q, head, batch: head >= batch)
    assert crossed().traced.expr == rg.causal().traced.expr


def test_a_score_of_minus_infinity_is_a_mask() -> None:
    query, key, value = inputs()
    masked, causally = (rg.attention(x).explain(query, key, value) for x in (rg.score_mod(causal_as_score), rg.causal))
    assert masked.counts is not None and masked.counts == causally.counts
