"""Tile tables of masks that read data, kept for as long as the data stays the same.

All layers of a model usually share one mask and its data (document ids, padding), so its tiles need to be
classified once a step. A table is found again only if every tensor that the mask reads is the same object
with the same version counter, and the lengths, the scalars that the mask reads and the stream agree. What
changes a tensor behind the counter's back (``.data``, another library's kernel) must be followed by a call
with a new tensor object, as for autograd.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_CAPACITY = 16

_tables: OrderedDict[tuple[object, ...], tuple[tuple[weakref.ref[Tensor], ...], Any]] = OrderedDict()
_lock = threading.Lock()


def tiles(facts: tuple[object, ...], data: Sequence[Tensor], device: torch.device, classify: Callable[[], Any]) -> Any:
    """``classify()``, or what it returned before for the same ``facts`` and the same contents of ``data``."""
    if any(x.is_inference() for x in data) or _capturing(device):
        return classify()
    key = (*facts, _stream(device), *((id(x), x._version, x.data_ptr(), x.shape, x.stride()) for x in data))
    with _lock:
        found = _tables.get(key)
        if found is not None and all(ref() is x for ref, x in zip(found[0], data, strict=True)):
            _tables.move_to_end(key)
            return found[1]
    made = classify()
    with _lock:
        # A dead tensor takes its tables along: they may be large, and its id will be used again.
        _tables[key] = (tuple(weakref.ref(x, lambda _: _tables.pop(key, None)) for x in data), made)
        _tables.move_to_end(key)
        while len(_tables) > _CAPACITY:
            _tables.popitem(last=False)
    return made


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> int:
    """Tables are ready only on the stream that computes them."""
    # Past `torch.cuda.current_stream`, which makes an object for it.
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
