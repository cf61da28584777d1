"""Attention to what is near on a grid of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.errors import ParameterError
from .. import functions as rg
from ..callsite import caller
from ..grid import Grid
from ..part import MaskPart, mask
from ..static import static
from .checks import along_axes, fits, joined


def neighborhood(
    grid: Grid,
    window: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
) -> MaskPart:
    """The ``window`` keys nearest to the query along every axis; at borders the window is shifted inwards, not cut.

    Hassani et al., Neighborhood Attention Transformer, arXiv:2204.07143; with ``dilation``, every so many-th key, among
    those of the query's residue: Hassani and Shi, arXiv:2209.15001; causal along chosen axes: arXiv:2403.04690; with
    ``stride``, groups of so many queries share the window of their centre (of their last one where causal):
    Generalized Neighborhood Attention, arXiv:2504.16922. Exactly NATTEN's masks. An even window reaches one key
    further back than ahead.

    All are counted in tokens along one axis (``stride`` in those of one residue) and given once, or once for each
    axis. Windows are run-time scalars; ``dilation`` and ``stride`` are baked in, because they divide. Raises
    :class:`ParameterError` unless ``window * dilation`` fits every axis and 1 ≤ ``stride`` ≤ ``window``.

    >>> import regard as rg
    >>> print(rg.attention(rg.neighborhood(rg.grid(64), 7, causal=True)))
    attention neighborhood(window: int = 7) {
      keep      coordinate(kv, 0, 64) <= coordinate(q, 0, 64) and coordinate(q, 0, 64) - coordinate(kv, 0, 64) < window
      normalize softmax
    }
    """
    windows = along_axes("window", window, grid)
    dilations, strides = along_axes("dilation", dilation, grid), along_axes("stride", stride, grid)
    orders = along_axes("causal", causal, grid, least=None)
    parts = []
    for axis, (w, d, s) in enumerate(zip(windows, dilations, strides, strict=True)):
        fits("window × dilation" if d > 1 else "window", w * d, grid, axis)
        if s > w:
            raise ParameterError(
                f"stride {s} along axis {axis} is larger than the window {w}: some keys would be seen by no query",
                location=caller(),
                hint="a stride equal to the window gives blocks",
            )
        options = {"dilation": static(d), "stride": static(s), "causal": bool(orders[axis])}
        parts.append(_along_axis(grid=grid, axis=static(axis), window=w, **options))
    return joined("neighborhood", parts)


@mask
def _along_axis(
    q: Any, kv: Any, grid: Grid, axis: int, window: int, dilation: int, stride: int, causal: bool
) -> Any:
    here, there, last = grid(q)[axis], grid(kv)[axis], grid.sizes[axis] - 1
    if dilation == 1:
        return _near(here, there, last, window, stride, causal)
    # Among the keys of one residue, dilation is none.
    residue = here % dilation
    last = (last - residue) // dilation
    return (residue == there % dilation) & _near(here // dilation, there // dilation, last, window, stride, causal)


def _near(here: Any, there: Any, last: Any, window: Any, stride: int, causal: bool) -> Any:
    """Whether the key at coordinate ``there`` is in the window of the query at ``here``; ``last`` is the axis' end."""
    chosen = stride - 1 if causal else stride // 2
    leader = rg.minimum(here // stride * stride + chosen, last) if stride > 1 else here
    if causal:
        return (there <= here) & (leader - there < window)
    centre = rg.clamp(leader, window // 2, last - (window - 1) // 2)
    return (there >= centre - window // 2) & (there <= centre + (window - 1) // 2)


def sliding_tile(grid: Grid, window: int | Sequence[int], tile: int | Sequence[int]) -> MaskPart:
    """Tiles of tokens attend to the ``window`` tiles nearest to them along every axis, shifted inwards at borders.

    Zhang et al., Fast Video Generation with Sliding Tile Attention, arXiv:2502.04507. ``tile`` counts tokens and
    ``window`` tiles, an odd number, both given once or once for each axis. Tokens are in the order of the grid, not
    sorted by tiles. Windows are run-time scalars; tiles are baked in, because they divide. Raises
    :class:`ParameterError` for an even window and one that has more tiles than an axis.

    >>> import regard as rg
    >>> attn = rg.attention(rg.sliding_tile(rg.grid(16, 32, 64), window=3, tile=(4, 8, 8)))
    >>> rg.parse(str(attn)) == attn
    True
    """
    parts = []
    for axis, (w, t) in enumerate(zip(along_axes("window", window, grid), along_axes("tile", tile, grid), strict=True)):
        if w % 2 == 0:
            raise ParameterError(f"window {w} along axis {axis} must be an odd number of tiles", location=caller())
        fits("tile", t, grid, axis)
        count = -(-grid.sizes[axis] // t)
        if w > count:
            raise ParameterError(
                f"window {w} along axis {axis} is larger than the axis, which has {count} tiles", location=caller()
            )
        parts.append(_tiles(grid=grid, axis=static(axis), window=w, tile=static(t)))
    return joined("sliding_tile", parts)


@mask
def _tiles(q: Any, kv: Any, grid: Grid, axis: int, window: int, tile: int) -> Any:
    reach, last = window // 2, (grid.sizes[axis] - 1) // int(tile)
    centre = rg.clamp(grid(q)[axis] // tile, reach, last - reach)
    return abs(centre - grid(kv)[axis] // tile) <= reach


def halo(grid: Grid, block: int | Sequence[int], halo: int | Sequence[int]) -> MaskPart:
    """Blocks of queries attend to the keys of their block and of a border around it, cut off at the grid's ends.

    Vaswani et al., Scaling Local Self-Attention for Parameter Efficient Visual Backbones (HaloNet), arXiv:2103.12731.
    ``block`` and ``halo``, the width of the border, count tokens, once or once for each axis. The halo is a run-time
    scalar; blocks are baked in, because they divide. Raises :class:`ParameterError` for blocks larger than an axis and
    a negative halo.

    >>> import regard as rg
    >>> attn = rg.attention(rg.halo(rg.grid(64, 64), block=8, halo=3))
    >>> print(attn.explain((1, 1, 4096, 32)).counts.pairs)
    719,104 of 16,777,216 pairs (4.29%)
    """
    parts = []
    halos = along_axes("halo", halo, grid, least=0)
    for axis, (size, border) in enumerate(zip(along_axes("block", block, grid), halos, strict=True)):
        fits("block", size, grid, axis)
        parts.append(_halo(grid=grid, axis=static(axis), block=static(size), halo=border))
    return joined("halo", parts)


@mask
def _halo(q: Any, kv: Any, grid: Grid, axis: int, block: int, halo: int) -> Any:
    first = grid(q)[axis] // block * block
    return (grid(kv)[axis] >= first - halo) & (grid(kv)[axis] < first + block + halo)
