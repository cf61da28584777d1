"""What tests of repeated launches share: inputs, and launches in a form that can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import regard as rg


class TensorMap(tuple[Any, ...]):
    """What was encoded: address, form, shape, strides, padding."""


def inputs(*shape: int, kv_len: int = 0) -> list[Tensor]:
    q = torch.zeros(*shape, dtype=torch.float16)
    kv = (*shape[:2], kv_len or shape[2], shape[3])
    return [q, torch.zeros(kv, dtype=torch.float16), torch.zeros(kv, dtype=torch.float16)]


def kept(attn: rg.Attention) -> list[Any]:
    """The replays of what was called."""
    return list(attn._engine._replays.values())


def with_names(launches: list[tuple[Any, ...]], tensors: dict[str, Tensor]) -> list[list[Any]]:
    """Launches with the names of ``tensors`` in place of their addresses; other addresses are numbered."""
    names = {x.data_ptr(): name for name, x in tensors.items()}

    def named(x: Any) -> Any:
        if isinstance(x, TensorMap):
            return tuple(map(named, x))
        if type(x) is not int or x < 2**40:
            return x
        return names.setdefault(x, f"memory {len(names) - len(tensors)}")

    return [list(map(named, launch)) for launch in launches]
