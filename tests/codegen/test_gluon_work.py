"""Work lists of uneven rows of tiles: what stands in them, and the kernels for sm_90 that follow them, emulated."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import gluon_emulated
import regard as rg
from generated_gluon import BF16, F16, Module, assert_emulated, bias, module, tensors
from generated_triton import H100, load
from oracle import Part, allowed_pairs, assert_close_to_oracle, eager, oracle
from regard.codegen.binaries import compile_launches, sample_arguments
from regard.codegen.gluon_forward import KERNEL, candidates
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from uneven_rows import (
    LOCAL_AND_GLOBAL,
    MULTIPROCESSORS,
    RANDOM,
    emulated,
    late_rows_see_all,
    local_and_global,
    one_head_sees_more,
    passages_and_question,
    some_rows_see_nothing,
)

SPLIT: dict[str, tuple[list[Part], tuple[int, int, int, int, int], dict[str, Any]]] = {
    "local and global": (LOCAL_AND_GLOBAL, (1, 2, 2, 1700, 1700), {}),
    "grouped heads": (LOCAL_AND_GLOBAL, (1, 2, 1, 900, 2100), {"sizes": (128, 64), "dtype": F16}),
    "the last rows": ([late_rows_see_all(begin=1500), rg.softcap(20.0)], (1, 1, 1, 1600, 1300), {}),
    "rows that see nothing": ([some_rows_see_nothing()], (1, 1, 1, 1700, 1900), {}),
    "heads in two parts": ([*LOCAL_AND_GLOBAL, rg.alibi(slopes=bias(1))], (1, 1, 1, 800, 1300), {"sizes": (96, 192)}),
    "outputs leave from where queries were": (LOCAL_AND_GLOBAL, (1, 1, 1, 700, 900), {"sizes": (192, 128)}),
    "listed tiles": (RANDOM, (1, 1, 1, 1500, 1500), {"align": "end"}),
    "rows that data makes long": (
        [passages_and_question(block=torch.arange(1500).int() // 240)], (1, 2, 2, 1500, 1500),
        {"listed": True, "split_keys": True, "reverse": False},
    ),
}  # fmt: skip


def work_list(generated: Module, shape: tuple[int, int, int, int, int]) -> Tensor:
    batch, heads, kv_heads, q_len, kv_len = shape
    classify = emulated(generated.text).names["classify"]
    made: tuple[Tensor, ...] = classify(*generated.values, batch, heads, kv_heads, q_len, kv_len, torch.device("cpu"))
    return made[-1]


def shares_of_rows(items: list[list[int]]) -> dict[int, list[list[int]]]:
    """The items of each row, which follow each other in the row and, by the longest of them, in the list."""
    own: dict[int, list[list[int]]] = {}
    for item in items:
        own.setdefault(item[0], []).append(item)
    for shares in own.values():
        assert shares[0][1] == 0 and all(a[2] == b[1] for a, b in pairwise(shares))
        assert len(shares) == 1 or max(s[2] - s[1] for s in shares) - min(s[2] - s[1] for s in shares) <= 1
    longest = [max(end - begin for _, begin, end, _ in own[item[0]]) for item in items]
    assert longest == sorted(longest, reverse=True)
    return dict(sorted(own.items()))


def visited(parts: list[Part], shape: tuple[int, int, int, int, int], block_n: int, align: Any = "start") -> Tensor:
    """How many tiles of keys each tile of queries of the first head has pairs with."""
    pairs = allowed_pairs(parts, shape, align=align)[0, 0]
    padded = torch.zeros(-(-shape[3] // 128) * 128, -(-shape[4] // block_n) * block_n, dtype=torch.bool)
    padded[: pairs.shape[0], : pairs.shape[1]] = pairs
    return padded.view(-1, 128, padded.shape[1] // block_n, block_n).any(3).any(1).sum(1)


@pytest.mark.parametrize("name", SPLIT)
def test_shares_cover_every_tile_once_the_heaviest_first(name: str) -> None:
    parts, shape, options = SPLIT[name]
    generated = module(parts, **options)
    numbers = work_list(generated, shape).tolist()
    (items, cut, places, lines), rows = numbers[0], -(-shape[3] // 128)
    parts_of_all = max(2 * MULTIPROCESSORS // (shape[0] * shape[1]), 1)
    assert places == 2 * parts_of_all and rows <= items <= rows + parts_of_all
    found = numbers[1 : 1 + items]
    own = shares_of_rows(found)
    assert list(own) == list(range(rows))
    counts = torch.tensor([shares[-1][2] for shares in own.values()])
    block_n = int(generated.text.partition("BLOCK_N = gl.constexpr(")[2].partition(")")[0])
    exact = visited(parts, shape, block_n, options.get("align", "start"))
    # The kernel may visit more tiles than hold pairs, where ranges are not sharp.
    assert bool((counts >= exact).all()) and int((counts - exact).sum()) <= 0.1 * int(exact.sum()) + 2
    several = {row: shares for row, shares in own.items() if len(shares) > 1}
    assert several and all((len(own[row]) > 1) == (own[row][0][3] >= 0) for row in own)
    taken = [place for shares in several.values() for *_, place in shares]
    assert sorted(taken) == list(range(len(taken))) and len(taken) <= places
    assert lines == rows + parts_of_all
    listed = numbers[1 + lines :][:cut]
    assert [x[:3] for x in listed] == [[row, shares[0][3], len(shares)] for row, shares in several.items()]
    assert all(place == first + i for _, first, n, _ in listed for i, place in enumerate(range(first, first + n)))


@pytest.mark.parametrize("seed", range(6))
def test_any_lengths(seed: int) -> None:
    draw = random.Random(seed)
    shape = (1, draw.choice((1, 2)), 1, draw.choice((1, 127, 129, draw.randrange(1, 40_000))), draw.randrange(1, 9000))
    reach, seen = draw.choice((0, 300)), draw.choice((0, 1, 200, 20_000))
    numbers = work_list(module([local_and_global(reach=reach, seen=seen)]), shape).tolist()
    items, rows = numbers[0][0], -(-shape[3] // 128)
    own = shares_of_rows(numbers[1 : 1 + items])
    assert list(own) == list(range(rows))


@pytest.mark.parametrize("name", SPLIT)
def test_emulated_shares(name: str) -> None:
    parts, shape, options = SPLIT[name]
    assert_emulated(emulated, parts, shape, **options)


def test_the_order_of_programs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, shape, _ = SPLIT["local and global"]
    generated, inputs = module(parts), tensors(shape, (64, 64), BF16)
    first = emulated(generated.text).run(*inputs, *generated.values)
    monkeypatch.setattr(gluon_emulated, "order", lambda count: reversed(range(count)))
    again = emulated(generated.text).run(*inputs, *generated.values)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        ([rg.causal(), rg.document(torch.arange(1300)[None].expand(2, -1) ** 2 // 200_000)], (2, 2, 1, 1300, 1300)),
        ([one_head_sees_more()], (1, 2, 2, 500, 900)),
    ],
    ids=["documents", "a head apart"],
)
def test_rows_that_tensors_or_heads_tell_apart_are_only_ordered(
    parts: list[Part], shape: tuple[int, int, int, int, int]
) -> None:
    generated = module(parts, listed=True, reverse=False, cut=False)
    batches, heads, rows = (found := work_list(generated, shape)).shape
    assert rows == -(-shape[3] // 128) and bool((found.sort().values == torch.arange(rows)).all())
    assert (batches, heads) == ((2, 1) if shape[0] == 2 else (1, 2))
    counts = visited(parts, shape, 128)
    assert bool((counts[found[0, 0].long()].diff() <= 0).all())
    inputs = tensors(shape, (64, 64), BF16)
    out, _ = emulated(generated.text).run(*inputs, *generated.values)
    assert_close_to_oracle(out, oracle(parts, *inputs)[0], eager(parts, *inputs)[0])


def test_unseen_keys_of_shares_may_hold_anything() -> None:
    parts: list[Part] = [rg.mask(lambda q, kv: ((q < 20) | (abs(q - kv) < 60)) & ((kv < 700) | (kv >= 1000)))]
    shape = (1, 1, 1, 600, 1700)
    query, key, value = tensors(shape, (64, 64), BF16)
    unseen = ~allowed_pairs(parts, shape)[0, 0].any(0)
    assert unseen.any()
    generated = module(parts)
    clean = emulated(generated.text).run(query, key, value, *generated.values)
    key[:, :, unseen], value[:, :, unseen] = torch.nan, torch.inf
    dirty = emulated(generated.text).run(query, key, value, *generated.values)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


EVEN: list[list[Part]] = [
    [], [rg.causal()], [rg.sliding_window(300, 200)], [rg.causal(), rg.sliding_window(300)], [rg.prefix_lm(500)],
    [rg.causal(), rg.sinks(4) | rg.sliding_window(300)], [rg.block_causal(1000)], [rg.chunked_causal(512)],
    [rg.causal(), rg.padding(torch.tensor([5, 9], dtype=torch.int32))],
]  # fmt: skip


@pytest.mark.parametrize("parts", EVEN)
def test_even_rows_have_no_list(parts: list[Part]) -> None:
    text = module(parts).text
    assert "work" not in text and "classify" not in text and "merge" not in text


def test_no_list_is_a_candidate_too() -> None:
    plan = make_plan(run_pipeline(assemble(*LOCAL_AND_GLOBAL)[0]))
    default, *others = candidates(plan, module(LOCAL_AND_GLOBAL).problem)
    assert default.listed and default.split_keys
    assert any(not x.listed and not x.split_keys for x in others)


def test_rows_that_tensors_tell_apart_are_listed_where_tuning_finds_it_faster() -> None:
    parts: list[Part] = [passages_and_question(block=torch.arange(9))]
    generated = module(parts)
    default, *others = candidates(generated.plan, generated.problem)
    assert not default.listed
    assert {(x.listed, x.split_keys) for x in others} == {(False, False), (True, False), (True, True)}


def test_rows_that_heads_tell_apart_are_not_cut() -> None:
    generated = module([one_head_sees_more()])
    found = candidates(generated.plan, generated.problem)
    assert found[0].listed and not any(x.split_keys for x in found)


def test_compiled_for_sm_90() -> None:
    generated = module(LOCAL_AND_GLOBAL, sizes=(128, 128))
    arguments = [*sample_arguments(generated.problem), *generated.values]
    found = {binary.kernel: binary for binary in compile_launches(load(generated.text), H100, arguments)}
    assert set(found) == {"count_tiles", "order_tiles", KERNEL, "merge_rows"}
    assert "HGMMA" in found[KERNEL].sass() and found[KERNEL].shared <= 227 << 10
    assert found[KERNEL].spills() <= 2, "what a share is, with Triton 3.6"
    assert not any(binary.spills() for name, binary in found.items() if name != KERNEL)
