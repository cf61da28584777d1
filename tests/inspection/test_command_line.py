"""``python -m regard``: the same views, for a variant in a text file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from regard.__main__ import main

VARIANT = """
attention local(radius: int = 40) {
  keep      abs(q - kv) <= radius
  normalize softmax
}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "variant.txt"
    path.write_text(VARIANT)
    return str(path)


def test_explain_counts(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", file, "--lengths", "100", "--heads", "1", "--target", "cpu"]) == 0
    pairs = sum(min(i + 40, 99) - max(i - 40, 0) + 1 for i in range(100))
    assert f"{pairs:,} of 10,000 pairs" in capsys.readouterr().out


def test_explain_without_lengths(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", file]) == 0
    assert "closed form" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["source", "--target", "cpu", "--direction", "backward"], "def run("),
        (["ptx", "--target", "sm_90"], ".target sm_90"),
        (["ir", "--stage", "plan"], "tiles: closed"),
    ],
)
def test_views(command: list[str], expected: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], file, *command[1:]]) == 0
    assert expected in capsys.readouterr().out


def test_plot(file: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plot", file, "--lengths", "100", "50", "--out", str(tmp_path / "t.png")]) == 0
    assert (tmp_path / "t.png").exists()


def test_errors_have_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text("attention wrong() { keep q >== kv }")
    command = [sys.executable, "-m", "regard", "explain", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2] / "src")
    assert result.returncode == 2
    assert result.stderr.startswith("regard: ") and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("lengths", "message"),
    [(["-5"], "expected a tensor or its shape"), (["1", "2", "3"], "expected one or two numbers")],
)
def test_wrong_lengths(lengths: list[str], message: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["explain", file, "--lengths", *lengths])
    except SystemExit as stopped:  # argparse
        code = int(str(stopped.code))
    assert code == 2 and message in capsys.readouterr().err


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ir", "/nowhere/variant.txt"]) == 2
    assert "No such file" in capsys.readouterr().err
