"""Looks for an allowed pair whose index is outside a captured tensor.

Loads that are not proved inside are guarded in the kernel and so always safe; what is found here is a mistake
in the variant or a tensor that is too small, and better reported than clamped. The search evaluates index and
mask literally on a few positions (ends, middle, the surroundings of powers of two): it proves a mistake, never
its absence. It reads no tensors: indices and masks that depend on data are left to the guards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..ir.errors import IndexRangeError
from ..ir.interpret import evaluate
from ..ir.nodes import Index, Score
from ..ir.printer import print_expr
from ..ir.traverse import loads, walk
from ..ir.variant import Variant
from .arguments import Sizes


def check_index_ranges(
    variant: Variant, buffers: Mapping[str, Tensor], scalars: Mapping[str, int | float], sizes: Sizes
) -> None:
    """Raises :class:`IndexRangeError` where an allowed pair surely reads outside a buffer."""
    suspects = [
        (load, axis, index)
        for expr in (variant.mask, *variant.scores)
        for load in loads(expr)
        for axis, index in enumerate(load.indices)
        if not isinstance(index, Index) and not loads(index) and Score() not in walk(index)
    ]
    if not suspects or 0 in sizes:
        return
    env = {**_witnesses(variant, sizes), **scalars, **{p.name: p.value for p in variant.statics}}
    for load, axis, index in suspects:
        size = buffers[load.buffer].shape[axis]
        values = evaluate(index, env)
        outside = (values < -size) | (values >= size)
        if not outside.any():
            continue
        # Where it depends on the pair: is one of these pairs surely allowed?
        if values.size > 1 and (loads(variant.mask) or not (outside & evaluate(variant.mask, env)).any()):
            continue
        raise IndexRangeError(
            f"axis {axis} of {load.buffer} has size {size}, but for pairs that the mask allows "
            f"`{print_expr(index)}` takes values from {values.min()} to {values.max()}",
            location=load.loc,
            hint="make the tensor larger, clamp the index, or mask those pairs",
        )


def _witnesses(variant: Variant, sizes: Sizes) -> dict[str, npt.NDArray[np.int64] | int]:
    """A few values of every index, each along an array axis of its own."""
    offset = sizes.kv_len - sizes.q_len if variant.align == "end" else 0
    heads = _ends(sizes.heads)
    return {
        "batch": _ends(sizes.batch)[:, None, None, None],
        "head": heads[:, None, None],
        "kv_head": (heads // (sizes.heads // sizes.kv_heads))[:, None, None],
        "q": _spread(sizes.q_len)[:, None] + offset,
        "kv": _spread(sizes.kv_len),
        "q_len": sizes.q_len,
        "kv_len": sizes.kv_len,
    }


def _ends(n: int) -> npt.NDArray[np.int64]:
    return np.unique([0, n - 1])


def _spread(n: int) -> npt.NDArray[np.int64]:
    powers = 2 ** np.arange(n.bit_length())
    places = np.concatenate([powers - 1, powers, powers + 1, [0, n // 2, n - 2, n - 1]])
    return np.unique(places[(places >= 0) & (places < n)])
