"""Counters at zero in device memory, for kernels whose programs take their work from one.

Zeros are written for a thousand launches at once. Each counter is handed out once, so launches that run at the same
time never share one, and those of a block are used on the stream that zeroes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .bounded import Bounded

_COUNT = 1024
_STREAMS_LIMIT = 256


class _Block(NamedTuple):
    addresses: Iterator[int]
    memory: Tensor


_blocks = Bounded[tuple[torch.device, int], _Block](_STREAMS_LIMIT)


def take(device: torch.device, stream: int) -> tuple[int, Tensor]:
    """Address of an int32 at zero, a multiple of 16, and its memory, to be kept until the launch is queued.

    It serves one launch on ``stream``, the current one of ``device``, which must not be capturing.
    """
    key = device, stream
    block = _blocks.get(key)
    # Threads that share a stream take different elements of the iterator.
    address = next(block.addresses, 0) if block else 0
    if not block or not address:
        # Memory of an older block may be used again, but only on this stream, after the launches queued on it.
        memory = torch.zeros(_COUNT, 4, dtype=torch.int32, device=device)
        block = _Block(iter(range(memory.data_ptr(), memory.data_ptr() + memory.nbytes, 16)), memory)
        address = next(block.addresses)
        _blocks.put(key, block)
    return address, block.memory
