"""Every mistake in a variant gives one error that says where it is and what to write instead."""

from __future__ import annotations

import linecache
from pathlib import Path

import pytest
import torch

import regard as rg

GOLDEN = Path(__file__).with_name("errors.txt")


def cases() -> dict[str, tuple[str, str]]:
    """Source and expected message of each case, by title."""
    found = {}
    for case in GOLDEN.read_text().split("=== ")[1:]:
        title, _, rest = case.partition("\n")
        source, _, message = rest.partition("--- error\n")
        found[title] = (source.rstrip("\n") + "\n", message.rstrip("\n"))
    return found


def message_of(source: str) -> str:
    """The error that running ``source`` as the file ``variant.py`` ends with."""
    lines = source.splitlines(keepends=True)
    linecache.cache["variant.py"] = (len(source), None, lines, "variant.py")
    with pytest.raises(rg.RegardError) as raised:
        exec(compile(source, "variant.py", "exec"), {"rg": rg, "torch": torch, "__name__": "variant"})
    return f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.parametrize("title", cases())
def test_error(title: str, update_golden: bool) -> None:
    source, expected = cases()[title]
    message = message_of(source)
    if update_golden:
        all_cases = cases() | {title: (source, message)}
        GOLDEN.write_text("\n".join(f"=== {t}\n{s}--- error\n{m}\n" for t, (s, m) in all_cases.items()))
        return
    assert message == expected


def test_columns_are_characters_not_bytes() -> None:
    message = message_of('@rg.mask\ndef m(q, kv):\n    "é"; return "ü" and q > kv and True\nrg.attention(m)\n')
    line, carets = message.splitlines()[2:4]
    assert line[carets.index("^") : carets.rindex("^") + 1] == '"ü" and q > kv and True'


def test_places_without_source() -> None:
    """As at Python's prompt: the place is known, the line is not."""
    with pytest.raises(rg.RegardError) as raised:
        exec("@rg.mask\ndef m(q, kv):\n    return q >= kv and kv < 4\nrg.attention(m)\n", {"rg": rg, "__name__": "m"})
    _, place, hint = str(raised.value).splitlines()
    assert place == "  at <string>:3:12" and "`&`, `|` and `~` for and, or and not" in hint
