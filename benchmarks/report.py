"""Results as JSON, as a Markdown table, and as a plot.

``python -m benchmarks.report FILE.json`` writes FILE.md and FILE.png from results that are there.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .suite import GROUPS

DIRECTIONS = ("forward", "backward", "both")
OURS = "regard"


def load(path: Path) -> dict[str, Any]:
    """Results from JSON. Raises SystemExit if the file is not one that :func:`save` wrote."""
    try:
        results: dict[str, Any] = json.loads(path.read_text())
        if not {"environment", "matmul_tflops", "l2", "rows", "not_run"} <= results.keys():
            raise ValueError("keys are missing")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} holds no results: {error}") from error
    return results


def save(results: dict[str, Any], out: Path) -> Path:
    """Writes ``out``.json, whole or not at all."""
    path = out.with_name(f"{out.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def write(results: dict[str, Any], out: Path) -> None:
    """Writes ``out``.json, .md and, if matplotlib is installed, .png; prints where."""
    written = [save(results, out), out.with_name(f"{out.name}.md")]
    written[1].write_text(markdown(results))
    try:
        from .figure import draw
    except ImportError:
        print("no plot: pip install matplotlib")
    else:
        written.append(out.with_name(f"{out.name}.png"))
        draw(results, written[2])
    print("wrote", ", ".join(map(str, written)))


def line(row: dict[str, Any]) -> str:
    """One case in one line, for the terminal."""
    if "error" in row:
        return f"{row['title']}: {row['error'][:200]}"
    parts = []
    for direction in DIRECTIONS:
        rates = _rates(row, direction)
        if rates:
            parts.append(f"{direction} " + " ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    wrong = [name for name, found in row["contenders"].items() if found.get("wrong")]
    failed = [name for name, found in row["contenders"].items() if any(k.endswith("error") for k in found)]
    for word, names in (("wrong", wrong), ("failed", failed)):
        if names:
            parts.append(f"{word}: {' '.join(names)}")
    return f"{row['title']}: {' | '.join(parts)}"


def ratio(row: dict[str, Any], direction: str, peers: Sequence[str] | None = None) -> float | None:
    """How many times as fast as the best of the peers (all of them by default) Regard is; None where one lacks."""
    rates = _rates(row, direction, right=True)
    others = [rate for name, rate in rates.items() if name != OURS and (peers is None or name in peers)]
    return rates[OURS] / max(others) if OURS in rates and others else None


def markdown(results: dict[str, Any]) -> str:
    """The report: machine, method, summary, a table for each direction, failures, what was not run."""
    parts = (_head, _summary, _tables, _failures, _rest)
    return "\n".join(line for part in parts for line in part(results)) + "\n"


def _rates(row: dict[str, Any], direction: str, right: bool = False) -> dict[str, float]:
    """TFLOP/s by contender; ``right``: only of those whose results are right."""
    return {
        name: found[direction]["tflops"]
        for name, found in row.get("contenders", {}).items()
        if direction in found and not (right and found["wrong"])
    }


def _head(results: dict[str, Any]) -> Iterator[str]:
    environment = results["environment"]
    yield f"# {environment['device']}, {environment['date']}"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("device", "date")) + "."
    yield ""
    yield (
        f"TFLOP/s in bfloat16 on random data: 4·D FLOPs for each pair that the mask allows, × 2.5 backward, the same "
        f"for all contenders; medians of 7 interleaved rounds ± half the range between them. A matrix product reaches "
        f"{_peaks(results)} in the same run (“of peak”). The L2 cache is {results['l2']} before "
        f"each call. Every contender reads its own layout; preparing masks, ordering tokens, compiling is not timed. "
        f"Outputs and gradients of one key head are compared with float32: “wrong” is a relative deviation above 3 %. "
        f"“–”: no kernel for the case, or not installed."
    )


def _peaks(results: dict[str, Any]) -> str:
    """One number, or the ends of a range where a run was resumed."""
    peaks = sorted({round(row["matmul_tflops"]) for row in results["rows"]} or {round(results["matmul_tflops"])})
    return str(peaks[0]) if len(peaks) == 1 else f"{peaks[0]} to {peaks[-1]}"


def _summary(results: dict[str, Any]) -> Iterator[str]:
    """Geometric means of ratios, and how often Regard lost."""
    ratios: dict[tuple[str, str], list[tuple[float | None, float | None]]] = defaultdict(list)
    for row in results["rows"]:
        if row["group"] == "peers" and "contenders" in row:
            for direction in DIRECTIONS:
                pair = ratio(row, direction), ratio(row, direction, ("flex", "flex-ordered"))
                ratios[row["case"]["variant"], direction].append(pair)
    if not ratios:
        return
    yield from ("", "## Summary", "", "How many times as fast Regard is, geometric means.", "")
    yield "| variant | direction | cases | × best peer | lowest | × FlexAttention | slower than the best peer |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for (variant, direction), pairs in ratios.items():
        best = [best for best, _ in pairs if best is not None]
        flex = [flex for _, flex in pairs if flex is not None]
        cells = (
            variant, direction, str(len(pairs)), _mean(best), f"{min(best):.2f}" if best else "–", _mean(flex),
            str(sum(x < 1 for x in best)),
        )  # fmt: skip
        yield _line(cells)


def _mean(ratios: list[float]) -> str:
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}" if ratios else "–"


def _tables(results: dict[str, Any]) -> Iterator[str]:
    for group, names in GROUPS.items():
        rows = [row for row in results["rows"] if row["group"] == group and "contenders" in row]
        for direction in DIRECTIONS if rows else ():
            shown = [name for name in names if any(_cell(row, name, direction) != "–" for row in rows)]
            yield from ("", f"## {direction.capitalize()}" + ("" if group == "peers" else f", {group}"), "")
            yield _line(("case", *shown, "× best other", "of peak"))
            yield _line(["---"] * (len(shown) + 3))
            for row in rows:
                best, own = ratio(row, direction), _rates(row, direction).get(OURS)
                yield _line((
                    row["title"],
                    *(_cell(row, name, direction) for name in shown),
                    f"{best:.2f}" if best else "–",
                    f"{own / row['matmul_tflops']:.0%}" if own else "–",
                ))  # fmt: skip


def _cell(row: dict[str, Any], name: str, direction: str) -> str:
    found = row["contenders"].get(name, {})
    if direction in found:
        t = found[direction]
        spread = 50 * (t["high"] - t["low"]) / t["ms"]
        text = f"{t['tflops']:.{0 if t['tflops'] >= 10 else 1}f} ± {spread:.0f} %"
        return f"wrong ({text})" if found["wrong"] else text
    error = _error(found, direction)
    if error is None:
        return "–"
    return "memory" if error == "out of memory" else "failed"


def _error(found: dict[str, Any], direction: str) -> str | None:
    """Why there is no figure. A backward pass that fails alone fails both ways to time it."""
    keys = ("error", f"{direction}_error", *(("backward_error",) if direction == "both" else ()))
    return next((str(found[key]) for key in keys if key in found), None)


def _failures(results: dict[str, Any]) -> Iterator[str]:
    """Each error once, with the cases it met."""
    titles: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in results["rows"]:
        if "error" in row:
            titles["the whole case", row["error"]].append(row["title"])
        for name, found in row.get("contenders", {}).items():
            for error in dict.fromkeys(text for key, text in found.items() if key.endswith("error")):
                titles[name, error].append(row["title"])
    if titles:
        yield from ("", "## Failures", "")
        for (name, error), cases in titles.items():
            text = " ".join(error.split())
            yield f"- {name}: `{text[:300].replace('`', chr(39))}` ({len(cases)}): {', '.join(cases)}"


def _rest(results: dict[str, Any]) -> Iterator[str]:
    if results["not_run"]:
        yield from ("", "## Not run, for want of time", "")
        yield f"<details><summary>{len(results['not_run'])} cases</summary>{', '.join(results['not_run'])}</details>"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.report FILE.json")
    path = Path(sys.argv[1])
    write(load(path), path.with_suffix(""))


if __name__ == "__main__":
    main()
