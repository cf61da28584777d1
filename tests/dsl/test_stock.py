"""The stock library against its definitions, pair by pair, and its checks of values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import regard as rg
from oracle import Part, allowed_pairs, oracle
from regard.ir.interpret import attention as interpret
from regard.ir.passes import run_pipeline

B, H, HKV, LQ, LKV = 2, 4, 2, 13, 17
IDS = torch.tensor(
    [[0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4], [5, 5, 5, 5, 5, 1, 1, 1, 1, 1, 1, 7, 7, 7, 7, 7, 7]]
)
LENGTHS = torch.tensor([5, 17], dtype=torch.int32)
VISIBLE = torch.arange(B * LKV).reshape(B, LKV) % 3 != 1
SQUARES = VISIBLE[:, :10].reshape(4, 5)

# Each token's subtree: a chain, and a prefix of 4 with three continuations, of which the last branches again.
ENDS = torch.tensor([[LKV] * LKV, [LKV] * 4 + [7, 7, 7, 9, 9, LKV, LKV, 13, 13, LKV, LKV, LKV, LKV]])


def draw(block: int, i: int) -> int:
    """The block of keys that the hash gives."""
    x = block * 2 + i + 5 * 7919
    for factor in (0x5F0AAAD, 0xB35A2D9):
        x = (x ^ x >> 15) * factor % 2**31
    return (x ^ x >> 15) * math.ceil(LKV / 3) // 2**31


Pair = Callable[[int, int, int], bool | torch.Tensor]  # batch, q, kv
MASKS: dict[str, tuple[Part, Pair]] = {
    "full": (rg.full, lambda b, q, k: True),
    "causal": (rg.causal, lambda b, q, k: k <= q),
    "sliding_window": (rg.sliding_window(3), lambda b, q, k: q - 3 <= k <= q),
    "sliding_window both ways": (rg.sliding_window(2, 4), lambda b, q, k: q - 2 <= k <= q + 4),
    "prefix_lm": (rg.prefix_lm(5), lambda b, q, k: k <= q or k < 5),
    "prefix_lm per batch": (rg.prefix_lm(LENGTHS), lambda b, q, k: k <= q or k < LENGTHS[b]),
    "document": (rg.document(IDS), lambda b, q, k: IDS[b, q] == IDS[b, k]),
    "document shared": (rg.document(IDS[0]), lambda b, q, k: IDS[0, q] == IDS[0, k]),
    "document by offsets": (rg.document(offsets=[0, 5, 5, 17]), lambda b, q, k: (q >= 5) == (k >= 5)),
    "document cross": (rg.document(IDS, IDS.flip(1)), lambda b, q, k: IDS[b, q] == IDS[b, LKV - 1 - k]),
    "document cross shared": (rg.document(IDS[0], IDS[1]), lambda b, q, k: IDS[0, q] == IDS[1, k]),
    "padding": (rg.padding(LENGTHS), lambda b, q, k: k < LENGTHS[b]),
    "key_mask": (rg.key_mask(VISIBLE), lambda b, q, k: bool(VISIBLE[b, k])),
    "global_tokens": (rg.global_tokens(2), lambda b, q, k: min(q, k) < 2),
    "sinks": (rg.sinks(2), lambda b, q, k: k in (0, 1)),
    "dilated": (rg.dilated(3), lambda b, q, k: abs(q - k) in range(0, 100, 3)),
    "strided": (rg.strided(4), lambda b, q, k: 0 <= q - k < 4 or q - k in range(0, 100, 4)),
    "block_diagonal": (rg.block_diagonal(5), lambda b, q, k: math.floor(q / 5) == math.floor(k / 5)),
    "chunked_causal": (rg.chunked_causal(5), lambda b, q, k: math.floor(q / 5) * 5 <= k <= q),
    "block_causal": (rg.block_causal(5), lambda b, q, k: k < (q // 5 + 1) * 5),
    "random_blocks": (rg.random_blocks(3, 2, seed=5), lambda b, q, k: k // 3 in (draw(q // 3, 0), draw(q // 3, 1))),
    "tree": (rg.tree(ENDS), lambda b, q, k: k <= q < int(ENDS[b, k])),
    "tree shared": (rg.tree(ENDS[1]), lambda b, q, k: k <= q < int(ENDS[1, k])),
    "checkerboard": (rg.checkerboard(3), lambda b, q, k: q % 6 // 3 == k % 6 // 3),
    "tiles": (rg.tiles(SQUARES, (5, 4)), lambda b, q, k: SQUARES[q // 5, k // 4]),
    "tiles in a list": (
        rg.tiles(torch.tensor([[1, 0, 1, 3], [0, 0, 2, 0]]), (5, 4), shape=(B, 1, 4, 5)),
        lambda b, q, k: (b, q // 5, k // 4) in ((1, 1, 3), (0, 2, 0)),
    ),
    "streaming": (
        rg.causal & (rg.sliding_window(3) | rg.sinks(2)),
        lambda b, q, k: k <= q and (q - k <= 3 or k < 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize("name", MASKS)
def test_mask_against_its_definition(name: str, align: Any) -> None:
    part, pair = MASKS[name]
    shift = LKV - LQ if align == "end" else 0
    expected = [[[pair(b, q + shift, k) for k in range(LKV)] for q in range(LQ)] for b in range(B)]
    mask = allowed_pairs([part], (B, H, HKV, LQ, LKV), align=align)
    assert torch.equal(mask, torch.tensor(expected)[:, None].expand_as(mask))


def t5_bucket(relative: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """Raffel et al., 2020, for one relative position kv - q."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = numpy.log(numpy.float32(distance / exact)) / math.log(max_distance / exact)
    return first + min(exact + int(share * (buckets - exact)), buckets - 1)


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
TABLE = torch.randn(H, 7, generator=torch.Generator().manual_seed(1))
T5_TABLE = torch.randn(8, H, generator=torch.Generator().manual_seed(2))
PER_KEY = torch.randn(B, H, LKV, generator=torch.Generator().manual_seed(3))

Score = Callable[[float, int, int, int, int], Any]  # score, batch, head, q, kv
SCORES: dict[str, tuple[Part, Score]] = {
    "alibi": (rg.alibi(SLOPES), lambda s, b, h, q, k: s - SLOPES[h] * abs(q - k)),
    "alibi heads": (rg.alibi(heads=4), lambda s, b, h, q, k: s - 2.0 ** (-2 * (h + 1)) * abs(q - k)),
    "alibi 3 heads": (
        rg.alibi(heads=3),  # two heads of n = 2, then the first of n = 4
        lambda s, b, h, q, k: s - (2.0**-4, 2.0**-8, 2.0**-2, 2.0**-6)[h] * abs(q - k),
    ),
    "relative_bias": (rg.relative_bias(TABLE), lambda s, b, h, q, k: s + TABLE[h, min(max(k - q, -3), 3) + 3]),
    "t5_bias": (
        rg.t5_bias(T5_TABLE, max_distance=12),
        lambda s, b, h, q, k: s + T5_TABLE[t5_bucket(k - q, True, 8, 12), h],
    ),
    "t5_bias of a decoder": (
        rg.t5_bias(T5_TABLE, bidirectional=False, max_distance=16),
        lambda s, b, h, q, k: s + T5_TABLE[t5_bucket(k - q, False, 8, 16), h],
    ),
    "softcap": (rg.softcap(1.5), lambda s, b, h, q, k: 1.5 * math.tanh(s / 1.5)),
    "temperature": (rg.temperature(0.5), lambda s, b, h, q, k: s / 0.5),
    "log_n": (rg.log_n(6), lambda s, b, h, q, k: s * max(math.log(q + 1) / math.log(6), 1)),
    "key_bias shared": (rg.key_bias(PER_KEY[0, 0]), lambda s, b, h, q, k: s + PER_KEY[0, 0, k]),
    "key_bias": (rg.key_bias(PER_KEY[:, 0]), lambda s, b, h, q, k: s + PER_KEY[b, 0, k]),
    "key_bias per head": (rg.key_bias(PER_KEY), lambda s, b, h, q, k: s + PER_KEY[b, h, k]),
    "decay": (rg.decay(-SLOPES), lambda s, b, h, q, k: s - SLOPES[h] * (q - k)),
    "token_decay": (rg.token_decay(PER_KEY), lambda s, b, h, q, k: s + PER_KEY[b, h, q] - PER_KEY[b, h, k]),
    "distance_decay": (
        rg.distance_decay(0.5, reach=4.0),
        lambda s, b, h, q, k: s - 0.5 * math.log(1 + abs(q - k) / 4),
    ),
}


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, LQ, 16), (B, HKV, LKV, 16), (B, HKV, LKV, 24))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("name", SCORES)
def test_score_against_its_definition(name: str) -> None:
    part, score = SCORES[name]
    query, key, _ = inputs()
    plain = query @ key.repeat_interleave(H // HKV, dim=1).mT / 4
    expected = torch.empty_like(plain)
    for b, h, q, k in numpy.ndindex(plain.shape):
        expected[b, h, q, k] = float(score(float(plain[b, h, q, k]), b, h, q, k))
    _, lse = oracle([part], *inputs())
    assert torch.allclose(lse, expected.logsumexp(-1), rtol=1e-6)


@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize("name", [*MASKS, *SCORES])
def test_traced_form_means_the_same_as_the_function(name: str, align: Any) -> None:
    part = (MASKS | SCORES)[name][0]
    variant, binding = rg.assemble(part, align=align)
    values = {k: x.numpy() if isinstance(x, torch.Tensor) else x for k, x in binding.items()}
    query, key, value = (x.numpy() for x in inputs())
    out, lse = interpret(run_pipeline(variant), query, key, value, values)
    exact, exact_lse = oracle([part], *inputs(), align=align)
    assert numpy.allclose(out, exact, rtol=1e-5, atol=1e-6)
    assert numpy.allclose(lse, exact_lse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*MASKS, *SCORES])
def test_text_reads_back(name: str) -> None:
    attn = rg.attention((MASKS | SCORES)[name][0])
    assert rg.parse(str(attn)) == attn


def test_log_n_at_negative_positions() -> None:
    """More queries than keys that end together: the first ones are before the first key."""
    query, key, value = torch.randn(1, 1, 9, 16), torch.randn(1, 1, 5, 16), torch.randn(1, 1, 5, 16)
    scaled, plain = (rg.attention(*parts, align="end")(query, key, value) for parts in ([rg.log_n(3)], []))
    assert scaled.isfinite().all() and torch.allclose(scaled[:, :, :6], plain[:, :, :6])


def test_random_blocks_are_spread_evenly() -> None:
    """Every block of keys is drawn about equally often, and seeds and neighbouring blocks differ."""
    first, second = (
        allowed_pairs([rg.random_blocks(1, 3, seed=seed)], (1, 1, 1, 600, 600))[0, 0] for seed in (0, 1)
    )
    assert first.sum(1).min() >= 1 and 2.97 < first.sum(1).float().mean() <= 3
    assert first.sum(0).max() <= 13  # a Poisson variable of mean 3 exceeds 13 with a probability of 1e-6
    for other in (second, first.roll(1, 0), first.mT):
        assert (first & other).sum() < 40


@pytest.mark.parametrize(
    ("bound", "opened", "value"),
    [
        (rg.alibi(SLOPES), rg.alibi(), {"slopes": SLOPES}),
        (rg.decay(-SLOPES), rg.decay(), {"rates": -SLOPES}),
        (rg.relative_bias(TABLE), rg.relative_bias(reach=3), {"table": TABLE}),
    ],
)
def test_learned_tensors_may_be_left_open(bound: Part, opened: Part, value: dict[str, Any]) -> None:
    query, key, value_ = (x.float() for x in inputs())
    out = rg.attention(rg.causal, opened)(query, key, value_, **value)
    assert torch.equal(out, rg.attention(rg.causal, bound)(query, key, value_))


PLACES = torch.tensor([[2, 1], [0, 3], [2, 1]])
FEW_BUCKETS = "`table` must have at least 4 buckets, an even number if bidirectional, got"
untyped: Any = rg  # for values that a type checker refuses


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rg.sliding_window(-1), "`left` must be a whole number ≥ 0, got -1"),
        (lambda: untyped.sliding_window(4, 1.5), "`right` must be a whole number ≥ 0, got 1.5"),
        (lambda: rg.prefix_lm(-2), "`prefix` must be a whole number ≥ 0, got -2"),
        (lambda: rg.prefix_lm(IDS), "`prefix` must have shape (B,), got (2, 17)"),
        (lambda: untyped.document([0, 0, 1]), "`ids` must be a tensor of shape (B, S) or (S,), got list"),
        (lambda: rg.document(IDS.float()), "`ids` must be a tensor of kind integer, got torch.float32"),
        (lambda: rg.document(IDS, IDS[0]), "`kv_ids` must have shape (B, Lkv), the rank of `ids`, got (17,)"),
        (lambda: rg.document(kv_ids=IDS), "`kv_ids` needs `ids` beside it"),
        (lambda: rg.padding(LENGTHS[:, None]), "`lengths` must have shape (B,), got (2, 1)"),
        (lambda: rg.key_mask(VISIBLE.long()), "`visible` must be a tensor of kind bool, got torch.int64"),
        (lambda: rg.global_tokens(True), "`count` must be a whole number ≥ 0, got True"),
        (lambda: rg.sinks(-4), "`count` must be a whole number ≥ 0, got -4"),
        (lambda: rg.dilated(0), "`dilation` must be a whole number ≥ 1, got 0"),
        (lambda: rg.strided(0), "`stride` must be a whole number ≥ 1, got 0"),
        (lambda: rg.block_diagonal(0), "`size` must be a whole number ≥ 1, got 0"),
        (lambda: untyped.chunked_causal(2.0), "`size` must be a whole number ≥ 1, got 2.0"),
        (lambda: rg.block_causal(0), "`size` must be a whole number ≥ 1, got 0"),
        (lambda: rg.random_blocks(0, 3), "`size` must be a whole number ≥ 1, got 0"),
        (lambda: rg.random_blocks(64, 0), "`count` must be a whole number ≥ 1, got 0"),
        (lambda: rg.random_blocks(64, 3, seed=-1), "`seed` must be a whole number ≥ 0, got -1"),
        (lambda: rg.tree(ENDS.float()), "`ends` must be a tensor of kind integer, got torch.float32"),
        (lambda: rg.tree(ENDS[None]), "`ends` must have shape (B, S) or (S,), got (1, 2, 17)"),
        (lambda: rg.checkerboard(-1), "`size` must be a whole number ≥ 1, got -1"),
        (
            lambda: rg.tiles(PLACES),
            "`blocks` of shape (3, 2) lists indices, so `shape` must say how many blocks there are along each of its "
            "axes, got None",
        ),
        (lambda: rg.tiles(TABLE), "`blocks` must be a tensor of kind integer, got torch.float32"),
        (
            lambda: rg.tiles(VISIBLE[0]),
            "`blocks` must have shape (rows, columns), (H, rows, columns) or (B, H, rows, columns), got (17,)",
        ),
        (lambda: rg.tiles(VISIBLE, 0), "`size` must be a whole number ≥ 1, got 0"),
        (lambda: rg.tiles(VISIBLE, shape=(2, 17)), "`shape` is for a list of indices; a bool tensor has its own"),
        (lambda: rg.tiles(PLACES, shape=(3, 3)), "block (0, 3) is out of range of (3, 3) blocks"),
        (lambda: rg.tiles(PLACES, shape=(3, 4)), "block (2, 1) is listed twice"),
        (lambda: rg.alibi(SLOPES, heads=4), "alibi takes either `slopes` or `heads`"),
        (lambda: rg.alibi(heads=0), "`heads` must be a whole number ≥ 1, got 0"),
        (lambda: rg.relative_bias(), "relative_bias takes either `table` or `reach`"),
        (lambda: rg.relative_bias(TABLE, reach=3), "relative_bias takes either `table` or `reach`"),
        (lambda: rg.relative_bias(reach=-1), "`reach` must be a whole number ≥ 0, got -1"),
        (lambda: rg.relative_bias(TABLE[:, :6]), "`table` must have an odd number of columns, got shape (4, 6)"),
        (lambda: rg.t5_bias(T5_TABLE[:7]), f"{FEW_BUCKETS} 7"),
        (lambda: rg.t5_bias(T5_TABLE[:2]), f"{FEW_BUCKETS} 2"),
        (lambda: rg.t5_bias(T5_TABLE, max_distance=2), "`max_distance` must be a whole number ≥ 3, got 2"),
        (lambda: rg.softcap(0.0), "`cap` must be a finite number > 0, got 0.0"),
        (lambda: rg.temperature(-1), "`t` must be a finite number > 0, got -1"),
        (lambda: rg.log_n(1), "`length` must be a finite number > 1, got 1"),
        (lambda: rg.key_bias(VISIBLE), "`bias` must be a tensor of kind float, got torch.bool"),
        (lambda: rg.decay(SLOPES[None]), "`rates` must have shape (H,), got (1, 4)"),
        (lambda: rg.token_decay(SLOPES), "`total` must have shape (B, H, S), got (4,)"),
        (lambda: rg.distance_decay(math.inf), "`rate` must be a finite number > 0, got inf"),
    ],
)  # fmt: skip
def test_bad_values_are_one_error_at_the_call(build: Callable[[], object], message: str) -> None:
    with pytest.raises(rg.ParameterError) as raised:
        build()
    assert raised.value.message == message
    assert raised.value.location is not None and raised.value.location.file == __file__
