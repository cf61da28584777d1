"""The masks whose analysis is timed: every stock mask is among them, and a million tokens are not enumerated."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import analysis

import regard as rg
from regard.dsl import stock
from regard.ir.interpret import evaluate_all


def test_every_stock_mask_is_timed_but_those_of_data() -> None:
    parts = {name: getattr(stock, name) for name in stock.__all__}
    makers = {name for name, part in parts.items() if "MaskPart" in str(inspect.signature(part).return_annotation)}
    masks = makers | {name for name, part in parts.items() if isinstance(part, rg.MaskFunction)}
    source = "".join(path.read_text() for path in Path(analysis.__file__).parent.glob("*.py"))
    of_data = {"key_mask", "tiles", "tree", "document", "padding"}
    assert {name for name in masks - of_data if f"rg.{name}" not in source} == set()


@pytest.mark.parametrize("name", ["bigbird", "shards", "radial3d", "blockdiffusion", "circle2d", "tiles3d", "fixed"])
def test_a_million_tokens_are_not_enumerated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def watched(*operands: Any, **options: Any) -> Any:
        nonlocal largest
        found = evaluate_all(*operands, **options)
        largest = max([largest, *(x.size for x in found)])
        return found

    monkeypatch.setattr("regard.ir.tiles.numeric.evaluate_all", watched)
    monkeypatch.setattr("regard.ir.tiles.numeric.evaluate", lambda e, *rest, **o: watched([e], *rest, **o)[0])
    make, tokens = analysis.masks(analysis.TOKENS)[name]
    counts = make().explain((1, 8, tokens, 64), target="sm_90").counts
    assert tokens == 2**20 and counts is not None and counts.tiles.visited > 0
    assert 0 < largest < tokens


def test_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    analysis.main(["causal", "windows2d", "--tokens", "4096", "--out", str(tmp_path / "analysis")])
    written = json.loads((tmp_path / "analysis.json").read_text())
    assert [row["mask"] for row in written["rows"]] == ["causal", "windows2d"]
    assert all(row[key] > 0 for row in written["rows"] for key in ("first_ms", "again_ms", "plot_ms"))
    with pytest.raises(SystemExit, match="no mask is called nothing"):
        analysis.main(["nothing"])
