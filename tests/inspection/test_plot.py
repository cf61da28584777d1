"""Pictures of tiles: what is drawn, at any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import regard as rg
from regard.dsl import Part

backend_agg = pytest.importorskip("matplotlib.backends.backend_agg")


@rg.mask
def per_head_window(q: Tensor, kv: Tensor, head: Tensor) -> Tensor:
    return (q >= kv) & (q - kv < 16 * (head + 1))


def drawn(figure: Any) -> list[np.ndarray[Any, Any]]:
    """The classes of tiles in each panel."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize("length", [1, 64, 1000, 4096, 2**20])
def test_any_length_stays_readable(length: int) -> None:
    figure = rg.attention(rg.causal).plot((1, 2, length, 64))
    (classes,) = drawn(figure)
    assert max(classes.shape) <= 128
    assert length < 64 or min(classes.shape) >= 64
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, length) and axes.get_ylim() == (length, 0)
    assert len(axes.get_xticks()) <= 9
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key position", "query position")


def test_classes_are_those_of_the_mask() -> None:
    shapes = (1, 1, 90, 64), (1, 1, 70, 64), (1, 1, 70, 64)
    (classes,) = drawn(rg.attention(rg.sliding_window(20)).plot(*shapes, tile=16))
    distance = torch.arange(90)[:, None] - torch.arange(70)
    allowed = (distance >= 0) & (distance <= 20)
    for (row, column), found in np.ndenumerate(classes):
        tile = allowed[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert found == (2 if tile.all() else 1 if tile.any() else 0)


def test_heads_are_drawn_where_they_differ() -> None:
    attn = rg.attention(per_head_window)
    panels = drawn(attn.plot((1, 6, 256, 64)))
    assert len(panels) == 4
    assert (panels[0] != panels[3]).any()
    chosen = attn.plot((1, 6, 256, 64), heads=[5])
    assert drawn(chosen)[0].sum() > panels[3].sum()
    assert len(drawn(rg.attention(rg.causal).plot((1, 6, 256, 64)))) == 1


def test_batches_may_differ() -> None:
    attn = rg.attention(rg.padding())
    lengths = torch.tensor([10, 200], dtype=torch.int32)
    first, second = (drawn(attn.plot((2, 1, 256, 64), lengths=lengths, batch=b))[0] for b in (0, 1))
    assert first.sum() < second.sum()


def test_files_and_title(tmp_path: Path) -> None:
    attn = rg.attention(rg.causal, rg.softcap(30.0))
    figure = attn.plot((1, 1, 256, 64), path=tmp_path / "tiles.png")
    assert (tmp_path / "tiles.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == str(attn)
    attn.plot((1, 1, 256, 64), path=tmp_path / "tiles.svg")
    assert "<svg" in (tmp_path / "tiles.svg").read_text()


@pytest.mark.parametrize("part", [rg.causal, rg.neighborhood(rg.grid(8, 8), 3, dilation=2)], ids=["short", "long"])
def test_nothing_covers_anything(part: Part) -> None:
    figure = rg.attention(part).plot((1, 1, 64, 64))
    canvas = backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    title, legend = (x.get_window_extent() for x in (*figure.texts, *figure.legends))
    (axes,) = figure.axes
    drawn = axes.get_tightbbox(canvas.get_renderer())
    assert legend.y1 < drawn.y0 < drawn.y1 < title.y0


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((), {}, "plot needs query, key and value"),
        (((1, 1, 8, 64),), {"heads": [1]}, "there is no head 1"),
        (((1, 1, 8, 64),), {"batch": 1}, "there is no batch 1"),
        (((1, 1, 8, 64),), {"tile": 0}, "at least one position"),
        (((1, 1, 8, 64),), {"path": "tiles.xyz"}, "no picture format 'xyz'"),
    ],
)
def test_wrong_inputs(inputs: tuple[object, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(rg.ArgumentError, match=message):
        rg.attention(rg.causal).plot(*inputs, **options)


def test_captured_tensors_are_checked_as_by_a_call() -> None:
    attn = rg.attention(rg.document(torch.zeros(2, 53, dtype=torch.int32)))
    with pytest.raises(rg.ArgumentError, match=r"ids has shape \(2, 53\), but axis 1 is indexed by `q`"):
        attn.plot((2, 4, 100, 64))


def test_missing_data_is_asked_for() -> None:
    with pytest.raises(rg.ParameterError, match="the mask reads lengths"):
        rg.attention(rg.padding()).plot((1, 1, 64, 64))


def test_legend_says_how_tiles_were_decided() -> None:
    attn = rg.attention(rg.causal, rg.dilated(4))
    evaluated, analysed = (attn.plot((1, 1, 64, 64), exact=exact) for exact in (True, False))
    assert [figure.legends[0].get_title().get_text() for figure in (evaluated, analysed)] == [
        "single pairs, evaluated pair by pair",
        "single pairs, as the analysis decides them",
    ]
    assert (drawn(evaluated)[0] == 2).sum() == sum(q // 4 + 1 for q in range(64))
    # Sound: what the analysis calls empty holds nothing.
    assert not drawn(evaluated)[0][drawn(analysed)[0] == 0].any()


def test_boxes_are_drawn_class_by_class() -> None:
    figure = rg.attention(rg.windows(rg.grid(8, 12), 4)).plot((1, 1, 96, 64), boxes=True)
    (classes,) = drawn(figure)
    boxes = len(classes) // 6  # of each of the 2 × 3 windows
    expected = np.kron(np.eye(6, dtype=int) * 2, np.ones((boxes, classes.shape[1] // 6), int))
    np.testing.assert_array_equal(classes, expected)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("box of keys", "box of queries")


def test_disjoint_parts_have_a_panel_each() -> None:
    attn = rg.attention(rg.strided(8))
    assert len(drawn(attn.plot((1, 1, 256, 64)))) == (2 if not torch.cuda.is_available() else 1)
    assert len(drawn(attn.plot((1, 1, 256, 64), boxes=False))) == 1
    local, far = drawn(attn.plot((1, 2, 256, 64), boxes=True))
    assert (local.diagonal() > 0).all() and (far == 2).any()


@pytest.mark.parametrize("length", [64, 2**20])
def test_boxes_stay_readable_at_any_length(length: int) -> None:
    figure = rg.attention(rg.causal, rg.dilated(4)).plot((1, 1, length, 64), boxes=True)
    (classes,) = drawn(figure)
    assert 16 <= max(classes.shape) <= 128


def test_of_many_classes_the_first_are_drawn() -> None:
    """A quarter of a million windows: as many rows as can be told apart, and what they are is said."""
    figure = rg.attention(rg.windows(rg.grid(1024, 1024), 2)).plot((1, 1, 2**20, 64))
    (classes,) = drawn(figure)
    assert 128 <= len(classes) <= 512 and (classes == 2 * np.eye(len(classes), dtype=int)).all()
    assert f"{len(classes)} of 262,144 classes" in figure.axes[0].get_ylabel()


def test_notebooks_show_it_inline() -> None:
    figure: Any = rg.attention(rg.causal).plot((1, 1, 64, 64))
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_long_titles_are_cut() -> None:
    title = rg.attention(rg.random_blocks(16, 8)).plot((1, 1, 64, 64)).get_suptitle()
    assert len(title.splitlines()) <= 18 and title.endswith("…")


def test_lines_part_classes() -> None:
    figure = rg.attention(rg.causal, rg.dilated(4)).plot((1, 1, 64, 64), boxes=True, tile=4)
    (axes,) = figure.axes
    across = [y for y, end in (line.get_ydata() for line in axes.lines) if y == end]
    assert sorted(across) == [4, 8, 12]


def test_runs_of_positions_have_no_boxes_to_draw() -> None:
    with pytest.raises(rg.ArgumentError, match="neither coordinates nor classes"):
        rg.attention(rg.causal).plot((1, 1, 64, 64), boxes=True)
