"""Patterns of images and videos, each written for Regard and for FlexAttention.

Masks for FlexAttention are written out anew, so that a mistake on either side shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import torch
from torch import Tensor

import regard as rg

from .arithmetic import quotient, remainder
from .case import GRIDS_2D, GRIDS_3D, Case
from .cases import BOX_2D, BOX_3D, Contestants, box_order, masked

TEXT = 512


def windows_2d(shift: int) -> Callable[[Case, str], Contestants]:
    def made(case: Case, device: str) -> Contestants:
        height, width = GRIDS_2D[case.length]
        by = (16 - shift) % 16
        return masked(
            rg.windows(rg.grid(height, width), 16, shift),
            flex=lambda b, h, q, k: (
                (quotient(quotient(q, width) + by, 16) == quotient(quotient(k, width) + by, 16))
                & (quotient(remainder(q, width) + by, 16) == quotient(remainder(k, width) + by, 16))
            ),
            position=box_order((height, width), BOX_2D),
        )

    return made


def rows(case: Case, device: str) -> Contestants:
    height, width = GRIDS_2D[case.length]
    return masked(rg.axial(rg.grid(height, width), 1), flex=lambda b, h, q, k: quotient(q, width) == quotient(k, width))


def columns(case: Case, device: str) -> Contestants:
    height, width = GRIDS_2D[case.length]
    return masked(
        rg.axial(rg.grid(height, width), 0),
        flex=lambda b, h, q, k: remainder(q, width) == remainder(k, width),
        position=lambda p: p % height * width + p // height,
    )


def _coordinate(x: Tensor, step: int, size: int) -> Tensor:
    return remainder(quotient(x, step), size)


def _near(here: Tensor, there: Tensor, size: int, window: int, dilation: int = 1, stride: int = 1) -> Tensor:
    """Whether a key is in the window of a query along an axis, shifted inwards at its ends; tensors of coordinates."""
    residue, last = remainder(here, dilation), size - 1
    if dilation > 1:
        last = quotient(last - residue, dilation)  # type: ignore[assignment]
    leader = quotient(quotient(here, dilation), stride) * stride + stride // 2
    leader = leader.clamp(max=last) if isinstance(last, int) else torch.minimum(leader, last)
    first = (leader - window // 2).clamp(min=0)
    most = last - window + 1
    first = first.clamp(max=most) if isinstance(most, int) else torch.minimum(first, most)
    offset = quotient(there, dilation) - first
    return (remainder(there, dilation) == residue) & (offset >= 0) & (offset < window)


def neighborhood(
    sides: tuple[int, ...], window: tuple[int, ...], dilation: int = 1, stride: tuple[int, ...] | None = None
) -> Contestants:
    """A neighbourhood by its sides; tokens in boxes of the grid where they divide it."""
    strides = stride or (1,) * len(sides)

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        allowed, step = q >= 0, 1
        for size, width, by in reversed(tuple(zip(sides, window, strides, strict=True))):
            allowed = allowed & _near(_coordinate(q, step, size), _coordinate(k, step, size), size, width, dilation, by)
            step *= size
        return allowed

    part = rg.neighborhood(rg.grid(*sides), window, dilation, strides)
    return masked(part, flex=flex, position=box_order(sides, BOX_2D if len(sides) == 2 else BOX_3D))


def image(case: Case, window: tuple[int, int], dilation: int = 1, stride: tuple[int, int] | None = None) -> Contestants:
    """A neighbourhood on the image of so many tokens."""
    return neighborhood(GRIDS_2D[case.length], window, dilation, stride)


def halo(case: Case, device: str) -> Contestants:
    height, width = GRIDS_2D[case.length]

    def inside(here: Tensor, there: Tensor) -> Tensor:
        first = quotient(here, 8) * 8 - 4
        return (there >= first) & (there < first + 16)

    return masked(
        rg.halo(rg.grid(height, width), 8, 4),
        flex=lambda b, h, q, k: (
            inside(quotient(q, width), quotient(k, width)) & inside(remainder(q, width), remainder(k, width))
        ),
        position=box_order((height, width), (8, 8)),
    )


def sliding_tile(case: Case, device: str) -> Contestants:
    sides, tile = GRIDS_3D[case.length], (4, 8, 8)

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        allowed, step = q >= 0, 1
        for size, edge in reversed(tuple(zip(sides, tile, strict=True))):
            centre = quotient(_coordinate(q, step, size), edge).clamp(1, size // edge - 2)
            allowed = allowed & ((centre - quotient(_coordinate(k, step, size), edge)).abs() <= 1)
            step *= size
        return allowed

    return masked(rg.sliding_tile(rg.grid(*sides), 3, tile), flex=flex, position=box_order(sides, tile))


def radial(case: Case, device: str) -> Contestants:
    """Li et al., Radial Attention, arXiv:2506.19852: the window in a frame halves as the distance of frames doubles."""
    frames, height, width = GRIDS_3D[case.length]
    tokens = height * width
    bands = [(1 << i, (tokens >> i) // 4) for i in range(frames.bit_length())]

    @rg.mask
    def radial(q: Any, kv: Any) -> Any:
        apart, reach = abs(q // tokens - kv // tokens), tokens // 2
        for start, narrower in bands:
            reach = rg.where(apart >= start, narrower, reach)
        return (abs(q % tokens - kv % tokens) <= reach) | (kv < tokens)

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        apart, reach = (quotient(q, tokens) - quotient(k, tokens)).abs(), torch.full_like(q, tokens // 2)
        for start, narrower in bands:
            reach = torch.where(apart >= start, narrower, reach)
        return ((remainder(q, tokens) - remainder(k, tokens)).abs() <= reach) | (k < tokens)

    return masked(radial, flex=flex)


def spatial(case: Case, device: str) -> Contestants:
    """Xi et al., Sparse VideoGen, arXiv:2502.01776: frames next to each other, and the first."""
    _, height, width = GRIDS_3D[case.length]
    tokens = height * width

    @rg.mask
    def spatial(q: Any, kv: Any) -> Any:
        return (abs(q // tokens - kv // tokens) <= 1) | (kv < tokens)

    return masked(
        spatial, flex=lambda b, h, q, k: ((quotient(q, tokens) - quotient(k, tokens)).abs() <= 1) | (k < tokens)
    )


def temporal(case: Case, device: str) -> Contestants:
    """The same paper: places near to each other in all frames, and the first frame."""
    frames, height, width = GRIDS_3D[case.length]
    tokens = height * width
    video = rg.grid(frames, tokens)

    @rg.mask
    def temporal(q: Any, kv: Any) -> Any:
        return (abs(video(q)[1] - video(kv)[1]) <= 64) | (kv < tokens)

    return masked(
        temporal,
        flex=lambda b, h, q, k: ((remainder(q, tokens) - remainder(k, tokens)).abs() <= 64) | (k < tokens),
        position=lambda p: p % frames * tokens + p // frames,
    )


def circle(case: Case, device: str) -> Contestants:
    """Liu et al., CLEAR, arXiv:2412.16112: circles of pixels; text comes first, sees all and is seen by all."""
    side = isqrt(case.length)
    image = rg.grid((case.length - TEXT) // side, side)

    @rg.mask
    def circle(q: Any, kv: Any) -> Any:
        (y, x), (j, i) = image(q - TEXT), image(kv - TEXT)
        return (q < TEXT) | (kv < TEXT) | ((y - j) * (y - j) + (x - i) * (x - i) < 16 * 16)

    def flex(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        dy = quotient(q - TEXT, side) - quotient(k - TEXT, side)
        dx = remainder(q - TEXT, side) - remainder(k - TEXT, side)
        return (q < TEXT) | (k < TEXT) | (dy * dy + dx * dx < 16 * 16)

    order = box_order(image.sizes, (4, 32))
    return masked(circle, flex=flex, position=lambda p: torch.where(p < TEXT, p, TEXT + order((p - TEXT).clamp(min=0))))
