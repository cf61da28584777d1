"""The CPU's programs over boxes against the float64 oracle, forward and backward, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import regard.dsl as rg
from oracle import Part, assert_close_to_oracle, eager, gradients, oracle
from printed_torch import Printed, printed

Parts = Callable[[], Sequence[Part]]
IMAGE, VIDEO = rg.grid(9, 11), rg.grid(3, 5, 7)


def randn(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


@rg.mask
def near(q: Any, kv: Any, grid: Any, radius: int) -> Any:
    result = True
    for a, b in zip(grid(q), grid(kv), strict=True):
        result = result & (abs(a - b) <= radius)
    return result


@rg.mask
def windows(q: Any, kv: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return ((a + 2) // 4 == (c + 2) // 4) & ((b + 1) // 4 == (d + 1) // 4)


@rg.mask
def columns(q: Any, kv: Any) -> Any:
    return (IMAGE(q)[1] == IMAGE(kv)[1]) & (q >= kv)


@rg.mask
def columns_of_a_head(q: Any, kv: Any, head: Any, widths: Any) -> Any:
    return abs(IMAGE(q)[1] - IMAGE(kv)[1]) <= widths[head]


@rg.mask
def circle(q: Any, kv: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 3) & (abs(b - d) <= 3) & ((a - c) ** 2 + (b - d) ** 2 <= 9)


@rg.mask
def round_image_after_text(q: Any, kv: Any, text: int, radius: int) -> Any:
    (a, b), (c, d) = IMAGE(q - text), IMAGE(kv - text)
    return (q < text) | (kv < text) | ((a - c) ** 2 + (b - d) ** 2 < radius**2)


SMALL = rg.grid(7, 11)


@rg.mask
def beyond(q: Any, kv: Any, end: int) -> Any:
    """Text after an image sees all and is seen by all."""
    return (q >= end) | (kv >= end)


@rg.mask
def image_between_texts(q: Any, kv: Any, first: int) -> Any:
    (a, b), (c, d) = SMALL(q - first), SMALL(kv - first)
    text = (q < first) | (kv < first) | (q >= first + 77) | (kv >= first + 77)
    return text | (abs(a - c) <= 1) & (abs(b - d) <= 2)


@rg.mask
def image_alone(q: Any, kv: Any) -> Any:
    (a, b), (c, d) = SMALL(q), SMALL(kv)
    return (q < 77) & (kv < 77) & (b % 2 == d % 2) & (a >= c)


@rg.mask
def early_rows_only(q: Any, kv: Any) -> Any:
    return (IMAGE(q)[0] < 4) & (IMAGE(q)[1] % 3 == IMAGE(kv)[1] % 3)


@rg.mask
def residue_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    return (q >= kv) & ((q - kv) % 4 == head % 4)


@rg.mask
def segments_of_a_head(q: Any, kv: Any, head: Any, batch: Any) -> Any:
    """LongNet, arXiv:2307.02486: every head its own offset, every batch item its own too."""
    return (q % 4 == (head + batch) % 4) & (kv % 4 == (head + batch) % 4) & (q // 20 == kv // 20)


@rg.mask
def shards_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    """S2-Attention: local blocks, and every third block from another one on."""
    return (q >= kv) & ((q // 5 - kv // 5 < 2) | ((q // 5 - kv // 5 - head) % 3 == 0))


@rg.mask
def windows_of_a_head(q: Any, kv: Any, head: Any, shifts: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    by = shifts[head]
    return ((a + by) // 4 == (c + by) // 4) & ((b + by) // 4 == (d + by) // 4)


@rg.mask
def residue_of_a_scalar(q: Any, kv: Any, n: int) -> Any:
    return (q - kv) % 4 == n % 4


@rg.score
def bias(s: Any, q: Any, kv: Any, head: Any, table: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return s + table[head, c - a + 8, d - b + 10]


@rg.score
def row_bias(s: Any, q: Any, batch: Any, rows: Any) -> Any:
    return s * rg.sigmoid(rows[batch, q])


CASES: dict[str, Parts] = {
    "dilated": lambda: [rg.causal, rg.dilated(3)],
    "dilated window": lambda: [rg.causal & rg.sliding_window(40) & rg.dilated(4)],
    "strided": lambda: [rg.strided(8)],
    "neighbourhood": lambda: [near(grid=IMAGE, radius=2)],
    "neighbourhood, empty": lambda: [near(grid=IMAGE, radius=-1)],
    "windows": lambda: [windows],
    "columns": lambda: [columns],
    "columns of a head": lambda: [columns_of_a_head(widths=torch.tensor([0, 2, 5, 30]))],
    "residue of a head": lambda: [residue_of_a_head, rg.alibi(slopes=(randn(4) / 8).requires_grad_())],
    "segments of a head": lambda: [segments_of_a_head],
    "shards of a head": lambda: [shards_of_a_head, row_bias(rows=randn(2, 99, requires_grad=True))],
    "windows of a head": lambda: [
        windows_of_a_head(shifts=torch.tensor([0, 2, 2, 1], dtype=torch.int32)),
        bias(table=randn(4, 17, 21, requires_grad=True)),
    ],
    "residue of a scalar": lambda: [residue_of_a_scalar(n=7)],
    "circle": lambda: [circle],
    "round, after text": lambda: [round_image_after_text(text=17, radius=3)],
    "text after an image": lambda: [rg.neighborhood(SMALL, (3, 5)) | beyond(end=rg.static(77))],
    "no text after an image": lambda: [rg.neighborhood(IMAGE, 5) | beyond(end=rg.static(99))],
    "image between texts": lambda: [image_between_texts(first=9), rg.alibi(slopes=torch.ones(4) / 64)],
    "image between texts that is cut short": lambda: [image_between_texts(first=40)],
    "image alone": lambda: [image_alone],
    "rows without keys": lambda: [early_rows_only],
    "documents": lambda: [near(grid=IMAGE, radius=3), rg.document(torch.arange(99).expand(2, -1) // 40)],
    "padding": lambda: [rg.dilated(3) & rg.padding(torch.tensor([0, 50]))],
    "softcap": lambda: [near(grid=IMAGE, radius=3), rg.softcap(2.0)],
    "bias": lambda: [windows, bias(table=randn(4, 17, 21, requires_grad=True))],
    "bias of rows": lambda: [rg.dilated(3), row_bias(rows=randn(2, 99, requires_grad=True)), rg.temperature(0.5)],
}


def check(
    make: Parts, tensors: tuple[Tensor, Tensor, Tensor], align: Literal["start", "end"] = "start", **options: Any
) -> Printed:
    """Output, log-sum-exp and gradients are as close to the oracle as eager's, or twice as far."""
    parts = make()
    program = printed(parts, dtype=tensors[0].dtype, align=align, **options)
    assert "box_loop" in program.forward and "box_loop" in program.backward
    out, lse = program(*tensors)
    exact, usual = oracle(parts, *tensors, align=align), eager(parts, *tensors, align=align)
    assert out.dtype == tensors[0].dtype and lse.dtype == torch.float32
    assert_close_to_oracle(out, exact[0], usual[0], "output")
    assert_close_to_oracle(lse, exact[1], usual[1], "lse")
    grad_out, grad_lse = randn(*out.shape, seed=8).to(out.dtype), randn(*lse.shape, seed=9)
    found = program.gradients(*tensors, out, lse, grad_out, grad_lse=grad_lse)
    captured = [x for part in parts for x in rg.assemble(part)[1].tensors.values() if x.requires_grad]
    wanted, by_eager = (
        gradients(f, parts, tensors, grad_out, grad_lse, captured, align=align) for f in (oracle, eager)
    )
    for x, y, z in zip(found, wanted, by_eager, strict=True):
        error, allowed = ((t.double() - y).abs() for t in (x, z))
        assert x.isfinite().all() and x.shape == y.shape
        scale = y.abs().max() * torch.finfo(x.dtype).eps
        assert error.max() <= 2 * allowed.max() + 4 * scale
    return program


def inputs(dtype: torch.dtype = torch.float32, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = randn(2, 4, 99, 16, seed=1), randn(2, kv_heads, 99, 16, seed=2), randn(2, kv_heads, 99, 24, seed=3)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("case", CASES)
def test_masks_and_scores(case: str) -> None:
    check(CASES[case], inputs())


@pytest.mark.parametrize("case", ["strided", "neighbourhood", "columns of a head", "windows of a head", "bias"])
def test_groups_and_half_precision(case: str) -> None:
    check(CASES[case], inputs(kv_heads=1))
    check(CASES[case], inputs(torch.bfloat16, kv_heads=4))


@pytest.mark.parametrize("scores_at_a_time", [1, 600, 1 << 20])
@pytest.mark.parametrize("blocks", [(1, 1), (16, 16), (128, 128)])
def test_box_sizes_do_not_matter(blocks: tuple[int, int], scores_at_a_time: int) -> None:
    for case in ("strided", "windows", "circle"):
        check(CASES[case], inputs(), blocks=blocks, scores_at_a_time=scores_at_a_time)


def test_three_axes() -> None:
    q, k, v = (randn(2, heads, 105, 16, seed=heads) for heads in (4, 2, 1))
    check(lambda: [near(grid=VIDEO, radius=1), rg.causal], (q, k, v.expand(2, 2, 105, 16)))


@pytest.mark.parametrize("case", ["windows", "columns of a head", "segments of a head", "rows without keys"])
def test_keys_that_no_query_sees_may_hold_anything(case: str) -> None:
    parts = CASES[case]()
    q, k, v = inputs()
    unseen = ~(oracle(parts, q, k, torch.eye(99).expand(2, 2, 99, 99))[0] != 0).any(2).unflatten(1, (2, 2)).any(2)
    hidden = [x.masked_fill(unseen.unsqueeze(-1), float("nan")) for x in (k, v)]
    program = printed(parts)
    out, lse = program(q, k, v)
    again, same = program(q, *hidden)
    torch.testing.assert_close((again, same), (out, lse), rtol=0, atol=0)
    found, expected = (program.gradients(q, *kv, out, lse, out) for kv in (hidden, (k, v)))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_results_repeat_bit_by_bit() -> None:
    program, tensors = printed(CASES["neighbourhood"]()), inputs()
    out, lse = program(*tensors)
    runs = [program.gradients(*tensors, out, lse, out) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("q_len", [33, 25, 12, 99])
def test_queries_are_the_last_tokens_of_a_grid(q_len: int) -> None:
    """Frames that come after those of a cache."""
    q, k, v = inputs()
    for parts in ([rg.neighborhood(IMAGE, (5, 3))], [columns], [rg.windows(IMAGE, 4), rg.causal]):
        check(lambda parts=parts: parts, (q[:, :, -q_len:], k, v), align="end")  # type: ignore[misc]


def flops(parts: Sequence[Part], length: int) -> int:
    q, k, v = (torch.ones(1, 2, length, 32) for _ in range(3))
    program = printed(parts, blocks=(128, 128), scores_at_a_time=1 << 20, sizes=(32, 32))
    with FlopCounterMode(display=False) as counter:
        program(q, k, v)
    return int(counter.get_total_flops()) // (2 * 4 * 32)  # pairs of one head


def test_work_is_that_of_the_boxes() -> None:
    assert flops([rg.dilated(16)], 1024) == 1024 * 1024 // 16
    grid = rg.grid(32, 32)
    # Boxes of 8 × 16 see at most 12 × 20 keys.
    assert 1024 * 25 < flops([near(grid=grid, radius=2)], 1024) <= 1024 * 12 * 20
    assert flops([residue_of_a_head], 1024) <= 1024 * (128 + 256) // 2  # in classes of 256
    assert flops([segments_of_a_head], 1000) == 250 * 5
    assert flops([rg.sliding_window(64) & rg.causal & rg.dilated(8)], 4096) < 4096 * (128 + 8)
