"""Sparse patterns against FlexAttention, against dense attention, and against what their tiles allow.

``python -m benchmarks.patterns [--minutes N] [--only REGEX] [--resume FILE] [--out PATH] [names…]`` needs a GPU. It
writes PATH.json after every case and PATH.md at the end; ``--list`` shows the cases in their order, short ones first.
Results are compared with float32 before anything is timed. FlexAttention runs compiled, on its block mask, in the order
of the tokens and in the one that suits its blocks (``flex-ordered``, the ordering not timed).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import tables
from .case import Case, Task
from .command import Benchmark, main
from .suite import Entry

CONTENDERS = ("regard", "regard-dense", "flex", "flex-ordered")
# Of every kind some, so that a run that is stopped has said something about all.
FIRST = (
    "dilated", "window", "neighbourhood2d", "longformer", "document", "neighbourhood3d", "strided", "bigbird",
    "blocked2d", "shifted2d", "interleaved", "radial3d", "blockdiffusion", "headwindows",
)  # fmt: skip
ALSO = (
    "columns", "rows", "windows2d", "dilated2d", "tiles3d", "circle2d", "spatial3d", "temporal3d", "halo2d", "fixed",
    "longnet", "shards", "star", "staircase", "longlora", "tree", "retrieval", "shuffled", "lengths", "positions",
    "modalities", "kept",
)  # fmt: skip


def suite() -> Iterator[Case]:
    """16384 and 65536 tokens, head sizes 128 and 64."""
    for names in (FIRST, ALSO):
        yield from (Case(name, 1, 8, 8, 16384, 128) for name in names)
        yield from (Case(name, 1, 16, 16, 16384, 64) for name in names)
    for heads, dim in ((4, 128), (8, 64)):
        yield from (Case(name, 1, heads, heads, 65536, dim) for name in (*FIRST, *ALSO))


def task_of(entry: Entry) -> Task:
    """What a worker is to measure of a case."""
    return Task(entry.case, CONTENDERS, rounds=5, directions=("forward", "both"))


def ratios(row: dict[str, Any], direction: str) -> dict[str, float]:
    """What the milliseconds of one direction say; entries are missing where a time or a right result is."""
    found = row.get("contenders", {})
    times = {name: x[direction]["ms"] for name, x in found.items() if direction in x and not x.get("wrong")}
    if "regard" not in times:
        return {}
    ours = times["regard"]
    said = {"ms": ours, "tflops": found["regard"][direction]["tflops"]}
    if flex := [times[name] for name in ("flex", "flex-ordered") if name in times]:
        said["x_flex"] = min(flex) / ours
    if "flex" in times:
        said["x_flex_natural"] = times["flex"] / ours
    if "regard-dense" in times:
        said["x_dense"] = times["regard-dense"] / ours
        said["bound"] = row["dense_tile_pairs"] / max(row["tile_pairs"], 1)
        said["of_bound"] = said["x_dense"] / said["bound"]
    return said


def line(row: dict[str, Any]) -> str:
    """One case in one line, for the terminal."""
    parts = []
    for direction in ("forward", "both"):
        said = ratios(row, direction)
        if said:
            parts.append(f"{direction} " + " ".join(f"{name} {x:.3g}" for name, x in said.items()))
    return f"{row['title']}: {' | '.join([*parts, *tables.notes(row)])}"


def markdown(results: dict[str, Any]) -> str:
    """A table of all rows."""
    lines = [
        *tables.heading(results),
        "Milliseconds in bfloat16, medians of 5 interleaved rounds. "
        "× FlexAttention: in its better order of tokens, the ordering not timed; × natural: in the order as it is. "
        "× dense: our own kernels without the mask, causal where the mask is. Of bound: × dense over pairs in all "
        "tiles by those in visited ones.",
        "",
        "| case | direction | ms | TFLOP/s | × FlexAttention | × natural | × dense | bound | of bound |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        for direction, title in (("forward", "forward"), ("both", "forward + backward")):
            said = ratios(row, direction)
            names = ("ms", "tflops", "x_flex", "x_flex_natural", "x_dense", "bound", "of_bound")
            cells = [f"{said[name]:.3g}" if name in said else "–" for name in names]
            if said:
                lines.append(f"| {row['title']} | {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, *tables.rest(results)]) + "\n"


BENCHMARK = Benchmark(
    "patterns", __doc__, tuple(map(Entry, suite())), task_of, line, tables.writer(markdown), tiles=True
)

if __name__ == "__main__":
    main(BENCHMARK)
