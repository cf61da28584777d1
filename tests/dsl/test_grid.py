"""Grids of tokens: coordinates mean the same for symbols, tensors, ints and in the text form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import regard as rg
from oracle import allowed_pairs
from regard.ir.interpret import evaluate

GRIDS = [rg.grid(30), rg.grid(5, 6), rg.grid(2, 3, 5), rg.grid(1, 30)]


@rg.mask
def near(q: Any, kv: Any, grid: Any, radius: int) -> Any:
    result = True
    for a, b in zip(grid(q), grid(kv), strict=True):
        result = result & (abs(a - b) <= radius)
    return result


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_coordinates_of_ints_and_tensors(grid: rg.Grid) -> None:
    expected = np.unravel_index(np.arange(30), grid.sizes)
    for axis, x in enumerate(grid(torch.arange(30))):
        np.testing.assert_array_equal(x.numpy(), expected[axis])
    assert grid(17) == tuple(int(x[17]) for x in expected)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_traced_masks_mean_what_the_function_says(grid: rg.Grid) -> None:
    part = near(grid=grid, radius=1)
    positions: dict[str, Any] = {"q": np.arange(30)[:, None], "kv": np.arange(30), "radius": 1}
    found = np.broadcast_to(evaluate(part.traced.expr, positions), (30, 30))
    np.testing.assert_array_equal(found, allowed_pairs([part], (1, 1, 1, 30, 30))[0, 0].numpy())


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_the_text_form_keeps_coordinates(grid: rg.Grid) -> None:
    attn = rg.attention(near(grid=grid, radius=2))
    sizes = ", ".join(map(str, grid.sizes))
    assert f"coordinate(q, 0, {sizes})" in str(attn)
    assert rg.parse(str(attn)) == attn


def test_a_grid_may_begin_after_other_tokens() -> None:
    """Coordinates of any integer: here an image after 3 tokens of text."""
    image = rg.grid(4, 5)

    @rg.mask
    def rows(q: Any, kv: Any) -> Any:
        return (kv < 3) | (image(q - 3)[0] == image(kv - 3)[0])

    q, k, v = torch.randn(3, 1, 1, 23, 16, generator=torch.Generator().manual_seed(0)).unbind()
    allowed = allowed_pairs([rows], (1, 1, 1, 23, 23))
    expected = (q @ k.mT / 4).masked_fill(~allowed, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(rg.attention(rows)(q, k, v), expected)


def test_scores_read_tables_by_coordinates() -> None:
    grid, table = rg.grid(3, 7), torch.randn(5, 13, generator=torch.Generator().manual_seed(1))

    @rg.score
    def bias(s: Any, q: Any, kv: Any) -> Any:
        (y, x), (j, i) = grid(q), grid(kv)
        return s + table[j - y + 2, i - x + 6]

    q, k, v = torch.randn(3, 1, 2, 21, 16, generator=torch.Generator().manual_seed(0)).unbind()
    y, x = grid(torch.arange(21))
    added = table[y[None, :] - y[:, None] + 2, x[None, :] - x[:, None] + 6]
    expected = (q @ k.mT / 4 + added).softmax(-1) @ v
    torch.testing.assert_close(rg.attention(bias)(q, k, v), expected)
