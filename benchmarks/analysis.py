"""What the analysis of a mask costs on the host at a million tokens: ``explain``, counted and printed, and ``plot``.

``python -m benchmarks.analysis [--tokens N] [--out PATH] [names…]`` needs no GPU. Every mask without a tensor of its
tokens is explained for sm_90 in one process: for the first time, where its text is analysed, and again, where that is
known and the rest is done anew. Times are milliseconds of the processor, which other work on a machine disturbs less
than those of the clock. Writes PATH.json.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import regard as rg

from . import report
from .case import GRIDS_2D, GRIDS_3D, Case
from .cases import build
from .cpu import processor
from .environment import describe
from .pattern_table import PATTERNS

TOKENS, HEADS = 1 << 20, 8
# Milliseconds that a mask may take.
LIMIT = 100.0
# Patterns that read a tensor of their tokens, and those of grids of their own.
OF_DATA = frozenset(("tree", "interleaved", "retrieval", "shuffled", "positions", "modalities", "kept"))
OWN_GRIDS = {"natten2d": 256 * 256, "natten2d_blocked": 256 * 256}
OWN_GRIDS |= dict.fromkeys(("natten3d", "natten3d_blocked"), 30 * 48 * 80)
PLAIN = ("full", "causal", "window", "alibi", "softcap", "prefix", "dilated", "neighbourhood2d", "neighbourhood3d")


def stock(tokens: int) -> dict[str, Callable[[], Any]]:
    """Masks of the stock library that ``benchmarks/cases.py`` has not, made when they are called."""
    image, video = rg.grid(*GRIDS_2D[tokens]), rg.grid(*GRIDS_3D[tokens])
    return {
        "streaming": lambda: rg.causal & (rg.sliding_window(1023) | rg.sinks(4)),
        "block_diagonal": lambda: rg.block_diagonal(1024),
        "chunked_causal": lambda: rg.chunked_causal(1024),
        "checkerboard": lambda: rg.checkerboard(64),
        "random_blocks": lambda: rg.random_blocks(64, 3),
        "bigbird, blocks of 64": lambda: rg.random_blocks(64, 3) | rg.sliding_window(96, 96) | rg.global_tokens(128),
        "neighborhood, 1-D": lambda: rg.neighborhood(rg.grid(tokens), 1023, 8, 2),
        "neighborhood, causal": lambda: rg.neighborhood(image, 13, causal=True),
        "neighborhood, mixed": lambda: rg.neighborhood(image, (13, 24), (2, 1), (1, 8)),
        "neighborhood, 3-D strided": lambda: rg.neighborhood(video, (18, 24, 24), 1, (16, 8, 8)),
        "windows, 3-D shifted": lambda: rg.windows(video, (4, 8, 8), (2, 4, 4)),
        "axial, 3-D causal": lambda: rg.axial(video, 1, causal=True),
        "halo, 3-D": lambda: rg.halo(video, 8, 4),
        "sliding_tile, 2-D": lambda: rg.sliding_tile(image, 5, (8, 8)),
    }


def masks(tokens: int) -> dict[str, tuple[Callable[[], rg.Attention], int]]:
    """What makes the attention of each mask, and for how many tokens."""
    found: dict[str, tuple[Callable[[], rg.Attention], int]] = {}
    for name in (*PLAIN, *(name for name in PATTERNS if name not in OF_DATA)):
        length = OWN_GRIDS.get(name, tokens)
        case = Case(name, 1, HEADS, HEADS, length, 64)
        found[name] = (lambda case=case: build(case, "cpu").regard), length  # type: ignore[misc]
    for name, part in stock(tokens).items():
        found[name] = (lambda part=part: rg.attention(part())), tokens  # type: ignore[misc]
    return found


def measure(make: Callable[[], rg.Attention], tokens: int, repetitions: int = 5) -> dict[str, Any]:
    """Milliseconds of the first ``explain``, of the next ones (median), and of ``plot``, and what was counted."""
    attn, shape = make(), (1, HEADS, tokens, 64)

    def explain() -> str:
        return str(attn.explain(shape, target="sm_90"))  # parts of which are found out when they are printed

    first = _milliseconds(explain)
    again = statistics.median(_milliseconds(explain) for _ in range(repetitions))
    plot = _milliseconds(lambda: attn.plot(shape))
    counts = attn.explain(shape, target="sm_90").counts
    assert counts is not None  # there are shapes
    return {
        "tokens": tokens, "first_ms": round(first, 1), "again_ms": round(again, 1), "plot_ms": round(plot, 1),
        "pairs": str(counts.pairs), "tiles": str(counts.tiles),
    }  # fmt: skip


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1e3 * (time.process_time() - start)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--tokens", type=int, default=TOKENS, choices=sorted(GRIDS_2D.keys() & GRIDS_3D.keys()))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/analysis"), help="without suffix")
    options = parser.parse_args(arguments)
    every = masks(options.tokens)
    if wrong := set(options.names) - set(every):
        raise SystemExit(f"no mask is called {', '.join(sorted(wrong))}; there are {', '.join(every)}")
    # Modules that are loaded when first needed, and a figure's fonts, are no part of any mask; nor is looking through
    # their objects and those of other masks, which a collection of all garbage would charge to whichever mask it meets.
    for name in ("neighbourhood2d", "circle2d"):
        measure(*masks(4096)[name], repetitions=1)
    rows = []
    for name in options.names or every:
        gc.collect()
        gc.freeze()
        rows.append({"mask": name, **measure(*every[name])})
        print(*(f"{key} {value}" for key, value in rows[-1].items() if key not in ("pairs", "tiles")), flush=True)
    slow = {key: [row["mask"] for row in rows if row[key] > LIMIT] for key in ("first_ms", "again_ms")}
    environment = {**describe(), "device": processor()}
    report.save({"environment": environment, "limit_ms": LIMIT, "above": slow, "rows": rows}, options.out)
    print("above the limit:", slow)


if __name__ == "__main__":
    main()
