"""Neighbourhoods over boxes on both skeletons, among them the cases that NATTEN publishes for Hopper.

``python -m benchmarks.published [--minutes N] [--resume FILE] [--out PATH] [names…]`` needs a GPU. It writes PATH.json
after every case and PATH.md at the end. Forward; results are compared with float32 before anything is timed.
"""

from __future__ import annotations

from typing import Any

from . import tables
from .case import Case, Task
from .command import Benchmark, main
from .suite import Entry

CASES = (
    Case("natten2d", 1, 24, 24, 256 * 256, 128),
    Case("natten3d", 1, 24, 24, 30 * 48 * 80, 128),
    Case("natten2d_blocked", 1, 24, 24, 256 * 256, 128),
    Case("natten3d_blocked", 1, 24, 24, 30 * 48 * 80, 128),
    Case("neighbourhood2d", 1, 8, 8, 16384, 128),
    Case("neighbourhood2d", 1, 8, 8, 16384, 64),
    Case("near2d", 1, 8, 8, 16384, 128),
    Case("near3d", 1, 8, 8, 16384, 128),
    Case("distant", 1, 8, 8, 16384, 128),
    Case("windows2d", 1, 8, 8, 16384, 128),
)
CONTENDERS = ("regard", "regard-triton", "regard-gluon")
# Milliseconds on an H100 in bfloat16, and TFLOP/s over allowed pairs.
PUBLISHED = {"natten2d": 16.2, "natten3d": 79.0}
PUBLISHED_RATES = {"natten2d_blocked": 651.0, "natten3d_blocked": 628.0}


def figures(row: dict[str, Any]) -> dict[str, float]:
    """What is known of a case, by the title of its column; entries are missing where a time or a right result is."""
    found = {
        name: x["forward"] for name, x in row.get("contenders", {}).items() if "forward" in x and not x.get("wrong")
    }
    said = {f"{name} ms": x["ms"] for name, x in found.items()}
    if "regard" not in found:
        return said
    ours, allowed, variant = found["regard"], row["pairs"] / row["tile_pairs"], row["case"]["variant"]
    said |= {"TFLOP/s": ours["tflops"], "on visited": ours["tflops"] / allowed}
    said |= {"allowed": allowed, "full": row["full_tiles"]}
    if variant in PUBLISHED:
        said["× published"] = PUBLISHED[variant] / ours["ms"]
    if variant in PUBLISHED_RATES:
        said["× published"] = ours["tflops"] / PUBLISHED_RATES[variant]
    return said


def line(row: dict[str, Any]) -> str:
    """One case in one line, for the terminal."""
    said = " ".join(f"{name} {x:.3g}" for name, x in figures(row).items())
    return f"{row['title']}: {' | '.join(x for x in (said, *tables.notes(row)) if x)}"


def markdown(results: dict[str, Any]) -> str:
    """A table of all rows."""
    columns = (
        *(f"{name} ms" for name in CONTENDERS), "TFLOP/s", "on visited", "allowed", "full", "× published",
    )  # fmt: skip
    lines = [
        *tables.heading(results),
        "Forward, milliseconds in bfloat16, medians of 5 interleaved rounds. TFLOP/s of what was chosen, of the pairs "
        "that the mask allows and of all pairs in the boxes that are visited; allowed: the first over the second; "
        "full: the share of boxes that need no mask.",
        "",
        f"| case | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for row in results["rows"]:
        said = figures(row)
        cells = (f"{said[name]:.3g}" if name in said else "–" for name in columns)
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    return "\n".join([*lines, *tables.rest(results)]) + "\n"


BENCHMARK = Benchmark(
    "published",
    __doc__,
    tuple(map(Entry, CASES)),
    lambda entry: Task(entry.case, CONTENDERS, rounds=5, directions=("forward",)),
    line,
    tables.writer(markdown),
    tiles=True,
)

if __name__ == "__main__":
    main(BENCHMARK)
