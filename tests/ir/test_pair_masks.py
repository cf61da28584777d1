"""Masks in few operations on pairs say what they said."""

from __future__ import annotations

import numpy as np
import pytest

from regard.ir.interpret import evaluate
from regard.ir.pair_masks import few_operations
from regard.ir.parser import parse_expr
from regard.ir.passes.narrow_integers import narrow
from regard.ir.printer import print_expr

PLACES = np.r_[0:70, 1000:1010, 2**28 - 3 : 2**28]
CIRCLE = "((q - 16) // 8 - (kv - 16) // 8) * ((q - 16) // 8 - (kv - 16) // 8) + (q % 8 - kv % 8) * (q % 8 - kv % 8) < 9"


@pytest.mark.parametrize(
    "text",
    [
        CIRCLE,
        f"{CIRCLE} and q >= 16 and kv >= 16",
        f"kv >= 16 and {CIRCLE} and q % 3 > 0 and q + kv > 50 and kv % 7 < 5",
        f"q >= 16 and not ({CIRCLE})",
        "(q - 20) % 16 == (kv - 20) % 16 and q >= 20",
        "(q - 20) // 16 <= (kv - 20) // 16",
        "q % 8 + kv % 8 <= 0 and kv > 3",
        "q - kv < 5 and kv > 3",  # a sum that may be less than 0
    ],
)
def test_values_stay(text: str) -> None:
    before = parse_expr(text)
    after = narrow(few_operations(narrow(before)))
    places = {"q": PLACES[:, None], "kv": PLACES[None, :]}
    expected = np.broadcast_to(evaluate(before, places), (len(PLACES),) * 2)
    np.testing.assert_array_equal(np.broadcast_to(evaluate(after, places), expected.shape), expected)


def test_rows_and_columns_are_decided_by_the_comparison_of_pairs() -> None:
    found = print_expr(few_operations(parse_expr(f"{CIRCLE} and q >= 16 and kv >= 16")))
    assert " and " not in found and "//" not in found and "%" not in found
