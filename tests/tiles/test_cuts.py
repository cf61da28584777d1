"""What of a mask is the same in tiles that begin anew where data changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import regard as rg
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.printer import print_expr
from regard.ir.tiles.cuts import Cuts

IDS = torch.arange(64).int() // 7


@rg.mask
def same_plus_one(q: Any, kv: Any, a: Any, b: Any) -> Any:
    return a[q] + 1 == b[kv]


@rg.mask
def later_document(q: Any, kv: Any, a: Any) -> Any:
    return a[q] >= a[kv]


@rg.mask
def by_position(q: Any, kv: Any, a: Any) -> Any:
    return a[q] == kv


@rg.mask
def either(q: Any, kv: Any, a: Any) -> Any:
    return (a[q] == a[kv]) | (kv < 4)


@rg.mask
def real_numbers(q: Any, kv: Any, a: Any) -> Any:
    return a[q] == a[kv]


def cuts(*parts: Any) -> Cuts | None:
    variant, _ = assemble(*parts)
    return Cuts.of(run_pipeline(variant).mask)


def test_documents_behind_a_window() -> None:
    found = cuts(rg.sliding_window(9), rg.document(IDS))
    assert found is not None
    assert print_expr(found.same) == "ids[q] == ids[kv]"
    assert "ids" not in print_expr(found.rest)
    assert [print_expr(e) for e in (*found.by_query, *found.by_key)] == ["ids[q]", "ids[kv]"]


def test_two_tensors() -> None:
    found = cuts(same_plus_one(a=IDS, b=IDS + 1), rg.document(IDS))
    assert found is not None
    assert len(found.by_query) == len(found.by_key) == 2
    assert print_expr(found.rest) == "true"


@pytest.mark.parametrize(
    "part",
    [rg.causal(), later_document(a=IDS), by_position(a=IDS), either(a=IDS), real_numbers(a=IDS.float())],
    ids=["no data", "an order", "positions", "a disjunction", "real numbers"],
)
def test_nothing_is_cut(part: Any) -> None:
    assert cuts(part) is None
