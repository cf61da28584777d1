"""Masks by which few rows of tiles see far more than the others, and modules run as if the GPU were small."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import gluon_emulated
import regard as rg
from oracle import Part


@rg.mask
def local_and_global(q, kv, reach, seen):
    return ((q - kv <= reach) & (kv - q <= reach)) | (q < seen) | (kv < seen)


@rg.mask
def late_rows_see_all(q, kv, begin):
    return (q >= begin) | (kv < 40)


@rg.mask
def some_rows_see_nothing(q, kv):
    return ((q < 100) | (kv > q + 1000)) & (q >= 20)


@rg.mask
def one_head_sees_more(q, kv, head):
    return (kv < 50) | ((q < 60) & (head == 1))


@rg.mask
def passages_and_question(q, kv, block):
    return (q >= kv) & ((block[q] == block[kv]) | (block[q] == 6))


LOCAL_AND_GLOBAL: list[Part] = [local_and_global(reach=40, seen=20)]
RANDOM: list[Part] = [rg.random_blocks(64, 1) | local_and_global(reach=10, seen=30)]
# Of the GPU: as many as make small calls uneven.
MULTIPROCESSORS = 9


def emulated(text: str) -> Any:
    """The module of this text."""
    loaded = gluon_emulated.load(text)
    loaded.names["device_limits"] = lambda device: (MULTIPROCESSORS, 1 << 20)
    return loaded
