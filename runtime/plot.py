"""A picture of the tiles of an attention: empty, partial, full. The only importer of matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..ir.errors import ArgumentError, ParameterError, UnsupportedError
from ..ir.grids import check_lengths
from ..ir.tiles.count import tile_map
from ..ir.traverse import index_names, parameter_names
from .inspection import Setting, Shape, plan_of, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .attention import Attention

# Empty recedes, full stands out, partial is told apart by hue and by lightness, in print and by colour-blind readers.
COLOURS = {"empty": "#f1f3f4", "partial": "#f2a33a", "full": "#1f4e79"}
# So many pairs are evaluated in well under a second.
_FEW_PAIRS = 2**22
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

    Returns the matplotlib figure. Raises :class:`UnsupportedError` if matplotlib is not installed, and the errors
    of a call with such inputs.
    """
    try:
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UnsupportedError("plot needs matplotlib", hint="pip install matplotlib") from error

    if not inputs:
        raise ArgumentError("plot needs query, key and value, or their shapes", hint="attn.plot((1, 8, 4096, 64))")
    what = setting(attn, inputs, parameters=parameters)
    rows, columns = _tile_size(what, tile)
    assert what.sizes is not None  # there are inputs
    q_len, kv_len = what.sizes.q_len, what.sizes.kv_len
    check_lengths(attn.variant, q_len, kv_len)
    if exact is None:
        exact = q_len * kv_len <= _FEW_PAIRS or plan_of(attn, what).method == "exact"
    shown, maps = _maps(attn, what, (rows, columns), heads, batch, exact)

    size = f"tiles of {rows} queries × {columns} keys" if rows * columns > 1 else "single pairs"
    title = _title(attn, columns=74 * len(shown))
    figure = Figure(figsize=(4.6 * len(shown) + 0.6, 5.4 + 0.17 * title.count("\n")), layout="constrained")
    colours, norm = ListedColormap(list(COLOURS.values())), BoundaryNorm([0, 1, 2, 3], 3)
    for axes, head, classes in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, maps, strict=True):
        extent = (0, max(classes.shape[1], 1) * columns, max(classes.shape[0], 1) * rows, 0)
        axes.imshow(classes, cmap=colours, norm=norm, extent=extent, interpolation="nearest", aspect="equal")
        # The last tile may be cut short by the length.
        axes.set(xlim=(0, max(kv_len, 1)), ylim=(max(q_len, 1), 0), xlabel="key position", ylabel="query position")
        for axis, length in ((axes.xaxis, kv_len), (axes.yaxis, q_len)):
            ticks = _ticks(length)
            axis.set_ticks(ticks, [_position(x) for x in ticks])
        if len(shown) > 1:
            axes.set_title(f"head {head}", fontsize=9)
    figure.suptitle(title, fontsize=8, family="monospace", x=0.02, ha="left", linespacing=1.4)
    figure.legend(
        handles=[Patch(facecolor=c, edgecolor="#9aa0a6", label=name) for name, c in COLOURS.items()],
        title=f"{size}, {'evaluated pair by pair' if exact else 'as the analysis decides them'}",
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _maps(
    attn: Attention, what: Setting, tile: tuple[int, int], heads: Sequence[int] | None, batch: int, exact: bool
) -> tuple[list[int], list[Any]]:
    """The heads to draw, and for each the class of every tile: 0 empty, 1 partial, 2 full."""
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
    classes = tile_map(plan, sizes, what.numbers(), *tile, exact=exact)
    picked = classes[batch if classes.shape[0] > 1 else 0]
    return list(heads), [picked[head if picked.shape[0] > 1 else 0] for head in heads]


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
    """The text form, its long lines folded."""
    lines = (textwrap.wrap(line, columns, subsequent_indent="    ") for line in str(attn).splitlines())
    return "\n".join(part for line in lines for part in line)


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
