"""How captured tensors are read: at which indices, whether these lie inside, and what the kernel does about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..codegen.triton_values import is_checked
from ..ir.bounds import Range, interval
from ..ir.interpret import evaluate
from ..ir.nodes import Const, Expr, Load, Score
from ..ir.printer import print_expr
from ..ir.tiles.numeric import leaves
from ..ir.traverse import loads, parameter_names, walk
from ..ir.variant import Variant
from .inspection import Setting

# So many pairs are evaluated in a moment; above, intervals bound an index over all of them.
_FEW_PAIRS = 2**20


@dataclass(frozen=True, slots=True)
class Bound:
    """Values that the index of one axis takes: over allowed pairs, or, not ``exact``, over all pairs at the most."""

    axis: int
    index: Expr
    low: int
    high: int
    exact: bool
    size: int | None

    @property
    def inside(self) -> bool | None:
        """Whether all lie inside the tensor; None where that is not known."""
        if self.size is None or (not self.exact and not self._fits):
            return None
        return self._fits

    @property
    def _fits(self) -> bool:
        return self.size is not None and -self.size <= self.low and self.high < self.size

    def __str__(self) -> str:
        if isinstance(self.index, Const):
            where = f"axis {self.axis} at {self.low}"
        else:
            pairs = "for allowed pairs" if self.exact else "at most"
            where = f"{print_expr(self.index)} is {self.low} to {self.high} {pairs}"
        if self.size is None:
            return where
        said = {True: "inside", False: "OUTSIDE", None: "perhaps outside"}[self.inside]
        return f"{where}, {said} of {self.size} elements"


@dataclass(frozen=True, slots=True)
class Read:
    """How one element of a captured tensor is read; ``bounds`` are those of computed indices, if lengths are known."""

    load: Load
    guarded: bool
    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        if not self.guarded:
            return f"{print_expr(self.load)}: plain load; the call checks that every axis is long enough"
        computed = ", ".join(print_expr(x) for x in self.load.indices if not is_checked(x))
        where = "; ".join(map(str, self.bounds)) or f"{computed} may lie outside"
        return f"{print_expr(self.load)}: guarded load; {where}; pairs that are masked never read"


def reads(variant: Variant, what: Setting) -> tuple[Read, ...]:
    """Every way in which ``variant``, as the pipeline leaves it, reads a captured tensor."""
    found = dict.fromkeys(load for e in (variant.mask, *variant.scores) for load in loads(e))
    return tuple(_read(load, variant, what) for load in found)


def _read(load: Load, variant: Variant, what: Setting) -> Read:
    tensor = what.values.get(load.buffer)
    shape = tensor.shape if isinstance(tensor, Tensor) else (None,) * len(load.indices)
    bounds = [
        _bound(axis, index, variant, what, size)
        for axis, (index, size) in enumerate(zip(load.indices, shape, strict=True))
        if not is_checked(index)
    ]
    return Read(load, bool(bounds), tuple(b for b in bounds if b is not None))


def _bound(axis: int, index: Expr, variant: Variant, what: Setting, size: int | None) -> Bound | None:
    sizes = what.sizes
    if sizes is None or 0 in (sizes.batch, sizes.heads, sizes.q_len, sizes.kv_len) or Score() in walk(index):
        return None
    known = parameter_names(index) | parameter_names(variant.mask) <= set(what.values)
    if known and sizes.batch * sizes.heads * sizes.q_len * sizes.kv_len <= _FEW_PAIRS:
        positions = {"q": np.arange(sizes.q_len)[:, None], "kv": np.arange(sizes.kv_len)}
        env = {**leaves(sizes, what.numbers()), **positions}
        # Masked pairs never read, so their indices may be anything.
        values, allowed = np.broadcast_arrays(*(evaluate(e, env, clamp=True) for e in (index, variant.mask)))
        if not allowed.any():
            return None
        return Bound(axis, index, int(values[allowed].min()), int(values[allowed].max()), True, size)
    names = ("batch", "head", "kv_head", "q", "kv")
    lengths = (sizes.batch, sizes.heads, sizes.kv_heads, sizes.q_len, sizes.kv_len)
    ranges: dict[str, Range] = {name: (0, n - 1) for name, n in zip(names, lengths, strict=True)}
    ranges |= {"q_len": (sizes.q_len,) * 2, "kv_len": (sizes.kv_len,) * 2}
    for name, value in what.values.items():
        if not isinstance(value, Tensor):
            ranges[name] = (value, value)
        elif value.numel():
            ranges[name] = (value.min().item(), value.max().item())
    low, high = interval(index, ranges)
    return Bound(axis, index, int(low), int(high), False, size)
