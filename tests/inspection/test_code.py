"""``source``, ``ptx``, ``sass`` and ``ir``, on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

import regard as rg
from regard.ir.passes import PIPELINE


@rg.mask
def band(q: Tensor, kv: Tensor, left: int) -> Tensor:
    return (q >= kv) & (q - kv <= left)


@rg.score
def bias(s: Tensor, head: Tensor, kv: Tensor, weight: Tensor) -> Tensor:
    return s + weight[head, kv]


WEIGHT = torch.linspace(-1, 1, 2 * 77).reshape(2, 77)


def attention() -> rg.Attention:
    return rg.attention(band(left=20), bias(weight=WEIGHT))


STANDALONE = """
import sys
import runpy
import torch

module = runpy.run_path("forward.py")
query, key, value, weight = torch.load("inputs.pt")
out, lse = module["run"](query, key, value, weight, 20)
assert not any(name.split(".")[0] == "regard" for name in sys.modules)
torch.save((out, lse), "outputs.pt")
"""


def test_source_runs_without_regard(tmp_path: Path) -> None:
    query, key, value = torch.randn(3, 1, 2, 77, 32).unbind()
    (tmp_path / "forward.py").write_text(attention().source(target="cpu", head_dim=32))
    torch.save((query, key, value, WEIGHT), tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", STANDALONE], cwd=tmp_path, check=True, env={"PATH": ""})
    out, lse = torch.load(tmp_path / "outputs.pt")

    i = torch.arange(77)
    distance = i[:, None] - i
    scores = query @ key.mT / 32**0.5 + WEIGHT[:, None, :]
    scores = scores.masked_fill((distance < 0) | (distance > 20), -torch.inf)
    torch.testing.assert_close(out, scores.softmax(-1) @ value)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_edited_source_is_what_runs(tmp_path: Path) -> None:
    """``load_source`` puts a file of the user's in place of the generated program."""
    attn = attention()
    path = tmp_path / "edited.py"
    text = attn.source(target="cpu", head_dim=32)
    path.write_text(text.replace("def run(", "def original(", 1) + EDIT)
    query, key, value = torch.randn(3, 1, 2, 77, 32).unbind()
    edited = rg.load_source(path, attn)
    torch.testing.assert_close(edited(query, key, value), 2 * attn(query, key, value))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_source_of_another_attention(tmp_path: Path, direction: Literal["forward", "backward"]) -> None:
    path = tmp_path / "edited.py"
    path.write_text(attention().source(target="cpu", direction=direction))
    with pytest.raises(rg.ParameterError, match=r"edited\.py was made for another attention: causal has no parameters"):
        rg.load_source(path, rg.attention(rg.causal))
    path.write_text("import torch\n")
    with pytest.raises(rg.UnsupportedError, match=r"edited\.py defines no `run`"):
        rg.load_source(path, attention())


def test_a_direction_that_there_is_not() -> None:
    with pytest.raises(rg.ArgumentError, match="no direction 'both'"):
        attention().source(direction="both")


EDIT = '''

def run(*args, **options):
    """Twice the output."""
    out, lse = original(*args, **options)
    return 2 * out, lse
'''


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("target", ["cpu", "sm_80", "sm_90", "gfx942"])
def test_source_says_what_it_is(direction: str, target: str) -> None:
    text = attention().source(direction=direction, target=target)
    compile(text, "source.py", "exec")
    assert text.startswith("#")
    assert "keep      q >= kv and q - kv <= left" in text
    assert "test_code.py:" in text
    assert "regard" not in {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ptx_and_sass(direction: str) -> None:
    options = {"direction": direction, "head_dim": 32, "dtype": "bf16", "target": "sm_90"}
    ptx = attention().ptx(**options)
    assert ".target sm_90" in ptx and ptx.startswith("// ")
    assert "MMA" in attention().sass(**options)


def test_the_cpu_has_no_machine_code_of_its_own() -> None:
    with pytest.raises(rg.UnsupportedError, match="printed PyTorch program"):
        attention().ptx(target="cpu")
    with pytest.raises(rg.UnsupportedError, match="gfx942 has no PTX"):
        attention().ptx(target="gfx942")


@pytest.mark.parametrize("stage", ["traced", *(apply.__name__ for apply in PIPELINE)])
def test_ir_after_each_pass_is_a_variant(stage: str) -> None:
    text = attention().ir(stage)
    assert text.startswith("attention band_bias(left: int = 20, weight: f32[head, kv]) {")
    assert rg.parse(text) is not None


def test_ir_of_later_stages() -> None:
    assert attention().ir().startswith("lowered(left: i32, weight: f32[_, _]) {")
    assert attention().ir("plan").startswith("tiles: closed")
    with pytest.raises(rg.ParameterError, match=r"no stage 'ptx'\n  hint: stages: traced, inline_statics,"):
        attention().ir("ptx")
