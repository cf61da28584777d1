"""Costs around the kernels on the CPU, with fewer repetitions and peers that are not compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmarks import host, setup_cost
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

quickly = partial(host._host_us, repeats=1, rounds=1)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "device", "cpu")
    monkeypatch.setattr(host, "compiled_flex", lambda: flex_attention)
    monkeypatch.setattr(host, "_host_us", lambda calls, *rest: quickly(calls))
    monkeypatch.setattr(setup_cost, "compiled_create_block_mask", lambda: create_block_mask)


@pytest.mark.filterwarnings("ignore")  # FlexAttention's, that it is not compiled
@pytest.mark.parametrize("name", [name for name in host.HOST_CASES if name not in ("causal, warp-specialised",)])
def test_a_warm_call(name: str) -> None:
    row = host.host_cost(name)
    assert row["regard_us"] > 0 and row["flex_us"] > 0
    assert isinstance(row["met"], bool) and not [key for key in row if key.endswith("error")]


@pytest.mark.filterwarnings("ignore")
def test_a_step_of_training() -> None:
    row = host.training_cost("document", 64, 1)
    assert {"regard_forward", "regard_backward", "regard_step"} <= set(row)
    # FlexAttention has no backward pass on the CPU, which is a result.
    assert "flex_error" in row or "flex_step" in row


@pytest.mark.parametrize("name", ["causal", "document"])
def test_preparing_a_mask(name: str) -> None:
    row = setup_cost.setup_cost(name, 512, "cpu")
    assert row["regard_ms"] >= 0 and row["flex_compiled_ms"] > 0 and row["flex_ms"] > 0
    assert ("table_ms" in row) == (name == "document")


def test_what_a_new_process_runs() -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", host.FIRST_CALL.format(device="cpu")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0


def job(value: int) -> dict[str, Any]:
    if value == 2:
        raise ValueError("no memory")
    return {"value": value}


def test_failures_are_reported_in_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PARTS", {"part": [partial(job, i) for i in (1, 2, 3)], "other": [partial(job, 4)]})
    host.measure(["part"], 1.0, tmp_path / "made")
    results = json.loads((tmp_path / "made.json").read_text())
    assert results["part"] == [{"value": 1}, {"job": "part 2", "error": "ValueError: no memory"}, {"value": 3}]
    assert {"device", "torch", "triton", "commit", "date"} <= set(results["environment"])
    results = host.measure(["part", "other"], 0.0, tmp_path / "made")
    assert results["not_run"] == ["part 1", "part 2", "part 3", "other 4"]
    with pytest.raises(SystemExit, match="some jobs failed"):
        host.main(["part", "--out", str(tmp_path / "made")])
    with pytest.raises(SystemExit, match="no part is called nonesuch"):
        host.main(["nonesuch"])
