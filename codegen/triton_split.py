"""Sharing the keys of one tile of queries between programs, and merging what they found."""

from __future__ import annotations

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
    if fused:
        weight, total = "top_of_share - top", "(top + tl.log2(total)) * LN2"
    else:
        weight, total = "(top_of_share - top) * LOG2E", "top + tl.log(total)"
    out.section(_MERGE.format(weight=weight, total=total))


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
    top = -3.0e38
    for share in range(0, shares):
        top = tl.maximum(top, tl.load(partial_sums + 2 * share * rows + row))
    total = 0.0
    acc = tl.zeros([COLUMNS], tl.float32)
    for share in range(0, shares):
        source = partial_sums + 2 * share * rows + row
        top_of_share = tl.load(source)
        weight = tl.exp2({weight}) * tl.load(source + rows)
        total += weight
        place = (share * rows + row) * value_dim + columns
        acc += weight * tl.load(partial_out + place, mask=columns < value_dim, other=0.0)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    tl.store(out + row * value_dim + columns, (acc / total).to(out.dtype.element_ty), mask=columns < value_dim)
    tl.store(lse + row, tl.where(empty, float("-inf"), {total}))


def share_count(programs, tiles, device):
    """Into how many shares to cut the keys so that all multiprocessors have work; each gets at least two tiles."""
    multiprocessors, _ = device_limits(device)
    return max(1, min(2 * multiprocessors // max(programs, 1), tiles // 2, 128))
'''
