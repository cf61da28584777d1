"""The environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regard as rg
from regard import ParameterError
from regard.runtime import config, engines


@pytest.mark.parametrize(("text", "bytes"), [("0", 0), ("123", 123), ("4K", 4096), ("5m", 5 << 20), (" 2G ", 2 << 30)])
def test_cache_size(monkeypatch: pytest.MonkeyPatch, text: str, bytes: int) -> None:
    monkeypatch.setenv("REGARD_CACHE_SIZE", text)
    assert config.cache_size() == bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5G", "much"])
def test_no_cache_size(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("REGARD_CACHE_SIZE", text)
    with pytest.raises(ParameterError, match="REGARD_CACHE_SIZE=2G"):
        config.cache_size()


def test_the_cache_lies_in_the_users_cache_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGARD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert config.cache_dir() == Path("/somewhere/regard")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert config.cache_dir() == Path.home() / ".cache/regard"


def test_an_unknown_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_DEBUG", "plan,sauce")
    with pytest.raises(ParameterError, match="sauce"):
        config.debug_topics()


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("ir", "keep      q >= kv and q - kv < 3"),
        ("passes", "narrow_integers"),
        ("plan", "closed"),
        ("source", "def run(query, key, value"),
        ("cache", "stored"),
    ],
)
def test_debug_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], topic: str, expected: str
) -> None:
    @rg.mask
    def near(q: int, kv: int) -> object:
        return (q >= kv) & (q - kv < 3)

    monkeypatch.setenv("REGARD_DEBUG", topic)
    # First compiled, then found in the disk cache.
    for known in (expected, "hit" if topic == "cache" else expected):
        monkeypatch.setattr("regard.runtime.compile._programs", {})
        monkeypatch.setattr("regard.runtime.engines._engines", {})
        engines._kept.clear()
        rg.attention(near)(*(torch.zeros(1, 1, 5, 16) for _ in range(3)))
        printed = capsys.readouterr().err
        assert f"[regard {topic}]" in printed and known in printed
