"""The text of generated Triton modules."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regard as rg
from generated_triton import generated
from oracle import Part

GOLDEN = Path(__file__).parent / "golden"
VARIANTS: dict[str, list[Part]] = {
    "causal": [rg.causal()],
    "window_and_sinks": [rg.sliding_window(1023, 0) | rg.sinks(4), rg.softcap(30.0)],
    "documents": [rg.causal(), rg.document(torch.zeros(1024, dtype=torch.int32))],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_golden(name: str, update_golden: bool) -> None:
    sources = generated(VARIANTS[name]).sources
    for direction, text in zip(("forward", "backward"), sources, strict=True):
        path = GOLDEN / f"triton_{direction}_{name}.py.txt"
        if update_golden:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"run pytest with --update-golden and read the change of {path.name}"


def test_the_same_variant_gives_the_same_text() -> None:
    first, second = (generated(VARIANTS["window_and_sinks"]).sources for _ in range(2))
    assert first == second


def test_parameters_may_have_the_names_that_kernels_use() -> None:
    @rg.mask
    def clash(q, kv, start, scale, key):
        return (q - kv < start) & (kv >= scale) & (q >= key)

    for text in generated([clash(start=9, scale=1, key=2)]).sources:
        assert "start_" in text and "scale_" in text and "key_" in text
        compile(text, "<generated>", "exec")  # a name used twice in a signature would not compile


def test_debugging_asserts_that_guarded_indices_are_inside() -> None:
    @rg.score
    def shifted(s, q, bias):
        return s + bias[q + 1]

    for debug in (False, True):
        for text in generated([shifted(bias=torch.zeros(9))], debug=debug).sources:
            assert ("tl.device_assert(" in text) is debug
            assert ("debug=True" in text) is debug
