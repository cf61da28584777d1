"""What of a mask is an interval of columns: the same pairs as the mask, in i32."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.codegen.gluon_bands import Band, Column
from regard.ir.interpret import evaluate
from regard.ir.nodes import TILE_NAMES, TRUE, Expr
from regard.ir.parser import parse_expr, parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.printer import print_expr
from regard.ir.types import I32, I64, BufferType
from regard.ir.variant import BufferParameter, Parameter
from strategies import Knobs, grid, sample_values, variants

BLOCK = 16
_EXTREMES = np.array([-(2**31), 2**31 - 1, 0, 7, -3, 40, 2**31 - 1900, -(2**31) + 5])


def kept(band: Band, env: dict[str, Any]) -> np.ndarray[Any, Any]:
    """All pairs that the band keeps."""
    columns = env[band.column]
    env = {**env, TILE_NAMES[0]: columns // BLOCK * BLOCK}
    allowed = columns < evaluate(band.stop, env)
    if band.first is not None:
        allowed = allowed & (columns >= evaluate(band.first, env))
    return np.asarray(allowed & evaluate(band.rest, env))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_masks(data) -> None:
    v = run_pipeline(data.draw(variants(max_scores=0, knobs=Knobs())))
    lengths = {"q_len": data.draw(st.integers(1, 50)), "kv_len": data.draw(st.integers(1, 50))}
    values = sample_values(v, data.draw(st.integers(0, 9)), batch=2, heads=2, **lengths)
    env = grid(v, values, batch=2, heads=2, **lengths)
    for column in ("q", "kv"):
        band = Band.of(v.mask, column, BLOCK)
        assert (kept(band, env) == evaluate(v.mask, env)).all(), print_expr(v.mask)


IDS, WIDE = (
    BufferParameter(name, BufferType(type, ("_",))) for name, type in (("ids", I32), ("wide", I64))
)  # fmt: skip
MASKS = (
    "q - kv == ids[q] - ids[kv] and ids[q] - ids[kv] < 2048",
    "ids[kv] - ids[q] >= -2048",
    "ids[q] + 1 > ids[kv] + 2",
    "kv <= ids[q] and kv > ids[q] - 9",
    "q < ids[kv]",
    "kv - wide[q] <= 3",
    "wide[q] == wide[kv]",
    "abs(q % 32 - kv % 32) <= where(abs(q // 32 - kv // 32) >= 1, 3, 9) or kv < 32",
    "(q + 3) // 7 >= (kv - 2) // 7",
    "5 - kv // 4 > q // 9",
    "kv >= 16 or q == 3",
    # Pair by pair, beside rows that leave 32 bits at one end.
    *(
        f"{sides} or kv == 7 or q == kv"
        for op in ("<", "<=", ">", ">=")
        for sides in (f"q - kv {op} ids[q]", f"kv + q + 1 {op} ids[q]", f"q - kv {op} wide[q]", f"ids[kv] {op} q - kv")
    ),
)


@pytest.mark.parametrize("column", ["q", "kv"])
@pytest.mark.parametrize("text", MASKS)
def test_elements_of_any_size(text: str, column: Column) -> None:
    mask = lowered(text, (IDS, WIDE))
    places = np.arange(50)
    numbers = _EXTREMES[places * 5 % len(_EXTREMES)] + 0
    env: dict[str, Any] = {
        "q": places[:, None], "kv": places, "q_len": 50, "kv_len": 50, "ids": numbers.astype(np.int32),
        "wide": np.where(places % 3 == 0, numbers << 32, numbers),
    }  # fmt: skip
    band = Band.of(mask, column, BLOCK)
    assert (kept(band, env) == evaluate(mask, env)).all()
    assert band.stop.type is I32 and (band.first is None or band.first.type is I32)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("q >= kv and q - kv < 9", "kv"),
        ("q // 32 == kv // 32 or q < 5", "kv"),
        ("abs(q % 32 - kv % 32) <= where(abs(q // 32 - kv // 32) >= 1, 3, 9) or kv < 32", "q"),
        ("q >= kv and q < ids[kv]", "q"),
        ("q // 9 >= kv // 9", "kv"),
    ],
)
def test_nothing_is_left(text: str, column: Column) -> None:
    """All of the mask costs a pair one comparison."""
    assert Band.of(lowered(text, (IDS,)), column, BLOCK).rest == TRUE


def lowered(text: str, parameters: tuple[Parameter, ...]) -> Expr:
    """A mask after the pipeline."""
    declared = ", ".join(f"{p.name}: {'i32' if p is IDS else 'i64'}[_]" for p in parameters)
    assert parse_expr(text, parameters)
    v, _ = parse_variant(f"attention a({declared}) {{ keep {text} }}")
    return run_pipeline(v).mask
