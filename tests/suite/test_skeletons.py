"""The table of skeletons by part and head size, and the record of tests: what is on the page is what holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import skeletons

from regard.dsl import stock

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    pytest.importorskip("triton")
    return [skeletons.row(name) for name in skeletons.STOCK]


def test_the_stock_library_is_complete() -> None:
    assert set(skeletons.STOCK) == set(stock.__all__)


def test_results_are_those_of_this_code(rows: list[dict[str, object]]) -> None:
    """Otherwise run ``python -m benchmarks.skeletons``, look at the difference, and commit it."""
    recorded = json.loads(skeletons.RESULTS.read_text())
    assert recorded["rows"] == rows
    assert recorded["shares"] == skeletons.shares(rows)
    page = skeletons.PAGE.read_text()
    assert skeletons.with_table(page, skeletons.table(rows)) == page
    assert skeletons.table(rows) in page


def test_signs() -> None:
    def part(name: str, chosen: list[int], possible: list[int]) -> dict[str, object]:
        found = {"chosen": chosen, "possible": possible, "reasons": []}
        return {"part": name, "forward": found, "backward": found}

    rows = [part("full", [64, 128], [64, 128]), part("odd", [128], [128]), part("slow", [], [64])]
    assert skeletons.shares(rows)["forward"] == {"all": 27, "allowed": 6, "possible": 4, "chosen": 3}
    text = skeletons.table(rows)
    assert "limits (64, 128) it can run 4 (67%), and is chosen for 3 (50%)." in text
    assert "| odd | – ■ | – ■ |" in text and "| slow | □ – | □ – |" in text


def test_the_record_of_tests(tmp_path: Path) -> None:
    """Where there is no GPU all of them are skipped, which is said."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu_tests", "--jobs", "1", "--out", str(tmp_path / "made")]
    done = subprocess.run(
        [*command, "tests/gpu/test_warm.py"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout
    results = json.loads((tmp_path / "made.json").read_text())
    assert results["passed"] == 0 and results["failed"] == {} and results["not_run"] == []
    assert len(results["skipped"]) >= 5 and all("CUDA" in why for why in results["skipped"].values())
