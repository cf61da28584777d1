"""Which skeleton runs each part of the stock library on sm_90, at each head size. Needs no GPU.

``python -m benchmarks.skeletons`` writes benchmarks/results/skeletons.json and the table in docs/hopper.md. Calls are
bfloat16 and large enough to fill a GPU. Which of two skeletons that could both run is chosen was measured, by kinds of
parts and sizes; times of both are in the group "skeletons" of ``benchmarks.run``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import regard as rg
from regard.codegen.defaults import Direction
from regard.codegen.schedule import Target
from regard.codegen.skeletons import alternatives, choose
from regard.runtime.inspection import plan_of, setting

from .environment import describe

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "skeletons.json", ROOT / "docs" / "hopper.md"
H100 = Target("cuda", 90)
SIZES = (16, 32, 64, 80, 96, 128, 160, 192, 256)
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
BEGIN, END = "<!-- written by benchmarks.skeletons -->\n", "<!-- end -->\n"

LENGTH, HEADS = 1024, 16
IMAGE = rg.grid(32, 32)
_ids = torch.arange(LENGTH, dtype=torch.int32) // 100

# Masks by themselves, scores with a causal mask; by their names in the library.
STOCK: dict[str, Callable[[], tuple[Any, ...]]] = {
    "full": lambda: (rg.full(),),
    "causal": lambda: (rg.causal(),),
    "sliding_window": lambda: (rg.sliding_window(255),),
    "prefix_lm": lambda: (rg.prefix_lm(100),),
    "padding": lambda: (rg.padding(torch.tensor([900], dtype=torch.int32)),),
    "document": lambda: (rg.document(_ids),),
    "global_tokens": lambda: (rg.sliding_window(100, 100) | rg.global_tokens(16),),
    "sinks": lambda: (rg.causal() & (rg.sliding_window(255) | rg.sinks(4)),),
    "dilated": lambda: (rg.causal(), rg.dilated(4)),
    "strided": lambda: (rg.strided(32),),
    "block_diagonal": lambda: (rg.block_diagonal(128),),
    "block_causal": lambda: (rg.block_causal(100),),
    "chunked_causal": lambda: (rg.chunked_causal(128),),
    "checkerboard": lambda: (rg.checkerboard(64),),
    "random_blocks": lambda: (rg.random_blocks(64, 2) | rg.sliding_window(100, 100),),
    "tree": lambda: (rg.tree((_ids + 1) * 100),),
    "key_mask": lambda: (rg.key_mask((_ids % 2 == 0)[None]),),
    "tiles": lambda: (rg.tiles(torch.eye(8, dtype=torch.bool)),),
    "neighborhood": lambda: (rg.neighborhood(IMAGE, 13),),
    "windows": lambda: (rg.windows(IMAGE, 8),),
    "axial": lambda: (rg.axial(IMAGE, 0),),
    "halo": lambda: (rg.halo(IMAGE, 8, 4),),
    "sliding_tile": lambda: (rg.sliding_tile(IMAGE, 3, 8),),
    "alibi": lambda: (rg.causal(), rg.alibi(heads=HEADS)),
    "relative_bias": lambda: (rg.causal(), rg.relative_bias(torch.zeros(HEADS, 2 * LENGTH - 1))),
    "t5_bias": lambda: (rg.causal(), rg.t5_bias(torch.zeros(32, HEADS), bidirectional=False)),
    "key_bias": lambda: (rg.causal(), rg.key_bias(torch.zeros(1, LENGTH))),
    "softcap": lambda: (rg.causal(), rg.softcap(30.0)),
    "temperature": lambda: (rg.causal(), rg.temperature(2.0)),
    "log_n": lambda: (rg.causal(), rg.log_n(512)),
    "decay": lambda: (rg.causal(), rg.decay(torch.zeros(HEADS))),
    "token_decay": lambda: (rg.causal(), rg.token_decay(torch.zeros(1, HEADS, LENGTH))),
    "distance_decay": lambda: (rg.causal(), rg.distance_decay(0.5, 3.0)),
}


def row(name: str) -> dict[str, Any]:
    """For each direction the sizes at which the warp-specialised skeleton is chosen, at which it can run, and why not.

    ``reasons``: the distinct sentences for other sizes that it supports for plain attention.
    """
    attn = rg.attention(*STOCK[name]())
    found: dict[str, Any] = {"part": name}
    for direction in DIRECTIONS:
        chosen, possible, reasons = [], [], dict[str, None]()
        for size in SIZES:
            what = setting(attn, target=H100, dtype="bf16", head_dim=size)
            plan, problem = plan_of(attn, what), what.problem(attn.variant, direction)
            choice = choose(plan, problem, H100, direction, fills_gpu=True)
            if any(x.skeleton == "gluon" for x in alternatives(plan, problem, H100, direction)):
                possible.append(size)
            if choice.skeleton == "gluon":
                chosen.append(size)
            elif "is not one of" not in choice.reason:
                reasons[choice.reason] = None
        found[direction] = {"chosen": chosen, "possible": possible, "reasons": list(reasons)}
    return found


def shares(rows: list[dict[str, Any]]) -> dict[Direction, dict[str, int]]:
    """By direction: pairs of part and size, those that the size limits allow, can run, and are chosen."""
    (plain,) = (row for row in rows if row["part"] == "full")
    said: dict[Direction, dict[str, int]] = {}
    for direction in DIRECTIONS:
        allowed = len(plain[direction]["possible"])
        said[direction] = {
            "all": len(rows) * len(SIZES),
            "allowed": len(rows) * allowed,
            "possible": sum(len(row[direction]["possible"]) for row in rows),
            "chosen": sum(len(row[direction]["chosen"]) for row in rows),
        }
    return said


def table(rows: list[dict[str, Any]]) -> str:
    """Shares and a table, in Markdown."""
    (plain,) = (row for row in rows if row["part"] == "full")
    sizes = {direction: plain[direction]["possible"] for direction in DIRECTIONS}
    lines = []
    for direction, share in shares(rows).items():
        lines.append(
            f"- {direction}: of {share['allowed']} pairs of part and head size within the skeleton's limits "
            f"({', '.join(map(str, sizes[direction]))}) it can run {share['possible']} "
            f"({share['possible'] / share['allowed']:.0%}), and is chosen for {share['chosen']} "
            f"({share['chosen'] / share['allowed']:.0%})."
        )
    heads = [f"{direction} at {', '.join(map(str, sizes[direction]))}" for direction in DIRECTIONS]
    lines += ["", f"| part | {' | '.join(heads)} |", "| --- | --- | --- |"]
    for row in rows:
        cells = (" ".join(_sign(row[direction], size) for size in sizes[direction]) for direction in DIRECTIONS)
        lines.append(f"| {row['part']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _sign(found: dict[str, list[int]], size: int) -> str:
    return "■" if size in found["chosen"] else "□" if size in found["possible"] else "–"


def with_table(page: str, text: str) -> str:
    """The page with ``text`` between its marks."""
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}{text}{END}", page, flags=re.DOTALL)


def main() -> None:
    rows = [row(name) for name in STOCK]
    results = {
        "what": "head sizes at which large bfloat16 calls run on the warp-specialised skeleton of sm_90, and could",
        "sizes": SIZES, "shares": shares(rows), "rows": rows, "environment": describe(),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), table(rows)))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
