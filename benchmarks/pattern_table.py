"""The patterns by name."""

from __future__ import annotations

from collections.abc import Callable

from . import pattern_grids as grids
from . import pattern_sequences as sequences
from .case import GRIDS_3D, Case
from .cases import Contestants

PATTERNS: dict[str, Callable[[Case, str], Contestants]] = {
    "strided": sequences.strided,
    "fixed": sequences.fixed,
    "longnet": sequences.longnet,
    "shards": sequences.shards,
    "windows2d": grids.windows_2d(0),
    "shifted2d": grids.windows_2d(8),
    "rows": grids.rows,
    "columns": grids.columns,
    "dilated2d": lambda case, device: grids.image(case, (13, 13), dilation=4),
    "blocked2d": lambda case, device: grids.image(case, (24, 24), stride=(8, 8)),
    "halo2d": grids.halo,
    "tiles3d": grids.sliding_tile,
    "radial3d": grids.radial,
    "spatial3d": grids.spatial,
    "temporal3d": grids.temporal,
    "circle2d": grids.circle,
    "longformer": sequences.longformer,
    "bigbird": sequences.bigbird,
    "star": sequences.star,
    "blockdiffusion": sequences.block_diffusion,
    "staircase": sequences.staircase,
    "longlora": sequences.longlora,
    "tree": sequences.tree,
    "interleaved": sequences.interleaved,
    "retrieval": sequences.retrieval,
    "shuffled": sequences.shuffled,
    "lengths": sequences.lengths,
    "positions": sequences.positions,
    "modalities": sequences.modalities,
    "headwindows": sequences.head_windows,
    "kept": sequences.kept,
    "near2d": lambda case, device: grids.image(case, (13, 13)),
    "near3d": lambda case, device: grids.neighborhood(GRIDS_3D[case.length], (5, 9, 9)),
    # Up to 1024 keys, each 16 tokens from the next.
    "distant": sequences.distant,
    # The cases that NATTEN publishes, whatever their length.
    "natten2d": lambda case, device: grids.neighborhood((256, 256), (80, 80)),
    "natten2d_blocked": lambda case, device: grids.neighborhood((256, 256), (80, 80), stride=(16, 16)),
    "natten3d": lambda case, device: grids.neighborhood((30, 48, 80), (18, 24, 24)),
    "natten3d_blocked": lambda case, device: grids.neighborhood((30, 48, 80), (18, 24, 24), stride=(16, 8, 8)),
}
