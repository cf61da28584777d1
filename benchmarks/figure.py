"""Rates against sequence lengths: a panel for each variant, a row of them for each head size and direction."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .suite import GROUPS, TOKENS

# The same hue for one family; Regard stands out.
STYLES = {
    "regard": ("#c0392b", "o"), "sdpa-cudnn": ("#1f4e79", "s"), "sdpa-flash": ("#5b9bd5", "s"),
    "flex": ("#7a7a7a", "^"), "flex-ordered": ("#b0b0b0", "^"), "flex-flash": ("#7a7a7a", "v"),
    "flex-autotune": ("#4d4d4d", "v"), "regard-deterministic": ("#e6a49c", "o"),
    "regard-triton": ("#e67e22", "o"), "regard-gluon": ("#8e44ad", "o"),
    "fa3": ("#2e8b57", "D"), "fa4": ("#66c295", "D"),
}  # fmt: skip


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the picture. Shown are the cases of 16384 tokens without shared key heads."""
    panels: dict[tuple[int, str, str], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in results["rows"]:
        case = row.get("case")
        if case is None or case["heads"] != case["kv_heads"] or case["batch"] != max(1, TOKENS // case["length"]):
            continue
        for name, found in row["contenders"].items():
            if name == "regard" and row["group"] != "peers":
                continue
            for direction in ("forward", "backward"):
                if direction in found and not found["wrong"]:
                    panels[case["head_dim"], direction, case["variant"]][name].append(
                        (case["length"], found[direction]["tflops"])
                    )
    variants = list(dict.fromkeys(variant for _, _, variant in panels))
    rows = sorted({(dim, direction) for dim, direction, _ in panels}, key=lambda row: (row[0], row[1] != "forward"))
    figure = Figure(figsize=(2.6 * max(1, len(variants)) + 1.2, 2.2 * max(1, len(rows)) + 0.8), layout="constrained")
    shown: dict[str, Any] = {}
    for i, (dim, direction) in enumerate(rows):
        for j, variant in enumerate(variants):
            axes = figure.add_subplot(len(rows), len(variants), i * len(variants) + j + 1)
            for name, points in panels[dim, direction, variant].items():
                colour, marker = STYLES[name]
                width = 1.8 if name == "regard" else 1.0
                lengths, rates = zip(*sorted(points), strict=True)
                (shown[name],) = axes.plot(lengths, rates, marker, ls="-", color=colour, ms=3, lw=width)
            axes.axhline(results["matmul_tflops"], color="#c8c8c8", lw=0.8, ls=":")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1024:g}k")
            axes.set_ylim(bottom=0)
            axes.tick_params(labelsize=6)
            axes.grid(alpha=0.25)
            if i == 0:
                axes.set_title(variant, fontsize=9)
            if j == 0:
                axes.set_ylabel(f"D {dim}, {direction}\nTFLOP/s", fontsize=8)
            if i == len(rows) - 1:
                axes.set_xlabel("length", fontsize=7)
    names = [name for name in dict.fromkeys(name for group in GROUPS.values() for name in group) if name in shown]
    figure.suptitle(f"{results['environment']['device']}: bfloat16, dotted: matrix product", fontsize=9)
    if names:
        figure.legend([shown[name] for name in names], names, loc="outside lower center", ncols=len(names), fontsize=7)
    figure.savefig(path, dpi=110)
