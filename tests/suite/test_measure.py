"""One case measured on the CPU: what a row holds, and that failures of one contender are only its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmarks import contenders
from benchmarks.case import Case, Task
from benchmarks.measure import measure
from benchmarks.timing import ContestantFailed, interleaved

CASE = Case("causal", 1, 4, 2, 96, 16)


def told(place: str) -> None:
    """Nobody needs to know."""


def row(*names: str, **options: Any) -> dict[str, Any]:
    return measure(Task(CASE, names, rounds=2, budget_ms=0.1, device="cpu", **options), told)


def replace_peer(monkeypatch: pytest.MonkeyPatch, call: Callable[..., torch.Tensor]) -> None:
    """Lets "sdpa-cudnn" be ``call``."""
    real = contenders.contender

    def contender(name: str, *rest: Any) -> contenders.Contender:
        return contenders.Contender(call) if name == "sdpa-cudnn" else real(name, *rest)

    monkeypatch.setattr("benchmarks.measure.contender", contender)


def test_a_row() -> None:
    found = row("regard", "sdpa-flash", "sdpa-cudnn", "fa3")
    assert found["pairs"] == 4 * 96 * 97 // 2
    assert found["case"]["variant"] == "causal"
    for name in ("regard", "sdpa-flash"):
        entry = found["contenders"][name]
        assert not entry["wrong"] and set(entry["deviation"]) == {"out", "query", "key", "value"}
        for direction, work in (("forward", 1), ("backward", 2.5), ("both", 3.5)):
            t = entry[direction]
            assert t["low"] <= t["ms"] <= t["high"]
            assert t["tflops"] == pytest.approx(work * 4 * found["pairs"] * 16 / t["ms"] / 1e9)
    assert "error" in found["contenders"]["sdpa-cudnn"]  # there is none on the CPU
    assert "cannot be imported" in found["contenders"]["fa3"]["absent"]


def test_wrong_results_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mask: timed, but marked."""

    def unmasked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    replace_peer(monkeypatch, unmasked)
    found = row("regard", "sdpa-cudnn")["contenders"]
    assert found["sdpa-cudnn"]["wrong"] and "forward" in found["sdpa-cudnn"]
    assert not found["regard"]["wrong"]


def test_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_peer(monkeypatch, lambda q, k, v: q * k.sum() * v.sum() * float("nan"))
    found = row("sdpa-cudnn")["contenders"]["sdpa-cudnn"]
    assert found["wrong"] and found["deviation"]["out"] is None


def test_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_peer(monkeypatch, lambda q, k, v: q.detach())
    found = row("regard", "sdpa-cudnn")["contenders"]
    assert "forward" in found["sdpa-cudnn"] and "does not require grad" in found["sdpa-cudnn"]["backward_error"]
    assert "backward" in found["regard"]


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("tried to allocate 1.00 PiB")

    replace_peer(monkeypatch, greedy)
    found = row("regard", "sdpa-cudnn")["contenders"]
    assert found["sdpa-cudnn"] == {"error": "out of memory"}
    assert "both" in found["regard"]


def test_late_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fails in a later round is left out of that direction, and the others are timed."""
    calls = []

    def tired(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 10:
            raise RuntimeError("launch failed")
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    replace_peer(monkeypatch, tired)
    found = row("regard", "sdpa-cudnn")["contenders"]
    assert found["sdpa-cudnn"]["forward_error"] == "RuntimeError: launch failed"
    assert not found["sdpa-cudnn"]["wrong"] and "forward" not in found["sdpa-cudnn"]
    assert all(direction in found["regard"] for direction in ("forward", "backward", "both"))


def test_excluded_contenders_do_not_run() -> None:
    found = row("regard", "sdpa-flash", excluded={"sdpa-flash": "the process ended with signal 6"})
    assert found["contenders"]["sdpa-flash"] == {"error": "the process ended with signal 6"}


def test_rounds_are_interleaved_and_start_in_turn() -> None:
    turns: list[str] = []
    ran: list[str] = []
    calls = {name: lambda name=name: ran.append(name) for name in "abc"}
    timings = interleaved(calls, rounds=3, budget_ms=0.0, before=lambda: ran.append("flush"), entering=turns.append)
    assert "".join(turns[6:]) == "abcbcacab"
    assert ran[::2] == ["flush"] * (len(ran) // 2)
    assert set(timings) == set(calls)


def test_failures_name_the_contestant() -> None:
    with pytest.raises(ContestantFailed, match=r"^b$") as caught:
        interleaved({"a": lambda: None, "b": lambda: 1 // 0})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
