"""The CPU's loop over boxes whose axes depend on each other: key by key along one axis after the other.

Which of the keys along an axis a box of queries sees is asked for every key along the axes before, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir.nodes import Expr
from ..ir.tiles.narrowing import run_of
from ..ir.tiles.plan import BoxTerm
from .emitter import Emitter
from .torch_definitions import Call

SEEN = '''
def seen(may, must, count, low, high):
    """The coordinates low..high that ``count`` lines see: (line, coordinate (n, 1), whether all queries see it)."""
    x = torch.arange(low, high, device="cpu")

    def inside(union, least, most):
        found = torch.zeros(count, len(x), dtype=torch.bool, device="cpu")
        for start, stop in union:
            found |= (hull(start, least, count)[:, None] <= x) & (x < hull(stop, most, count)[:, None])
        return found

    some, every = inside(may, torch.amin, torch.amax), inside(must, torch.amax, torch.amin)
    line, place = some.nonzero(as_tuple=True)
    return line, x[place, None], every[line, place]


def run_of(tile, stride, block, offset, residue):
    """The positions of a tile along its axis: (first position, number, distance)."""
    b, c, first, last = tile
    return stride * (block * b - offset + c + residue * first), last - first + 1, stride * residue
'''


def names_before(axes: int) -> dict[str, str]:
    """Variables for the boxes along every axis, by the names that they have in ranges along later ones."""
    found: dict[str, str] = {}
    for i in range(axes):
        names = [end.name for position in ("q", "kv") for end in run_of(position, i)]
        found |= {name: name.replace(" ", "_") for name in (*names, f"block {i}", f"residue {i}")}
    return found


NESTED_NAMES = frozenset((
    "seen", "run_of", "inside", "found", "least", "most", "some", "every", "line", "place", "tile", "certain",
    *names_before(8).values(),
))  # fmt: skip


def emit_nested(out: Emitter, term: BoxTerm, ranges: Sequence[Call], shown: Callable[[Expr], str]) -> None:
    """``visits``: every box of queries with the keys that it sees, those that all of it sees apart.

    ``queries``, ``keys`` and ``extents`` have the classes and sizes along the axes; ``shown`` prints a number.
    """
    every_tile = "itertools.product(*map(tiles_along, queries, sides_of(extents, BLOCK_M)))"
    with out.block("def every_box():"), out.block(f"for tiles in {every_tile}:"):
        for i in range(len(term.axes)):
            out.line(f"block_{i}, residue_{i}, q_first_{i}, q_last_{i} = columns_of(tiles[{i}:{i + 1}])")
        out.line(f'places = torch.tensor([[{shown(term.key_origin)}]], device="cpu")')
        out.line('certain = torch.ones(1, dtype=torch.bool, device="cpu")')
        for i, (a, call) in enumerate(zip(term.axes, ranges, strict=True)):
            out.line(f"block, residue, first, last = block_{i}, residue_{i}, q_first_{i}, q_last_{i}")
            out.line(f"may, must = {call}")
            shift = "" if a.residue == 1 else f" + {shown(a.shift)}"
            out.line(f"b, c = tiles[{i}][0], (tiles[{i}][1]{shift}) % {a.residue}")
            out.line(f"low, high = keys[{i}].get((b, c), (0, 0))")
            out.line("line, x, every = seen(may, must, len(places), low, high)")
            y = f"{a.block} * b - {shown(a.offset)} + c + {a.residue} * x" if a.has_classes else "x"
            out.line(f"places = places[line] + {a.key.stride} * ({y})")
            out.line("certain = certain[line] & every")
            for j in range(i):
                out.line(f"kv_first_{j} = kv_last_{j} = kv_first_{j}[line]")
            out.line(f"kv_first_{i} = kv_last_{i} = x")
        runs = [
            f"[run_of(tiles[{i}], {a.query.stride}, {a.block}, {shown(a.offset)}, {a.residue})]"
            for i, a in enumerate(term.axes)
        ]
        out.line(f"rows = places_of([{', '.join(runs)}], {shown(term.query_origin)}, q_len)")
        out.line("places = places.flatten()")
        with out.block("for full in (True, False):"):
            out.line("yield rows, places[(certain == full) & (places >= 0) & (places < kv_len)], full")
    out.line()
    out.line("visits = every_box()")
