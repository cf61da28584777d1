"""The case list of ``benchmarks.run``, in the order in which time is spent on it.

It is committed before kernels are tuned, and every case is reported: run, failed, or not reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .case import GRIDS_2D, GRIDS_3D, Case

# As published benchmarks have it: 16384 tokens of 2048 channels at every length; longer ones have fewer heads.
TOKENS, CHANNELS = 16384, 2048
PLAIN = ("causal", "full", "window", "document", "prefix", "alibi", "softcap")
SPARSE = ("dilated", "neighbourhood2d", "neighbourhood3d")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

# Regard is in every group, so that all that is compared was measured in turn with it.
GROUPS = {
    "peers": ("regard", "sdpa-cudnn", "sdpa-flash", "flex", "flex-ordered", "fa3", "fa4"),
    "deterministic": ("regard", "regard-deterministic"),
    # What is chosen beside each of our skeletons, whether or not it would be.
    "skeletons": ("regard", "regard-triton", "regard-gluon"),
    # FlexAttention's experimental back end, and its slow search: compilation takes most of their time.
    "flash": ("regard", "flex-flash"),
    "autotune": ("regard", "flex-autotune"),
}


@dataclass(frozen=True)
class Entry:
    """A case and the contenders that run in turn on it."""

    case: Case
    group: str = "peers"

    @property
    def title(self) -> str:
        return self.case.title if self.group == "peers" else f"{self.case.title} [{self.group}]"


def shaped(variant: str, length: int, head_dim: int, group: int = 1) -> Case:
    """The case at constant work; ``group`` query heads share a key head. Head counts are rounded up to a group."""
    batch = max(1, TOKENS // length)
    heads = CHANNELS // head_dim * TOKENS // (batch * length)
    groups = max(1, -(-heads // group))
    return Case(variant, batch, groups * group, groups, length, head_dim)


def possible(variant: str, length: int) -> bool:
    """Whether ``length`` tokens make one of the grids."""
    match variant:
        case "neighbourhood2d":
            return length in GRIDS_2D
        case "neighbourhood3d":
            return length in GRIDS_3D
    return True


def _cases() -> Iterator[Entry]:
    """With repetitions: the first place counts."""
    for length in (8192, 4096, 16384, 2048, 1024):
        yield from (Entry(shaped(variant, length, dim)) for dim in (128, 64) for variant in ("causal", "full"))
    quick = [shaped(variant, s, d) for s in (8192, 4096) for d in (128, 64) for variant in PLAIN]
    yield from map(Entry, quick)
    for dim in (128, 64):
        yield from (Entry(shaped(variant, 16384, dim)) for variant in SPARSE)
        yield from (Entry(shaped(variant, 8192, dim, group=8)) for variant in ("causal", "full", "window"))
    yield from (Entry(case, group) for group in ("deterministic", "flash") for case in quick)
    for dim in (128, 64, 96, 192, 256):
        yield from (Entry(shaped(variant, 4096, dim), "skeletons") for variant in PLAIN)
        yield from (Entry(shaped(variant, 16384, dim), "skeletons") for variant in ("document", *SPARSE))
    # One sequence of 4096 tokens, and 64 of 1024.
    for dim in (128, 64):
        for variant in ("causal", "full", "window"):
            yield Entry(Case(variant, 1, CHANNELS // dim, CHANNELS // dim, 4096, dim))
            yield Entry(Case(variant, 64, CHANNELS // dim, CHANNELS // dim, 1024, dim))
    every = [
        shaped(variant, length, dim)
        for dim in (128, 64, 192, 256)
        for length in LENGTHS
        for variant in (*PLAIN, *SPARSE)
        if possible(variant, length)
    ]
    grouped = [shaped(variant, s, d, group=8) for d in (128, 64, 192, 256) for s in LENGTHS for variant in PLAIN]
    yield from map(Entry, every)
    yield from map(Entry, grouped)
    yield from (Entry(case, "autotune") for case in quick)
    yield from (Entry(case, group) for group in ("flash", "autotune") for case in every)


SUITE = tuple(dict.fromkeys(_cases()))
