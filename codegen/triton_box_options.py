"""Which boxes a call takes: the host's part of modules over boxes of a token space."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..ir.nodes import Expr, Index, Param
from ..ir.printer import print_boxes
from ..ir.tiles.box_choice import Boxes
from ..ir.tiles.box_count import box_counter
from ..ir.tiles.numeric import Sizes, Values
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import index_names, loads
from ..ir.types import I32
from .box_groups import Letter
from .box_sides import FULL, PARTIAL, Shape, box_shapes
from .emitter import Emitter
from .print_torch import Printed, Scope, print_torch
from .schedule import Schedule
from .triton_box_space import BoxSpace
from .triton_box_tiles import can_describe, conditions
from .triton_values import user_name


def shapes_of(space: BoxSpace, schedule: Schedule) -> tuple[Shape, ...]:
    """The shapes that a kernel may have."""
    shapes = box_shapes(space.axes, space.own, schedule.block_m, schedule.block_n)
    return shapes if is_known(space) else shapes[:1]


def boxes_of_call(plan: TilePlan, schedule: Schedule, sizes: Sizes, values: Values) -> tuple[Boxes, ...]:
    """The boxes that the forward kernel takes in a call, for each term of ``plan``."""
    found = []
    for term in plan.boxes:
        counted = []
        count = box_counter(term, sizes, values)
        count_alone = box_counter(term.axis_by_axis(), sizes, values) if term.is_nested else count
        for s in shapes_of(BoxSpace(term, "q"), schedule):
            visited, full = count_alone(s.queries, s.keys)
            cost = PARTIAL * visited - (0 if term.is_nested else (PARTIAL - FULL) * full)
            if term.is_nested:
                visited, _ = count(s.queries, s.keys)
            counted.append((cost, Boxes(s.queries, s.keys, visited // (sizes.batch * sizes.heads))))
        found.append(min(counted, key=lambda x: x[0])[1])
    return tuple(found)


def is_known(space: BoxSpace) -> bool:
    """Whether what a box visits can be told on the host, before any tensor is read."""
    ends = [e for a in space.axes for i in space.ranges(a).may for e in (i.start, i.stop)]
    return not any(loads(e) or index_names(e) & {"batch", "head", "kv_head"} for e in ends)


def note_of(plan: TilePlan) -> str:
    """What the header of a module says about its tiles."""
    return "\n".join(["Tiles: boxes.", *(f"  {line}" for line in print_boxes(plan.boxes).splitlines())])


def emit_shapes(out: Emitter, options: str, space: BoxSpace, schedule: Schedule) -> None:
    """``options``, a schedule without its boxes, and the boxes to choose from."""
    shapes = shapes_of(space, schedule)
    block_m, block_n = prod(shapes[0].queries), prod(shapes[0].keys)
    # A warp owns at least 16 rows.
    warps = min(schedule.num_warps, max((block_m if space.own == "q" else block_n) // 16, 4))
    out.line(
        f"{options} = dict(BLOCK_M={block_m}, BLOCK_N={block_n}, num_warps={warps}, num_stages={schedule.num_stages})"
    )
    emit_sides(out, options, shapes)


def emit_sides(out: Emitter, options: str, shapes: Sequence[Shape]) -> None:
    """The boxes to choose from, beside ``options``."""
    out.comment("Sides of boxes of queries and of keys, along every axis.")
    out.line(f"{options}_BOXES = [")
    for shape in shapes:
        sides = [f"Q_{i}={side}" for i, side in enumerate(shape.queries)]
        sides += [f"K_{i}={side}" for i, side in enumerate(shape.keys)]
        out.line(f"    dict({', '.join(sides)}),")
    out.line("]")


def emit_choice(out: Emitter, plan: TilePlan, space: BoxSpace, schedule: Schedule, suffix: str = "") -> None:
    """``choose_boxes_of_queries`` or ``_of_keys``: of several boxes those that have the cheapest others to visit."""
    if len(shapes_of(space, schedule)) == 1:
        return
    scope, own, other = host_scope(plan), space.own, space.other
    names = "".join(f", {x}" for x in host_inputs(plan))
    counts_full = space.has_full_boxes and not space.is_nested
    out.section()
    with out.block(f"def cost_of_{_NAMES[own]}{suffix}(sides{names}):"):
        price = f"{PARTIAL} for a pair of boxes, {FULL} where every token of one sees all of the other"
        out.line(f'"""What boxes of such sides cost in one of the classes: {price}."""')
        out.line(f"count, {'inner, ' if counts_full else ''}residue = 1, {'1, ' * counts_full}0")
        for i, axis in enumerate(space.axes):
            extent, others = (in_python(space.extent(axis, x)) for x in (own, other))
            side, other_side = (f'sides["{space.sides(x)[i]}"]' for x in (own, other))
            out.line(f"extent = max({extent}, 1)")
            if axis.block:
                (blocks,) = (count for name, count in space.counts(own) if name == f"block_{i}")
                out.line(f"block = {in_python(blocks)} // 2")
            out.line("visited = 0")
            if counts_full:
                out.line("full = 0")
            out.comment("All boxes along the axis, or every so many.")
            with out.block(f"for tile_first in range(0, extent, {side} * max(extent // {side} // 64, 1)):"):
                out.line(f"tile_last = min(tile_first + {side}, extent) - 1")
                for interval in space.ranges(axis).may:
                    start, stop = (print_torch(e, scope).text for e in (interval.start, interval.stop))
                    out.line(f"start, stop = max({start}, 0), min({stop}, {others})")
                    out.line(f"visited += triton.cdiv(max(stop - start, 0), {other_side})")
                for interval in space.ranges(axis).must[:1] if counts_full else ():
                    first, last = (print_torch(e, scope).text for e in (interval.start, interval.stop))
                    out.line(f"first, last = max({first}, start) - start, min({last}, stop) - start")
                    out.line(f"full += max(last // {other_side} - triton.cdiv(first, {other_side}), 0)")
            out.line(f"count *= visited * max(extent // {side} // 64, 1)")
            if counts_full:
                out.line(f"inner *= full * max(extent // {side} // 64, 1)")
        out.line(f"return {PARTIAL} * count - {PARTIAL - FULL} * inner" if counts_full else "return count")
    out.section("@functools.cache")
    with out.block(f"def choose_boxes_of_{_NAMES[own]}{suffix}(choices{names}):"):
        out.line('"""The sides of ``choices``, a tuple of tuples, that cost the least."""')
        out.line(f"return dict(min(choices, key=lambda sides: cost_of_{_NAMES[own]}{suffix}(dict(sides){names})))")


def emit_options(
    out: Emitter, plan: TilePlan, space: BoxSpace, schedule: Schedule, options: str, suffix: str
) -> None:
    """``options`` of a launch in ``run``."""
    chosen = emit_chosen(out, plan, space, schedule, options, suffix)
    options += suffix
    tiled = " | dict(TILED=tiled)" if schedule.descriptors and can_describe(space) and conditions(space) else ""
    out.line(f"options = {options} | {chosen}{tiled}")


def emit_chosen(
    out: Emitter, plan: TilePlan, space: BoxSpace, schedule: Schedule, options: str, suffix: str = ""
) -> str:
    """The sides of boxes that a call takes, as text."""
    if len(shapes_of(space, schedule)) == 1:
        return f"{options}{suffix}_BOXES[0]"
    names = "".join(f", {x}" for x in host_inputs(plan))
    out.line(f"choices = tuple(tuple(x.items()) for x in {options}{suffix}_BOXES)")
    return f"choose_boxes_of_{_NAMES[space.own]}{suffix}(choices{names})"


def emit_axes(out: Emitter, space: BoxSpace) -> None:
    """``query_axes``, ``key_axes`` and ``tiled``, which descriptors need."""
    for letter in _LETTERS:
        if space.is_offset(letter):
            out.line(f"{letter}_origin = {in_python(space.origin(letter))}")
    for letter, name in zip(_LETTERS, ("query", "key"), strict=True):
        sizes, steps, _ = space.view(letter)
        pairs = [f"({in_python(size)}, {step})" for size, step in zip(sizes, steps, strict=True)]
        out.line(f"{name}_axes = [{', '.join(pairs)}]")
    if conditions(space):
        out.line(f"tiled = {in_python(' and '.join(conditions(space)))}")


def programs(space: BoxSpace, letter: Letter) -> str:
    """How many boxes of queries, or of keys, there are, in Python."""
    found = []
    for name, count in space.counts(letter):
        if name.startswith("box_"):
            axis = space.axes[int(name.removeprefix("box_"))]
            side = space.sides(letter)[int(name.removeprefix("box_"))]
            found.append(f'triton.cdiv({in_python(space.extent(axis, letter))}, options["{side}"])')
        else:
            found.append(in_python(count))
    count = " * ".join(x if x.startswith("triton.") or x.isalnum() else f"({x})" for x in found)
    return f"max({count}, 0)" if space.is_offset(letter) else count


_LETTERS: tuple[Letter, Letter] = ("q", "k")
_NAMES: dict[Letter, str] = {"q": "queries", "k": "keys"}


def in_python(text: str) -> str:
    """Scalar arithmetic of a kernel, as the host writes it."""
    return text.replace("tl.cdiv", "triton.cdiv").replace("tl.minimum", "min").replace("tl.maximum", "max")


def host_scope(plan: TilePlan) -> Scope:
    """Names of lengths and scalars, and of what ranges depend on, as numbers in Python."""
    names = ("tile_first", "tile_last", "block", "residue", "q_len", "kv_len")
    known: dict[Expr, Printed] = {Index(name, I32): Printed(name, tensor=False) for name in names}
    known |= {Param(p.name, p.type): Printed(user_name(p.name), tensor=False) for p in plan.variant.scalars}
    return Scope(known, {})


def host_inputs(plan: TilePlan) -> list[str]:
    """Lengths and scalars, which ranges may read."""
    known = host_scope(plan).known
    return [x.text for e, x in known.items() if isinstance(e, Param) or x.text in ("q_len", "kv_len")]
