"""What the tables of sparse patterns share: the heading, and all that is not in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import report


def heading(results: dict[str, Any]) -> list[str]:
    """Machine, versions and the rate of a matrix product in the same run."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("device", "date"))
    return [
        f"# {environment['device']}, {environment['date']}",
        "",
        f"{versions}; matrix product {results['matmul_tflops']:.0f} TFLOP/s; L2 cache {results['l2']}.",
        "",
    ]


def notes(row: dict[str, Any]) -> list[str]:
    """What went wrong on a case: the whole of it, results, contenders in some direction."""
    if "error" in row:
        return [row["error"][:300]]
    said = []
    for name, found in row["contenders"].items():
        if found.get("wrong"):
            said.append(f"WRONG {name}: {found['deviation']}")
        said += [f"{name} {key}: {text[:200]}" for key, text in found.items() if key.endswith("error")]
    return said


def rest(results: dict[str, Any]) -> list[str]:
    """Failures, and what was not run."""
    failures = [f"{row['title']}: {' | '.join(notes(row))}" for row in results["rows"] if notes(row)]
    lines = []
    for title, entries in (("Failures", failures), ("Not run, for want of time", results["not_run"])):
        if entries:
            lines += ["", f"## {title}", "", *(f"- {' '.join(entry.split())}" for entry in entries)]
    return lines


def writer(markdown: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any], Path], None]:
    """What writes results to ``out``.json, and as Markdown to ``out``.md."""

    def write(results: dict[str, Any], out: Path) -> None:
        report.save(results, out)
        out.with_name(f"{out.name}.md").write_text(markdown(results))

    return write
