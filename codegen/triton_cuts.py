"""Tables of tiles that begin anew where data changes, see :mod:`..ir.tiles.cuts`.

One program for each row of the data walks along it and writes where tiles begin. Where data changes so often that tiles
would be many more than multiples of their size make, those are taken, and the table says that tiles mix what is equal
with what is not. So nothing is assumed of the data: changes that are found are all that counts, whatever their order.
"""

from __future__ import annotations

from ..ir.nodes import Expr, Reduction
from ..ir.tiles.cuts import ROOM, Cuts
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import walk
from .emitter import Emitter
from .triton_classify import ENTRY, Classify, emit_all
from .triton_module import Argument, emit_launch, kernel
from .triton_program import INDICES
from .triton_values import Values

# Numbers of a row in the table besides those of its tiles: its first position, the one after its last, and whether
# what is equal is mixed in its tiles.
OWN_FIRST, OWN_STOP, MIXED = 4, 5, 6
NUMBERS = 8

_MOST_TILES = f'''
def most_tiles(length, block):
    """How many tiles there is room for: {ROOM} times as many as without cuts."""
    return {ROOM} * triton.cdiv(length, block)
'''
_TILES = f"""
q_tiles, kv_tiles = {ROOM} * tl.cdiv(q_len, BLOCK_M), {ROOM} * tl.cdiv(kv_len, BLOCK_N)
"""
# Of each row of data: where tiles begin, the length where there are none left, and 1 if that is where data changes.
_DECIDED = """
if BY_KEY:
    q_tile, kv_tile = tl.minimum(column, q_tiles - 1), row
    exists = column < q_tiles
else:
    q_tile, kv_tile = row, tl.minimum(column, kv_tiles - 1)
    exists = column < kv_tiles
q_place = q_firsts + entry.to(tl.int64) * (q_tiles + 2) + q_tile
kv_place = kv_firsts + entry.to(tl.int64) * (kv_tiles + 2) + kv_tile
q_first, q_stop, kv_first, kv_stop = tl.load(q_place), tl.load(q_place + 1), tl.load(kv_place), tl.load(kv_place + 1)
exists &= (q_first < q_stop) & (kv_first < kv_stop)
whole = kv_stop - kv_first == BLOCK_N
if BY_KEY:
    # Keys that belong to the next tile would add to gradients of queries.
    whole &= q_stop - q_first == BLOCK_M
"""
_STORED_TOO = f"""
q_own = q_firsts + entry.to(tl.int64) * (q_tiles + 2)
kv_own = kv_firsts + entry.to(tl.int64) * (kv_tiles + 2)
if BY_KEY:
    own = kv_own
else:
    own = q_own
tl.store(counts + {OWN_FIRST}, tl.load(own + row))
tl.store(counts + {OWN_STOP}, tl.load(own + row + 1))
tl.store(counts + {MIXED}, 1 - tl.load(q_own + q_tiles + 1) * tl.load(kv_own + kv_tiles + 1))"""
_LATER = '''
@triton.jit
def later(a, b):
    """The later of two positions."""
    return tl.maximum(a, b)
'''
# Along one axis; what changes there is found between the two.
_BEFORE_CHANGES = """
tiles = tl.cdiv({axis}_len, {block})
most = {room} * tiles
firsts = {axis}_firsts + entry.to(tl.int64) * (most + 2)
count, since = 0, 0
for begin in range(0, {axis}_len, CHUNK):
    place = begin + tl.arange(0, CHUNK)
    inside = place < {axis}_len
    {axis}_index = tl.minimum(place, {axis}_len - 1)
    before = tl.maximum({axis}_index - 1, 0)
"""
_AFTER_CHANGES = """
    start = tl.maximum(tl.associative_scan(tl.where(inside & changes, place, 0), 0, later), since)
    begins = tl.where(inside & ((place - start) % {block} == 0), 1, 0)
    number = count + tl.cumsum(begins, 0) - 1
    tl.store(firsts + number, place, mask=(begins != 0) & (number < most))
    count += tl.sum(begins, 0)
    since = tl.max(start, 0)
is_cut = count <= most
count = tl.where(is_cut, count, tiles)
# What is not where data changes starts at multiples of the size; past the last tile is the length.
for begin in range(0, most + 1, CHUNK):
    number = begin + tl.arange(0, CHUNK)
    regular = tl.minimum(number * {block}, {axis}_len)
    first = tl.where(number < count, regular, {axis}_len)
    kept = is_cut & (number < count)
    tl.store(firsts + number, first, mask=(number <= most) & ~kept)
tl.store(firsts + most + 1, tl.where(is_cut, 1, 0))
tl.store({axis}_counts + entry, count)
"""


def cuts_of(plan: TilePlan) -> Cuts | None:
    """How tiles may be cut; None where they may not."""
    found = Cuts.of(plan.variant.mask)
    conditions = plan.classification
    if found is None or conditions is None:
        return None
    reductions = (x for e in (conditions.may, conditions.must) for x in walk(e) if isinstance(x, Reduction))
    return None if any(x.axis == "both" for x in reductions) else found


def cut_arguments(kind: str) -> list[Argument]:
    """What a table of cut tiles has besides; ``kind`` names the tuple in ``run``."""
    return [
        Argument("tile_firsts", "", f"{kind}[2]"),
        Argument("tile_firsts_batch", "i64", f"broadcast_stride({kind}[2], 0)"),
        Argument("tile_firsts_head", "i64", f"broadcast_stride({kind}[2], 1)"),
        Argument("tile_rows", "", f"{kind}[3]"),
    ]


class CutClassify(Classify):
    """The same for tiles that are cut: their first positions are read, and come with the table."""

    numbers, words = NUMBERS, "eight"
    tiles, decided, stored_too = _TILES, _DECIDED, _STORED_TOO
    # Where the tiles begin that a row visits, and how many rows there are, at most, in a batch and head.
    returned_too = ("kv_firsts, q_counts.amax(0, keepdim=True)", "q_firsts, kv_counts.amax(0, keepdim=True)")

    def __init__(self, plan: TilePlan, cuts: Cuts) -> None:
        super().__init__(plan, ("", ""))
        self.cuts = cuts
        self.data = self.facts
        firsts = [Argument(f"{axis}_firsts", "", f"{axis}_firsts") for axis in ("q", "kv")]
        self.facts = [*firsts, *self.facts]

    @property
    def kernels(self) -> tuple[str, ...]:
        return "cut_tiles", *super().kernels

    def emit(self, out: Emitter, by_query: tuple[int, int], by_key: tuple[int, int] | None) -> None:
        out.section(_MOST_TILES)
        out.section(_LATER)
        out.section()
        self._emit_cut(out)
        super().emit(out, by_query, by_key)

    def _emit_cut(self, out: Emitter) -> None:
        counts = [Argument(f"{axis}_counts", "", f"{axis}_counts") for axis in ("q", "kv")]
        self.cut_arguments = [*counts, *self.facts]
        with kernel(out, "cut_tiles", self.cut_arguments, ("BLOCK_M", "BLOCK_N", "CHUNK")):
            out.line('"""Where tiles begin: where data changes, and from there on at multiples of their size."""')
            out.line("entry = tl.program_id(0) // 2")
            out.lines(ENTRY)
            with out.block("if tl.program_id(0) % 2 == 0:"):
                self._emit_axis_cuts(out, "q", "BLOCK_M", self.cuts.by_query)
            with out.block("else:"):
                self._emit_axis_cuts(out, "kv", "BLOCK_N", self.cuts.by_key)

    def _emit_axis_cuts(self, out: Emitter, axis: str, block: str, data: tuple[Expr, ...]) -> None:
        out.lines(_BEFORE_CHANGES.format(axis=axis, block=block, room=ROOM))
        after = Emitter()
        compared = []
        for i, e in enumerate(data):
            here = Values({"x": e}, INDICES, prefix=f"{axis}_{i}_")
            there = Values({"x": e}, {**INDICES, axis: "before"}, prefix=f"before_{axis}_{i}_")
            for values in (here, there):
                emit_all(after, values, ("x",))
            compared.append(f"({here.result('x')} != {there.result('x')})")
        after.line(f"changes = {' | '.join(compared)}")
        out.lines("\n".join(f"    {line}" for line in after.text().rstrip("\n").split("\n")))
        out.lines(_AFTER_CHANGES.format(axis=axis, block=block))

    def emit_tile_positions(self, out: Emitter, axis: str, block: str) -> None:
        """The positions of ``tile``, along ``axis``."""
        out.line(f"own = {axis}_firsts + entry.to(tl.int64) * ({axis}_tiles + 2) + tile")
        out.line("last = tl.maximum(tl.load(own + 1), 1) - 1")
        out.line(f"{axis}_index = tl.minimum(tl.load(own) + tl.arange(0, {block}), last)")

    def end_of_tile(self, x: Reduction, block: str) -> str:
        """The first or the last position of a tile, as text."""
        return f"{x.axis}_first" if x.op == "min" else f"{x.axis}_stop - 1"

    def emit_numbers_of_tiles(self, out: Emitter, block_m: int, block_n: int) -> None:
        """``q_tiles`` and ``kv_tiles``, on the host, and where tiles begin."""
        out.line(f"q_tiles, kv_tiles = most_tiles(q_len, {block_m}), most_tiles(kv_len, {block_n})")
        for axis in ("q", "kv"):
            shape = f"(table_batches, table_heads, {axis}_tiles + 2)"
            out.line(f"{axis}_firsts = torch.empty({shape}, dtype=torch.int32, device=device)")
            out.line(f"{axis}_counts = torch.empty(entries, dtype=torch.int32, device=device)")
        options = f"BLOCK_M={block_m}, BLOCK_N={block_n}, CHUNK=4096, num_warps=8"
        emit_launch(out, "cut_tiles", "(2 * entries,)", self.cut_arguments, options)
