"""Sharing the keys of one tile of queries between programs, and merging what they found."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent

from .emitter import Emitter
from .triton_tiles import TileLoops


def emit_shares(out: Emitter, loops: TileLoops) -> tuple[str, str]:
    """This share of the tiles, full ones first: the first, and the one after the last."""
    out.line(f"work = {loops.count}")
    out.line("begin = work * share // shares")
    out.line("end = work * (share + 1) // shares")
    return "begin", "end"


def emit_sums_of_share(out: Emitter, inside: str) -> None:
    """Of a share the maximum ``m`` and the sum ``l``, of which a logarithm would round one more time.

    No branch: it would take registers from the whole kernel.
    """
    out.line("total = tl.where(shares > 1, m, total)")
    out.line(f"tl.store(lse + lse_share // 2 + rows, l, mask=({inside}) & (shares > 1))")


def emit_merge(out: Emitter, *, fused: bool) -> None:
    """The kernel that merges shares, and the function that says how many; ``fused``: maxima are times log2(e)."""
    text = _merge_text(fused, "partial_out", "partial_sums", "row", "value_dim")
    out.section(_MERGE.format(merge=indent(text, "    ")))
    out.section(SHARE_COUNT)


def emit_merge_some(out: Emitter, name: str, *, fused: bool) -> None:
    """The kernel ``name``, which merges shares of some rows of each head, and the function that says how many."""
    text = _merge_text(fused, "partial_out", "partial_sums", "target", "value_dim")
    out.section(_SOME_ROWS.format(name=name, merge=indent(text, "    ")))
    out.section(SHARE_COUNT)


def emit_merge_rows(out: Emitter, name: str, numbers: int) -> None:
    """The kernel ``name``, which merges shares of those rows of tiles that a work list says, with ``numbers`` each.

    Shares of a row have places one after the other. Maxima are times log2(e).
    """
    merge = _OWN_SUMS + _merge_text(True, "own_out", "own_sums", "target", "width")
    _emit_cut_rows(out, name, numbers, "outputs", ("out", "lse", "partial_out", "partial_sums"), merge)


def emit_add_rows(out: Emitter, name: str, numbers: int) -> None:
    """The kernel ``name``, which adds up shares of those rows of tiles that a work list says, in the same way."""
    _emit_cut_rows(out, name, numbers, "sums", ("out", "partial_out"), _ADDED.strip("\n"))


def _emit_cut_rows(
    out: Emitter, name: str, numbers: int, what: str, tensors: Sequence[str], body: str
) -> None:
    """``body`` makes row ``target`` of what row ``row`` of ``shares`` shares has, from ``own_out`` on."""
    facts = {"name": name, "numbers": numbers, "what": what, "tensors": ", ".join(tensors)}
    out.section(_CUT_ROWS.format(**facts, integers=len(tensors) + 4, body=indent(body, " " * 12)))


def _merge_text(fused: bool, outputs: str, sums: str, target: str, width: str) -> str:
    """Merges row ``row`` of all shares, of ``rows`` each, to row ``target``."""
    if fused:
        weight, total = "top_of_share - top", "(top + tl.log2(total)) * LN2"
    else:
        weight, total = "(top_of_share - top) * LOG2E", "top + tl.log(total)"
    text = _MERGED.format(weight=weight, total=total, outputs=outputs, sums=sums, target=target, width=width)
    return text.strip("\n")


_MERGE = '''

@triton.jit(do_not_specialize=range(7))
def merge_shares(
    out, lse, partial_out, partial_sums, rows: "i32", shares: "i32", value_dim: "i32",
    COLUMNS: tl.constexpr,
):
    """One row: outputs of all shares, weighted by their sums of exponentials, in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    rows = rows.to(tl.int64)
    columns = tl.arange(0, COLUMNS)
{merge}
'''
SHARE_COUNT = '''
def share_count(programs, tiles, device):
    """Into how many shares to cut the keys so that all multiprocessors have work; each gets at least two tiles."""
    multiprocessors, _ = device_limits(device)
    return max(1, min(2 * multiprocessors // max(programs, 1), tiles // 2, 128))
'''
# One row: outputs of all shares, weighted by their sums of exponentials, in a fixed order.
_MERGED = """
top = -3.0e38
for share in range(0, shares):
    top = tl.maximum(top, tl.load({sums} + 2 * share * rows + row))
total = 0.0
acc = tl.zeros([COLUMNS], tl.float32)
for share in range(0, shares):
    source = {sums} + 2 * share * rows + row
    top_of_share = tl.load(source)
    weight = tl.exp2({weight}) * tl.load(source + rows)
    total += weight
    place = (share * rows + row) * {width} + columns
    acc += weight * tl.load({outputs} + place, mask=columns < {width}, other=0.0)
empty = total == 0.0
total = tl.where(empty, 1.0, total)
tl.store(out + {target} * {width} + columns, (acc / total).to(out.dtype.element_ty), mask=columns < {width})
tl.store(lse + {target}, tl.where(empty, float("-inf"), {total}))
"""
_ADDED = """
total = tl.zeros([COLUMNS], tl.float32)
for some in range(0, shares, 8):
    share = some + tl.arange(0, 8)[:, None]
    place = (share * rows + row) * width + columns[None, :]
    inside = (share < shares) & (columns < width)[None, :]
    total += tl.sum(tl.load(own_out + place, mask=inside, other=0.0), 0)
tl.store(out + target * width + columns, total.to(out.dtype.element_ty), mask=columns < width)
"""
_OWN_SUMS = "own_sums = partial_sums + first * 2 * rows\n"
_SOME_ROWS = '''

@triton.jit(do_not_specialize=range(10))
def {name}(
    out, lse, partial_out, partial_sums, rows: "i32", shares: "i32", value_dim: "i32",
    count: "i32", first: "i32", length: "i32",
    COLUMNS: tl.constexpr,
):
    """One of ``count`` rows of a head: outputs of all shares, in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    rows = rows.to(tl.int64)
    target = row // count * length + first + row % count
    columns = tl.arange(0, COLUMNS)
{merge}
'''
_CUT_ROWS = '''

@triton.jit(do_not_specialize=range({integers}))
def {name}(
    {tensors}, work, heads: "i32", length: "i32", width: "i32",
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """Those rows of tiles that were cut: {what} of all shares, in a fixed order."""
    tiles, places, lines = tl.load(work + 1), tl.load(work + 2), tl.load(work + 3)
    columns = tl.arange(0, COLUMNS)
    rows = ROWS
    for number in range(tl.program_id(0), heads * tiles * rows, tl.num_programs(0)):
        entry, row = number // rows // tiles, number % rows
        tile = work + {numbers} * (1 + lines + number // rows % tiles)
        position = tl.load(tile) * rows + row
        if position < length:
            first, shares = (entry * places + tl.load(tile + 1)).to(tl.int64), tl.load(tile + 2)
            own_out = partial_out + first * rows * width
            target = entry.to(tl.int64) * length + position
{body}
'''
