"""``explain``: every statement of the report, against what is true for the attention it explains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from oracle import allowed_pairs
from regard.codegen.schedule import Schedule
from regard.codegen.skeletons import Pinned
from regard.dsl import Part
from regard.ir.tiles.count import tile_counts
from regard.runtime import explain


@rg.mask
def window_and_sinks(q: Tensor, kv: Tensor, window: int, sinks: int) -> Tensor:
    return (q >= kv) & ((q - kv < window) | (kv < sinks))


@rg.mask
def same_document(q: Tensor, kv: Tensor, batch: Tensor, doc: Tensor) -> Tensor:
    return (doc[batch, q] == doc[batch, kv]) & (q >= kv)


SHAPE = (2, 4, 333, 64)


def test_report_reads_well() -> None:
    bias = torch.zeros(4, 999)

    @rg.score
    def by_distance(s, q, kv, head, bias):  # type: ignore[no-untyped-def]
        return s + bias[head, q - kv]

    attn = rg.attention(window_and_sinks(window=100, sinks=4), by_distance(bias=bias))
    report = str(attn.explain(SHAPE, target="cpu"))
    for line in (
        "keep      q >= kv and (q - kv < window or kv < sinks)",
        "closed form: the kernel computes the ranges below; nothing is stored, whatever the length",
        "keys that some of them pair with  [first - window + 1, last + 1) or [0, min(sinks, last + 1))",
        "q >= kv: closed form; key range [0, last + 1), full in [0, first + 1)  (test_explain.py:",
        "keys of a tile: up to 2 runs",
        "no row of this call is empty: every query may attend to the key at its own position",
        "bias[head, q - kv]: guarded load; q - kv is 0 to 332 for allowed pairs, inside of 999 elements; pairs that",
        "Kernels for cpu, f32, head size 64",
        "forward: PyTorch program over tiles, repeatable bit by bit\n    tiles of",
        "Counts for batch 2, 4 heads, 333 queries × 333 keys",
    ):
        assert line in report, report


def test_masks_that_allow_everything_or_nothing_say_so() -> None:
    @rg.mask
    def nothing(q: Tensor, kv: Tensor) -> Tensor:
        return (q != q) & (kv >= 0)

    for part, lines in (
        (rg.full, ("every pair is allowed: all tiles are full", "keys of a tile: one run, without holes")),
        (nothing, ("no pair is allowed: all tiles are empty", "keys of a tile: none", "of them pair with  none\n")),
    ):
        report = str(rg.attention(part).explain(SHAPE, target="cpu"))
        for line in lines:
            assert line in report, report


def test_counts_are_those_of_the_dense_mask() -> None:
    counts = rg.attention(window_and_sinks(window=100, sinks=4)).explain(SHAPE, target="cpu").counts
    i = torch.arange(333)
    allowed = (i[:, None] >= i) & ((i[:, None] - i < 100) | (i < 4))
    assert counts.pairs.exact
    assert counts.pairs.pairs == 8 * int(allowed.sum())
    assert counts.work.forward_flops == counts.pairs.pairs * 4 * 64

    rows, columns = counts.tiles.block_m, counts.tiles.block_n
    tiles = [allowed[a : a + rows, b : b + columns] for a in range(0, 333, rows) for b in range(0, 333, columns)]
    full, empty = sum(bool(t.all()) for t in tiles), sum(not t.any() for t in tiles)
    assert (counts.tiles.full, counts.tiles.empty) == (8 * full, 8 * empty)
    assert counts.tiles.partial == 8 * (len(tiles) - full - empty)
    assert counts.speedup_bound == pytest.approx(len(tiles) / (len(tiles) - empty))


def test_data_dependent_mask_needs_its_data_to_be_counted() -> None:
    attn = rg.attention(same_document)
    without = attn.explain(SHAPE)
    assert without.counts is None and without.missing == ("doc",)
    assert "the mask reads doc: pass values by keyword to count" in str(without)

    doc = torch.arange(333, dtype=torch.int32).div(50, rounding_mode="floor").expand(2, 333)
    bound = attn.explain(SHAPE, doc=doc)
    assert "at most" in str(bound.counts.pairs) and not bound.counts.pairs.exact
    i = torch.arange(333)
    allowed = (doc[0][:, None] == doc[0]) & (i[:, None] >= i)
    exact = attn.explain(SHAPE, doc=doc, exact=True)
    assert exact.counts.pairs.pairs == 8 * int(allowed.sum())
    assert exact.counts.work.forward_flops == exact.counts.pairs.pairs * 4 * 64


def test_tensors_and_shapes_explain_the_same() -> None:
    attn = rg.attention(rg.causal)
    query, key = torch.randn(1, 8, 70, 32), torch.randn(1, 2, 90, 32)
    from_tensors = attn.explain(query, key, key)
    from_shapes = attn.explain((1, 8, 70, 32), (1, 2, 90, 32), (1, 2, 90, 32), dtype=torch.float32, target="cpu")
    assert str(from_tensors) == str(from_shapes)
    assert "8 heads (2 of keys), 70 queries × 90 keys" in str(from_tensors)


def test_a_million_tokens_are_counted_without_looking_at_pairs() -> None:
    attn = rg.attention(rg.sliding_window(255))
    counts = attn.explain((1, 1, 2**20, 64), target="sm_90").counts
    assert counts.pairs.pairs == 2**20 * 256 - 255 * 256 // 2


def test_a_million_queries_of_heads_that_differ_are_seen_to_see_themselves() -> None:
    """Both sides of each comparison are the same for a query and its own key, whatever the head."""

    @rg.mask
    def shifted_groups(q: Tensor, kv: Tensor, head: Tensor) -> Tensor:
        return (q + head * 512) // 1024 == (kv + head * 512) // 1024

    attn = rg.attention(shifted_groups)
    counts = attn.explain((1, 8, 2**20, 64), target="cpu").counts
    assert counts is not None and counts.sees_itself


def test_without_inputs_there_are_no_counts() -> None:
    report = rg.attention(rg.causal).explain()
    assert report.counts is None
    assert "give query, key and value, or their shapes" in str(report)


def test_rows_of_a_call_are_looked_at() -> None:
    """A window holds the query's own key, if it reaches back at all and there is such a key."""
    window = rg.attention(rg.sliding_window(5))
    own = "no row of this call is empty: every query may attend to the key at its own position"
    assert own in str(window.explain(SHAPE))
    fewer_keys = window.explain((1, 1, 40, 16), (1, 1, 20, 16), (1, 1, 20, 16))
    assert own not in str(fewer_keys) and "rows may be empty (they give 0)" in str(fewer_keys)
    assert own not in str(rg.attention(rg.padding(torch.tensor([300, 333]))).explain(SHAPE))
    past = rg.attention(rg.causal & ~rg.sliding_window(0))
    assert "rows may be empty" in str(past.explain(SHAPE))


@pytest.mark.parametrize(
    ("part", "sees"),
    [
        (rg.neighborhood(rg.grid(9, 37), (3, 5), (1, 2)), True),
        (rg.windows(rg.grid(9, 37), 4, 2), True),
        (rg.dilated(3) & ~rg.sliding_window(0), False),
        (rg.strided(7), True),
        (rg.document(torch.arange(333)[None] // 50), True),
        (rg.key_mask(torch.arange(333)[None] != 40), False),
        (rg.random_blocks(64, 1), False),
    ],
)
@pytest.mark.parametrize("target", ["cpu", "sm_90"])
def test_queries_that_see_themselves(part: Part, sees: bool, target: str) -> None:
    counts = rg.attention(part).explain((1, 2, 333, 16), target=target).counts
    assert counts.sees_itself == sees == bool(allowed_pairs([part], (1, 2, 2, 333, 333)).diagonal(0, 2, 3).all())


@rg.mask
def near_on_rows(q: Any, kv: Any) -> Any:
    return (abs(q // 128 % 128 - kv // 128 % 128) <= 10) & (abs(q % 128 - kv % 128) <= 10)


@pytest.mark.parametrize(
    ("length", "skeleton", "lengths"),
    [
        (16384, "gluon", "lengths below 2**28 that are whole rows of the grids which positions are divided into"),
        (32768, "gluon", "lengths below 2**28 that are several of the grids which positions are divided into"),
        (16300, "triton", "lengths below 2**28 and integer"),
    ],
)
def test_what_is_assumed_of_lengths(length: int, skeleton: str, lengths: str) -> None:
    report = rg.attention(near_on_rows()).explain((1, 8, length, 128), target="sm_90")
    assert f"proved for all {lengths}" in str(report)
    assert ("calls of other lengths" in str(report)) == (skeleton == "gluon")
    assert report.kernels[0].skeleton == f"{skeleton}_forward"


def test_contiguity() -> None:
    def said(part: Part, target: str = "cpu") -> str:
        return str(rg.attention(part).explain(target=target))

    assert "keys of a tile: one run, without holes" in said(rg.sliding_window(5))
    assert "proved for all lengths below 2**28 and integer parameters within ±2**30" in said(rg.sliding_window(5))
    assert "proved for all lengths below 2**28 that fit the grid" in said(rg.axial(rg.grid(4, 8), 0))
    assert "keys of a tile: up to 2 runs" in said(rg.sliding_window(5) | rg.sinks(3))
    assert "keys of a tile: tiles in any places, as listed" in said(rg.document())
    assert "keys of a box: up to 2 boxes" in said(rg.strided(8))


def test_bounds_of_indices() -> None:
    def reads(length: int, size: int, part: Part = rg.causal) -> list[str]:
        @rg.score
        def by_distance(s, q, kv, head, bias):  # type: ignore[no-untyped-def]
            return s + bias[head, q - kv]

        attn = rg.attention(part, by_distance(bias=torch.zeros(4, size)))
        return [str(x) for x in attn.explain((2, 4, length, 16)).reads]

    assert "q - kv is 0 to 99 for allowed pairs, inside of 100 elements" in reads(100, 100)[0]
    assert "q - kv is 0 to 99 for allowed pairs, OUTSIDE of 99 elements" in reads(100, 99)[0]
    assert "q - kv is -99 to 99 for allowed pairs" in reads(100, 100, rg.full)[0]
    assert "q - kv is -1999 to 1999 at most, perhaps outside of 500 elements" in reads(2000, 500)[0]
    assert "q - kv is -1999 to 1999 at most, inside of 2000 elements" in reads(2000, 2000)[0]


def test_atoms_that_intervals_cannot_decide_say_so() -> None:
    @rg.mask
    def near(q, kv, place, angle):  # type: ignore[no-untyped-def]
        return abs(place[q] - place[kv]) <= angle

    @rg.mask
    def product(q, kv, place, angle):  # type: ignore[no-untyped-def]
        return place[q] * place[kv] <= angle

    decided = "interval; reads place by query and by key: decided per tile pair from minima and maxima"
    for part, dtype, verdict in (
        (product, torch.float32, "partial; reads place by query and by key: products and functions of floats"),
        (near, torch.int64, "partial; reads place by query and by key: sums of 64-bit integers may wrap"),
        (near, torch.int32, decided),
        (near, torch.float32, decided),
    ):
        angle = 1.5 if dtype.is_floating_point else 1
        attn = rg.attention(part(place=torch.arange(333, dtype=dtype), angle=angle))
        report = attn.explain(SHAPE, target="sm_90")
        assert verdict in str(report)
        assert report.plan.method == ("classified" if verdict == decided else "exact")
        assert report.counts.tiles.empty > 0
        assert report.counts.pairs.pairs <= report.counts.tiles.tile_pairs


def test_long_formulas_are_cut() -> None:
    report = str(rg.attention(rg.random_blocks(64, 3)).explain(SHAPE).text(with_variant=False))
    assert max(map(len, report.splitlines())) <= 610
    assert 'characters; attn.ir("plan") has all)' in report


def test_rows_that_cannot_be_empty_say_why() -> None:
    assert "no row is empty: every query may attend to key 0" in str(rg.attention(rg.causal).explain())


def test_counts_agree_with_the_schedule_that_runs() -> None:
    report = rg.attention(rg.causal).explain(SHAPE, target="sm_90")
    schedule = report.kernels[0].schedule
    assert report.counts.tiles == tile_counts(
        report.plan, report.setting.sizes, {}, schedule.block_m, schedule.block_n
    )
    assert f"tiles of {schedule.block_m} queries × {schedule.block_n} keys" in str(report)


@pytest.mark.parametrize(
    ("part", "rows", "columns"),
    [
        (rg.causal, False, False),
        (rg.sliding_window(100, 100), False, False),
        (rg.document(torch.arange(7)), False, False),
        (rg.causal & (rg.sliding_window(100) | rg.sinks(4)), False, True),
        (rg.sliding_window(100, 100) | rg.global_tokens(64), True, True),
        (rg.random_blocks(128, 3) | rg.global_tokens(64), True, True),
    ],
)
def test_shares_of_uneven_rows_are_said(part: Any, rows: bool, columns: bool) -> None:
    forward, backward = rg.attention(part).explain(target="sm_90", head_dim=128, dtype="bf16").kernels
    assert (forward.skeleton, backward.skeleton) == ("gluon_forward", "gluon_backward")
    said = "rows of tiles from a list, the heaviest first, long rows shared by several programs"
    assert (said in str(forward)) == rows
    assert str(backward).count(said) == rows + columns


def test_atomic_gradients_are_said() -> None:
    table = torch.zeros(7, 7, requires_grad=True)

    @rg.score
    def scattered(s, q, kv, table):  # type: ignore[no-untyped-def]
        return s + table[(q * kv) % 7, kv % 7]

    attn = rg.attention(scattered(table=table))
    forward, backward = attn.explain(target="sm_90").kernels
    assert forward.deterministic and not backward.deterministic
    assert "order of arrival" in str(backward)
    assert attn.explain(target="cpu").kernels[1].deterministic


@pytest.mark.parametrize("repeatable", [False, True])
def test_bits_vary_with_the_form_of_the_kernels(repeatable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Schedule(64, 128, grad_query=Schedule(128, 64) if repeatable else None)
    monkeypatch.setattr(explain, "tuned_here", lambda request: Pinned("gluon", schedule))
    _, backward = rg.attention(rg.causal()).explain(target="sm_90").kernels
    assert backward.deterministic == repeatable
    assert ("repeatable bit by bit" in str(backward)) == repeatable
    assert ("for queries: tiles of 128 queries × 64 keys" in str(backward)) == repeatable


def test_each_of_three_kernels_has_its_tiles() -> None:
    _, backward = rg.attention(rg.causal()).explain(target="sm_90", dtype="bf16", head_dim=256).kernels
    assert backward.skeleton == "gluon_backward" and backward.deterministic
    assert [x.partition(": tiles")[0].strip() for x in str(backward).split("\n")[2:]] == [
        "for keys", "for values", "for queries",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (((1, 3, 10, 64), (1, 2, 10, 64), (1, 2, 10, 64)), {}, "3 query heads cannot share 2 key/value heads"),
        (((1, 3, 10, 8),), {}, "head size 8"),
        (((3, 10, 64),), {}, "four axes"),
        (((1, 3, -10, 64),), {}, "expected a tensor or its shape"),
        (((1, 3, 10.5, 64),), {}, "expected a tensor or its shape"),
        ((4096,), {}, "expected a tensor or its shape, got 4096"),
        ((), {"head_dim": 8}, "head size 8"),
        ((), {"value_dim": 1000}, "head size 1000 of value"),
        ((), {"target": "sm_60"}, "sm_75 and later"),
        ((), {"target": 90}, "unknown target 90"),
        (((1, 1, 9, 64), (1, 1, 9, 64)), {}, "expected query, key and value"),
        ((), {"target": "h100"}, "unknown target 'h100'"),
        ((), {"window": 3}, "no open parameter 'window'"),
        ((), {"dtype": "f64"}, "dtype f64 is not supported"),
    ],
)
def test_wrong_inputs(inputs: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(rg.RegardError, match=message):
        rg.attention(rg.causal).explain(*inputs, **options)


def test_captured_tensors_are_checked_as_by_a_call() -> None:
    ids = torch.zeros(2, 53, dtype=torch.int32)
    message = r"ids has shape \(2, 53\), but axis 1 is indexed by `q`"
    with pytest.raises(rg.ArgumentError, match=message):
        rg.attention(rg.document(ids)).explain((2, 4, 100, 64))
    with pytest.raises(rg.ArgumentError, match=message):
        rg.attention(rg.document()).explain((2, 4, 100, 64), ids=ids)


def test_masked_pairs_may_index_anything() -> None:
    """Positions past all blocks attend to nothing, so their blocks need not exist."""
    blocks = torch.eye(4, dtype=torch.bool)
    attn = rg.attention(rg.tiles(blocks, 16))
    assert attn.explain((1, 1, 100, 64)).counts.tiles.visited == 1
    assert attn.explain((1, 1, 100, 64), exact=True).counts.pairs.pairs == 4 * 16 * 16


def test_notebooks_get_escaped_html() -> None:
    attn = rg.attention(window_and_sinks(window=100, sinks=4))
    assert "q - kv &lt; window" in attn._repr_html_()
    assert "<details>" in attn._repr_html_()
    assert "q - kv &lt; window" in attn.explain()._repr_html_()


def test_boxes_are_explained_axis_by_axis() -> None:
    attn = rg.attention(rg.neighborhood(rg.grid(16, 24), (5, 7)))
    report = str(attn.explain((1, 2, 384, 64), target="cpu"))
    for line in (
        "axis 0: 16 queries 24 positions apart, 16 keys 24 positions apart",
        "axis 1: 24 queries, 24 keys",
        "forward: PyTorch program over boxes, repeatable bit by bit",
        f"{2 * 16 * 5 * 24 * 7:,} of {2 * 384 * 384:,} pairs",
    ):
        assert line in report
    assert "tile_first" not in report


def test_targets_that_cannot_walk_boxes_say_what_these_would_decide() -> None:
    image = rg.grid(6, 8)

    @rg.mask
    def columns(q: Any, kv: Any, text: Any) -> Any:
        here, there = image(q - text // 2), image(kv - text // 2)
        return (q >= text // 2) & (kv >= text // 2) & (here[1] == there[1])

    report = str(rg.attention(columns(text=5)).explain(target="gfx942"))
    assert "boxes of a grid would decide more, but kernels for gfx942 walk runs of positions:" in report
    assert "begins at a position that is more than a sum" in report