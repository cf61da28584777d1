"""An explicit list of blocks of pairs."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...ir.errors import ParameterError
from ..callsite import caller
from ..part import MaskPart, mask
from .checks import tensor, whole


def tiles(
    blocks: torch.Tensor, size: int | tuple[int, int] = 128, *, shape: tuple[int, ...] | None = None
) -> MaskPart:
    """Pairs in the listed blocks of ``size`` = (queries, keys) positions, or so many of both, and no others.

    As block-sparse libraries take it (Gray et al., GPU Kernels for Block-Sparse Weights, 2017). ``blocks`` is a bool
    tensor of shape (rows, columns), (H, rows, columns) or (B, H, rows, columns), where an axis of heads or batches
    may be 1 to serve all; or an integer tensor (N, 2), (N, 3) or (N, 4) whose rows name the listed blocks by the
    same axes, with ``shape`` for what the bool tensor's would be. Blocks count from position 0, the last ones may be
    cut short by the lengths, and positions past all blocks attend to nothing and are attended to by nobody; ``size``
    is baked in, because it divides. Combine it by ``&`` with other masks. Tiles are decided exactly where blocks have
    16 positions or more. Raises :class:`ParameterError` for other dtypes and shapes, and for indices that are out of
    range or listed twice; a list is therefore read by the host, once.

    >>> import regard as rg
    >>> print(rg.attention(rg.tiles(torch.eye(4, dtype=torch.bool), 64)))  # doctest: +ELLIPSIS
    attention tiles(blocks: bool[_, _], rows: static int = 64, columns: static int = 64, ...) {
      keep      q < q_end and kv < kv_end and blocks[q // rows, kv // columns]
      normalize softmax
    }
    """
    both = size if isinstance(size, tuple) and len(size) == 2 else (size, size)
    rows, columns = (whole("size", n, 1) for n in both)
    if isinstance(blocks, torch.Tensor) and blocks.dtype is not torch.bool:
        blocks = _listed(blocks, shape)
    elif shape is not None:
        raise ParameterError("`shape` is for a list of indices; a bool tensor has its own", location=caller())
    expected = "(rows, columns), (H, rows, columns) or (B, H, rows, columns)"
    blocks = tensor("blocks", blocks, expected, ranks=(2, 3, 4), kind="bool")
    ends = (blocks.shape[-2] * rows, blocks.shape[-1] * columns)
    values = {"rows": rows, "columns": columns, "q_end": ends[0], "kv_end": ends[1]}
    match [n > 1 for n in blocks.shape[:-2]]:
        case [True, True]:
            return _tiles_by_batch_and_head(blocks=blocks, **values)
        case [True, False]:
            return _tiles_by_batch(blocks=blocks[:, 0], **values)
        case [False, True]:
            return _tiles_by_head(blocks=blocks[0], **values)
        case [True]:
            return _tiles_by_head(blocks=blocks, **values)
        case _:
            return _tiles(blocks=blocks.reshape(blocks.shape[-2:]), **values)


def _listed(indices: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """The bool tensor of ``shape`` that is true at ``indices``."""
    indices = tensor("blocks", indices, "(N, 2), (N, 3) or (N, 4)", ranks=(2,), kind="integer")
    if shape is None or not 2 <= len(shape) <= 4 or indices.shape[1] != len(shape):
        raise ParameterError(
            f"`blocks` of shape {tuple(indices.shape)} lists indices, so `shape` must say how many blocks there are "
            f"along each of its axes, got {shape!r}",
            location=caller(),
            hint="write rg.tiles(blocks, 128, shape=(rows, columns)) for indices of shape (N, 2)",
        )
    sizes = torch.tensor([whole("shape", n, 1) for n in shape], device=indices.device)
    outside = ((indices < 0) | (indices >= sizes)).any(1)
    if bool(outside.any()):
        worst = indices[outside][0].tolist()
        raise ParameterError(f"block {tuple(worst)} is out of range of {tuple(shape)} blocks", location=caller())
    strides = torch.tensor([math.prod(shape[i + 1 :]) for i in range(len(shape))], device=indices.device)
    flat, counts = (indices * strides).sum(1).unique(return_counts=True)
    if bool((counts > 1).any()):
        place = int(flat[counts > 1][0])
        twice = tuple(place // int(s) % n for s, n in zip(strides.tolist(), shape, strict=True))
        raise ParameterError(f"block {twice} is listed twice", location=caller())
    listed = torch.zeros(math.prod(shape), dtype=torch.bool, device=indices.device)
    listed[flat] = True
    return listed.view(shape)


@mask
def _tiles(q: Any, kv: Any, blocks: torch.Tensor, rows: int, columns: int, q_end: int, kv_end: int) -> Any:
    return (q < q_end) & (kv < kv_end) & blocks[q // rows, kv // columns]


@mask
def _tiles_by_head(
    head: Any, q: Any, kv: Any, blocks: torch.Tensor, rows: int, columns: int, q_end: int, kv_end: int
) -> Any:
    return (q < q_end) & (kv < kv_end) & blocks[head, q // rows, kv // columns]


@mask
def _tiles_by_batch(
    batch: Any, q: Any, kv: Any, blocks: torch.Tensor, rows: int, columns: int, q_end: int, kv_end: int
) -> Any:
    return (q < q_end) & (kv < kv_end) & blocks[batch, q // rows, kv // columns]


@mask
def _tiles_by_batch_and_head(
    batch: Any, head: Any, q: Any, kv: Any, blocks: torch.Tensor, rows: int, columns: int, q_end: int, kv_end: int
) -> Any:
    return (q < q_end) & (kv < kv_end) & blocks[batch, head, q // rows, kv // columns]
