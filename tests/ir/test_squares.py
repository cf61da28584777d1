"""Squares that are compared with small numbers keep what they say, and fit in 32 bits."""

from __future__ import annotations

import numpy as np
import pytest

from regard.ir.interpret import evaluate
from regard.ir.parser import parse_expr
from regard.ir.passes.narrow_integers import narrow
from regard.ir.squares import small_squares
from regard.ir.traverse import walk
from regard.ir.types import I64

FAR = 2**28 - 1
PLACES = np.unique(np.r_[0:40, np.round(np.geomspace(40, FAR, 200)).astype(np.int64), 46330:46350, FAR])


@pytest.mark.parametrize(
    "text",
    [
        "(q - kv) * (q - kv) < 256",
        "(q - kv) * (q - kv) <= 0",
        "256 > (q - kv) * (q - kv) + (q % 16 - kv % 16) * (q % 16 - kv % 16)",
        "(q // 3 - kv // 3) * (q // 3 - kv // 3) + q % 3 < 99 and kv > 5",
        "not (q - kv) * (q - kv) + 3 >= 268435000",
        "(q - kv) * (q - kv) == 256 or 81 != (q - kv) * (q - kv) + kv % 2",
    ],
)
def test_comparisons_of_large_squares_fit_in_32_bits(text: str) -> None:
    before = parse_expr(text)
    after = narrow(small_squares(narrow(before)))
    assert not any(x.type is I64 for x in walk(after))
    places = {"q": PLACES[:, None], "kv": PLACES[None, :]}
    np.testing.assert_array_equal(evaluate(after, places), evaluate(before, places))


@pytest.mark.parametrize(
    "text",
    [
        "(q - kv) * (q - kv) - q < 256",  # what is added may be less than 0
        "(q - kv) * (q - kv) < 4 * kv",
        "(q - kv) * (q + kv) < 256",
        "(q - kv) * (q - kv) + (kv - 5) >= 256",
        "(q % 8 - kv % 8) * (q % 8 - kv % 8) < 9",  # fits as it is
        "(q - kv) * (q - kv) < 268435456",
        "q * 1073741824 * (q * 1073741824) < 5",  # leaves 64 bits
    ],
)
def test_others_stay_as_they_are(text: str) -> None:
    e = parse_expr(text)
    assert small_squares(e) == e
