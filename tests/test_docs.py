"""What the documentation shows is what happens: its snippets run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/language.md"])
def test_sessions(page: str) -> None:
    """Every ``>>>`` session of a page, in one namespace."""
    torch.manual_seed(0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testfile(str(ROOT / page), module_relative=False, optionflags=flags)
    assert result.failed == 0


def test_readme_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of plain Python in the README, one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    blocks = [text for text in PYTHON_BLOCK.findall((ROOT / "README.md").read_text()) if ">>>" not in text]
    assert blocks
    path = tmp_path / "readme.py"
    path.write_text("\n".join(blocks))
    # Error locations and closures need a file behind the code.
    exec(compile(path.read_text(), str(path), "exec"), {"__name__": "readme"})


def test_two_commands_come_first() -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [block.strip() for block in blocks[:2]] == ["./scripts/demo", "./scripts/test"]


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("design", "internals", "language", "patterns"))],
)
def test_linked_files_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([\w./-]+)[)#]", text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing
