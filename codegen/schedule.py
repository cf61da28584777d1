"""What a kernel is compiled for, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ir.tiles.plan import Fit

DType = Literal["f16", "bf16", "f32"]
# Options of every compilation. Named, because Triton's default for fusing products with sums differs by release.
COMPILER_OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True, slots=True)
class Target:
    """``cpu``, ``cuda`` with a compute capability (80, 90, 100), or ``hip`` with an architecture."""

    backend: Literal["cpu", "cuda", "hip"]
    arch: int | str = ""

    def __str__(self) -> str:
        return f"sm_{self.arch}" if self.backend == "cuda" else str(self.arch or self.backend)


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything besides the variant that generated code is specialised on; no length, batch or head count.

    ``aligned``: all bases and strides of query, key, value and outputs are multiples of 16 bytes.
    ``buffers``: storage dtypes of the captured tensors as torch names them without the module ("float32").
    ``buffer_gradients``: which of them need a gradient. ``deterministic``: gradients must repeat bit by bit.
    ``fit``: how lengths fit the grids that the mask divides positions into, which the plan takes for granted.
    """

    dtype: DType
    head_dim: int
    value_dim: int
    aligned: bool = True
    buffers: tuple[str, ...] = ()
    buffer_gradients: tuple[bool, ...] = ()
    tf32: bool = False
    debug: bool = False
    deterministic: bool = False
    fit: Fit = "any"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Tile sizes and pipeline of one kernel.

    ``block_m`` queries by ``block_n`` keys; ``split_keys``: one row of query tiles is shared by several
    programs and merged by log-sum-exp; ``reverse``: launch tiles from the last to the first because the
    last are the heaviest. ``descriptors``: tiles are loaded through tensor descriptors (the tensor memory
    accelerator of sm_90 and newer; bases and strides must be multiples of 16 bytes), else by pointers.
    ``listed``: tiles that programs own stand in a list, the heaviest first; with ``split_keys`` long rows of tiles are
    in shares there, also in kernels that own keys.
    ``ahead``: the scores of a tile of queries start beside the last values of the one before; not with a list.
    ``cut``: tiles begin anew where data that the mask compares changes (the warp-specialised kernels of runs; not with
    a list).
    ``grad_query``: the backward kernel that computes the gradient of the queries, where it differs from
    the one for keys and values, which this schedule describes then. ``grad_value``: the same for the gradient
    of the values; this schedule is that of the keys then.
    """

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2
    split_keys: bool = False
    reverse: bool = False
    descriptors: bool = False
    listed: bool = False
    ahead: bool = False
    cut: bool = False
    grad_query: Schedule | None = None
    grad_value: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A generated module: its text, and the names of the kernels in it (none for the CPU)."""

    text: str
    kernels: tuple[str, ...] = ()
