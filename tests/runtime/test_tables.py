"""When the classification of tiles is done again, and when it is not."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import regard as rg
from regard.runtime import tables
from regard.runtime.tables import Kept

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    tables._tables.clear()


class Classify:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return torch.tensor(self.calls), torch.zeros(1)


def number(tables: Kept) -> int:
    """At which call they were made."""
    return int(tables.flat[0])


def test_the_same_data_is_classified_once() -> None:
    data, classify = torch.zeros(3), Classify()
    assert [number(tables.tiles(("causal", 7), [data], CPU, classify)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.zero_(),
        lambda data: data[1:].fill_(4),
        lambda data: data.copy_(torch.ones(3)),
        lambda data: data.resize_(2),
        lambda data: data.data.zero_(),
        lambda data: data.numpy().fill(5),
    ],
    ids=["in place", "through a view", "copy", "resize", "past autograd", "by numpy"],
)
def test_changed_data_is_classified_again(change: Callable[[Tensor], object]) -> None:
    data, classify = torch.arange(3.0), Classify()
    before = tables.tiles(("causal",), [data], CPU, classify)
    assert before.serves([data], CPU)
    change(data)
    assert not before.serves([data], CPU)
    assert number(tables.tiles(("causal",), [data], CPU, classify)) == 2


def test_off_the_cpu_versions_tell() -> None:
    """Contents would have to be waited for. What PyTorch does not see must be said."""
    device = torch.device("meta")
    data, classify = torch.zeros(3, device=device), Classify()
    for change in (lambda: data.add_(1), lambda: torch.autograd.graph.increment_version(data)):
        before = tables.tiles(("causal",), [data], device, classify)
        assert before.serves([data], device)
        change()
        assert not before.serves([data], device)
    tables.tiles(("causal",), [data], device, classify)
    assert classify.calls == 3


def test_other_facts_and_other_tensors_are_classified_apart() -> None:
    data, classify = torch.zeros(3), Classify()
    tables.tiles(("causal", 7), [data], CPU, classify)
    tables.tiles(("causal", 8), [data], CPU, classify)
    tables.tiles(("causal", 7), [data.clone()], CPU, classify)
    assert classify.calls == 3
    assert not tables.tiles(("causal", 7), [data], CPU, classify).serves([data.clone()], CPU)


def test_tables_die_with_their_data() -> None:
    data = torch.zeros(3)
    tables.tiles(("causal",), [data], CPU, Classify())
    assert len(tables._tables) == 1
    del data
    gc.collect()
    assert not tables._tables


def test_tensors_without_versions_are_never_trusted() -> None:
    with torch.inference_mode():
        data = torch.zeros(3)
    classify = Classify()
    tables.tiles(("causal",), [data], CPU, classify)
    tables.tiles(("causal",), [data], CPU, classify)
    assert classify.calls == 2 and not tables._tables


def test_old_tables_make_room() -> None:
    data, classify = torch.zeros(3), Classify()
    for length in range(40):
        tables.tiles(("causal", length), [data], CPU, classify)
    assert len(tables._tables) == 16


def test_layers_share_tables_and_results_follow_the_data() -> None:
    ids = torch.zeros(1, 33, dtype=torch.int32)
    layers = [rg.attention(rg.causal(), rg.document(ids)) for _ in range(3)]
    query = torch.randn(1, 2, 33, 16)
    one = [attn(query, query, query) for attn in layers]
    ids[:, 20:] = 1
    two = [attn(query, query, query) for attn in layers]
    assert torch.equal(one[0], one[2]) and torch.equal(two[0], two[2])
    assert torch.equal(one[0][:, :, :20], two[0][:, :, :20]) and not torch.equal(one[0], two[0])
