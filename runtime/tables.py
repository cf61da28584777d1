"""Tile tables of masks that read data, kept for as long as the data stays the same.

All layers of a model usually share one mask and its data (document ids, padding), so its tiles need to be
classified once a step. A table is found again only if every tensor that the mask reads is the same object
with the same contents, and the lengths, the scalars that the mask reads and the stream agree. On a CPU, where NumPy
writes to tensors too, contents are compared by a digest of the bytes, which costs a few percent of the
classification or, where data is kept pair by pair, a tenth of it. On a GPU that would wait for the data: there the
version counter tells. What changes a tensor behind its back (another library's kernel) must be followed by
``torch.autograd.graph.increment_version``, as for autograd.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CAPACITY = 16

Contents = bytes | tuple[int, int]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Kept:
    """Tables, and the contents that they were made of."""

    made: Any
    flat: tuple[Tensor, ...]  # the tensors in ``made``
    data: tuple[weakref.ref[Tensor], ...] = ()
    contents: tuple[Contents, ...] = ()
    stream: int = 0

    def like(self, flat: tuple[Tensor, ...]) -> Any:
        """``flat`` put together as ``made`` is."""
        if isinstance(self.made[0], Tensor):
            return flat
        first = len(self.made[0])
        return flat[:first], flat[first:]

    def serves(self, data: Sequence[Tensor], device: torch.device) -> bool:
        """Whether they are those of ``data``, which looks as it did (shape, strides), for a launch now."""
        for ref, known, x in zip(self.data, self.contents, data, strict=True):
            if ref() is not x or known != _contents(x):
                return False
        return self.stream == _stream(device) and not _capturing(device)


_tables: OrderedDict[tuple[object, ...], Kept] = OrderedDict()
_lock = threading.Lock()


def tiles(facts: tuple[object, ...], data: Sequence[Tensor], device: torch.device, classify: Callable[[], Any]) -> Kept:
    """``classify()``, or what it returned before for the same ``facts`` and the same contents of ``data``."""
    if any(x.is_inference() for x in data) or _capturing(device):
        return fresh(classify)
    stream = _stream(device)
    contents = tuple(_contents(x) for x in data)
    key = (*facts, stream, *((id(x), known, x.shape, x.stride()) for x, known in zip(data, contents, strict=True)))
    with _lock:
        found = _tables.get(key)
        if found is not None and all(ref() is x for ref, x in zip(found.data, data, strict=True)):
            _tables.move_to_end(key)
            return found
    # A dead tensor takes its tables along: they may be large, and its id will be used again.
    references = tuple(weakref.ref(x, lambda _: _tables.pop(key, None)) for x in data)
    made = classify()
    kept = Kept(made, _flat(made), references, contents, stream)
    with _lock:
        _tables[key] = kept
        _tables.move_to_end(key)
        while len(_tables) > _CAPACITY:
            _tables.popitem(last=False)
    return kept


def _contents(x: Tensor) -> Contents:
    """What changes when the elements of ``x`` do: a digest of their bytes, or version and address."""
    if x.device.type != "cpu":
        return x._version, x.data_ptr()
    # What an axis repeats is looked at once: nothing that was expanded is written out.
    distinct = x.detach()[tuple(slice(1 if stride == 0 else None) for stride in x.stride())]
    elements = distinct.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(elements.numpy().data, digest_size=16).digest()


def fresh(classify: Callable[[], Any]) -> Kept:
    """``classify()``, for one call."""
    made = classify()
    return Kept(made, _flat(made))


def _flat(tiles: Any) -> tuple[Tensor, ...]:
    """The tensors of tile tables: those of a forward pass are one tuple, those of a backward pass are two."""
    return (*tiles,) if isinstance(tiles[0], Tensor) else (*tiles[0], *tiles[1])


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> int:
    """Tables are ready only on the stream that computes them."""
    # Past `torch.cuda.current_stream`, which makes an object for it.
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
