"""The CPU's programs against the float64 oracle, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import regard.dsl as rg
from oracle import Part, assert_close_to_oracle, eager, gradients, oracle
from printed_torch import printed

B, H, HKV, LQ, LKV = 2, 4, 2, 101, 117


def randn(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def inputs(
    dtype: torch.dtype = torch.float32, *, q_len: int = LQ, kv_len: int = LKV, kv_heads: int = HKV, value_dim: int = 24
) -> tuple[Tensor, Tensor, Tensor]:
    q = randn(B, H, q_len, 16, seed=1)
    k = randn(B, kv_heads, kv_len, 16, seed=2)
    v = randn(B, kv_heads, kv_len, value_dim, seed=3)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@rg.mask
def window_by_head(q: Any, kv: Any, head: Any, widths: Any) -> Any:
    return (q >= kv) & (q - kv < widths[head])


@rg.mask
def band(q: Any, kv: Any, width: Any) -> Any:
    return (q >= kv) & (q - kv < width)


@rg.mask
def from_table(q: Any, kv: Any, table: Any) -> Any:
    return table[q, kv]


@rg.mask
def far_or_first(q: Any, kv: Any) -> Any:
    return (abs(q - kv) > 20) | (kv < 3)


@rg.mask
def backwards(q: Any, kv: Any, q_len: Any, kv_head: Any) -> Any:
    return (q_len - 1 - q + 5 * kv_head) // 3 >= kv % 40


@rg.mask
def rows_without_keys(q: Any, kv: Any) -> Any:
    return (q >= kv) & (q % 7 != 3) & (q < 90)


@rg.score
def pair_bias(s: Any, q: Any, kv: Any, head: Any, bias: Any) -> Any:
    return s + bias[head, q, kv]


@rg.score
def row_and_column(s: Any, q: Any, kv: Any, batch: Any, rows: Any, columns: Any) -> Any:
    return s * rg.sigmoid(rows[batch, q]) + columns[kv] * columns[0]


@rg.score
def by_distance(s: Any, q: Any, kv: Any, head: Any, table: Any) -> Any:
    return s + table[head, rg.minimum(abs(q - kv), 19)]


@rg.score
def log_distance(s: Any, q: Any, kv: Any, strength: Any) -> Any:
    return s - strength * rg.log(rg.to_float(q - kv + 1))  # NaN above the diagonal, which a mask must hide


@rg.score
def lowest_late(s: Any, q: Any) -> Any:
    return rg.where(q < 50, s, torch.finfo(torch.float32).min)


Parts = Callable[[], Sequence[Part]]

CASES: dict[str, Parts] = {
    "full": lambda: [],
    "causal": lambda: [rg.causal],
    "window": lambda: [rg.sliding_window(left=30, right=4)],
    "empty window": lambda: [band(width=-5)],
    "window of a parameter": lambda: [band(width=33)],
    "prefix": lambda: [rg.prefix_lm(17)],
    "documents": lambda: [rg.document(integers(6, B, LKV).sort().values)],
    "causal documents": lambda: [rg.causal, rg.document(integers(6, B, LKV).sort().values)],
    "unsorted documents": lambda: [rg.document(integers(9, B, LKV))],
    "padding": lambda: [rg.padding(torch.tensor([0, 77]))],
    "window by head": lambda: [window_by_head(widths=torch.tensor([1, 20, 55, 200]))],
    "dilated": lambda: [rg.causal, rg.dilated(3)],
    "from a table": lambda: [from_table(table=randn(LQ, LKV) > 1.5)],
    "union": lambda: [far_or_first],
    "backwards": lambda: [backwards],
    "rows without keys": lambda: [rows_without_keys],
    "alibi": lambda: [rg.causal, rg.alibi(heads=H)],
    "softcap": lambda: [rg.causal, rg.temperature(0.5), rg.softcap(3.0)],
    "log distance": lambda: [rg.causal, log_distance(strength=0.5)],
}

LEARNED: dict[str, Parts] = {
    "slope of a head": lambda: [rg.causal, rg.alibi(randn(H, requires_grad=True)), rg.softcap(5.0)],
    "every pair": lambda: [rg.causal, pair_bias(bias=randn(H, LQ, LKV, requires_grad=True))],
    "rows and columns": lambda: [
        rg.sliding_window(left=40, right=40),
        row_and_column(rows=randn(B, LQ, requires_grad=True), columns=randn(LKV, seed=5, requires_grad=True)),
    ],
    "distance": lambda: [rg.causal, by_distance(table=randn(H, 20, requires_grad=True))],
    "buckets": lambda: [rg.t5_bias(randn(32, H, requires_grad=True))],
    "only half of them": lambda: [
        row_and_column(rows=randn(B, LQ), columns=randn(LKV, seed=5, requires_grad=True)), rg.causal
    ],
}  # fmt: skip


def check(make: Parts, tensors: tuple[Tensor, Tensor, Tensor], **options: Any) -> None:
    parts = make()
    program = printed(parts, dtype=tensors[0].dtype, **options)
    align = {"align": options["align"]} if "align" in options else {}
    out, lse = program(*tensors)
    exact, usual = oracle(parts, *tensors, **align), eager(parts, *tensors, **align)
    assert out.dtype == tensors[0].dtype and lse.dtype == torch.float32
    # A handful of rows says little about the RMS of an error.
    close = assert_close_to_oracle if tensors[0].shape[2] > 50 else assert_twice_as_close
    close(out, exact[0], usual[0], "output")
    close(lse, exact[1], usual[1], "lse")

    grad_out, grad_lse = randn(*out.shape, seed=8).to(out.dtype), randn(*lse.shape, seed=9)
    found = program.gradients(*tensors, out, lse, grad_out, grad_lse=grad_lse)
    captured = [x for part in parts for x in learned(part)]
    wanted, usual_gradients = (
        gradients(how, parts, tensors, grad_out, grad_lse, captured, **align) for how in (oracle, eager)
    )
    names = ["query", "key", "value", *(f"captured {i}" for i in range(len(captured)))]
    for name, x, y, z in zip(names, found, wanted, usual_gradients, strict=True):
        assert_twice_as_close(x, y, z, f"gradient of {name}")


def assert_twice_as_close(actual: Tensor, exact: Tensor, eager: Tensor, what: str) -> None:
    """At most twice eager's error. Gradients come from the saved lse, whose rounding a whole row shares."""
    assert actual.shape == exact.shape and actual.dtype == eager.dtype, what
    finite = exact.isfinite()
    assert torch.equal(actual.isfinite(), finite), what
    error, allowed = ((x.double() - exact)[finite].abs() for x in (actual, eager))
    if not finite.any():
        return
    ulp = torch.finfo(actual.dtype).eps * exact[finite].abs().max()
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + ulp, what
    assert error.max() <= 2 * allowed.max() + 4 * ulp, what


def learned(part: Part) -> list[Tensor]:
    """The tensors of a part that need a gradient."""
    return [x for x in rg.assemble(part)[1].tensors.values() if x.requires_grad]


@pytest.mark.parametrize("case", CASES)
def test_masks_and_scores(case: str) -> None:
    check(CASES[case], inputs())


@pytest.mark.parametrize("case", LEARNED)
def test_captured_tensors_get_gradients(case: str) -> None:
    check(LEARNED[case], inputs())


@pytest.mark.parametrize("case", ["documents", "padding", "window by head", "from a table", "log distance"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case: str, dtype: torch.dtype) -> None:
    check(CASES[case], inputs(dtype))


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("case", ["causal", "window by head", "backwards", "softcap"])
def test_groups_of_heads(case: str, kv_heads: int) -> None:
    check(CASES[case], inputs(kv_heads=kv_heads))


@pytest.mark.parametrize("q_len, kv_len", [(1, 1), (1, 117), (31, 33), (32, 32), (101, 5)])
@pytest.mark.parametrize("align", ["start", "end"])
def test_lengths_and_alignment(q_len: int, kv_len: int, align: str) -> None:
    for case in ("causal", "window", "documents", "log distance"):
        check(CASES[case], inputs(q_len=q_len, kv_len=kv_len), align=align)


@pytest.mark.parametrize("blocks", [(16, 64), (128, 128)])
@pytest.mark.parametrize("scores_at_a_time", [1, 1 << 20])
def test_tile_sizes_do_not_matter(blocks: tuple[int, int], scores_at_a_time: int) -> None:
    for case in ("window", "causal documents", "unsorted documents", "union"):
        check(CASES[case], inputs(), blocks=blocks, scores_at_a_time=scores_at_a_time)


def test_strided_inputs() -> None:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs())
    check(CASES["causal"], (q, k, v[..., ::2]))


@pytest.mark.parametrize("case", ["causal", "documents", "from a table", "window by head"])
@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_nothing_to_do(case: str, empty: str) -> None:
    q, k, v = inputs()
    if empty == "batch":
        q, k, v = q[:0], k[:0], v[:0]
    elif empty == "queries":
        q = q[:, :, :0]
    else:
        k, v = k[:, :, :0], v[:, :, :0]
    program = printed(CASES[case]())
    out, lse = program(q, k, v)
    assert out.shape == (*q.shape[:3], v.shape[3]) and lse.shape == q.shape[:3]
    assert not out.any() and lse.isneginf().all()
    found = program.gradients(q, k, v, out, lse, out)
    assert [x.shape for x in found] == [q.shape, k.shape, v.shape]
    assert not any(x.any() for x in found)


def test_unseen_rows_have_no_influence() -> None:
    """Keys and values that nobody may attend to hold NaN and infinity, next to keys that are seen."""
    unseen = torch.zeros(LKV, dtype=torch.bool)
    unseen[[0, 5, 30, 31, 32, 33, 70, 116]] = True

    @rg.mask
    def skipping(q: Any, kv: Any) -> Any:
        return (q + 20 >= kv) & ~unseen[kv]

    clean = inputs()
    q, k, v = (x.clone() for x in clean)
    k[:, :, unseen] = torch.inf
    v[:, :, unseen] = torch.nan
    parts: list[Part] = [skipping, rg.softcap(4.0)]
    program = printed(parts)
    expected, found = program(*clean), program(q, k, v)
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
    grad_out = randn(*expected[0].shape, seed=4)
    found_gradients = program.gradients(q, k, v, *found, grad_out)
    for x, y in zip(program.gradients(*clean, *expected, grad_out), found_gradients, strict=True):
        assert torch.equal(x, y)


def test_rows_of_lowest_scores_are_not_empty() -> None:
    """Scores of finfo.min, which stand for a mask elsewhere, are scores: such a row weighs its keys alike."""
    parts: list[Part] = [band(width=33), lowest_late]
    tensors = inputs()
    exact, usual = oracle(parts, *tensors), eager(parts, *tensors)
    for found, x, y, name in zip(printed(parts)(*tensors), exact, usual, ("output", "lse"), strict=True):
        assert_close_to_oracle(found, x, y, name)


def test_heads_of_a_group_may_see_different_rows() -> None:
    """Row 60 of keys and values is infinite; only the first head of each group attends to it."""

    @rg.mask
    def half(q: Any, kv: Any, head: Any) -> Any:
        return (kv <= q + 7) & ((kv != 60) | (head % 2 == 0))

    clean = inputs()
    q, k, v = (x.clone() for x in clean)
    k[:, :, 60] = v[:, :, 60] = torch.inf
    program = printed([half])
    expected, found = program(*clean), program(q, k, v)
    torch.testing.assert_close(found[0][:, 1::2], expected[0][:, 1::2])
    torch.testing.assert_close(found[1][:, 1::2], expected[1][:, 1::2])
    grad_out = randn(*expected[0].shape, seed=4)
    wanted = program.gradients(*clean, *expected, grad_out)[0]
    torch.testing.assert_close(program.gradients(q, k, v, *found, grad_out)[0][:, 1::2], wanted[:, 1::2])


def test_rows_without_keys_get_zero_gradients() -> None:
    q, k, v = inputs()
    program = printed([rows_without_keys])
    out, lse = program(q, k, v)
    empty = lse.isneginf()
    assert empty.any() and not out[empty].any()
    q[empty] = torch.nan
    grad_out = randn(*out.shape).masked_fill(empty[..., None], torch.nan)
    found = program.gradients(q, k, v, out, lse, grad_out)
    assert all(x.isfinite().all() for x in found) and not found[0][empty].any()


def test_gradients_repeat_bit_by_bit() -> None:
    tensors = inputs()
    program = printed(LEARNED["buckets"]())
    out, lse = program(*tensors)
    first, second = (program.gradients(*tensors, out, lse, out) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_parameters_may_have_any_name() -> None:
    """Names of parameters meet neither those of the program nor Python's."""

    @rg.score
    def awkward(s: Any, kv: Any, run: Any, query: Any, torch: Any, t0: Any, start: Any, load: Any) -> Any:
        return s * run + query[kv] * torch - t0 * load[kv] + start

    values = {"run": 0.5, "query": randn(LKV), "torch": 2, "t0": 0.1, "start": 3, "load": randn(LKV, seed=1)}
    check(lambda: [rg.causal, awkward(**values)], inputs())


def test_lists_of_tiles_may_be_computed_ahead() -> None:
    tensors = inputs()
    program = printed(CASES["unsorted documents"]())
    tiles = program.forward["classify"](*program.values, B, H, HKV, LQ, LKV, torch.device("cpu"))
    expected = program(*tensors)
    found = program.forward["run"](*tensors, *program.values, tiles=tiles)
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
