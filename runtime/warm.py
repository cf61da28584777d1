"""Plain calls like a recent one, found by one check for each tensor instead of all the others.

PyTorch's guards, which compiled functions check before they run, compare in one step what a call depends on: the
Python class, dtype, device, shape and strides of a tensor, whether it requires a gradient, and its dispatch keys with
those that modes, transforms, traces and autocast add or remove in this thread. So a call that passes the guards of one
that nothing watched is not watched either (see :func:`.autograd.is_watched`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .devices import is_here, tf32_allowed
from .tables import Kept

if TYPE_CHECKING:
    from .replay import Replay

# Calls that are remembered for one variant: those of a model's layers, where they differ.
_LIMIT = 4
# A private name, of all supported versions.
_Guards = getattr(torch._C._dynamo.guards, "TensorGuards", None)


class _Warm(NamedTuple):
    """A call that was repeated."""

    looks: list[Callable[[Tensor], bool]]  # for each tensor: whether another one looks like it
    scalars: Sequence[int | float]
    values: bytes  # those of ``scalars``, exactly
    differentiable: bool
    tf32: bool | None  # whether torch allowed it; None where that plays no part
    replay: Replay
    tables: weakref.ref[Kept] | None  # None for programs without


class Recent:
    """The plain calls of one variant that were repeated last.

    ``pack`` gives the values of scalars as bytes, ``read`` the numbers of the captured tensors that the mask reads.
    """

    def __init__(self, pack: Callable[..., bytes], read: Sequence[int]) -> None:
        self._pack, self._read = pack, read
        self._calls: tuple[_Warm, ...] = ()

    def again(
        self, given: tuple[Tensor, ...], buffers: Sequence[Tensor], scalars: Sequence[int | float]
    ) -> tuple[Tensor, ...] | None:
        """The outputs, if the call is like one of these; None says nothing."""
        tensors = (*given, *buffers)
        for call in self._calls:
            if call.scalars is not scalars and call.values != self._pack(*scalars):
                continue
            for look, x in zip(call.looks, tensors):  # noqa: B905  (as many; `strict` costs more than a check)
                if not look(x):
                    break
            else:
                # Tangents are no part of how a tensor looks; nor is the current device.
                if (
                    (call.differentiable and torch.is_grad_enabled())
                    or forward_ad._current_level >= 0
                    or (call.tf32 is not None and call.tf32 != tf32_allowed())
                    or not is_here(given[0])
                ):
                    continue
                if call.tables is None:
                    return call.replay(tensors)
                tables = call.tables()
                if tables is not None and tables.serves([buffers[i] for i in self._read], given[0].device):
                    return call.replay((*tensors, *tables.flat))
        return None

    def add(
        self,
        tensors: tuple[Tensor, ...],
        scalars: Sequence[int | float],
        replay: Replay,
        tables: Kept | None,
    ) -> None:
        """A call that nothing watched, with these tensors (and captured ones) and values."""
        if _Guards is None:
            return
        looks = [
            _Guards(x, dynamic_dims_sizes=[list(x.shape)], dynamic_dims_strides=[list(x.stride())]).check
            for x in tensors
        ]
        new = _Warm(
            looks,
            scalars,
            self._pack(*scalars),
            any(x.requires_grad for x in tensors),
            tf32_allowed() if tensors[0].dtype is torch.float32 else None,
            replay,
            None if tables is None else weakref.ref(tables),
        )
        others = [call for call in self._calls if call.replay is not replay or call.tables != new.tables]
        self._calls = (new, *others[: _LIMIT - 1])

    def forget(self) -> None:
        """No call is known: others are to run from now on."""
        self._calls = ()
