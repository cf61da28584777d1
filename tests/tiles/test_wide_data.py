"""64-bit tensors, whose elements may have any value: ids, lengths and labels as tokenizers and ``sum`` give them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from regard.ir.interpret import evaluate
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.count import tile_map
from regard.ir.tiles.numeric import Sizes

LENGTH, TILE = 24, 8
LEAST, MOST = -(2**63), 2**63 - 1
TOKENS = np.arange(LENGTH)
# Values that differ from tile to tile, with the ends of the type among them.
DATA = {
    "small": TOKENS // 5,
    "large": TOKENS // 8 * 2**40 - 2**41,
    "ends": np.array([LEAST, 0, MOST]).repeat(8),
    "mixed": np.where(TOKENS % 7 == 0, LEAST, np.where(TOKENS % 5 == 0, MOST, TOKENS)),
}


Classes = npt.NDArray[np.int8]


def classes(keep: str, data: npt.NDArray[np.int64], element: str) -> tuple[Classes, Classes]:
    """Tiles as the analysis classifies them, and as they are: 0 empty, 1 partial, 2 full."""
    variant, _ = parse_variant(f"attention mask(x: {element}[_]) {{ keep {keep} }}")
    plan = make_plan(run_pipeline(variant))
    claimed = tile_map(plan, Sizes(1, 1, 1, LENGTH, LENGTH), {"x": data}, TILE, TILE)[0, 0]
    env: dict[str, npt.NDArray[np.int64] | int] = {"q": TOKENS[:, None], "kv": TOKENS[None], "batch": 0, "x": data}
    allowed = np.broadcast_to(evaluate(variant.mask, env), (LENGTH, LENGTH))
    tiles = allowed.reshape(LENGTH // TILE, TILE, LENGTH // TILE, TILE)
    return claimed, np.add(tiles.any((1, 3)), tiles.all((1, 3)), dtype=np.int8)


MASKS = (
    "x[q] == x[kv]", "x[q] != x[kv]", "x[q] >= x[kv] and q >= kv", "x[kv] != 0", "x[kv] != -100", "x[q] < kv",
    "kv < x[batch]", "x[batch] <= kv", "q - kv < x[batch]", "kv + 5 > x[q] and q >= kv",
)  # fmt: skip


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("keep", MASKS)
def test_no_claim_is_wrong(keep: str, data: str) -> None:
    claimed, true = classes(keep, DATA[data], "i64")
    assert not ((claimed == 0) & (true != 0)).any()
    assert not ((claimed == 2) & (true != 2)).any()


@pytest.mark.parametrize("keep", MASKS)
def test_what_is_known_of_32_bits_is_known_of_64(keep: str) -> None:
    narrow, _ = classes(keep, DATA["small"], "i32")
    wide, _ = classes(keep, DATA["small"], "i64")
    assert (wide == narrow).all()


@pytest.mark.parametrize("keep", ["x[q] + 1 == x[kv]", "x[q] * 2 > x[kv]", "x[kv] - x[q] <= 3"])
def test_arithmetic_that_may_wrap_claims_nothing(keep: str) -> None:
    for data in DATA.values():
        claimed, true = classes(keep, data, "i64")
        assert not (claimed == 2).any() and ((claimed != 0) | (true == 0)).all()
