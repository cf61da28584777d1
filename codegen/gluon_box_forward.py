"""The forward kernel for sm_90 over boxes of a token space: that of :mod:`.gluon_forward` with other tiles.

A tile of queries, and one of keys, is a box that one copy of the tensor memory accelerator moves. The boxes that a
tile visits start at the edge of its window; those with pairs that the mask forbids come first, the others need no mask.
"""

from __future__ import annotations

from math import prod

from ..ir.tiles.plan import TilePlan
from .box_groups import Letter
from .defaults import heaviest_last
from .emitter import Emitter
from .gluon_box_consumer import BoxConsumer
from .gluon_box_seen import emit_clean_value, emit_seen_keys
from .gluon_box_visits import BOX_SIZES, UNITS, GluonBoxVisits
from .gluon_forward import (
    KERNEL,
    emit_body,
    emit_constants,
    emit_start,
    run_function,
    takes_registers,
    variations,
)
from .gluon_loader import TileLoads, emit_load_tiles
from .gluon_module import finish, reason_against_target
from .gluon_names import Names, installed_names
from .gluon_tiles import CELLS, emit_unpack
from .schedule import Problem, Schedule, Source, Target
from .triton_box_options import emit_choice, emit_chosen, emit_sides, is_known, note_of, programs, shapes_of
from .triton_box_skeleton import plan_of_boxes
from .triton_box_space import BoxSpace
from .triton_box_tiles import UNITS as UNITS_FUNCTION
from .triton_box_tiles import can_describe
from .triton_box_visits import BoxVisits
from .triton_module import Argument, buffer_arguments, emit_header, kernel, scalar_arguments
from .triton_tiles import TileLoops

_ROWS = 128
_HEAD_SIZES = (64, 128)


def unsupported_reason(plan: TilePlan, problem: Problem, target: Target) -> str | None:
    """Why this kernel cannot walk the boxes of a plan, in one sentence; None where it can.

    The plan's boxes are some that kernels walk: see :mod:`.box_support`.
    """
    for size in (problem.head_dim, problem.value_dim):
        if size not in _HEAD_SIZES:
            return f"head size {size} is not one of {', '.join(map(str, _HEAD_SIZES))}"
    if len(plan.boxes) > 1:
        return "its boxes are of one token space, and this mask takes several"
    (term,) = plan.boxes
    spaces = [BoxVisits(term, "q"), BoxVisits(term, "k")]
    if any(spaces[0].ends_unevenly(x) for x in ("q", "k")):
        return "a grid that starts at a later position, or that no declared grid says the end of, may be cut short"
    if not all(space.is_product for space in spaces):
        return "the mask is no product of one range along each axis, so that which keys no query sees is not known"
    if spaces[0].by_head:
        return "classes differ from head to head"
    if not all(map(is_known, spaces)):
        return "what a box sees depends on captured tensors or on the head"
    if any(len(axis.keys.must) > 1 for axis in term.axes):
        return "keys that all queries of a box see are several ranges along one axis"
    if not can_describe(spaces[0]):
        return "tensor descriptors have no more than five axes, and classes along an axis must be equally long"
    shape = shapes_of(spaces[0], default_schedule(plan, problem))[0]
    if prod(shape.queries) < _ROWS:
        return f"classes hold fewer than {_ROWS} queries"
    return reason_against_target(problem, target)


def default_schedule(plan: TilePlan, problem: Problem) -> Schedule:
    """Tile sizes and pipeline for a plan and problem that :func:`unsupported_reason` has nothing against."""
    wide = max(problem.head_dim, problem.value_dim) > 64
    keys = 64 if wide and takes_registers(plan) else 128
    stages = 2 if wide and keys == 128 else 4
    (term,) = plan.boxes
    late = any(heaviest_last(axis.keys) for axis in term.axes)
    return Schedule(_ROWS, keys, num_warps=4, num_stages=stages, reverse=late, descriptors=True)


def candidates(plan: TilePlan, problem: Problem) -> tuple[Schedule, ...]:
    """Schedules worth timing, the default first."""
    return variations(default_schedule(plan, problem))


def emit_forward(plan: TilePlan, problem: Problem, schedule: Schedule, target: Target) -> Source:
    """A module whose ``run`` computes outputs and log-sum-exps; see ``docs/internals.md``.

    For plans, problems and targets that :func:`unsupported_reason` has nothing against.
    """
    plan = plan_of_boxes(plan)
    (term,) = plan.boxes
    names = installed_names()
    parameters = [Argument("scale", "fp32", "scale"), *buffer_arguments(plan), *scalar_arguments(plan)]
    carried = [*parameters, *UNITS]
    visits = GluonBoxVisits(term, carried, reverse=schedule.reverse)
    shapes = shapes_of(visits, schedule)
    whole = _is_whole(visits, [shape.queries for shape in shapes])
    copies = _copies(visits)
    arguments = [
        Argument("lse", "", "lse"),
        Argument("counter", "", "counter"),
        *copies,
        Argument("out", "", _boxes("out", "q", "OUT_TILE", visits) if whole else "out", aligned=not whole),
        *carried,
        *BOX_SIZES,
    ]
    head, out = Emitter(), Emitter()
    emit_header(head, "Forward kernel", plan, problem, schedule, target, tiles=note_of(plan))
    emit_constants(out, problem, schedule, axes=len(visits.view("q")[0]))
    emit_sides(out, "FORWARD", shapes)
    out.definition(CELLS)
    visits.emit_functions(out)
    loops = TileLoops("full_count" if visits.has_full_boxes else "", "", "partial_count", "")
    BoxConsumer(plan, problem, schedule, carried, names, visits, whole=whole).emit(out, loops)
    descriptors = "".join(f"{a.name}, " for a in copies[3:])
    emit_load_tiles(out, _loads(names, visits, descriptors))
    out.line("\n")
    with kernel(out, KERNEL, arguments, ("BOX",)):
        emit_body(
            out, problem, schedule, BOX_SIZES, carried, descriptors, ", BOX", len(term.axes), own_out_tiles=whole
        )
    _emit_run(out, plan, problem, schedule, visits, arguments)
    return finish(out, plan, [KERNEL], head, short_tanh=True)


def _is_whole(space: BoxSpace, sides: list[tuple[int, ...]]) -> bool:
    """Whether boxes of queries end where their class does, or where the tensor does."""
    if space.conditions("q"):
        return False
    blocks = [(i, axis.block // axis.residue) for i, axis in enumerate(space.axes) if axis.block]
    return all(not space.offset(i) and length % q[i] == 0 for i, length in blocks for q in sides)


def _boxes(tensor: str, letter: Letter, layout: str, space: BoxSpace, kind: str = "") -> str:
    """The descriptor of boxes of a tensor, in Python."""
    box = f"({', '.join(space.view(letter)[2])},)"
    box = f"half({box})" if letter == "q" else box
    return f"boxes({tensor}, {_SIDES[letter]}{kind}_axes, {box}, {layout})"


def _copies(space: BoxSpace) -> list[Argument]:
    """Descriptors of query, key and value; then, where a class may be short, those for such classes."""
    tensors: list[tuple[str, Letter, str]] = [
        ("query", "q", "QUERY_TILE"), ("key", "k", "KEY_TILE"), ("value", "k", "VALUE_TILE"),
    ]  # fmt: skip
    found = [Argument(name, "", _boxes(name, letter, layout, space)) for name, letter, layout in tensors]
    for name, letter, layout in tensors:
        if space.conditions(letter):
            found.append(Argument(f"{name}_short", "", _boxes(name, letter, layout, space, "_short")))
    return found


def _loads(names: Names, visits: GluonBoxVisits, descriptors: str) -> TileLoads:
    """The loads of boxes."""
    prologue, own = Emitter(), Emitter()
    emit_unpack(prologue, "sizes", BOX_SIZES)
    emit_unpack(prologue, "parameters", visits.parameters)
    visits.emit_sides(prologue)
    own.line("own = query_box(program, sizes, parameters, BOX)")
    visits.emit_names(own)
    visits.emit_places(own, "q")
    visits.emit_places(own, "k")
    own.line("visits = visited_boxes(own, sizes, parameters, BOX)")
    axes = range(len(visits.axes))

    def load(tensor: str, letter: Letter, head: str, coordinates: list[str], buffer: str) -> str:
        place = f"batch * {tensor}_batch_unit + {head} * {tensor}_head_unit"
        call = f"{names.load}({{}}, [{', '.join([place, *coordinates, '0'])}], {buffer})"
        short = visits.is_short(letter)
        if not short:
            return call.format(tensor)
        return f"if {short}:\n    {call.format(f'{tensor}_short')}\nelse:\n    {call.format(tensor)}"

    key_place = visits.coordinates("k")
    starts = [f"stage * {len(axes)} + {i}" if len(axes) > 1 else "stage" for i in axes]
    return TileLoads(
        prologue=prologue.text().rstrip("\n"),
        visits=own.text().rstrip("\n"),
        count="visits[1]",
        load_query=load("query", "q", "head", visits.half_coordinates("i"), "q_ready, q_tiles.index(i)"),
        start=f"{', '.join(f'k_at_{i}' for i in axes)}{',' if len(axes) == 1 else ''} = visited_box(t, visits, BOX)",
        write_start="\n".join(f"write(starts, {start}, k_at_{i})" for i, start in enumerate(starts)),
        load_key=load("key", "k", "kv_head", key_place, "k_ready.index(stage), k_tiles.index(stage)"),
        load_value=load("value", "k", "kv_head", key_place, "v_ready.index(stage), v_tiles.index(stage)"),
        descriptors=descriptors,
        constants=", BOX: gl.constexpr",
    )


def _emit_run(
    out: Emitter, plan: TilePlan, problem: Problem, schedule: Schedule, visits: GluonBoxVisits,
    arguments: list[Argument],
) -> None:  # fmt: skip
    out.definition(UNITS_FUNCTION)
    out.definition(_BOXES)
    emit_choice(out, plan, visits, schedule)
    emit_seen_keys(out, plan, visits)
    with run_function(out, plan, problem):
        emit_clean_value(out, plan)
        out.line(f"options = {emit_chosen(out, plan, visits, schedule, 'FORWARD')}")
        for letter, side in _SIDES.items():
            _emit_axes(out, visits, letter, side)
        out.line(f"programs = {programs(visits, 'q')} * batches * heads")
        emit_start(out, "programs", arguments, "BOX=tuple(options.values()), **FORWARD")


def _emit_axes(out: Emitter, space: BoxSpace, letter: Letter, side: str) -> None:
    """The axes of a tensor in which a box is one; of classes that may be short, only their whole rows."""
    sizes, steps, _ = space.view(letter)
    kinds = {"": sizes}
    if space.conditions(letter):
        size, residue = space.size(space.axes[0], letter), space.axes[0].residue
        kinds = {
            "": [f"max({size} // {residue}, 1)", f"min({size}, {residue})", *sizes[2:]],
            "_short": [sizes[0], f"max({size} % {residue}, 1)", *sizes[2:]],
        }
    for kind, lengths in kinds.items():
        axes = [f"({length}, {step})" for length, step in zip(lengths, steps, strict=True)]
        out.line(f"{side}{kind}_axes = [{', '.join(axes)}]")


_SIDES: dict[Letter, str] = {"q": "query", "k": "key"}

_BOXES = '''
def half(box):
    """The box of queries that one consumer owns: half of all along the first axis that is longer than one."""
    first = next(i for i, side in enumerate(box) if side > 1)
    return *box[:first], box[first] // 2, *box[first + 1 :]


def boxes(x, axes, box, layout):
    """Boxes of tokens of a (B, H, L, D) tensor, with ``axes`` (size, positions between neighbours) for its positions.

    Moved by the tensor memory accelerator.
    """
    batch, head, _, unit = units(x)
    sizes, steps = zip(*axes)
    shape = [1 + (x.shape[0] - 1) * batch + (x.shape[1] - 1) * head, *sizes, x.shape[3]]
    strides = [unit, *(step * x.stride(2) for step in steps), 1]
    return TensorDescriptor(x, shape, strides, [1, *box, x.shape[3]], layout.value)
'''
