"""The case list, and that each case is the same attention for everybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks import reference
from benchmarks.case import Case, Task
from benchmarks.cases import DOCUMENTS, build
from benchmarks.contenders import AbsentError, contender, permutation
from benchmarks.measure import measure
from benchmarks.suite import GROUPS, PLAIN, SPARSE, SUITE, shaped

# Small, and of more than one window where lengths are free.
SMALL = [Case(variant, 2, 4, 2, 1200, 16) for variant in (*PLAIN, "dilated")]
GRIDS = [Case("neighbourhood2d", 1, 2, 1, 1024, 16), Case("neighbourhood3d", 1, 1, 1, 4096, 16)]


def told(place: str) -> None:
    """Nobody needs to know."""


def test_nothing_is_listed_twice() -> None:
    titles = [entry.title for entry in SUITE]
    assert len(titles) == len(set(titles))


def test_the_suite_is_complete() -> None:
    peers = {entry.case for entry in SUITE if entry.group == "peers"}
    for variant in (*PLAIN, *SPARSE):
        for dim in (64, 128, 192, 256):
            lengths = {case.length for case in peers if (case.variant, case.head_dim) == (variant, dim)}
            assert {4096, 65536} <= lengths
            assert variant in SPARSE or {512, 1024, 2048, 8192, 16384, 32768} <= lengths
    assert {case.heads // case.kv_heads for case in peers} == {1, 8}
    assert {entry.group for entry in SUITE} == set(GROUPS)
    assert all("regard" in names for names in GROUPS.values())


def test_a_few_minutes_cover_what_matters() -> None:
    first = SUITE[:40]
    assert all(entry.group == "peers" for entry in first)
    headline = [(variant, length) for variant in ("causal", "full") for length in (1024, 2048, 4096, 8192, 16384)]
    others = [(variant, length) for variant in PLAIN for length in (4096, 8192)]
    found = {(e.case.variant, e.case.length, e.case.head_dim) for e in first}
    assert found == {(*x, dim) for x in (*headline, *others) for dim in (64, 128)}
    assert {(e.case.variant, e.case.length) for e in first[:20]} == {*headline}


def test_work_is_constant() -> None:
    for length in (512, 4096, 16384, 65536):
        case = shaped("full", length, 128)
        assert case.batch * case.length * case.heads * case.head_dim == 16384 * 2048
    assert shaped("full", 65536, 256, group=8).title == "full B1 H8:1 S65536 D256"
    assert shaped("full", 8192, 192, group=8).title == "full B2 H16:2 S8192 D192"


@pytest.mark.parametrize("case", [*SMALL, *GRIDS], ids=lambda case: case.variant)
def test_masks_agree(case: Case) -> None:
    """Regard's output and gradients are those of dense attention with FlexAttention's mask, so their pairs are."""
    query, key, grad = (torch.randn(case.batch, n, case.length, 16) for n in (case.heads, case.kv_heads, case.heads))
    value = torch.randn_like(key)
    made = build(case, "cpu")
    leaves = [x.requires_grad_() for x in (query, key, value)]
    out = made.regard(*leaves)
    found = dict(zip(("query", "key", "value"), torch.autograd.grad(out, leaves, grad), strict=True), out=out)
    group = case.heads // case.kv_heads
    expected = reference.attention(made, query[0, :group], key[0, 0], value[0, 0], grad[0, :group])
    for name, right in expected.items():
        torch.testing.assert_close(found[name][0, : right.shape[0] if right.dim() == 3 else 1].view_as(right), right)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.variant)
def test_pairs_are_counted(case: Case) -> None:
    made = build(case, "cpu")
    q, k = torch.arange(case.length)[:, None], torch.arange(case.length)
    allowed = case.length**2 if made.flex_mask is None else int(made.flex_mask(0, 0, q, k).sum())
    assert reference.count_pairs(case, made, "cpu") == case.batch * case.heads * allowed


def test_a_wrong_count_is_noticed() -> None:
    made = build(Case("causal", 1, 1, 1, 64, 16), "cpu")
    window = build(Case("window", 1, 1, 1, 64, 16), "cpu")
    object.__setattr__(made, "flex_mask", lambda b, h, q, k: q > k)
    with pytest.raises(AssertionError, match="Regard counts 2080 pairs, there are 2016"):
        reference.count_pairs(Case("causal", 1, 1, 1, 64, 16), made, "cpu")
    assert reference.count_pairs(Case("window", 1, 1, 1, 64, 16), window, "cpu") == 2080


@pytest.mark.parametrize("case", [SMALL[-1], *GRIDS], ids=lambda case: case.variant)
def test_other_orders_hold_every_token_once(case: Case) -> None:
    order = permutation(build(case, "cpu"), case.length, "cpu")
    assert torch.equal(order.sort().values, torch.arange(case.length))


def test_blocks_of_the_other_order_are_boxes() -> None:
    """The first 128 places of the 3-D order are a box of 2 by 8 by 8 tokens."""
    order = permutation(build(GRIDS[1], "cpu"), 4096, "cpu")[:128]
    places = torch.stack([order // 256, order // 16 % 16, order % 16])
    assert places.amax(1).tolist() == [1, 7, 7]


@pytest.mark.parametrize("name, variants", [
    ("sdpa-cudnn", {"causal", "full"}),
    ("flex-ordered", {"dilated"}),
])  # fmt: skip
def test_absent_is_not_failed(name: str, variants: set[str]) -> None:
    present = set()
    for case in SMALL:
        try:
            contender(name, case, build(case, "cpu"), "cpu")
        except AbsentError:
            continue
        present.add(case.variant)
    assert present == variants


def packed_attention(q: Any, k: Any, v: Any, cu_seqlens_q: Any, causal: bool, **rest: Any) -> tuple[Any, None]:
    """What FlashAttention's interface for packed sequences does, slowly; (tokens, heads, size)."""
    assert int(cu_seqlens_q.diff().max()) == rest["max_seqlen_q"]
    out = torch.empty_like(q)
    for start, stop in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        one, two, three = (x[start:stop].transpose(0, 1) for x in (q, k, v))
        attended = torch.nn.functional.scaled_dot_product_attention(one, two, three, is_causal=causal, enable_gqa=True)
        out[start:stop] = attended.transpose(0, 1)
    return out, None


def test_flash_attention_gets_documents_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Borders of all documents of all batches; the result is that of the mask."""
    stub: Callable[..., Any] = type("interface", (), {
        "flash_attn_func": None, "flash_attn_varlen_func": staticmethod(packed_attention),
    })  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "fa3_fwd_interface", stub)
    case = Case("document", 2, 2, 1, 200, 16)
    row = measure(Task(case, ("regard", "fa3"), rounds=1, budget_ms=0.1, device="cpu"), told)
    found = row["contenders"]["fa3"]
    assert not found["wrong"] and set(found["deviation"]) == {"out"}
    assert "forward" in found and "backward" not in found
    assert build(case, "cpu").flags.starts.numel() == DOCUMENTS + 1  # type: ignore[union-attr]
