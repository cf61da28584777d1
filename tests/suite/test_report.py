"""The table and the plot of given results."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from benchmarks import report
from benchmarks.suite import Entry, shaped


def timed(tflops: float) -> dict[str, float]:
    return {"ms": 2.0, "low": 1.9, "high": 2.02, "tflops": tflops}


def row(variant: str, length: int, group: str = "peers", **contenders: Any) -> dict[str, Any]:
    entry = Entry(shaped(variant, length, 128), group)
    found = {name.replace("_", "-"): {"wrong": False} | values for name, values in contenders.items()}
    facts = {"title": entry.title, "group": group, "matmul_tflops": 800.0, "case": asdict(entry.case), "pairs": 1}
    return facts | {"contenders": found}


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "environment": {"device": "NVIDIA H000", "torch": "2.11", "date": "2026-01-01"},
        "matmul_tflops": 800.0,
        "l2": "overwritten",
        "rows": [
            row("causal", 4096,
                regard={"forward": timed(600), "backward": timed(400)},
                flex={"forward": timed(300), "backward": timed(320)},
                sdpa_cudnn={"forward": timed(500), "backward_error": "RuntimeError: no\n`backward`"},
                fa3={"forward": timed(900), "wrong": True},
                fa4={"absent": "cannot be imported"}),
            row("causal", 8192,
                regard={"forward": timed(500), "backward": timed(5.25)},
                flex={"error": "out of memory"},
                sdpa_cudnn={"forward": timed(1000), "backward_error": "RuntimeError: no\n`backward`"}),
            {"title": "full B4 H16 S4096 D128", "group": "peers", "matmul_tflops": 780.0, "error": "ValueError: odd"},
            row("causal", 4096, "autotune", regard={"forward": timed(610)}, flex_autotune={"forward": timed(305)}),
        ],
        "not_run": ["window B1 H1 S512 D64"],
    }  # fmt: skip


def section(text: str, title: str) -> list[str]:
    return text.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0].splitlines()


def test_table(results: dict[str, Any]) -> None:
    """Losses, wrong results and failures are shown; columns that nobody fills are not."""
    text = report.markdown(results)
    assert section(text, "Forward") == [
        "| case | regard | sdpa-cudnn | flex | fa3 | × best other | of peak |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| causal B4 H16 S4096 D128 | 600 ± 3 % | 500 ± 3 % | 300 ± 3 % | wrong (900 ± 3 %) | 1.20 | 75% |",
        "| causal B2 H16 S8192 D128 | 500 ± 3 % | 1000 ± 3 % | memory | – | 0.50 | 62% |",
    ]
    assert section(text, "Backward") == [
        "| case | regard | sdpa-cudnn | flex | × best other | of peak |",
        "| --- | --- | --- | --- | --- | --- |",
        "| causal B4 H16 S4096 D128 | 400 ± 3 % | failed | 320 ± 3 % | 1.25 | 50% |",
        "| causal B2 H16 S8192 D128 | 5.2 ± 3 % | failed | memory | – | 1% |",
    ]
    assert section(text, "Forward, autotune")[2].endswith("| 610 ± 3 % | 305 ± 3 % | 2.00 | 76% |")


def test_peaks_of_a_resumed_run(results: dict[str, Any]) -> None:
    assert "A matrix product reaches 780 to 800 in the same run" in report.markdown(results)


def test_summary(results: dict[str, Any]) -> None:
    """Geometric means, the lowest ratio, and how many cases are lost."""
    lines = section(report.markdown(results), "Summary")
    assert lines[-3] == "| causal | forward | 2 | 0.77 | 0.50 | 2.00 | 1 |"
    assert lines[-2] == "| causal | backward | 2 | 1.25 | 1.25 | 1.25 | 0 |"


def test_failures_and_what_was_not_run(results: dict[str, Any]) -> None:
    text = report.markdown(results)
    cases = "causal B4 H16 S4096 D128, causal B2 H16 S8192 D128"
    assert section(text, "Failures") == [
        f"- sdpa-cudnn: `RuntimeError: no 'backward'` (2): {cases}",
        "- flex: `out of memory` (1): causal B2 H16 S8192 D128",
        "- the whole case: `ValueError: odd` (1): full B4 H16 S4096 D128",
    ]
    assert section(text, "Not run, for want of time") == [
        "<details><summary>1 cases</summary>window B1 H1 S512 D64</details>"
    ]


def test_line(results: dict[str, Any]) -> None:
    assert report.line(results["rows"][0]) == (
        "causal B4 H16 S4096 D128: forward regard 600 flex 300 sdpa-cudnn 500 fa3 900 | backward regard 400 flex 320"
        " | wrong: fa3 | failed: sdpa-cudnn"
    )


def test_files(results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was saved can be written again, and is the same."""
    pytest.importorskip("matplotlib")
    report.write(results, tmp_path / "a.b")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {"a.b.json", "a.b.md", "a.b.png"}
    assert first["a.b.png"].startswith(b"\x89PNG")
    assert report.load(tmp_path / "a.b.json") == results
    (tmp_path / "a.b.md").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report", str(tmp_path / "a.b.json")])
        report.main()
    assert (tmp_path / "a.b.md").read_bytes() == first["a.b.md"]


def test_no_matplotlib(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "benchmarks.figure", raising=False)
    report.write(results, tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "run.md"}
    assert "pip install matplotlib" in capsys.readouterr().out


def test_nothing_was_run(results: dict[str, Any], tmp_path: Path) -> None:
    """Stopped before the first case: still a report."""
    pytest.importorskip("matplotlib")
    report.write(results | {"rows": [], "not_run": ["x"]}, tmp_path / "run")
    assert "Not run" in (tmp_path / "run.md").read_text()
