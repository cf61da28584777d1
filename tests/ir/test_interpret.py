"""The interpreter against Python's own arithmetic and a literal attention."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regard.ir.errors import IndexRangeError, ParameterError
from regard.ir.interpret import attention, evaluate
from regard.ir.parser import parse_expr, parse_variant
from regard.ir.types import F32, BufferType
from regard.ir.variant import BufferParameter

TABLE = BufferParameter("table", BufferType(F32, ("_",)))


@pytest.mark.parametrize("q", [-7, -1, 0, 5, 7])
@pytest.mark.parametrize("kv", [-3, 2, 4])
def test_integers_floor_as_in_python(q: int, kv: int) -> None:
    for text, expected in (
        ("q // kv", q // kv),
        ("q % kv", q % kv),
        ("q >> 1", q >> 1),
        ("abs(q) - -kv", abs(q) + kv),
        ("q & kv | 8 ^ q", q & kv | 8 ^ q),
        ("int(q / kv)", math.trunc(q / kv)),
        ("int(floor(q / kv))", q // kv),
    ):
        assert evaluate(parse_expr(text), {"q": q, "kv": kv}) == expected


@pytest.mark.parametrize("sizes", [(60,), (4, 15), (3, 4, 5), (1, 60, 1)])
def test_coordinates_are_those_of_a_row_major_grid(sizes: tuple[int, ...]) -> None:
    expected = np.unravel_index(np.arange(60), sizes)
    for axis, coordinates in enumerate(expected):
        e = parse_expr(f"coordinate(q, {axis}, {', '.join(map(str, sizes))})")
        np.testing.assert_array_equal(evaluate(e, {"q": np.arange(60)}), coordinates)


def test_beyond_a_grid_only_coordinate_0_goes_on() -> None:
    for axis, expected in ((0, [-1, 2, 2]), (1, [2, 0, 1])):
        found = evaluate(parse_expr(f"coordinate(q, {axis}, 2, 3)"), {"q": np.array([-1, 6, 7])})
        assert found.tolist() == expected


def test_integers_wrap_in_64_bits() -> None:
    assert evaluate(parse_expr("9223372036854775807 + q"), {"q": 1}) == -(2**63)


def test_floats_are_float32_unless_asked() -> None:
    e = parse_expr("s + 0.1")
    assert evaluate(e, {"s": 0.2}) == np.float32(0.2) + np.float32(0.1)
    assert evaluate(e, {"s": 0.2}, floats=np.float64) == 0.2 + 0.1


def test_indices_wrap_once_and_are_checked() -> None:
    e = parse_expr("table[kv - 4]", [TABLE])
    table = np.array([1.0, 2.0, 3.0])
    assert evaluate(e, {"kv": np.array([1, 3, 4, 6]), "table": table}).tolist() == [1, 3, 1, 3]
    for kv, index in ((0, -4), (7, 3)):
        with pytest.raises(IndexRangeError, match=f"index 0 of `table` is {index}, but the axis has 3 elements"):
            evaluate(e, {"kv": kv, "table": table})
    assert evaluate(e, {"kv": np.array([0, 7]), "table": table}, clamp=True).tolist() == [1, 3]


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ParameterError, match="no value was given for `kv`"):
        evaluate(parse_expr("q < kv"), {"q": 1})


def test_attention_is_softmax_over_the_allowed_keys() -> None:
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(2, 2, 6, 5)), rng.normal(size=(2, 2, 6, 7))
    slopes = rng.normal(size=4).astype(np.float32)
    v, values = parse_variant(
        "attention a(window: int = 3, slopes: f32[head]) {"
        " keep q >= kv and q - kv < window and q > 3 score s + slopes[head] * (kv - q) align end }"
    )
    out, lse = attention(v, query, key, value, {**values, "slopes": slopes})
    assert out.shape == (2, 4, 3, 7)
    for b in range(2):
        for h in range(4):
            for row in range(3):
                position = row + 3
                keys = [j for j in range(6) if position >= j > position - 3 and position > 3]
                if not keys:
                    assert np.all(out[b, h, row] == 0) and lse[b, h, row] == -math.inf
                    continue
                s = np.array(
                    [query[b, h, row] @ key[b, h // 2, j] / math.sqrt(5) + slopes[h] * (j - position) for j in keys]
                )
                weights = np.exp(s) / np.exp(s).sum()
                np.testing.assert_allclose(out[b, h, row], weights @ value[b, h // 2, keys], rtol=1e-12)
                np.testing.assert_allclose(lse[b, h, row], np.log(np.exp(s).sum()), rtol=1e-12)


@pytest.mark.parametrize(("batch", "q_len", "kv_len"), [(0, 2, 3), (1, 0, 3), (1, 2, 0)])
def test_attention_over_nothing(batch: int, q_len: int, kv_len: int) -> None:
    v, _ = parse_variant("attention a() { keep q >= kv }")
    query, key = np.ones((batch, 2, q_len, 4)), np.ones((batch, 1, kv_len, 4))
    out, lse = attention(v, query, key, key, {})
    assert out.shape == (batch, 2, q_len, 4) and not out[lse == -math.inf].any()
    assert kv_len or np.all(lse == -math.inf)


def test_keys_that_nobody_attends_to_influence_nothing() -> None:
    v, _ = parse_variant("attention a() { keep kv != 1 }")
    query, key, value = np.ones((1, 1, 2, 4)), np.ones((1, 1, 3, 4)), np.ones((1, 1, 3, 4))
    key[0, 0, 1], value[0, 0, 1] = np.nan, np.inf
    out, lse = attention(v, query, key, value, {})
    assert np.allclose(out, 1) and np.isfinite(lse).all()
