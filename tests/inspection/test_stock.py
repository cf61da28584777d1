"""Every kind of variant can be looked at from all sides, at lengths that fit no tile."""

from __future__ import annotations

import pytest
import torch

import regard as rg
from regard.dsl import Part

LENGTH = 75
SHAPES = (2, 4, LENGTH, 32), (2, 2, LENGTH, 32), (2, 2, LENGTH, 48)
DOCUMENTS = torch.arange(LENGTH, dtype=torch.int32).div(20, rounding_mode="floor").expand(2, -1)


@rg.mask
def from_table(q, kv, head, table):  # type: ignore[no-untyped-def]
    return table[head, q // 8, kv // 8]


VARIANTS: dict[str, tuple[Part, ...]] = {
    "everything": (),
    "closed": (rg.causal & (rg.sliding_window(20) | rg.sinks(2)), rg.softcap(30.0)),
    "residue": (rg.causal, rg.dilated(3)),
    "grid": (rg.neighborhood(rg.grid(5, 15), 3),),
    "classified": (rg.causal, rg.document(DOCUMENTS)),
    "per batch": (rg.padding(torch.tensor([10, LENGTH], dtype=torch.int32)),),
    "keep vector": (rg.key_mask(DOCUMENTS < 2),),
    "exact": (from_table(table=torch.rand(4, 10, 10) < 0.4),),
    "biased": (rg.alibi(torch.rand(4, requires_grad=True)), rg.t5_bias(torch.rand(32, 4, requires_grad=True))),
}


@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize("parts", VARIANTS.values(), ids=VARIANTS)
def test_counts_are_exact_where_asked(parts: tuple[Part, ...], align: str) -> None:
    """Pairs counted for the report against those drawn, one by one."""
    attn = rg.attention(*parts, align=align)  # type: ignore[arg-type]
    report = attn.explain(*SHAPES, exact=True)
    assert report.counts is not None and report.counts.pairs.exact
    pytest.importorskip("matplotlib")
    pairs = 0
    for batch in range(2):
        for axes in attn.plot(*SHAPES, tile=1, heads=range(4), batch=batch).axes:
            classes = axes.images[0].get_array()
            pairs += int((classes == 2).sum())
    assert pairs == report.counts.pairs.pairs


@pytest.mark.parametrize("parts", VARIANTS.values(), ids=VARIANTS)
def test_source_for_every_target(parts: tuple[Part, ...]) -> None:
    attn = rg.attention(*parts)
    for target in ("cpu", "sm_90", "gfx942"):
        for direction in ("forward", "backward"):
            text = attn.source(target=target, direction=direction, head_dim=32, value_dim=48)
            compile(text, f"{target} {direction}", "exec")
            assert ("def classify(" in text) == (attn.explain().plan.method != "closed")


def test_kernels_that_follow_lists_compile() -> None:
    assert ".target sm_80" in rg.attention(*VARIANTS["classified"]).ptx(target="sm_80", head_dim=32)


@pytest.mark.parametrize(
    ("batch", "q_len", "kv_len"), [(0, 9, 9), (2, 0, 9), (2, 9, 0)], ids=["no batch", "no queries", "no keys"]
)
def test_nothing_to_do(batch: int, q_len: int, kv_len: int) -> None:
    shapes = (batch, 4, q_len, 32), (batch, 4, kv_len, 32), (batch, 4, kv_len, 32)
    counts = rg.attention(rg.causal).explain(*shapes).counts
    assert counts is not None and counts.pairs.pairs == 0
    if batch:
        rg.attention(rg.causal).plot(*shapes)
