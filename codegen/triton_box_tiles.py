"""Loads and stores of boxes of tokens: by tensor descriptors of several axes (TMA), or by positions of rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from .box_groups import Letter
from .emitter import Emitter
from .schedule import Problem
from .triton_box_space import BoxSpace
from .triton_module import Argument, Part
from .triton_program import DESCRIPTOR, Tiles, emit_call

# Axes of a descriptor, at most; the first serves batch and head, the last is the head's.
_AXES = 5


def can_describe(space: BoxSpace) -> bool:
    """Whether descriptors have enough axes for boxes of queries and keys, and may ever hold them."""
    enough = all(len(space.view(x)[0]) + 2 <= _AXES for x in _LETTERS.values())
    return enough and "False" not in conditions(space)


def conditions(space: BoxSpace) -> list[str]:
    """When descriptors hold just the tokens that there are, in Python: always, where there are no conditions."""
    return list(dict.fromkeys(c for x in _LETTERS.values() for c in space.conditions(x)))


def emit_helpers(out: Emitter, tiles: Sequence[BoxTiles]) -> None:
    """The functions that make descriptors for these kernels."""
    if any(t.descriptors for t in tiles):
        out.section(BOXES)
    if any(t.descriptors and t.with_lines for t in tiles):
        out.section(DESCRIPTOR)


class BoxTiles(Tiles):
    """As :class:`Tiles`, where a tile is the box of queries (``BLOCK_M``) or keys (``BLOCK_N``) at hand.

    Descriptors load the boxes that are visited. The box that is owned comes by pointers: a box of several axes ends in
    registers, and what comes with Triton 3.6 miscompiles wgmma on sm_90 if its left operand stays in registers through
    a loop. Where some call may have classes that are cut short, which have more tokens in a descriptor than there are,
    both ways are written, and ``TILED`` chooses.
    """

    def __init__(
        self, problem: Problem, descriptors: bool, space: BoxSpace, visited: str, with_lines: bool = False
    ) -> None:
        super().__init__(problem, descriptors and can_describe(space))
        self.space, self._visited, self.with_lines = space, visited, with_lines
        self.on_line = False
        # Where rows of the owned box are in tensors that are written.
        self.stored_rows = "rows"
        self.chooses = self._descriptors and bool(conditions(space))

    @property
    def descriptors(self) -> bool:
        return self._descriptors

    def inputs(self, name: str, parts: Sequence[Part], block: str) -> list[Argument]:
        """Arguments for a tensor of which boxes are loaded."""
        letter = _LETTERS[block]
        if not self._descriptors or _ROWS[letter] != self._visited:
            return self.pointers(name)
        box = ", ".join(self.space.view(letter)[2])
        first = f", {letter}_origin" if self.space.is_offset(letter) else ""
        made = f"boxes({name}, {_SIDES[letter]}_axes, ({box}, {{}}){first})"
        made += f" if tiled else {name}" if self.chooses else ""
        lines = [
            Argument(f"{name}_line{p.suffix}", "", f'descriptor({name}, options["{block}"], {p.width})') for p in parts
        ]
        units = ["batch", "head", *(["first"] if first else [])]
        return [
            *(self.pointers(name) if self.chooses else []),
            *(Argument(f"{name}_boxes{p.suffix}", "", made.format(p.width)) for p in parts),
            *(lines if self.with_lines else []),
            *(Argument(f"{name}_{x}_unit", "i32", f"units({name}{first})[{i}]") for i, x in enumerate(units)),
        ]

    def open_input(self, out: Emitter, name: str, head: str, rows: str, columns: str, parts: Sequence[Part]) -> None:
        """What :meth:`load` needs, before the loops."""
        described = self._descriptors and rows != "rows"
        if not described or self.chooses:
            self.open(out, name, head, rows, columns, parts)
        if described:
            first = f" + {name}_first_unit" if self.space.is_offset(self.space.other) else ""
            out.line(f"{name}_place = batch * {name}_batch_unit + {head} * {name}_head_unit{first}")

    def open(self, out: Emitter, name: str, head: str, rows: str, columns: str, parts: Sequence[Part]) -> None:
        """``name_base``: the tensor at this batch and head; ``name_stride``: from position to position."""
        unit = f" * {self._group}" if self._group > 1 else ""
        out.line(f"{name}_base = {name} + (batch * {name}_batch + {head} * {name}_head){unit}")
        out.line(f"{name}_stride = {name}_row.to(tl.int64){unit}")

    def load(
        self, out: Emitter, name: str, tensor: str, head: str, start: str, block: str, columns: str,
        parts: Sequence[Part], inside: str = "",
    ) -> None:  # fmt: skip
        """``name`` = the box of ``tensor`` at hand; tokens that do not exist are zero, or others."""
        rows = self._rows(start)
        if not self._descriptors or rows == "rows":
            self._load_rows(out, name, tensor, rows, columns, parts, inside)
            return
        if self.on_line:
            for p in parts:
                where = f"[batch, {head}, line_at_0, {p.first}]"
                out.line(f"{name}{p.suffix} = {tensor}_line{p.suffix}.load({where}).reshape({block}, {p.width})")
            return
        with out.block("if TILED:") if self.chooses else nullcontext():
            for p in parts:
                where = ", ".join([f"{tensor}_place", *self.space.coordinates(_LETTERS[block]), str(p.first)])
                out.line(f"{name}{p.suffix} = {tensor}_boxes{p.suffix}.load([{where}]).reshape({block}, {p.width})")
        if not self.chooses:
            return
        with out.block("else:"):
            self._load_rows(out, name, tensor, rows, columns, parts, inside)

    def _rows(self, start: str) -> str:
        """The positions of the box that is owned, or of the one that is visited."""
        return "rows" if start == "tile_first" else self._visited

    def _load_rows(
        self, out: Emitter, name: str, tensor: str, rows: str, columns: str, parts: Sequence[Part], inside: str
    ) -> None:
        for p in parts:
            mask = f"{inside} & ({columns}{p.suffix} < {p.first + p.valid})" if p.padded else inside
            place = f"{tensor}_base + {rows}[:, None] * {tensor}_stride + {columns}{p.suffix}"
            emit_call(out, f"{name}{p.suffix} = tl.load", place, f"mask={mask}", "other=0.0")

    def store(
        self, out: Emitter, name: str, tensor: str, start: str, columns: str, parts: Sequence[Part], inside: str,
        value: str = "{}",
    ) -> None:  # fmt: skip
        """Writes ``name``, converted to the tensor's type, after :meth:`open`; ``value`` may wrap it."""
        for p in parts:
            mask = f"{inside} & ({columns}{p.suffix} < {p.first + p.valid})" if p.padded else inside
            text = value.format(f"{name}{p.suffix}")
            rows = self.stored_rows if start == "tile_first" else self._rows(start)
            place = f"{tensor}_base + {rows}[:, None] * {tensor}_stride + {columns}{p.suffix}"
            emit_call(out, "tl.store", place, f"{text}.to({tensor}.dtype.element_ty)", f"mask={mask}")


_LETTERS: dict[str, Letter] = {"BLOCK_M": "q", "BLOCK_N": "k"}
_SIDES: dict[Letter, str] = {"q": "query", "k": "key"}
_ROWS: dict[Letter, str] = {"q": "queries", "k": "keys"}

UNITS = '''
def units(x, first=0):
    """Strides of batch and head, the distance to position ``first``, and of an axis that serves all: their divisor."""
    strides = [stride if size > 1 else 0 for size, stride in zip(x.shape[:2], x.stride())] + [first * x.stride(2)]
    unit = math.gcd(*strides) or 16 // x.element_size()
    return *(stride // unit for stride in strides), unit
'''

BOXES = f'''{UNITS}

def boxes(x, axes, box, first=0):
    """Boxes of tokens of a (B, H, L, D) tensor, with ``axes`` (size, positions between neighbours) for its positions.

    They begin at position ``first``. Loaded by the tensor memory accelerator.
    """
    batch, head, offset, unit = units(x, first)
    sizes, steps = zip(*axes)
    shape = [1 + (x.shape[0] - 1) * batch + (x.shape[1] - 1) * head + offset, *sizes, x.shape[3]]
    strides = [unit, *(step * x.stride(2) for step in steps), 1]
    return TensorDescriptor(x, shape, strides, [1, *box])
'''
