"""Boxes of tensors in Gluon kernels: their descriptors, loads by the producer, and what leaves by pointers.

Where classes of one axis have two lengths, whole ones and those with a token more come by descriptors of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from .box_groups import Letter
from .emitter import Emitter
from .gluon_box_visits import GluonBoxVisits
from .gluon_names import Names
from .triton_box_space import BoxSpace
from .triton_box_tiles import UNITS as UNITS_FUNCTION
from .triton_module import Argument

_SIDES: dict[Letter, str] = {"q": "query", "k": "key"}
# A tensor, the letter of its positions, and the layout of its tiles.
Tensor = tuple[str, Letter, str]


def is_whole(space: BoxSpace, sides: Sequence[tuple[int, ...]]) -> bool:
    """Whether owned boxes of any of these ``sides`` end where their class does, or where the tensor does."""
    if space.conditions(space.own):
        return False
    blocks = [(i, axis.block // axis.residue) for i, axis in enumerate(space.axes) if axis.block]
    return all(not space.offset(i) and length % box[i] == 0 for i, length in blocks for box in sides)


def boxes(space: BoxSpace, tensor: Tensor, kind: str = "") -> str:
    """The descriptor of boxes of a tensor, in Python: of the half that one consumer owns, or whole ones to visit."""
    name, letter, layout = tensor
    box = f"({', '.join(space.view(letter)[2])},)"
    box = f"half({box})" if letter == space.own else box
    return f"boxes({name}, {_SIDES[letter]}{kind}_axes, {box}, {layout})"


def copies(space: BoxSpace, tensors: Sequence[Tensor]) -> list[Argument]:
    """Descriptors of ``tensors``; then, where a class may be short, those for such classes."""
    found = [Argument(tensor[0], "", boxes(space, tensor)) for tensor in tensors]
    for tensor in tensors:
        if space.conditions(tensor[1]):
            found.append(Argument(f"{tensor[0]}_short", "", boxes(space, tensor, "_short")))
    return found


def load_box(
    names: Names, visits: GluonBoxVisits, tensor: str, letter: Letter, head: str, ready: str, tile: str
) -> str:
    """The lines of the producer that load a box: half ``i`` of the owned one, or one that is visited."""
    coordinates = visits.half_coordinates("i") if letter == visits.own else visits.coordinates(letter)
    place = f"batch * {tensor}_batch_unit + {head} * {tensor}_head_unit"
    call = f"{names.load}({{}}, [{', '.join([place, *coordinates, '0'])}], {ready}, {tile})"
    short = visits.is_short(letter)
    if not short:
        return call.format(tensor)
    return f"if {short}:\n    {call.format(f'{tensor}_short')}\nelse:\n    {call.format(tensor)}"


def next_start(visits: GluonBoxVisits) -> tuple[str, str]:
    """The lines of the producer that find the ``t``-th visited box, and that tell consumers where it starts."""
    names = [f"{visits.other}_at_{i}" for i in range(len(visits.axes))]
    start = f"{', '.join(names)}{',' if len(names) == 1 else ''} = visited_box(t, visits, BOX)"
    written = (f"write(starts, {place}, {x})" for place, x in zip(visits.start_places(), names, strict=True))
    return start, "\n".join(written)


def emit_axes(out: Emitter, space: BoxSpace) -> None:
    """The axes of tensors in which a box is one; of classes that may be short, only their whole rows."""
    for letter, side in _SIDES.items():
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


def emit_store_rows(
    out: Emitter, tensor: str, value: str, layout: str, width: str, rows: str, length: str
) -> None:
    """Writes ``value`` of one consumer by pointers, as the box may end in another class.

    The ``rows`` that are ``inside`` go to a contiguous tensor of ``length`` rows of ``width`` for each head ``entry``.
    """
    out.line(f"out_row = tl.convert_layout({rows}, tl.SliceLayout(1, {layout})).to(tl.int64)[:, None]")
    out.line(f"out_column = tl.arange(0, {width}, tl.SliceLayout(0, {layout}))[None, :]")
    out.line(f"out_inside = tl.convert_layout(inside, tl.SliceLayout(1, {layout}))[:, None]")
    place = f"(entry.to(tl.int64) * {length} + out_row) * {width} + out_column"
    out.line(f"tl.store({tensor} + {place}, {value}.to(ELEMENT), mask=out_inside)")


BOXES = f'''{UNITS_FUNCTION}

def half(box):
    """The box that one consumer owns: half of all along the first axis that is longer than one."""
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
