"""Every pass: fixtures of what it does, and that it changes no result.

A fixture is a text file of cases: ``== title``, the input, ``--``, the expected output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.ir.errors import TypeMismatchError
from regard.ir.interpret import evaluate
from regard.ir.lowered import lower
from regard.ir.nodes import COMPARISONS, LOGIC, Binary, Expr, Unary
from regard.ir.parser import parse_variant
from regard.ir.passes import PIPELINE, inline_statics, narrow_integers, run_pipeline, simplified, stages
from regard.ir.passes.expand_coordinates import expand_coordinates
from regard.ir.printer import print_lowered, print_variant
from regard.ir.traverse import walk
from regard.ir.types import F32
from regard.ir.variant import Variant
from regard.ir.verify import verify
from strategies import expressions, grid, sample_values, variants

HERE = Path(__file__).parent
PASSES = (*PIPELINE, expand_coordinates)


def _cases() -> list[tuple[str, str, str, str]]:
    found = []
    for path in sorted(HERE.glob("*.txt")):
        for block in ("\n" + path.read_text()).split("\n== ")[1:]:
            title, _, rest = block.partition("\n")
            source, _, expected = rest.partition("--\n")
            found.append((path.stem, title, source, expected.strip()))
    return found


@pytest.mark.parametrize(("name", "title", "source", "expected"), _cases())
def test_fixture(name: str, title: str, source: str, expected: str) -> None:
    (apply,) = (p for p in PASSES if p.__name__ == name)
    after = apply(parse_variant(source)[0])
    verify(after)
    if apply is narrow_integers:  # its result has types that the surface form does not show
        results = {"mask": after.mask, **{f"score_{i}": e for i, e in enumerate(after.scores)}}
        assert print_lowered(lower(results)) == expected
    else:
        assert print_variant(after) == expected


def test_every_pass_has_fixtures() -> None:
    assert {case[0] for case in _cases()} == {p.__name__ for p in PASSES}


@given(variants(), st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_no_stage_changes_a_result(v: Variant, seed: int, q_len: int, kv_len: int) -> None:
    sizes = {"batch": 2, "heads": 3, "q_len": q_len, "kv_len": kv_len}
    env = grid(v, sample_values(v, seed, **sizes), **sizes)
    scores = np.random.default_rng(seed).normal(size=(2, 3, q_len, kv_len)).astype(np.float32)
    aligned = {**env, "q": env["q"] + (kv_len - q_len)} if v.align == "end" else env

    def result(stage: Variant) -> np.ndarray[Any, Any]:
        place, s = aligned if stage.align == "end" else env, scores
        for e in stage.scores:
            s = evaluate(e, {**place, "s": s})
        return np.where(evaluate(stage.mask, place), s, -np.inf)

    expected = result(v)
    for name, stage in stages(v, check=True).items():
        np.testing.assert_array_equal(result(stage), expected, err_msg=name)


@given(expressions(), st.integers(-9, 9), st.integers(-9, 9), st.floats(width=32))
def test_simplified_keeps_type_and_value(e: Expr, q: int, kv: int, s: float) -> None:
    env = {name: 2 for name in ("head", "kv_head", "batch", "q_len", "kv_len", "window", "offset", "step")}
    floats = {"gain": -0.5, "sharp": 0.75, "s": s, "slopes": np.full(1, 3.0), "single": np.array(-0.0)}
    values: dict[str, Any] = {**env, **floats, "q": q, "kv": kv, "flag": True, "table": np.full((1, 1), 0.5)}
    after = simplified(e)
    assert after.type is e.type
    before, now = (evaluate(x, values, clamp=True) for x in (e, after))
    np.testing.assert_array_equal(now, before)
    if e.type is F32:
        assert np.signbit(now) == np.signbit(before) or np.isnan(now)


@given(variants())
def test_negations_end_up_at_atoms(v: Variant) -> None:
    for x in walk(run_pipeline(v).mask):
        if isinstance(x, Unary) and x.op == "not":
            atom = x.x
            assert not (isinstance(atom, Unary) and atom.op == "not")
            if isinstance(atom, Binary):
                assert atom.op not in LOGIC
                assert atom.op not in COMPARISONS or atom.a.type is F32


def test_a_static_zero_divides_nothing() -> None:
    v, _ = parse_variant("attention a(d: static int = 0) { keep q % d == 0 }")
    with pytest.raises(TypeMismatchError, match="division by zero"):
        inline_statics(v)
