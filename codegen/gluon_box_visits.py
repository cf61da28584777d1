"""Boxes of a token space in Gluon kernels: functions that the producer and the consumers share.

The boxes that an owned box visits are the product of runs of boxes along each axis, and so are those of which
every pair is allowed. So the others come in closed form too: those that are partial along axis 0, then those that are
full along it and partial along axis 1, and so on; the full ones are last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..ir.tiles.plan import BoxTerm
from .box_groups import Letter
from .emitter import Emitter
from .gluon_tiles import emit_unpack, jit_function
from .triton_box_visits import BoxVisits
from .triton_module import Argument
from .triton_program import SIZES, emit_entry

# The boxes of all heads.
BOX_SIZES = [*SIZES, Argument("programs", "i32", "programs")]
_ASSIGNED = re.compile(r"^(\w+) = ", re.MULTILINE)
_AT = re.compile(r"[qk]_at_(\d)$")
# What only the way from the number of a box to its class needs.
_ON_THE_WAY = re.compile(r"boxes_\d|box_\d|rest|tiles|tile|place|first_head|section_heads|chunks|shift_.*")
# Boxes by letter, and the constant that says how many of their tokens one consumer owns.
_NAMES: dict[Letter, str] = {"q": "query", "k": "key"}
_OWNED: dict[Letter, str] = {"q": "ROWS", "k": "KEYS"}


def units_of(*tensors: str) -> list[Argument]:
    """Where batches and heads begin in tensors whose boxes are loaded."""
    axes = ("batch", "head")
    return [Argument(f"{x}_{axis}_unit", "i32", f"units({x})[{i}]") for x in tensors for i, axis in enumerate(axes)]


class GluonBoxVisits(BoxVisits):
    """Writes the functions; ``names`` are those of the numbers that tell a box of ``own`` and what it visits."""

    def __init__(
        self, term: BoxTerm, own: Letter, sizes: Sequence[Argument], parameters: Sequence[Argument], *, reverse: bool
    ) -> None:
        super().__init__(term, own)
        self.call_sizes, self.parameters, self.reverse = sizes, parameters, reverse
        self.names: tuple[str, ...] = ()

    def own_box(self, program: str) -> str:
        """A call that tells the box number ``program``, as text."""
        return f"{_NAMES[self.own]}_box({program}, sizes, parameters, BOX)"

    def emit_unpacked(self, out: Emitter) -> None:
        """The sizes of the call, its parameters, and the sides of boxes."""
        emit_unpack(out, "sizes", self.call_sizes)
        emit_unpack(out, "parameters", self.parameters)
        self.emit_sides(out)

    def emit_sides(self, out: Emitter) -> None:
        """Sides of boxes, from the constant that holds them."""
        for i, side in enumerate((*self.sides("q"), *self.sides("k"))):
            out.line(f"{side}: tl.constexpr = BOX[{i}]")

    def emit_functions(self, out: Emitter) -> None:
        """``query_box`` or ``key_box``, ``visited_boxes`` and ``visited_box``."""
        kind = "queries" if self.own == "q" else "keys"
        with jit_function(out, f"{_NAMES[self.own]}_box(program, sizes, parameters, BOX: tl.constexpr)"):
            out.line(f'"""Head, class and first coordinates of the box of {kind} number `program`."""')
            body = Emitter()
            self._emit_own_box(body)
            self.emit_unpacked(out)
            out.lines(body.text())
            found = dict.fromkeys(_ASSIGNED.findall(body.text()))
            self.names = tuple(x for x in found if not _ON_THE_WAY.fullmatch(x))
            out.line(f"return {', '.join(self.names)}")
        with jit_function(out, "visited_boxes(own, sizes, parameters, BOX: tl.constexpr)"):
            out.line('"""Numbers of partial boxes and of all, and along each axis what says where they are."""')
            self.emit_unpacked(out)
            self.emit_names(out)
            names = self._emit_counts(out)
            out.line(f"return {', '.join(names)}")
        with jit_function(out, "visited_box(t, visits, BOX: tl.constexpr)"):
            out.line('"""First coordinates of the t-th visited box."""')
            self.emit_sides(out)
            out.line(f"{', '.join(names)} = visits")
            self._emit_place(out)

    def half_coordinates(self, group: str) -> list[str]:
        """Where the half of the box that a consumer owns starts; :meth:`emit_places` comes before."""
        sides, found = self.sides(self.own), []
        for text in self.coordinates(self.own):
            match = _AT.search(text)
            if match is None:
                found.append(text)
                continue
            i = int(match.group(1))
            later = " * ".join(sides[i + 1 :])
            lane = f"{group} * {_OWNED[self.own]}{f' // ({later})' if later else ''} % {sides[i]}"
            found.append(f"{text} + {lane}")
        return found

    def is_short(self, letter: Letter) -> str:
        """When a class has one coordinate more than others, or none has any, as text; "" where all are alike.

        Then its boxes come by a descriptor of such classes alone: one for all classes would reach past the end.
        """
        axis = self.axes[0]
        if not self.conditions(letter):
            return ""
        size = self.size(axis, letter)
        return f"({letter}_rest_0 < {size} % {axis.residue}) | ({size} < {axis.residue})"

    def emit_names(self, out: Emitter) -> None:
        """Takes apart what :meth:`own_box` gives."""
        out.line(f"{', '.join(self.names)} = own")

    def emit_own_lanes(self, out: Emitter, rows: str) -> None:
        """Coordinates of the tokens that a consumer owns, numbered as ``rows`` are, inside of the box."""
        out.line(f"numbers = GROUP * {_OWNED[self.own]} + {rows}")
        self.emit_lanes(out, self.own, "numbers")

    def emit_inside(self, out: Emitter) -> None:
        """``inside``: which owned tokens belong to the class."""
        own = self.own
        axes = range(len(self.axes))
        inside = [f"({own}_at_{i} + {own}_lane_{i} < {self.end_of(i, own)})" for i in axes]
        out.line(f"inside = {' & '.join(inside)}")

    def start_places(self) -> list[str]:
        """Where along each axis the first coordinate of the box in buffer ``stage`` is kept, as text."""
        axes = len(self.axes)
        return ["stage" if axes == 1 else f"stage * {axes}{f' + {i}' if i else ''}" for i in range(axes)]

    def emit_read_start(self, out: Emitter) -> None:
        """First coordinates of the visited box in buffer ``stage``."""
        for i, place in enumerate(self.start_places()):
            out.line(f"{self.other}_at_{i} = read(starts, {place})")

    def _emit_own_box(self, out: Emitter) -> None:
        self.emit_tiles(out)
        out.comment("Heads run in sections whose keys and values fit in the L2 cache, box by box.")
        emit_entry(out, reverse=self.reverse)
        if self.own == "q":
            out.line("batch = entry // heads")
            out.line("head = entry % heads")
            out.line("kv_head = head // (heads // kv_heads)")
        else:
            out.line("chunks = heads // group")
            out.line("batch = entry // chunks")
            out.line("chunk = entry % chunks")
            out.line("kv_head = chunk * group // (heads // kv_heads)")
        self.emit_own_box(out)
        self.emit_other_class(out)

    def _emit_counts(self, out: Emitter) -> tuple[str, ...]:
        """Along each axis the boxes to visit, and which of them are full; returns the names of what was written."""
        names: list[str] = []
        for i, side in enumerate(self.sides(self.other)):
            ((start, stop),), must = self.emit_ranges(out, i)
            out.line(f"start_{i} = {start}")
            out.line(f"count_{i} = tl.cdiv(tl.maximum({stop} - start_{i}, 0), {side})")
            names += [f"start_{i}", f"count_{i}"]
            if self.has_full_boxes:
                ((first, last),) = must
                found = f"tl.minimum(tl.cdiv(tl.maximum({first} - start_{i}, 0), {side}), count_{i})"
                out.line(f"first_{i} = {found}")
                end = f"tl.minimum(tl.maximum({last} - start_{i}, 0) // {side}, count_{i})"
                out.line(f"full_{i} = tl.maximum({end} - first_{i}, 0)")
                names += [f"first_{i}", f"full_{i}"]
        counts = " * ".join(f"count_{i}" for i in range(len(self.axes)))
        out.line(f"count = {self.if_exists(counts)}")
        full = " * ".join(f"full_{i}" for i in range(len(self.axes))) if self.has_full_boxes else "0"
        out.line(f"partial_count = count - {self.if_exists(full)}")
        return "partial_count", "count", *names

    def _emit_place(self, out: Emitter) -> None:
        axes = range(len(self.axes))
        numbers = [f"digit_{i}" for i in axes]
        out.line("number = t")
        if self.has_full_boxes:
            self._emit_groups(out)
        for i in reversed(axes[1:]):
            radix = f"radix_{i}" if self.has_full_boxes else f"count_{i}"
            out.line(f"digit_{i} = number % tl.maximum({radix}, 1)")
            out.line(f"number = number // tl.maximum({radix}, 1)")
        out.line("digit_0 = number")
        if self.has_full_boxes:
            out.comment("Along each axis partial boxes have the first numbers.")
            for i in axes:
                out.line(f"digit_{i} += tl.where(t >= end_{i}, partial_{i}, 0)")
                full = f"first_{i} + digit_{i} - partial_{i}"
                moved = f"tl.where(digit_{i} < partial_{i}, digit_{i} + full_{i}, {full})"
                numbers[i] = f"place_{i}"
                out.line(f"place_{i} = tl.where(digit_{i} < first_{i}, digit_{i}, {moved})")
        sides = self.sides(self.other)
        places = [f"start_{i} + {x} * {side}" for i, x, side in zip(axes, numbers, sides, strict=True)]
        out.line(f"return {', '.join(places)}{',' if len(places) == 1 else ''}")

    def _emit_groups(self, out: Emitter) -> None:
        """``number`` inside of the group that ``t`` belongs to, and how many boxes this has along each axis.

        Group i is full along the axes before axis i, partial along that, and has all boxes along the others.
        """
        axes = range(len(self.axes))
        for i in axes:
            out.line(f"partial_{i} = count_{i} - full_{i}")
        for i in axes:
            sizes = [*(f"full_{j}" for j in axes[:i]), f"partial_{i}", *(f"count_{j}" for j in axes[i + 1 :])]
            out.line(f"end_{i} = {f'end_{i - 1} + ' if i else ''}{' * '.join(sizes)}")
        for i in axes:
            out.line(f"number = tl.where(t >= end_{i}, t - end_{i}, number)")
        for i in axes[1:]:
            some = f"tl.where(t >= end_{i - 1}, partial_{i}, count_{i})"
            out.line(f"radix_{i} = tl.where(t >= end_{i}, full_{i}, {some})")
