"""Which boxes a call takes: the host's part of modules over boxes of a token space."""

from __future__ import annotations

from math import prod

from ..ir.nodes import Expr, Index, Param
from ..ir.printer import print_boxes
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import index_names, loads
from ..ir.types import I32
from .box_groups import Letter
from .box_sides import Shape, box_shapes
from .emitter import Emitter
from .print_torch import Printed, Scope, print_torch
from .schedule import Schedule
from .triton_box_space import BoxSpace
from .triton_box_tiles import can_describe, conditions
from .triton_values import user_name


def shapes_of(space: BoxSpace, schedule: Schedule) -> tuple[Shape, ...]:
    """The shapes that a kernel may have."""
    shapes = box_shapes(space.axes, space.own, schedule.block_m, schedule.block_n)
    return shapes if _is_known(space) else shapes[:1]


def _is_known(space: BoxSpace) -> bool:
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
    out.comment("Sides of boxes of queries and of keys, along every axis.")
    out.line(f"{options}_BOXES = [")
    for shape in shapes:
        sides = [f"Q_{i}={side}" for i, side in enumerate(shape.queries)]
        sides += [f"K_{i}={side}" for i, side in enumerate(shape.keys)]
        out.line(f"    dict({', '.join(sides)}),")
    out.line("]")


def emit_choice(out: Emitter, plan: TilePlan, space: BoxSpace, schedule: Schedule, suffix: str) -> None:
    """``choose_boxes_of_queries`` or ``_of_keys``: of several boxes those that visit the fewest others."""
    if len(shapes_of(space, schedule)) == 1:
        return
    scope, own, other = _scope(plan), space.own, space.other
    names = "".join(f", {x}" for x in _inputs(scope))
    out.section()
    with out.block(f"def visits_of_{_NAMES[own]}{suffix}(sides{names}):"):
        out.line('"""How many pairs of boxes of such sides are visited in one of the classes."""')
        out.line("count, residue = 1, 0")
        for i, axis in enumerate(space.axes):
            extent, others = (_python(space.extent(axis, x)) for x in (own, other))
            side, other_side = (f'sides["{space.sides(x)[i]}"]' for x in (own, other))
            out.line(f"extent = max({extent}, 1)")
            if axis.block:
                (blocks,) = (count for name, count in space.counts(own) if name == f"block_{i}")
                out.line(f"block = {_python(blocks)} // 2")
            out.line("visited = 0")
            out.comment("All boxes along the axis, or every so many.")
            with out.block(f"for tile_first in range(0, extent, {side} * max(extent // {side} // 64, 1)):"):
                out.line(f"tile_last = min(tile_first + {side}, extent) - 1")
                for interval in space.ranges(axis).may:
                    start, stop = (print_torch(e, scope).text for e in (interval.start, interval.stop))
                    out.line(f"start, stop = max({start}, 0), min({stop}, {others})")
                    out.line(f"visited += triton.cdiv(max(stop - start, 0), {other_side})")
            out.line(f"count *= visited * max(extent // {side} // 64, 1)")
        out.line("return count")
    out.section("@functools.cache")
    with out.block(f"def choose_boxes_of_{_NAMES[own]}{suffix}(choices{names}):"):
        out.line('"""The sides of ``choices``, a tuple of tuples, that visit the fewest pairs of boxes."""')
        out.line(f"return dict(min(choices, key=lambda sides: visits_of_{_NAMES[own]}{suffix}(dict(sides){names})))")


def emit_options(
    out: Emitter, plan: TilePlan, space: BoxSpace, schedule: Schedule, options: str, suffix: str
) -> None:
    """``options`` of a launch in ``run``."""
    options += suffix
    chosen = f"{options}_BOXES[0]"
    if len(shapes_of(space, schedule)) > 1:
        names = "".join(f", {x}" for x in _inputs(_scope(plan)))
        out.line(f"choices = tuple(tuple(x.items()) for x in {options}_BOXES)")
        chosen = f"choose_boxes_of_{_NAMES[space.own]}{suffix}(choices{names})"
    tiled = " | dict(TILED=tiled)" if schedule.descriptors and can_describe(space) and conditions(space) else ""
    out.line(f"options = {options} | {chosen}{tiled}")


def emit_axes(out: Emitter, space: BoxSpace) -> None:
    """``query_axes``, ``key_axes`` and ``tiled``, which descriptors need."""
    for letter in _LETTERS:
        if space.is_offset(letter):
            out.line(f"{letter}_origin = {_python(space.origin(letter))}")
    for letter, name in zip(_LETTERS, ("query", "key"), strict=True):
        sizes, steps, _ = space.view(letter)
        pairs = [f"({_python(size)}, {step})" for size, step in zip(sizes, steps, strict=True)]
        out.line(f"{name}_axes = [{', '.join(pairs)}]")
    if conditions(space):
        out.line(f"tiled = {' and '.join(conditions(space))}")


def programs(space: BoxSpace, letter: Letter) -> str:
    """How many boxes of queries, or of keys, there are, in Python."""
    found = []
    for name, count in space.counts(letter):
        if name.startswith("box_"):
            axis = space.axes[int(name.removeprefix("box_"))]
            side = space.sides(letter)[int(name.removeprefix("box_"))]
            found.append(f'triton.cdiv({_python(space.extent(axis, letter))}, options["{side}"])')
        else:
            found.append(_python(count))
    count = " * ".join(x if x.startswith("triton.") or x.isalnum() else f"({x})" for x in found)
    return f"max({count}, 0)" if space.is_offset(letter) else count


_LETTERS: tuple[Letter, Letter] = ("q", "k")
_NAMES: dict[Letter, str] = {"q": "queries", "k": "keys"}


def _python(text: str) -> str:
    return text.replace("tl.cdiv", "triton.cdiv").replace("tl.minimum", "min").replace("tl.maximum", "max")


def _scope(plan: TilePlan) -> Scope:
    names = ("tile_first", "tile_last", "block", "residue", "q_len", "kv_len")
    known: dict[Expr, Printed] = {Index(name, I32): Printed(name, tensor=False) for name in names}
    known |= {Param(p.name, p.type): Printed(user_name(p.name), tensor=False) for p in plan.variant.scalars}
    return Scope(known, {})


def _inputs(scope: Scope) -> list[str]:
    """Lengths and scalars, which ranges may read."""
    return [x.text for e, x in scope.known.items() if isinstance(e, Param) or x.text in ("q_len", "kv_len")]
