"""A picture of the tiles of an attention: empty, partial, full. The only importer of matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..codegen.skeletons import walks_boxes
from ..ir.errors import ArgumentError, ParameterError, UnsupportedError
from ..ir.tiles import TilePlan
from ..ir.tiles.box_choice import choose_boxes
from ..ir.tiles.box_count import term_of_head
from ..ir.tiles.box_map import box_map
from ..ir.tiles.count import tile_map
from ..ir.tiles.numeric import Sizes
from ..ir.traverse import index_names, parameter_names
from .inspection import Setting, Shape, check_inputs, plan_of, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .attention import Attention

# Empty recedes, full stands out, partial is told apart by hue and by lightness, in print and by colour-blind readers.
COLOURS = {"empty": "#f1f3f4", "partial": "#f2a33a", "full": "#1f4e79"}
_MOST_LINES = 18
# So many pairs are evaluated in well under a second.
_FEW_PAIRS = 2**22
# Of boxes, whose classes are alike: more rows than this are left out. Borders of classes are drawn if they are few.
_MOST_BOXES = 512
_MOST_BORDERS = 64
# Along the longer side, unless the caller chooses the tile size: more than this cannot be told apart.
_MOST_TILES = 128


def plot(
    attn: Attention,
    *inputs: Tensor | Shape,
    path: str | Path | None = None,
    tile: int | tuple[int, int] | None = None,
    heads: Sequence[int] | None = None,
    batch: int = 0,
    exact: bool | None = None,
    boxes: bool | None = None,
    **parameters: Any,
) -> Figure:
    """Draws which tiles are empty, partial and full; writes it to ``path`` (.png, .svg …) if given.

    ``inputs``: query, key and value, or their shapes (batch, heads, length, head size), or one shape for all
    three. ``tile``: queries by keys of a tile, or one number for both; by default the power of two that gives at
    most 128 tiles a side, so that any length stays readable. ``heads``: those to draw, by default the
    first, or the first four if the mask depends on the head. ``parameters``: values of open parameters.

    ``exact``: decide tiles by evaluating the mask on all pairs, not by the analysis that the kernels follow
    (which may call an empty or a full tile partial); by default for at most 2**22 pairs, and where the kernels do so.
    The legend says which it was.

    ``boxes``: draw boxes of a grid, class by class, in place of runs of positions; by default where the kernels walk
    boxes and neither ``tile`` nor ``exact`` is given. ``tile`` is then their size, and the shape that visits the fewest
    is chosen. Disjoint parts of a mask have a panel each. Lines part classes; of very many, which are alike, the first
    are drawn.

    Returns the matplotlib figure. Raises :class:`UnsupportedError` if matplotlib is not installed, and the errors
    of a call with such inputs, but for computed indices, which ``explain`` reports.
    """
    try:
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UnsupportedError("plot needs matplotlib", hint="pip install matplotlib") from error

    if not inputs:
        raise ArgumentError("plot needs query, key and value, or their shapes", hint="attn.plot((1, 8, 4096, 64))")
    what = setting(attn, inputs, parameters=parameters)
    rows, columns = _tile_size(what, tile)
    assert what.sizes is not None  # there are inputs
    q_len, kv_len = what.sizes.q_len, what.sizes.kv_len
    check_inputs(attn, what)
    if boxes is None:
        boxes = tile is None and exact is None and walks_boxes(plan_of(attn, what), what.target)
    if boxes:
        size, panels = _box_panels(attn, what, (rows, columns), heads, batch)
        how = "as the analysis decides them"
    else:
        if exact is None:
            exact = q_len * kv_len <= _FEW_PAIRS or plan_of(attn, what).method == "exact"
        panels = _panels(attn, what, (rows, columns), heads, batch, exact)
        size = f"tiles of {rows} queries × {columns} keys" if rows * columns > 1 else "single pairs"
        how = "evaluated pair by pair" if exact else "as the analysis decides them"

    title = _title(attn, columns=74 * len(panels))

    class Picture(Figure):
        """Shown by notebooks as it is, whatever they have loaded."""

        def _repr_png_(self) -> bytes:
            file = BytesIO()
            self.savefig(file, format="png", dpi=100)
            return file.getvalue()

    # The layout does not count all of a legend with a title: without room to spare it covers labels.
    layout = ConstrainedLayoutEngine(h_pad=0.08)
    figure = Picture(figsize=(4.6 * len(panels) + 0.6, 5.6 + 0.17 * title.count("\n")), layout=layout)
    colours, norm = ListedColormap(list(COLOURS.values())), BoundaryNorm([0, 1, 2, 3], 3)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        height, width = (max(n, 1) for n in panel.classes.shape)
        extent = (0, width * panel.tile[1], height * panel.tile[0], 0)
        axes.imshow(panel.classes, cmap=colours, norm=norm, extent=extent, interpolation="nearest", aspect="equal")
        # The last tile may be cut short by the length.
        rows_shown, columns_shown = (max(n, 1) for n in panel.lengths)
        axes.set(xlim=(0, columns_shown), ylim=(rows_shown, 0), xlabel=panel.names[1], ylabel=panel.names[0])
        if panel.borders is not None and max(map(len, panel.borders)) < _MOST_BORDERS:
            for draw, ends in ((axes.axhline, panel.borders[0]), (axes.axvline, panel.borders[1])):
                for end in ends:
                    draw(end, color="#9aa0a6", linewidth=0.5)
        for axis, length in ((axes.xaxis, panel.lengths[1]), (axes.yaxis, panel.lengths[0])):
            ticks = _ticks(length)
            axis.set_ticks(ticks, [_position(x) for x in ticks])
        if len(panels) > 1:
            axes.set_title(panel.title, fontsize=9)
    figure.suptitle(title, fontsize=8, family="monospace", x=0.02, ha="left", linespacing=1.4)
    figure.legend(
        handles=[Patch(facecolor=c, edgecolor="#9aa0a6", label=name) for name, c in COLOURS.items()],
        title=f"{size}, {how}",
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
    if path is not None:
        known = figure.canvas.get_supported_filetypes()
        if (kind := Path(path).suffix.removeprefix(".").lower() or "png") not in known:
            raise ArgumentError(f"there is no picture format {kind!r}", hint='end the path in ".png" or ".svg"')
        figure.savefig(path, dpi=150)
    return figure


@dataclass(frozen=True, slots=True)
class _Panel:
    """One matrix of tiles: 0 empty, 1 partial, 2 full; what a tile and the whole count along rows and columns.

    ``borders`` are the rows and columns where a class ends.
    """

    title: str
    classes: npt.NDArray[np.int8]
    tile: tuple[int, int]
    lengths: tuple[int, int]
    names: tuple[str, str]
    borders: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None


def _panels(
    attn: Attention, what: Setting, tile: tuple[int, int], heads: Sequence[int] | None, batch: int, exact: bool
) -> list[_Panel]:
    """Tiles in the order of positions, one panel for each head."""
    plan, sizes, shown = _checked(attn, what, heads, batch)
    classes = tile_map(plan, sizes, what.numbers(), *tile, exact=exact)
    lengths, names = (sizes.q_len, sizes.kv_len), ("query position", "key position")
    return [_Panel(f"head {h}", _picked(classes, batch, h), tile, lengths, names) for h in shown]


def _box_panels(
    attn: Attention, what: Setting, tile: tuple[int, int], heads: Sequence[int] | None, batch: int
) -> tuple[str, list[_Panel]]:
    """Tiles in the order of boxes, class by class, one panel for each head and term; and what boxes they are."""
    plan, sizes, shown = _checked(attn, what, heads, batch)
    if not plan.boxes:
        raise ArgumentError(
            "this mask has neither coordinates nor classes to make boxes of", hint="leave out boxes=True"
        )
    panels, shapes = [], []
    for number, term in enumerate(plan.boxes):
        chosen = choose_boxes(term, sizes, what.numbers(), *tile)
        shapes.append(str(chosen))
        for head in shown:
            own = term_of_head(term, batch, head, sizes, what.numbers())
            found = box_map(own, chosen.queries, chosen.keys, sizes, what.numbers(), _MOST_BOXES)
            title = f"head {head}" if len(plan.boxes) == 1 else f"head {head}, part {number + 1}"
            picked = _picked(found.tiles, batch, head)
            lengths = (picked.shape[0], picked.shape[1])
            classes = f", {found.shown:,} of {found.total:,} classes" if found.shown < found.total else ""
            names = (f"box of queries{classes}", "box of keys")
            borders = (found.row_ends[:-1], found.column_ends[:-1])
            panels.append(_Panel(title, picked, (1, 1), lengths, names, borders))
    return f"boxes of {', and of '.join(shapes)}", panels


def _picked(classes: npt.NDArray[np.int8], batch: int, head: int) -> npt.NDArray[np.int8]:
    of_batch = classes[batch if classes.shape[0] > 1 else 0]
    return np.asarray(of_batch[head if of_batch.shape[0] > 1 else 0])


def _checked(
    attn: Attention, what: Setting, heads: Sequence[int] | None, batch: int
) -> tuple[TilePlan, Sizes, list[int]]:
    """The plan, the sizes, and the heads to draw."""
    plan = plan_of(attn, what)
    assert what.sizes is not None  # the caller checked
    sizes = what.sizes
    if missing := parameter_names(plan.variant.mask) - set(what.values):
        raise ParameterError(
            f"the mask reads {', '.join(sorted(missing))}", hint=f"pass values by keyword: {sorted(missing)[0]}=…"
        )
    if not 0 <= batch < sizes.batch:
        raise ArgumentError(f"there is no batch {batch}; there are {sizes.batch}")
    if heads is None:
        per_head = index_names(plan.variant.mask) & {"head", "kv_head"}
        heads = range(min(sizes.heads, 4 if per_head else 1))
    if wrong := [head for head in heads if not 0 <= head < sizes.heads]:
        raise ArgumentError(f"there is no head {wrong[0]}; there are {sizes.heads}")
    return plan, sizes, list(heads)


def _tile_size(what: Setting, tile: int | tuple[int, int] | None) -> tuple[int, int]:
    if isinstance(tile, tuple):
        rows, columns = tile
    elif tile is not None:
        rows = columns = tile
    else:
        assert what.sizes is not None  # the caller checked
        longest = max(what.sizes.q_len, what.sizes.kv_len, 1)
        rows = columns = 1 << max((longest - 1).bit_length() - _MOST_TILES.bit_length() + 1, 0)
    if min(rows, columns) < 1:
        raise ArgumentError(f"a tile has at least one position a side, got {rows} × {columns}")
    return rows, columns


def _title(attn: Attention, columns: int) -> str:
    """The text form, its long lines folded; what would take more room than the picture is cut off."""
    lines = [
        part
        for line in str(attn).splitlines()
        for part in textwrap.wrap(line, columns, subsequent_indent="    ")
    ]
    return "\n".join(lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], "    …"])


def _ticks(length: int) -> list[int]:
    """At most nine positions, multiples of a power of two, as tiles are."""
    step = 1 << max((length - 1).bit_length() - 3, 0)
    return list(range(0, length + 1, step))


def _position(x: int) -> str:
    """Positions in binary units, as lengths are.

    >>> _position(96), _position(4096), _position(3 << 18)
    ('96', '4k', '768k')
    """
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if x >= size and x % size == 0:
            return f"{x // size}{unit}"
    return str(x)
