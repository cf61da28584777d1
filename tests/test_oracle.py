"""The oracle itself: small cases worked out by hand, and what it must not let pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import regard as rg
from oracle import allowed_pairs, assert_close_to_oracle, eager, gradients, oracle

ONE = torch.ones(1, 1, 1, 1)


def randn(*shape: int, seed: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def test_two_keys_by_hand() -> None:
    query, key, value = 2 * ONE, torch.tensor([[[[0.0], [1.0]]]]), torch.tensor([[[[3.0], [7.0]]]])
    out, lse = oracle([], query, key, value)
    e = math.e**2
    assert out.item() == pytest.approx((3 + 7 * e) / (1 + e), rel=1e-15)
    assert lse.item() == pytest.approx(math.log(1 + e), rel=1e-15)


def test_scale_then_scores_in_order() -> None:
    double, plus_one = rg.score(lambda s: 2 * s), rg.score(lambda s: s + 1)
    assert oracle([double, plus_one], ONE, ONE, ONE, scale=5.0)[1].item() == 11
    assert oracle([plus_one, double], ONE, ONE, ONE, scale=5.0)[1].item() == 12


def test_masks_combine() -> None:
    even, late = rg.mask(lambda kv: kv % 2 == 0), rg.mask(lambda kv, start: kv >= start)
    mask = allowed_pairs([even | ~late(start=3), late], (1, 1, 1, 1, 6), start=1)
    assert mask.flatten().tolist() == [False, True, True, False, True, False]


def test_positions_align_at_the_end() -> None:
    assert allowed_pairs([rg.causal], (1, 1, 1, 2, 4), align="end").squeeze().int().tolist() == [[1, 1, 1, 0], [1] * 4]


def test_rows_that_see_nothing() -> None:
    nothing = rg.mask(lambda q: q > 0)
    query, key, value = (randn(1, 1, 2, 4, seed=i) for i in range(3))
    out, lse = oracle([nothing], query, key, value)
    assert out[0, 0, 0].tolist() == [0.0] * 4 and lse[0, 0, 0] == -math.inf and lse[0, 0, 1].isfinite()
    grads = gradients(oracle, [nothing], (query, key, value), torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2))
    assert all(g.isfinite().all() for g in grads) and grads[0][0, 0, 0].tolist() == [0.0] * 4


@pytest.mark.parametrize("attention", [oracle, eager])
def test_keys_that_nobody_sees_do_not_matter(attention: Any) -> None:
    query, key, value = (randn(1, 2, 5, 4, seed=i) for i in range(3))
    spoiled, other = key.clone(), value.clone()
    spoiled[:, :, 3], other[:, :, 3] = math.nan, math.inf
    part = rg.mask(lambda kv: kv != 3)
    out, lse = attention([part], query, spoiled, other)
    assert torch.equal(out, attention([part], query, key, value)[0]) and lse.isfinite().all()
    for g in gradients(attention, [part], (query, spoiled, other), torch.ones_like(out), torch.ones_like(lse)):
        assert g.isfinite().all()


def test_empty_sizes() -> None:
    out, lse = oracle([rg.causal], torch.ones(0, 2, 3, 4), torch.ones(0, 2, 5, 4), torch.ones(0, 2, 5, 4))
    assert out.shape == (0, 2, 3, 4) and lse.shape == (0, 2, 3)
    out, lse = oracle([], torch.ones(1, 2, 3, 4), torch.ones(1, 1, 0, 4), torch.ones(1, 1, 0, 6))
    assert out.tolist() == torch.zeros(1, 2, 3, 6).tolist() and lse.isneginf().all()


def test_masked_pairs_may_index_anything() -> None:
    table = torch.tensor([1.0, 2.0])
    part, near = (
        rg.score(lambda s, q, kv: s + table[q - kv]),
        rg.mask(lambda q, kv: (q - kv >= 0) & (table[q - kv] > 0)),
    )
    lse = oracle([part, near & rg.sliding_window(1)], *[torch.zeros(1, 1, 3, 4)] * 3)[1]
    assert lse.flatten().tolist() == pytest.approx([1, math.log(math.e + math.e**2), math.log(math.e + math.e**2)])


def test_gradients_of_captured_tensors() -> None:
    slopes = torch.tensor([0.5, 0.25], requires_grad=True)
    inputs = [randn(1, 2, 5, 4, seed=i, dtype=torch.float64) for i in range(3)]
    weight = randn(1, 2, 5, 4, seed=3, dtype=torch.float64)
    got = gradients(oracle, [rg.alibi(slopes), rg.causal], inputs, weight, captured=[slopes])[3]
    for head in range(2):
        values = []
        for step in (-1e-3, 1e-3):
            moved = slopes.detach().clone()
            moved[head] += step
            values.append((oracle([rg.alibi(moved), rg.causal], *inputs)[0] * weight).sum())
        assert got[head].item() == pytest.approx(((values[1] - values[0]) / 2e-3).item(), rel=1e-4)


def test_grouped_heads_and_their_gradients() -> None:
    query, key, value = randn(1, 4, 3, 8, seed=0), randn(1, 2, 5, 8, seed=1), randn(1, 2, 5, 6, seed=2)
    by_group = rg.score(lambda s, head, kv_head: s * (head + 1) + 10 * kv_head)
    lse = oracle([by_group], query, key, value)[1]
    for head in range(4):
        logits = query[0, head].double() @ key[0, head // 2].double().mT * 8**-0.5 * (head + 1) + 10 * (head // 2)
        assert torch.allclose(lse[0, head], logits.logsumexp(-1))
    assert [g.shape for g in gradients(oracle, [], (query, key, value), torch.ones(1, 4, 3, 6))] == [
        x.shape for x in (query, key, value)
    ]


def test_the_rule_for_errors() -> None:
    exact = torch.linspace(-1, 1, 1001, dtype=torch.float64)
    rounded = exact.half()
    noise = 0.01 * torch.sin(1e5 * exact)
    usual = (exact + noise).half()
    assert_close_to_oracle(usual, exact, usual)
    assert_close_to_oracle(rounded, exact, rounded)
    assert_close_to_oracle((exact + 1.1 * noise).half(), exact, usual)
    with pytest.raises(AssertionError, match="RMS error"):
        assert_close_to_oracle((exact + 1.3 * noise).half(), exact, usual)
    with pytest.raises(AssertionError, match="largest error"):
        spike = usual.clone()
        spike[500] += 0.03
        assert_close_to_oracle(spike, exact, usual)
    with pytest.raises(AssertionError, match="expected torch"):
        assert_close_to_oracle(usual.float(), exact, usual)
    with pytest.raises(AssertionError, match="not finite"):
        assert_close_to_oracle(torch.full_like(usual, math.nan), exact, usual)
    infinite = exact.index_fill(0, torch.tensor([3]), -math.inf)
    with pytest.raises(AssertionError, match="infinite"):
        assert_close_to_oracle(usual, infinite, usual)
    assert_close_to_oracle(infinite.half(), infinite, infinite.half())
