"""The loop over tiles of a printed CPU program: which runs of keys each tile of queries visits.

A run is a stretch of keys that one matrix product covers; inside it, the mask is evaluated only on the
*masked* spans, the parts that are not proved full. Runs are slices, so nothing is rounded to tiles.
"""

from __future__ import annotations

from ..ir.nodes import Expr, Index
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import walk
from ..ir.types import I32
from .emitter import Emitter
from .print_torch import Scope
from .torch_definitions import Call, emit_ranges

# Names that the printed loop uses; see `RESERVED` in torch_definitions.
TILE_NAMES = frozenset((
    "BLOCK_M", "BLOCK_N", "TILE", "MERGE", "PLAIN", "LINE", "tile_loop", "runs_of", "joined", "key_ranges", "hull",
    "intervals", "tile_classes", "may", "must", "here", "start", "stop", "runs", "items", "limit", "masked",
    "end", "tile",
))  # fmt: skip

# Arguments of the ranges that the loop itself provides.
_OWN = frozenset(("first", "last", "batch", "q_len", "kv_len"))

_RUNS = '''
def joined(intervals, kv_len, gap):
    """The intervals cut to 0..kv_len, in order, those at most ``gap`` keys apart as one."""
    result = []
    for start, stop in sorted((max(start, 0), min(stop, kv_len)) for start, stop in intervals):
        if start >= stop:
            continue
        if result and start <= result[-1][1] + gap:
            result[-1][1] = max(result[-1][1], stop)
        else:
            result.append([start, stop])
    return result


def runs_of(may, must, kv_len, limit):
    """Runs (start, stop, masked spans) of at most ``limit`` keys that cover what may attend.

    Long runs are widened to whole lines of the cache: reductions of other rows are twice as slow.
    A short full span between masked ones is masked too: the mask costs less than another span.
    """
    full = [(a + -a % LINE, b - b % LINE if b < kv_len else b) for a, b in joined(must, kv_len, 0)]
    full = [(a, b) for a, b in full if b - a >= PLAIN]
    runs = []
    for first, last in joined(may, kv_len, MERGE):
        if last - first >= MERGE:
            first, last = first - first % LINE, min(last + -last % LINE, kv_len)
        for start in range(first, last, limit):
            stop, masked, at = min(start + limit, last), [], start
            for a, b in full:
                if a < stop and b > at:
                    if a > at:
                        masked.append((at, a))
                    at = min(b, stop)
            if at < stop:
                masked.append((at, stop))
            runs.append((start, stop, masked))
    return runs
'''

_HULL = '''
def hull(bound, reduce, tiles):
    """One bound for each tile over all heads and batch items, as a list."""
    bound = torch.as_tensor(bound, device="cpu")
    bound, _ = torch.broadcast_tensors(bound, torch.empty(1, 1, tiles, 1, device="cpu"))
    return reduce(bound, dim=(0, 1, 3)).tolist()
'''

_INTERVALS = '''
def intervals(marked):
    """The stretches of marked tiles in each row of a (rows, columns) table, as (start, stop) in keys."""
    edges = torch.diff(torch.nn.functional.pad(marked.int(), (1, 1)))
    rows = [[] for _ in range(len(marked))]
    for (row, start), (_, stop) in zip((edges == 1).nonzero().tolist(), (edges == -1).nonzero().tolist()):
        rows[row].append((start * BLOCK_N, stop * BLOCK_N))
    return rows


def tile_classes(indices, counts):
    """From lists of tiles back to a table: 2 full, 1 partial, 0 empty; ``indices`` has each tile once."""
    place = torch.arange(indices.shape[-1], device="cpu")
    full, some = counts[..., :1], counts.sum(-1, keepdim=True)
    return torch.zeros_like(indices).scatter_(-1, indices.long(), (place < full).int() + (place < some).int())
'''


def batch_matters(plan: TilePlan) -> bool:
    """Whether the tile structure may differ from one batch item to the next."""
    if plan.method != "closed":
        return _reads_batch(plan.variant.mask)
    parts = (*plan.keys.may, *plan.keys.must)
    return any(_reads_batch(e) for i in parts for e in (i.start, i.stop))


def _reads_batch(e: Expr) -> bool:
    return Index("batch", I32) in set(walk(e))


def emit_tile_loop(out: Emitter, plan: TilePlan, scope: Scope) -> Call:
    """Prints the generator over tiles.

    It yields ``(here, first, stop, runs)``: a slice of the batch, the queries ``first <= q < stop``, and
    the runs of keys. Where the structure depends on the batch item, long sequences go one by one.
    """
    closed = plan.method == "closed"
    ranges = emit_ranges(out, "key_ranges", plan.keys, scope) if closed else None
    for text in (_HULL if closed else _INTERVALS, _RUNS):
        out.definition(text)
    sizes = ("batch_size", "heads", "q_len", "kv_len")
    inputs = ("tiles",) if ranges is None else (x for x in ranges.arguments if x not in _OWN)
    call = Call("tile_loop", (*sizes, *inputs))
    with out.define(str(call)):
        out.line('"""Yields (slice of the batch, first query, end of the queries, runs of keys) tile by tile."""')
        many = "1 if heads * BLOCK_M * kv_len > TILE else batch_size"
        # Work on all items at once amortises the interpreter; one by one skips more.
        out.line(f"items = {many if batch_matters(plan) else 'batch_size'}")
        out.line("limit = max(TILE // (items * heads * BLOCK_M) // LINE * LINE, MERGE)")
        if closed:
            out.line('first = torch.arange(0, q_len, BLOCK_M, device="cpu")[:, None]')
            out.line("last = (first + (BLOCK_M - 1)).clamp(max=q_len - 1)")
        with out.block("for item in range(0, batch_size, items):"):
            out.line("here = slice(item, item + items)")
            if ranges is not None:
                if "batch" in ranges.arguments:
                    out.line('batch = torch.arange(batch_size, device="cpu")[here, None, None, None]')
                out.line(f"may, must = {ranges}")
                out.line("may = [(hull(a, torch.amin, len(first)), hull(b, torch.amax, len(first))) for a, b in may]")
                out.line("must = [(hull(a, torch.amax, len(first)), hull(b, torch.amin, len(first))) for a, b in must]")
            else:
                out.line("table = tile_classes(*(x[here] if len(x) > 1 else x for x in tiles))")
                out.line("may, must = intervals(table.amax((0, 1)) > 0), intervals(table.amin((0, 1)) == 2)")
            with out.block("for tile, start in enumerate(range(0, q_len, BLOCK_M)):"):
                if closed:
                    out.line("some = [(a[tile], b[tile]) for a, b in may]")
                    out.line("full = [(a[tile], b[tile]) for a, b in must]")
                    out.line("runs = runs_of(some, full, kv_len, limit)")
                else:
                    out.line("runs = runs_of(may[tile], must[tile], kv_len, limit)")
                with out.block("if runs:"):
                    out.line("yield here, start, min(start + BLOCK_M, q_len), runs")
    return call
