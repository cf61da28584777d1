"""The text of the CPU's programs, and masks that tiles share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import regard.dsl as rg
from oracle import Part
from printed_torch import Printed, printed

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 1024


@rg.mask
def window(q: Any, kv: Any, width: Any) -> Any:
    return (q >= kv) & (q - kv < width)


@rg.mask
def every_third(q: Any, kv: Any, head: Any) -> Any:
    return (kv <= q + head) & ((q - kv) % 3 != 0)


@rg.mask
def wrapping(q: Any, kv: Any, factor: Any) -> Any:
    return factor * factor * q * 8 >= factor * factor * kv * 8


@rg.mask
def from_third(q: Any, kv: Any) -> Any:
    return (kv <= q) & (kv % 3 == 0)


VARIANTS: dict[str, Sequence[Part]] = {
    "causal": [rg.causal()],
    "window_and_sinks": [rg.sliding_window(1023, 0) | rg.sinks(4), rg.softcap(30.0)],
    "documents": [rg.document(torch.zeros(1, LENGTH, dtype=torch.int32))],
}


def program(parts: Sequence[Part]) -> Printed:
    return printed(parts, blocks=(128, 128), sizes=(64, 64))


@pytest.mark.parametrize("name", VARIANTS)
def test_golden(name: str, update_golden: bool) -> None:
    for direction, text in zip(("forward", "backward"), program(VARIANTS[name]).sources, strict=True):
        path = GOLDEN / f"torch_{direction}_{name}.py.txt"
        if update_golden:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"run pytest with --update-golden and read the change of {path.name}"


def masks_made(parts: Sequence[Part], length: int) -> int:
    """How often the program evaluates the mask."""
    made = printed(parts, blocks=(64, 64), scores_at_a_time=1 << 20, sizes=(16, 16))
    allowed, calls = made.forward["allowed"], []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return allowed(*arguments)

    made.forward["allowed"] = counted
    made(*(torch.zeros(1, 2, length, 16) for _ in range(3)))
    return len(calls)


@pytest.mark.parametrize("parts", [[window(width=100)], [rg.sliding_window(70, 30), rg.alibi(heads=2)]])
def test_tiles_that_lie_alike_share_masks(parts: Sequence[Part]) -> None:
    assert masks_made(parts, 512) == masks_made(parts, 1024) < 8


@pytest.mark.parametrize(
    "parts",
    [[every_third], [from_third], [wrapping(factor=1 << 29)]],
    ids=["other keys each time", "not by distance", "beyond 64 bits"],
)
def test_other_tiles_have_masks_of_their_own(parts: Sequence[Part]) -> None:
    assert masks_made(parts, 512) < masks_made(parts, 1024)
