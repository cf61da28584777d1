"""Which boxes a call takes: the host's part of modules over boxes of a token space."""

from __future__ import annotations

from math import prod

from ..ir.nodes import Expr, Index, Param
from ..ir.printer import print_boxes
from ..ir.tiles.plan import BoxTerm, TilePlan
from ..ir.traverse import index_names, loads
from ..ir.types import I32
from .box_sides import Shape, box_shapes
from .emitter import Emitter
from .print_torch import Printed, Scope, print_torch
from .schedule import Schedule
from .triton_box_space import BoxSpace, Letter
from .triton_box_tiles import conditions
from .triton_values import user_name


def shapes_of(term: BoxTerm, schedule: Schedule) -> tuple[Shape, ...]:
    """The shapes that a kernel of ``term`` may have."""
    shapes = box_shapes(term, schedule.block_m, schedule.block_n)
    return shapes if _is_known(term) else shapes[:1]


def _is_known(term: BoxTerm) -> bool:
    """Whether what a box visits can be told on the host, before any tensor is read."""
    ends = [e for a in term.axes for i in a.keys.may for e in (i.start, i.stop)]
    return not any(loads(e) or index_names(e) & {"batch", "head", "kv_head"} for e in ends)


def note_of(term: BoxTerm) -> str:
    """What the header of a module says about its tiles."""
    return "\n".join(["Tiles: boxes.", *(f"  {line}" for line in print_boxes([term]).splitlines())])


def emit_shapes(out: Emitter, name: str, options: str, term: BoxTerm, schedule: Schedule) -> None:
    """``options``, a schedule without its boxes, and ``name``, the boxes to choose from."""
    shapes = shapes_of(term, schedule)
    block_m, block_n = prod(shapes[0].queries), prod(shapes[0].keys)
    # A warp owns at least 16 rows.
    warps = min(schedule.num_warps, max(min(block_m, block_n if schedule.grad_query else block_m) // 16, 4))
    out.line(
        f"{options} = dict(BLOCK_M={block_m}, BLOCK_N={block_n}, num_warps={warps}, num_stages={schedule.num_stages})"
    )
    out.comment("Sides of boxes of queries and of keys, along every axis.")
    with_breaks = [", ".join(f"{x}_{i}={side}" for x, sides in (("Q", s.queries), ("K", s.keys)) for i, side in enumerate(sides)) for s in shapes]
    out.line(f"{name} = [")
    for text in with_breaks:
        out.line(f"    dict({text}),")
    out.line("]")


def emit_choice(out: Emitter, plan: TilePlan) -> None:
    """``choose_boxes``: the boxes of a list that visit the fewest tiles, told from one in the middle of the grid."""
    (term,) = plan.boxes
    scope = _scope(plan)
    names = [printed.text for printed in _used(term, scope)]
    with out.block(f"def tiles_visited(sides{''.join(f', {x}' for x in names)}):"):
        out.line('"""How many pairs of boxes of such sides are visited, as far as one in the middle tells."""')
        out.line("count, residue = 1, 0")
        space = BoxSpace(term, "q")
        for i, axis in enumerate(term.axes):
            extent, keys = (_python(space.extent(axis, x)) for x in _LETTERS)
            out.line(f"extent = max({extent}, 1)")
            if axis.block:
                (blocks,) = (count for name, count in space.counts("q") if name == f"block_{i}")
                out.line(f"block = {_python(blocks)} // 2")
            out.line(f'tile_first = extent // 2 // sides["Q_{i}"] * sides["Q_{i}"]')
            out.line(f'tile_last = min(tile_first + sides["Q_{i}"], extent) - 1')
            widths = []
            for interval in axis.keys.may:
                start, stop = (print_torch(e, scope).text for e in (interval.start, interval.stop))
                widths.append(f'triton.cdiv(max(min({stop}, {keys}) - max({start}, 0), 1), sides["K_{i}"])')
            out.line(f'count *= triton.cdiv(extent, sides["Q_{i}"]) * ({" + ".join(widths) or "1"})')
        out.line("return count")
    out.line()
    out.line()
    out.line("@functools.cache")
    with out.block(f"def choose_boxes(choices{''.join(f', {x}' for x in names)}):"):
        out.line('"""The sides of ``choices``, a tuple of tuples, that visit the fewest pairs of boxes."""')
        rest = "".join(f", {x}" for x in names)
        out.line(f"return dict(min(choices, key=lambda sides: tiles_visited(dict(sides){rest})))")


def emit_options(out: Emitter, plan: TilePlan, schedule: Schedule, options: str, boxes: str, *, tiled: bool) -> None:
    """``options`` of a launch in ``run``."""
    (term,) = plan.boxes
    chosen = f"{boxes}[0]"
    if len(shapes_of(term, schedule)) > 1:
        rest = "".join(f", {printed.text}" for printed in _used(term, _scope(plan)))
        chosen = f"choose_boxes(tuple(tuple(x.items()) for x in {boxes}){rest})"
    out.line(f"options = {options} | {chosen}{' | dict(TILED=tiled)' if tiled else ''}")


def emit_axes(out: Emitter, space: BoxSpace) -> None:
    """``query_axes``, ``key_axes`` and ``tiled``, which descriptors need."""
    for letter, name in (("q", "query"), ("k", "key")):
        sizes, steps, _ = space.view(letter)  # type: ignore[arg-type]
        pairs = ", ".join(f"({size}, {step})" for size, step in zip(sizes, steps, strict=True))
        out.line(f"{name}_axes = ({pairs},)")
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
    return " * ".join(x if x.startswith("triton.") or x.isalnum() else f"({x})" for x in found)


_LETTERS: tuple[Letter, Letter] = ("q", "k")


def _python(text: str) -> str:
    return text.replace("tl.cdiv", "triton.cdiv")


def _scope(plan: TilePlan) -> Scope:
    names = ("tile_first", "tile_last", "block", "residue", "q_len", "kv_len")
    known: dict[Expr, Printed] = {Index(name, I32): Printed(name, tensor=False) for name in names}
    known |= {Param(p.name, p.type): Printed(user_name(p.name), tensor=False) for p in plan.variant.scalars}
    return Scope(known, {})


def _used(term: BoxTerm, scope: Scope) -> list[Printed]:
    """Lengths and scalars; all that may be read, so that the arguments are always the same."""
    return [printed for e, printed in scope.known.items() if isinstance(e, Param) or e.name in ("q_len", "kv_len")]
