"""Sparse patterns against FlexAttention, against dense attention, and against what their tiles allow.

``python -m benchmarks.patterns [--out FILE] [--minutes N] [--only REGEX] [names…]`` needs a GPU. It writes FILE.json
after every case and FILE.md at the end; ``--list`` shows the cases in their order, short ones first. Results are
compared with float32 before anything is timed. FlexAttention runs compiled, on its block mask, in the order of the
tokens and in the one that suits its blocks (``flex-ordered``, the ordering not timed).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .case import Case, Task
from .run import opened_session, run_suite
from .suite import Entry

CONTENDERS = ("regard", "regard-dense", "flex", "flex-ordered")
# Of these only our own time is measured: milliseconds as published for NATTEN on an H100, in bfloat16, forward.
PUBLISHED = {"natten2d": 16.2, "natten3d": 79.0}
# TFLOP/s over allowed pairs, likewise.
PUBLISHED_RATES = {"natten2d_blocked": 651.0, "natten3d_blocked": 628.0}
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
    """16384 and 65536 tokens, head sizes 128 and 64; the published cases after the first round."""
    for names in (FIRST, ALSO):
        yield from (Case(name, 1, 8, 8, 16384, 128) for name in names)
        if names is FIRST:
            yield from (Case(name, 1, 24, 24, 65536, 128) for name in ("natten2d", "natten2d_blocked"))
            yield from (Case(name, 1, 24, 24, 30 * 48 * 80, 128) for name in ("natten3d", "natten3d_blocked"))
        yield from (Case(name, 1, 16, 16, 16384, 64) for name in names)
    for heads, dim in ((4, 128), (8, 64)):
        yield from (Case(name, 1, heads, heads, 65536, dim) for name in (*FIRST, *ALSO))


def task_of(entry: Entry) -> Task:
    """What a worker is to measure of a case."""
    if entry.case.variant in (*PUBLISHED, *PUBLISHED_RATES):
        return Task(entry.case, ("regard",), rounds=5, directions=("forward",))
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
    if "regard-dense" in times:
        said["x_dense"] = times["regard-dense"] / ours
        said["bound"] = row["dense_tile_pairs"] / max(row["tile_pairs"], 1)
        said["of_bound"] = said["x_dense"] / said["bound"]
    name = row["case"]["variant"]
    if direction == "forward" and name in PUBLISHED:
        said["x_published"] = PUBLISHED[name] / ours
    if direction == "forward" and name in PUBLISHED_RATES:
        said["x_published"] = said["tflops"] / PUBLISHED_RATES[name]
    return said


def line(row: dict[str, Any]) -> str:
    """One case in one line, for the terminal."""
    if "error" in row:
        return f"{row['title']}: {row['error'][:300]}"
    parts = []
    for direction in ("forward", "both"):
        said = ratios(row, direction)
        if said:
            parts.append(f"{direction} " + " ".join(f"{name} {x:.3g}" for name, x in said.items()))
    for name, found in row["contenders"].items():
        if found.get("wrong"):
            parts.append(f"WRONG {name}: {found['deviation']}")
        parts += [f"{name} {key}: {text[:200]}" for key, text in found.items() if key.endswith("error")]
    return f"{row['title']}: {' | '.join(parts)}"


def markdown(results: dict[str, Any]) -> str:
    """A table of all rows."""
    lines = [
        f"# {results['environment']['device']}, {results['environment']['date']}",
        "",
        "Milliseconds in bfloat16, medians of 5 interleaved rounds, the L2 cache overwritten before each call. "
        "× FlexAttention: its better order of tokens. × dense: our own kernels without the mask, causal where the mask "
        "is. Of bound: × dense over pairs in all tiles by those in visited ones.",
        "",
        "| case | direction | ms | TFLOP/s | × FlexAttention | × dense | bound | of bound | × published |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        for direction, title in (("forward", "forward"), ("both", "forward + backward")):
            said = ratios(row, direction)
            names = ("ms", "tflops", "x_flex", "x_dense", "bound", "of_bound", "x_published")
            cells = [f"{said[name]:.3g}" if name in said else "–" for name in names]
            if said:
                lines.append(f"| {row['title']} | {title} | {' | '.join(cells)} |")
    failures = [line(row) for row in results["rows"] if "error" in row or not ratios(row, "forward")]
    for title, entries in (("Without a figure", failures), ("Not run, for want of time", results["not_run"])):
        if entries:
            lines += ["", f"## {title}", "", *(f"- {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="python -m benchmarks.patterns", description=__doc__)
    made.add_argument("names", nargs="*", help="patterns, e.g. longformer; default: all")
    made.add_argument("--only", default="", metavar="REGEX", help="cases whose title contains it, e.g. 'S16384 D128$'")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/patterns"), help="without suffix")
    made.add_argument("--minutes", type=float, default=6.0, help="stop after so long; the rest is listed")
    made.add_argument("--jobs", type=int, default=min(8, (os.cpu_count() or 1) // 2), help="processes that compile")
    made.add_argument("--list", action="store_true", help="show the cases and stop")
    options = made.parse_args(arguments)
    known = dict.fromkeys(case.variant for case in suite())
    if wrong := set(options.names) - set(known):
        raise SystemExit(f"no pattern {', '.join(sorted(wrong))}; there are {', '.join(known)}")
    chosen = [case for case in suite() if case.variant in (options.names or known)]
    entries = [Entry(case) for case in chosen if re.search(options.only, case.title)]
    if options.list:
        print("\n".join(entry.case.title for entry in entries))
        return
    # Only now, as in benchmarks.run.
    from .measure import measure_sparse, warm

    session = opened_session(options.minutes, options.out)
    run_suite(entries, session, measure_sparse, warm, options.jobs, task_of, line)
    options.out.with_name(f"{options.out.name}.md").write_text(markdown(session.results))


if __name__ == "__main__":
    main()
