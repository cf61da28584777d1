"""Stock masks on grids against their definitions, query by query, and their checks of values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import regard as rg
from oracle import allowed_pairs
from regard.dsl import Part

untyped: Any = rg  # for values that a type checker refuses


def keys_of_a_query(y: int, size: int, window: int, dilation: int, stride: int, causal: bool) -> set[int]:
    """NATTEN's rule along one axis (arXiv:2504.16922, section 3), by lists."""
    members = list(range(y % dilation, size, dilation))  # the query's dilation group
    place = members.index(y)
    group = [i for i in range(len(members)) if i // stride == place // stride]
    if causal:
        leader = min(place // stride * stride + stride - 1, len(members) - 1)
        return {members[i] for i in range(max(leader - window + 1, 0), place + 1)}
    leader = min(place // stride * stride + stride // 2, len(members) - 1)
    assert leader in group
    first = min(max(leader - window // 2, 0), len(members) - window)  # shifted inwards, never cut
    return set(members[first : first + window])


def mask_of(part: Part, tokens: int) -> torch.Tensor:
    return allowed_pairs([part], (1, 1, 1, tokens, tokens))[0, 0]


def product(sizes: tuple[int, ...], keys: Callable[[int, int], set[int]]) -> torch.Tensor:
    """The mask whose keys, along axis ``a``, are ``keys(a, coordinate of the query)``."""
    places = list(itertools.product(*map(range, sizes)))
    rows = [[all(k in keys(a, y) for a, (y, k) in enumerate(zip(q, kv, strict=True))) for kv in places] for q in places]
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("size", "window", "dilation", "stride", "causal"),
    [
        (13, 5, 1, 1, False), (13, 4, 1, 1, False), (13, 1, 1, 1, False), (13, 13, 1, 1, False), (12, 12, 1, 12, False),
        (13, 3, 2, 1, False), (13, 3, 4, 1, False), (16, 4, 4, 2, False), (13, 6, 2, 3, False),
        (13, 5, 1, 2, False), (13, 5, 1, 5, False), (13, 4, 1, 4, False), (14, 6, 1, 4, False),
        (13, 5, 1, 1, True), (13, 5, 1, 3, True), (13, 3, 4, 2, True), (13, 4, 3, 4, True),
    ],
)  # fmt: skip
def test_neighborhood_along_an_axis(size: int, window: int, dilation: int, stride: int, causal: bool) -> None:
    part = rg.neighborhood(rg.grid(size), window, dilation, stride, causal)
    expected = product((size,), lambda _, y: keys_of_a_query(y, size, window, dilation, stride, causal))
    assert torch.equal(mask_of(part, size), expected)


def test_neighborhood_has_parameters_of_its_own_along_every_axis() -> None:
    sizes, window, dilation, stride, causal = (4, 9, 7), (2, 4, 5), (1, 2, 1), (1, 1, 3), (True, False, False)
    part = rg.neighborhood(rg.grid(*sizes), window, dilation, stride, causal)
    expected = product(
        sizes, lambda a, y: keys_of_a_query(y, sizes[a], window[a], dilation[a], stride[a], causal[a])
    )
    assert torch.equal(mask_of(part, math.prod(sizes)), expected)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_are_those_of_rolled_images(shift: int) -> None:
    """Swin's construction: roll, cut into windows, and keep apart what comes from opposite borders."""
    height, width, size = 8, 12, 4
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across, down = ((i >= n - size).long() + (i >= n - shift).long() for i, n in ((y, height), (x, width)))
    regions = across * 10 + down if shift else 0
    names = (y // size * 10 + x // size) * 100 + regions
    names = names.roll((shift, shift), (0, 1)).flatten()  # back to where the tokens are
    part = rg.windows(rg.grid(height, width), size, shift)
    assert torch.equal(mask_of(part, height * width), names[:, None] == names)


def test_windows_at_borders_may_be_smaller() -> None:
    part = rg.windows(rg.grid(7), 3, shift=1)
    names = torch.tensor([0, 1, 1, 1, 2, 2, 2])
    assert torch.equal(mask_of(part, 7), names[:, None] == names)


@pytest.mark.parametrize("causal", [False, True])
def test_axial(causal: bool) -> None:
    sizes = (3, 4, 5)
    for axis in (0, 1, 2, -1):
        part = rg.axial(rg.grid(*sizes), axis, causal)
        along = axis % 3
        expected = product(sizes, lambda a, y, c=along: set(range(y + 1 if causal else 9)) if a == c else {y})  # type: ignore[misc]
        assert torch.equal(mask_of(part, 60), expected)


def test_axial_of_one_axis_is_all() -> None:
    assert mask_of(rg.axial(rg.grid(9), 0), 9).all()


def test_sliding_tile_is_a_neighborhood_of_tiles() -> None:
    tiles = product((4, 3), lambda a, y: keys_of_a_query(y, (4, 3)[a], (3, 1)[a], 1, 1, False))
    tile = (torch.arange(8)[:, None] // 2 * 3 + torch.arange(15) // 5).flatten()
    part = rg.sliding_tile(rg.grid(8, 15), (3, 1), (2, 5))
    assert torch.equal(mask_of(part, 120), tiles[tile][:, tile])


def test_halo_is_a_block_and_its_border() -> None:
    sizes, block, border = (7, 10), (2, 4), (0, 3)

    def keys(axis: int, y: int) -> set[int]:
        first = y // block[axis] * block[axis]
        return set(range(first - border[axis], first + block[axis] + border[axis]))

    part = rg.halo(rg.grid(*sizes), block, border)
    assert torch.equal(mask_of(part, 70), product(sizes, keys))


GRID = rg.grid(6, 8)


@pytest.mark.parametrize("align", ["start", "end"])
@pytest.mark.parametrize(
    "part",
    [
        rg.neighborhood(GRID, 3), rg.neighborhood(GRID, (2, 3), (2, 1), (1, 3), (True, False)),
        rg.windows(GRID, 4, (0, 2)), rg.axial(GRID, 1, causal=True), rg.sliding_tile(GRID, 3, 2),
    ],
)  # fmt: skip
def test_text_form(part: Part, align: Any) -> None:
    attn = rg.attention(part, align=align)
    assert rg.parse(str(attn)) == attn


def test_a_window_is_a_run_time_scalar() -> None:
    """Its value is part of no kernel; dilations and strides are."""
    first, second = (rg.attention(rg.neighborhood(GRID, w)) for w in (3, 5))
    assert first.variant == second.variant
    assert rg.attention(rg.neighborhood(GRID, 3, 2)).variant != first.variant


LARGE = "is larger than the axis, which has"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rg.neighborhood(GRID, 7), f"window 7 along axis 0 {LARGE} 6 tokens"),
        (lambda: rg.neighborhood(GRID, (6, 9)), f"window 9 along axis 1 {LARGE} 8 tokens"),
        (lambda: rg.neighborhood(GRID, 4, 2), f"window × dilation 8 along axis 0 {LARGE} 6 tokens"),
        (lambda: rg.neighborhood(GRID, 0), "`window` must be a whole number ≥ 1, got 0"),
        (lambda: rg.neighborhood(GRID, 3, 0), "`dilation` must be a whole number ≥ 1, got 0"),
        (lambda: rg.neighborhood(GRID, 3, (1, -2)), "`dilation` must be a whole number ≥ 1, got -2"),
        (lambda: rg.neighborhood(GRID, 3, 1, -1), "`stride` must be a whole number ≥ 1, got -1"),
        (lambda: rg.neighborhood(GRID, 3, stride=4), "stride 4 along axis 0 is larger than the window 3: "
                                                     "some keys would be seen by no query"),
        (lambda: rg.neighborhood(GRID, (3, 3, 3)), "`window` has 3 values, but grid(6, 8) has 2 axes"),
        (lambda: untyped.neighborhood(GRID, 3, causal=(1, 0)), "`causal` must be True or False, got (1, 0)"),
        (lambda: untyped.neighborhood((6, 8), 3), "`grid` must be a grid, got tuple"),
        (lambda: rg.windows(GRID, 7), f"window 7 along axis 0 {LARGE} 6 tokens"),
        (lambda: rg.windows(GRID, 4, 4), "shift 4 along axis 0 must be less than the window, which has 4 tokens"),
        (lambda: rg.windows(GRID, 4, -1), "`shift` must be a whole number ≥ 0, got -1"),
        (lambda: rg.halo(GRID, 7, 1), f"block 7 along axis 0 {LARGE} 6 tokens"),
        (lambda: rg.halo(GRID, 0, 1), "`block` must be a whole number ≥ 1, got 0"),
        (lambda: rg.halo(GRID, 2, (1, -1)), "`halo` must be a whole number ≥ 0, got -1"),
        (lambda: rg.axial(GRID, 2), "there is no axis 2 in grid(6, 8)"),
        (lambda: rg.sliding_tile(GRID, 2, 2), "window 2 along axis 0 must be an odd number of tiles"),
        (lambda: rg.sliding_tile(GRID, 5, 2), f"window 5 along axis 0 {LARGE} 3 tiles"),
        (lambda: rg.sliding_tile(GRID, 1, 7), f"tile 7 along axis 0 {LARGE} 6 tokens"),
    ],
)  # fmt: skip
def test_bad_values_are_one_error_at_the_call(build: Callable[[], object], message: str) -> None:
    with pytest.raises(rg.ParameterError) as raised:
        build()
    assert raised.value.message == message
    assert raised.value.location is not None and raised.value.location.file == __file__
