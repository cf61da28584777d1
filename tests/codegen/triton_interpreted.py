"""Generated kernels under Triton's interpreter, against the oracle.

Collected by name only: ``test_triton_interpreter.py`` runs this file in a process of its own, because Triton
decides when it is imported whether it compiles or interprets.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import regard as rg
from generated_triton import generated, load
from oracle import Part, allowed_pairs, assert_close_to_oracle, by_tile, eager, gradients, oracle
from regard.codegen import triton_classify
from regard.codegen.gluon_module import emit_tables
from regard.codegen.triton_cuts import OWN_FIRST, cuts_of
from regard.codegen.triton_values import MARK
from regard.dsl import assemble
from regard.ir.passes import run_pipeline
from regard.ir.tiles import make_plan
from regard.ir.tiles.count import tile_counts
from regard.ir.tiles.numeric import Sizes
from regard.ir.tiles.places import parts_of_call

F16, F32 = torch.float16, torch.float32
LENGTH = 45


@rg.score
def per_key(s, batch, kv, bias):
    return s + bias[batch, kv]


@rg.score
def per_query(s, batch, head, q, gain, bias):
    return s * gain[batch, q] + bias[head]


@rg.score
def per_pair(s, head, q, kv, bias):
    return rg.tanh(s) + bias[head, q, kv]


@rg.score
def per_pair_and_batch(s, batch, head, q, kv, bias):
    return s * bias[batch, head, q, kv]


@rg.score
def per_distance(s, head, q, kv, bias):
    return s + bias[head, q - kv + 44]


@rg.mask
def every_other_query(q, kv):
    return (q % 2 == 0) & (kv <= q)


@rg.mask
def listed(q, kv, near):
    return near[q, kv]


def captured(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


def documents() -> Tensor:
    return torch.tensor([0] * 9 + [1] * 20 + [2] * 2 + [3] * 14, dtype=torch.int32).expand(2, -1).contiguous()


CASES: dict[str, Callable[[], list[Part]]] = {
    "full": lambda: [rg.full()],
    "causal": lambda: [rg.causal()],
    "window": lambda: [rg.sliding_window(9, 2)],
    "two intervals": lambda: [rg.sliding_window(9, 0) | rg.sinks(3)],
    "stripes": lambda: [rg.dilated(3)],
    "documents": lambda: [rg.causal(), rg.document(documents())],
    "documents, per pair": lambda: [
        rg.causal(), rg.document(documents()), per_pair(bias=captured(4, LENGTH, LENGTH)),
    ],
    "random blocks": lambda: [rg.random_blocks(16, 2) | rg.sliding_window(3, 3)],
    "a list of pairs": lambda: [listed(near=torch.rand(LENGTH, LENGTH) > 0.7)],
    "empty rows": lambda: [every_other_query()],
    "softcap": lambda: [rg.causal(), rg.softcap(2.0)],
    "per head": lambda: [rg.causal(), rg.alibi(slopes=captured(4))],
    "per key": lambda: [rg.causal(), per_key(bias=captured(2, LENGTH))],
    "per query, twice": lambda: [per_query(gain=captured(2, LENGTH), bias=captured(4)), rg.softcap(3.0)],
    "per pair": lambda: [rg.causal(), per_pair(bias=captured(4, LENGTH, LENGTH))],
    "per pair, stored": lambda: [rg.causal(), per_pair_and_batch(bias=captured(2, 4, LENGTH, LENGTH))],
    "per distance": lambda: [rg.causal(), per_distance(bias=captured(4, 89))],
}


def inputs(dtype: torch.dtype, q_len: int, kv_len: int, size: int, value_size: int) -> list[Tensor]:
    """Query, key, value with other strides than contiguous ones, two heads of queries on one of keys."""
    make = torch.Generator().manual_seed(0)
    shapes = ((4, q_len, size), (2, kv_len, size), (2, kv_len, value_size))
    return [torch.randn(2, n, h, d, generator=make).to(dtype).transpose(1, 2) for h, n, d in shapes]


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype is F32 else 4e-3
    assert not found.isnan().any()
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    scale = expected[finite].abs().max().clamp(min=1.0) if finite.any() else torch.tensor(1.0)
    assert (found.double() - expected)[finite].abs().max() <= tolerance * scale


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name: str) -> None:
    parts = CASES[name]()
    query, key, value = tensors = inputs(F32, LENGTH, LENGTH, 16, 16)
    module = generated(parts, sizes=(16, 16), dtype=F32, blocks=(32, 16), descriptors=False)
    out, lse = module.forward(*tensors)
    expected, expected_lse = oracle(parts, *tensors)
    assert_close(out, expected, F32)
    assert_close(lse, expected_lse, F32)

    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    grad_lse = torch.where(lse.isneginf(), 0.0, torch.ones_like(lse))
    found = module.backward(query, key, value, out, lse, grad_out, grad_lse=grad_lse)
    expected_gradients = gradients(oracle, parts, tensors, grad_out, grad_lse, module.captured)
    for a, b in zip(found, expected_gradients, strict=True):
        assert_close(a, b, F32)


@pytest.mark.parametrize(
    ("name", "dtype"), [("window", F32), ("softcap", F32), ("per head", F16), ("per key", F16), ("per distance", F16)]
)
def test_errors_are_those_of_eager_attention(name: str, dtype: torch.dtype) -> None:
    parts = CASES[name]()
    tensors = inputs(dtype, LENGTH, LENGTH, 24, 24)
    module = generated(parts, sizes=(24, 24), dtype=dtype, blocks=(32, 32), descriptors=False)
    out, lse = module.forward(*tensors)
    (exact, exact_lse), (usual, usual_lse) = oracle(parts, *tensors), eager(parts, *tensors)
    assert_close_to_oracle(out, exact, usual)
    assert_close_to_oracle(lse, exact_lse, usual_lse, "lse")
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = module.backward(*tensors, out, lse, grad_out)
    exact_grads, usual_grads = (gradients(f, parts, tensors, grad_out, None, module.captured) for f in (oracle, eager))
    for n, (a, b, c) in enumerate(zip(found, exact_grads, usual_grads, strict=True)):
        assert_close_to_oracle(a, b, c.to(a.dtype), f"gradient {n}")
        if n > 2:  # captured: sums over many pairs, in which an error common to a row would not cancel
            assert (a - b).norm() <= 0.1 * (c - b).norm()


@pytest.mark.parametrize(
    ("dtype", "sizes", "lengths", "descriptors"),
    [
        (F16, (32, 64), (45, 61), True),
        (F16, (48, 16), (61, 45), False),
        (F32, (40, 24), (33, 50), True),  # both padded
        (F32, (16, 16), (1, 200), False),  # keys split between programs
        (F16, (16, 32), (7, 131), True),
    ],
)
def test_sizes_and_ways_of_loading(
    dtype: torch.dtype, sizes: tuple[int, int], lengths: tuple[int, int], descriptors: bool
) -> None:
    parts: list[Part] = [rg.causal()]
    query, key, value = tensors = inputs(dtype, *lengths, *sizes)
    module = generated(
        parts, sizes=sizes, dtype=dtype, blocks=(32, 16), descriptors=descriptors, align="end"
    )
    out, lse = module.forward(*tensors)
    expected, expected_lse = oracle(parts, *tensors, align="end")
    assert_close(out, expected, dtype)
    assert_close(lse, expected_lse, dtype)
    grad_out = torch.ones_like(out)
    found = module.backward(query, key, value, out, lse, grad_out)
    for a, b in zip(found, gradients(oracle, parts, tensors, grad_out, align="end"), strict=True):
        assert_close(a, b, dtype)


@pytest.mark.parametrize(
    ("name", "descriptors"), [*product(("window", "stripes", "documents", "documents, per pair"), (False, True))]
)
def test_keys_that_nobody_sees_may_be_anything(name: str, descriptors: bool) -> None:
    parts = CASES[name]() if name != "stripes" else [rg.dilated(3), rg.sliding_window(1000, 0)]
    query, key, value = inputs(F32, 30, LENGTH, 16, 16)
    module = generated(parts, sizes=(16, 16), dtype=F32, blocks=(16, 16), descriptors=descriptors)
    hidden = slice(33, None)  # 30 queries see at most two keys ahead
    clean = module.forward(query, key, value)
    expected = module.backward(query, key, value, *clean, torch.ones_like(clean[0]))
    key[:, :, hidden], value[:, :, hidden] = torch.inf, torch.nan
    dirty = module.forward(query, key, value)
    assert all(torch.equal(a, b) for a, b in zip(dirty, clean, strict=True))
    found = module.backward(query, key, value, *dirty, torch.ones_like(dirty[0]))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@rg.mask
def window_of_head(q, kv, head, widths):
    return (q >= kv) & (q - kv < widths[head])


# Decoding: q and kv are among the last of 200 positions.
FEW: dict[str, Callable[[], list[Part]]] = {
    "window": lambda: [rg.sliding_window(70, 0)],
    "window and sinks": lambda: [rg.causal() & (rg.sliding_window(70, 0) | rg.sinks(3))],
    "prefix": lambda: [rg.prefix_lm(torch.tensor([150, 3]))],
    "alibi": lambda: [rg.causal(), rg.alibi(slopes=captured(6))],
    "per query": lambda: [rg.causal(), per_query(gain=captured(2, 200), bias=captured(6)), rg.softcap(3.0)],
    "per pair": lambda: [per_pair(bias=captured(6, 200, 200))],
    "masks of heads": lambda: [window_of_head(widths=torch.tensor([1, 9, 50, 100, 150, 300]))],
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize(("q_len", "kv_heads", "dtype"), [(1, 2, F16), (5, 6, F32), (7, 1, F16), (16, 3, F16)])
def test_few_queries(name: str, q_len: int, kv_heads: int, dtype: torch.dtype) -> None:
    parts = FEW[name]()
    shape = (2, 6, kv_heads, q_len, 200)
    make = torch.Generator().manual_seed(0)
    query, key, value = tensors = [
        torch.randn(2, n, h, d, generator=make).to(dtype).transpose(1, 2)
        for h, n, d in ((6, q_len, 24), (kv_heads, 200, 24), (kv_heads, 200, 40))
    ]
    module = generated(parts, sizes=(24, 40), dtype=dtype, blocks=(32, 16), descriptors=dtype is F16, align="end")
    assert ("attention_forward_few_queries" in module.sources[0]) == (name != "masks of heads")
    exact, usual = (f(parts, *tensors, align="end") for f in (oracle, eager))
    unseen = ~allowed_pairs(parts, shape, align="end").unflatten(1, (kv_heads, -1)).any(3).any(2)
    key[unseen], value[unseen] = torch.inf, torch.nan
    out, lse = module.forward(query, key, value)
    assert_close_to_oracle(out, exact[0], usual[0])
    assert_close_to_oracle(lse, exact[1], usual[1], "lse")


@rg.mask
def narrowing(q, kv):
    """A window in frames of 32 that narrows as their distance grows."""
    apart = abs(q // 32 - kv // 32)
    return abs(q % 32 - kv % 32) <= rg.where(apart >= 2, 2, rg.where(apart >= 1, 9, 20))


BLOCKS = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)) > 0.6
TABLES: dict[str, Callable[[], Part]] = {
    "documents": lambda: rg.document(torch.arange(90, dtype=torch.int32) // 23),
    "documents in no order": lambda: rg.causal() & rg.document(torch.arange(90).expand(2, -1) // 9 % 4),
    "causal documents": lambda: rg.causal() & rg.document(torch.arange(90) // 31),
    "blocks": lambda: rg.tiles(BLOCKS, (16, 20)),
    "narrowing": lambda: narrowing(),
    "pairs": lambda: listed(near=torch.rand(90, 90, generator=torch.Generator().manual_seed(3)) > 0.99),
    "nothing": lambda: listed(near=torch.zeros(90, 90, dtype=torch.bool)),
}


def visited_tiles(table: tuple[Tensor, Tensor], columns: int) -> tuple[Tensor, Tensor]:
    """(B, H, rows, columns): which tiles a table visits, and which of them without a mask."""
    indices, counts = table
    visited = torch.zeros((*counts.shape[:3], columns), dtype=torch.bool)
    full = visited.clone()
    for place in product(*map(range, counts.shape[:3])):
        n_full, n_partial, first, first_full = counts[place].tolist()
        if first < 0:
            tiles = indices[place][: n_full + n_partial].tolist()
            assert len(set(tiles)) == len(tiles)
            visited[place][tiles] = True
            full[place][tiles[:n_full]] = True
        else:
            visited[place][first : first + n_full + n_partial] = True
            full[place][first_full : first_full + n_full] = True
    return visited, full


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_tiles(name: str) -> None:
    part = TABLES[name]()
    q_len, kv_len, block_m, block_n = 83, 90, 16, 8
    module = generated([part], sizes=(16, 16), dtype=F32, blocks=(block_m, block_n), descriptors=False)
    by_query, by_key = load(module.sources[1]).classify(*module.values, 2, 4, 2, q_len, kv_len, torch.device("cpu"))
    keep = allowed_pairs([part], (2, 4, 2, q_len, kv_len))
    sharp = name != "documents in no order"
    for table, pairs, m, n in ((by_query, keep, block_m, block_n), (by_key, keep.mT, block_m, block_n)):
        some, every = by_tile(pairs, m, n)
        visited, full = visited_tiles(table, some.shape[3])
        assert not (some & ~visited).any() and not (full & ~every).any()
        if sharp:
            assert torch.equal(visited.expand_as(some), some)
            assert torch.equal(full.expand_as(some), every & some)
    assert bool((by_query[1][..., 2] < 0).any()) == (name not in ("documents", "causal documents", "nothing"))


def runs(*lengths: int) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).int()


@rg.mask
def same_head(q, kv, head, ids):
    return (ids[head, q] == ids[head, kv]) & (q - kv < 40 * (head + 1))


@rg.mask
def same_text(q, kv, batch, asked, held):
    return asked[batch, q] == held[batch, kv]


@rg.mask
def same_block(q, kv, asked, held):
    return (asked[q // 16] == held[kv]) & (q >= kv)


ANY = torch.randint(3, (150,), generator=torch.Generator().manual_seed(4)).int()
SORTED = runs(9, 2, 51, 40, 48)
CUT: dict[str, Callable[[], tuple[Part, int]]] = {
    "sorted": lambda: (rg.causal() & rg.document(SORTED), 150),
    "in no order": lambda: (rg.sliding_window(70, 20) & rg.document(SORTED[torch.arange(150) % 70]), 131),
    "random": lambda: (rg.causal() & rg.document(ANY), 150),
    "by head": lambda: (same_head(ids=torch.stack([SORTED, ANY, SORTED.flip(0), SORTED])), 93),
    "only keys": lambda: (same_text(asked=torch.stack([ANY, SORTED]), held=torch.stack([SORTED, SORTED])), 150),
    "blocks of queries": lambda: (same_block(asked=runs(1, 2, 2, 5), held=runs(16, 39, 25, 70)), 150),
}
TABLES_ALONE = """import torch, triton
import triton.language as tl

def launch(kernel, grid, *arguments, **options):
    kernel[grid](*arguments, **options)

"""


@pytest.mark.parametrize("name", CUT)
def test_cut_tiles_are_those_that_are_counted(name: str) -> None:
    part, q_len = CUT[name]()
    variant, values = assemble(part)
    plan = make_plan(run_pipeline(variant))
    cuts = cuts_of(plan)
    assert cuts is not None
    text, _ = emit_tables(plan, (32, 16), cuts=cuts)
    names = [p.name for p in plan.variant.buffers] + [p.name for p in plan.variant.scalars]
    given = [values[name] for name in names]
    module = load(TABLES_ALONE + text.replace(MARK, ""))
    _, counts, kv_firsts, rows = module.classify(*given, 2, 4, 4, q_len, 150, torch.device("cpu"))
    numbers = {n: x.numpy() if isinstance(x, Tensor) else x for n, x in values.items()}
    sizes = Sizes(2, 4, 4, q_len, 150)
    parts = [x.tiles for x in parts_of_call(plan, cuts, sizes, numbers, 32, 16)]
    assert int(rows) == max(len(tiles.queries) for tiles in parts)
    for own, keys, tiles in zip(counts.flatten(0, 1), kv_firsts.flatten(0, 1), parts, strict=True):
        firsts = own[:, OWN_FIRST].tolist()
        assert firsts == [*tiles.queries.firsts, *[q_len] * (len(firsts) - len(tiles.queries))]
        assert keys[:-1].tolist() == [*tiles.keys.firsts, *[150] * (len(keys) - 1 - len(tiles.keys))]
    full, partial = (counts[..., :2].sum((0, 1, 2)) * (8 // counts[..., 0, 0].numel())).tolist()
    found = tile_counts(plan, sizes, numbers, 32, 16, cuts=cuts)
    assert (found.full, found.partial) == (full, partial)
    assert found.begun_anew == (name != "random")


def test_rows_too_long_to_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_classify, "LISTED", 0)
    monkeypatch.setattr(triton_classify, "LISTED_IN_ROW", 3)
    near = torch.zeros(90, 90, dtype=torch.bool)
    near[3, [1, 50]] = near[20, [1, 30, 50, 80]] = True
    parts: list[Part] = [listed(near=near)]
    module = generated(parts, sizes=(16, 16), dtype=F32, blocks=(16, 16), descriptors=False)
    counts = load(module.sources[0]).classify(*module.values, 2, 4, 2, 90, 90, torch.device("cpu"))[1]
    assert counts[0, 0, :3].tolist() == [[0, 2, -1, 0], [0, 6, 0, 6], [0, 0, 0, 0]]
    tensors = inputs(F32, 90, 90, 16, 16)
    out, lse = module.forward(*tensors)
    expected, expected_lse = oracle(parts, *tensors)
    assert_close(out, expected, F32)
    assert_close(lse, expected_lse, F32)


def test_negative_and_zero_scales() -> None:
    query, key, value = inputs(F32, LENGTH, LENGTH, 16, 16)
    module = generated([rg.causal()], sizes=(16, 16), dtype=F32, blocks=(32, 16), descriptors=False)
    for scale in (-0.5, 0.0):
        out, lse = load(module.sources[0]).run(query, key, value, scale=scale)
        expected, expected_lse = oracle([rg.causal()], query, key, value, scale=scale)
        assert_close(out, expected, F32)
        assert_close(lse, expected_lse, F32)


def test_nothing_to_attend_to() -> None:
    module = generated([rg.full()], sizes=(16, 16), dtype=F32, blocks=(32, 16), descriptors=True)
    query, key, value = inputs(F32, 5, 0, 16, 16)
    out, lse = module.forward(query, key, value)
    assert not out.any() and lse.isneginf().all()
    assert not any(x.any() for x in module.backward(query, key, value, out, lse, out))
