"""The loop over boxes of a printed CPU program: which queries and keys are visited together.

A box of queries is a run of coordinates along every axis; its keys are the product of what each axis allows. Both are
gathered by position, and boxes of equal shape go through one batched product.
"""

from __future__ import annotations

from ..ir.nodes import Expr
from ..ir.tiles.box_walk import ranges_within
from ..ir.tiles.digits import digit
from ..ir.tiles.plan import BoxTerm
from .emitter import Emitter
from .print_torch import Printed, Scope, print_torch
from .torch_definitions import Call, arguments, emit_ranges
from .torch_nested_boxes import NESTED_NAMES, SEEN, emit_nested, names_before

# Names that the printed loop uses; see `RESERVED` in torch_definitions.
BOX_NAMES = frozenset((
    "BLOCK_M", "TILE", "classes_along", "tiles_along", "visits_along", "within_class", "places_of", "box_loop",
    "stacked", "sides_of", "hull", "block", "residue", "offset", "shift", "size", "side", "sides", "tiles",
    "visits", "lows", "highs", "low", "high", "may", "must", "axes", "term", "rows", "columns", "full", "waiting",
    "shape", "boxes", "places", "count", "q_origin", "kv_origin", "step", "intervals", "result", "axis", "at",
    "limit", "start", "stop", "box", "x", "shared", "products_of", *NESTED_NAMES,
))  # fmt: skip

_CLASSES = '''
def classes_along(size, block, offset, residue):
    """The classes of the coordinates 0..size of an axis: {(block, residue): (first, end) inside of the class}."""
    found = {}
    for b in range((size - 1 + offset) // block + 1 if block else 1):
        for c in range(residue):
            before = offset - block * b - c  # coordinate + before is a multiple of residue
            first, end = max(-(-before // residue), 0), (size - 1 + before) // residue + 1
            end = min(end, block // residue) if block else end
            if first < end:
                found[b, c] = first, end
    return found


def sides_of(extents, count):
    """Sides of a box of at most ``count`` coordinates: powers of two, as even as the extents allow."""
    sides = [1] * len(extents)
    while count >= 2 and any(side < extent for side, extent in zip(sides, extents)):
        axis = min((i for i, side in enumerate(sides) if side < extents[i]), key=lambda i: (sides[i], -i))
        sides[axis] *= 2
        count //= 2
    return sides


def tiles_along(classes, side):
    """Runs of at most ``side`` coordinates, each of one class: a list of (block, residue, first, last)."""
    return [
        (*name, x, min(x + side, end) - 1) for name, (first, end) in classes.items() for x in range(first, end, side)
    ]


def columns_of(tiles):
    """The four columns of ``tiles``, as the ranges take them."""
    return torch.tensor(tiles, dtype=torch.int64, device="cpu").unsqueeze(-1).unbind(1)
'''

_SHARED = '''
def shared(x):
    """The number that every element of x is."""
    return int(x.flatten()[0])
'''

_VISITS = '''
def hull(bound, reduce, count):
    """One bound for each tile over all heads and batch items."""
    bound = torch.as_tensor(bound, device="cpu")
    bound = bound.expand(torch.broadcast_shapes(bound.shape, (count, 1)))
    return reduce(bound.movedim(-2, -1).flatten(0, -2), 0)


def joined(intervals, low, high):
    """The intervals cut to low..high, in order, those that touch as one."""
    result = []
    for start, stop in sorted((max(start, low), min(stop, high)) for start, stop in intervals):
        if start < stop:
            if result and start <= result[-1][1]:
                result[-1][1] = max(result[-1][1], stop)
            else:
                result.append([start, stop])
    return result


def visits_along(tiles, keys, may, must, query_stride, key_stride, block, offset, residue, shift):
    """What each tile of an axis visits: (run of queries, runs of keys, whether all of these pairs are allowed).

    ``keys`` are the classes of keys. A run is (first position, number, distance) along this axis.
    """
    count = len(tiles)
    may = [(hull(a, torch.amin, count).tolist(), hull(b, torch.amax, count).tolist()) for a, b in may]
    must = [(hull(a, torch.amax, count).tolist(), hull(b, torch.amin, count).tolist()) for a, b in must]
    visits = []
    for i, (b, c, first, last) in enumerate(tiles):
        name = b, (c + shift) % residue
        low, high = keys.get(name, (0, 0))
        some = joined([(start[i], stop[i]) for start, stop in may], low, high)
        every = joined([(start[i], stop[i]) for start, stop in must], low, high)
        if some:
            rows, columns = (block * b - offset + x for x in (c, name[1]))
            queries = [(query_stride * (rows + residue * first), last - first + 1, query_stride * residue)]
            runs = [(key_stride * (columns + residue * x), y - x, key_stride * residue) for x, y in some]
            visits.append((queries, runs, some == every))
    return visits
'''

_BOXES = '''
def places_of(axes, origin, length):
    """The positions of a box in 0..length: all sums of ``origin`` and one position along every axis."""
    total = torch.tensor([origin], dtype=torch.int64, device="cpu")
    for runs in axes:
        places = torch.cat([torch.arange(count, device="cpu") * step + first for first, count, step in runs])
        total = (total[:, None] + places).flatten()
    return total[(total >= 0) & (total < length)]


def products_of(axes, q_origin, q_len, kv_origin, kv_len):
    """Every box of queries with the keys that it visits: (rows, columns, whether all pairs are allowed)."""
    for visits in itertools.product(*axes):
        queries, keys, full = zip(*visits)
        yield places_of(queries, q_origin, q_len), places_of(keys, kv_origin, kv_len), all(full)


def stacked(visits, limit):
    """Boxes of equal shape together: (rows (g, M), columns (g, N), whether all pairs are allowed), g * M * N <= limit.

    The keys of a box that is larger alone are cut.
    """
    waiting = {}
    for rows, columns, full in visits:
        for part in columns.split(max(limit // max(len(rows), 1), 1)):
            shape = len(rows), len(part), full
            boxes = waiting.setdefault(shape, [])
            boxes.append((rows, part))
            if (len(boxes) + 1) * len(rows) * len(part) > limit:
                yield *map(torch.stack, zip(*waiting.pop(shape))), shape[2]
    for shape, boxes in waiting.items():
        if shape[0] and shape[1]:
            yield *map(torch.stack, zip(*boxes)), shape[2]
'''


def emit_box_loop(out: Emitter, terms: tuple[BoxTerm, ...], scope: Scope) -> Call:
    """Prints the generator over boxes.

    It yields ``(term, rows, columns, full)``: the number of the term whose mask holds, positions of queries (g, M) and
    of keys (g, N), and whether the mask need not be evaluated.
    """
    by_head = any(a.by_head for t in terms for a in t.axes)
    for text in (_CLASSES, *([_SHARED] if by_head else []), _VISITS, _BOXES):
        out.definition(text)
    if any(term.is_nested for term in terms):
        out.definition(SEEN)
    names = {"block": "block", "residue": "residue"} | names_before(max(len(term.axes) for term in terms))
    inner = Scope({**scope.known, **{digit(name): Printed(text) for name, text in names.items()}}, scope.buffers)
    suffixes = [f"_of_term_{term}" if len(terms) > 1 else "" for term in range(len(terms))]
    calls = [
        [
            emit_ranges(out, f"keys_along_{axis}{suffix}", ranges, inner)
            for axis, ranges in enumerate(ranges_within(term))
        ]
        for suffix, term in zip(suffixes, terms, strict=True)
    ]
    own = ("first", "last", "q_len", "kv_len", *names.values())
    facts = [e for t in terms for e in (t.query_origin, t.key_origin)]
    facts += [e for t in terms for a in t.axes for e in (a.query.size, a.key.size, a.offset, a.shift)]
    read = [*(x for term in calls for call in term for x in call.arguments), *arguments(facts, scope)]
    needed = dict.fromkeys(x for x in read if x not in own)
    loop = Call("box_loop", ("q_len", "kv_len", "limit", *needed))
    with out.define(str(loop)):
        out.line('"""Yields (number of the term, rows, columns, whether all pairs are allowed); see `stacked`."""')
        for number, (t, ranges) in enumerate(zip(terms, calls, strict=True)):
            _emit_term(out, number, t, ranges, scope)
    return loop


def _emit_term(out: Emitter, number: int, term: BoxTerm, ranges: list[Call], scope: Scope) -> None:
    def shown(e: Expr) -> str:
        """A number; what heads have different ones of is the same for those of a call."""
        printed = print_torch(e, scope)
        return f"shared({printed.text})" if printed.tensor else printed.text

    for name, side in (("queries", "query"), ("keys", "key")):
        classes = ", ".join(
            f"classes_along({shown(getattr(a, side).size)}, {a.block}, {shown(a.offset)}, {a.residue})"
            for a in term.axes
        )
        out.line(f"{name} = [{classes}]")
    out.line("extents = [max((end - first for first, end in classes.values()), default=0) for classes in queries]")
    if term.is_nested:
        emit_nested(out, term, ranges, shown)
        _emit_stacked(out, number)
        return
    out.line("axes, sides = [], sides_of(extents, BLOCK_M)")
    for axis, (a, call) in enumerate(zip(term.axes, ranges, strict=True)):
        out.line(f"tiles = tiles_along(queries[{axis}], sides[{axis}])")
        with out.block("if tiles:"):
            out.line("block, residue, first, last = columns_of(tiles)")
            out.line(f"may, must = {call}")
            facts = f"{a.query.stride}, {a.key.stride}, {a.block}, {shown(a.offset)}, {a.residue}, {shown(a.shift)}"
            out.line(f"axes.append(visits_along(tiles, keys[{axis}], may, must, {facts}))")
    with out.block(f"if len(axes) == {len(term.axes)}:"):
        origins = (shown(term.query_origin), shown(term.key_origin))
        out.line(f"visits = products_of(axes, {origins[0]}, q_len, {origins[1]}, kv_len)")
        _emit_stacked(out, number)


def _emit_stacked(out: Emitter, number: int) -> None:
    out.line("for rows, columns, full in stacked(visits, limit):")
    out.line(f"    yield {number}, rows, columns, full")
