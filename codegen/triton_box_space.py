"""Boxes inside of a kernel: which one a program owns, which ones it visits, and where their tokens are.

A box of queries has the sides ``Q_0``, ``Q_1`` …, one of keys ``K_0``, ``K_1`` …, powers of two. Its first coordinates
inside of its class (``x`` in :class:`BoxAxis`) are ``q_at_0`` … or ``k_at_0`` …; boxes that are visited start where the
first token is that the owned box sees, not on a grid.
"""

from __future__ import annotations

from ..ir.nodes import ZERO, Const, Expr, Index, Load, Param, Score, Value
from ..ir.tiles.plan import BoxAxis, BoxTerm, Ranges, Side
from .box_groups import Letter
from .emitter import Emitter
from .print_triton import print_triton
from .triton_program import INDICES
from .triton_values import Guard, Values, user_name


class BoxSpace:
    """Writes the scalar arithmetic over the boxes of one term; the program owns a box of ``own``."""

    def __init__(self, term: BoxTerm, own: Letter, on_line: bool = False) -> None:
        self.axes, self.own, self.on_line = term.axes, own, on_line
        self.other: Letter = "k" if own == "q" else "q"
        # What names begin with; visited runs of positions stand beside boxes in one kernel.
        self.labels: dict[Letter, str] = {own: own, self.other: "line" if on_line else self.other}
        self.origins: dict[Letter, Expr] = {"q": term.query_origin, "k": term.key_origin}
        self.ends: dict[Letter, Expr | None] = {"q": term.query_end, "k": term.key_end}
        # Whether the ranges of single tokens along each axis are the mask.
        self.is_product = not (term.remaining or any(len(self.ranges(a).may) != 1 for a in self.axes))
        self.is_nested = term.is_nested
        self.has_full_boxes = all(self.within(a).must for a in self.axes)

    @property
    def by_head(self) -> bool:
        """Whether classes differ from head to head: then a program knows its head before its box."""
        return any(a.by_head for a in self.axes)

    # --- sizes, as text that is both Triton and Python ---

    def size(self, axis: BoxAxis, letter: Letter) -> str:
        """How many coordinates an axis has."""
        return print_triton(_side(axis, letter).size, _name, lambda e: True)

    def origin(self, letter: Letter) -> str:
        """The position of the first point of the space."""
        return print_triton(self.origins[letter], _name, lambda e: True)

    def extent(self, axis: BoxAxis, letter: Letter) -> str:
        """How many coordinates a class has at most, as a text that calls ``cdiv``."""
        if axis.block:
            return str(axis.block // axis.residue)
        return _cdiv(self.size(axis, letter), axis.residue)

    def counts(self, letter: Letter) -> list[tuple[str, str]]:
        """The numbers that tell boxes apart, those of neighbours first, and how many values each has."""
        found = [(f"box_{i}", f"boxes_{i}") for i in reversed(range(len(self.axes)))]
        for i in reversed(range(len(self.axes))):
            axis = self.axes[i]
            if axis.block:
                size = _side(axis, letter).size
                offset = int(axis.offset.value) if isinstance(axis.offset, Const) else axis.block - 1
                blocks = str(-(-(int(size.value) + offset) // axis.block)) if isinstance(size, Const) else ""
                shifted = f"{self.size(axis, letter)} + {offset}" if offset else self.size(axis, letter)
                found.append((f"block_{i}", blocks or _cdiv(shifted, axis.block)))
        found += [(f"residue_{i}", str(a.residue)) for i, a in enumerate(self.axes) if a.residue > 1]
        return found

    def sides(self, letter: Letter) -> list[str]:
        """Names of the sides of a box."""
        if self.on_line:
            return [_BLOCKS[letter]]
        return [f"{letter.upper()}_{i}" for i in range(len(self.axes))]

    def is_uneven(self, letter: Letter) -> bool:
        """Whether the last row of the outermost axis may end before its inner axes do."""
        return _side(self.axes[0], letter).is_cut

    def is_offset(self, letter: Letter) -> bool:
        """Whether the space starts at a later position."""
        return self.origins[letter] != ZERO

    def ends_unevenly(self, letter: Letter) -> bool:
        """Whether there are points of the space before the first position, or after the last."""
        return self.is_uneven(letter) or self.is_offset(letter)

    def ranges(self, axis: BoxAxis) -> Ranges:
        """What a run of owned coordinates sees."""
        return axis.keys if self.own == "q" else axis.queries

    def within(self, axis: BoxAxis) -> Ranges:
        """The same within boxes along the axes before, where axes depend on each other."""
        within = axis.keys_within if self.own == "q" else axis.queries_within
        return self.ranges(axis) if within is None else within

    # --- the box that a program owns ---

    def emit_tiles(self, out: Emitter) -> None:
        """``tiles``: the boxes of one head."""
        own = self.own
        out.comment(f"Boxes of {_NAMES[own]} in a class along each axis, and in all classes.")
        for i, (axis, side) in enumerate(zip(self.axes, self.sides(own), strict=True)):
            out.line(f"boxes_{i} = tl.cdiv({self.extent(axis, own)}, {side})")
        out.line(f"tiles = {' * '.join(_factor(count) for _, count in self.counts(own))}")

    def emit_own(self, out: Emitter) -> None:
        """The class and first coordinates of the box ``tile``; ``rows``, its positions, and which are ``inside``."""
        self.emit_own_box(out)
        self.emit_lanes(out, self.own)
        self.emit_own_rows(out)

    def emit_own_box(self, out: Emitter) -> None:
        """The class of the box ``tile``, its first and last coordinates."""
        own, rest = self.own, "tile"
        for i, axis in enumerate(self.axes):
            if not isinstance(axis.offset, Const):
                values = Values({"offset": axis.offset}, INDICES, prefix=f"offset_{i}_")
                values.emit(out, "program", ("offset",), Guard())
                out.line(f"offset_{i} = ({values.result('offset')}).to(tl.int32)")
        for letter in ("q", "k"):
            if self.is_offset(letter):
                out.line(f"{letter}_origin = {self.origin(letter)}")
        *digits, (last, _) = self.counts(own)
        for name, count in digits:
            out.line(f"{name} = {rest} % {_factor(count)}")
            out.line(f"rest = {rest} // {_factor(count)}")
            rest = "rest"
        out.line(f"{last} = {rest}")
        for i, side in enumerate(self.sides(own)):
            self.emit_class(out, i, own, f"residue_{i}")
            low = self.low_of(i)
            out.line(f"{own}_at_{i} = {'' if low == '0' else f'{low} + '}box_{i} * {side}")
            out.line(f"last_{i} = tl.minimum({own}_at_{i} + {side}, {self.end_of(i, own)}) - 1")

    def emit_own_rows(self, out: Emitter) -> None:
        """``rows``, the positions of the owned box, and which of them are ``inside``; its lanes come before."""
        own = self.own
        self.emit_first(out, own)
        out.line(f"rows = {own}_first + {own}_steps")
        inside = [f"({own}_at_{i} + {own}_lane_{i} < {self.end_of(i, own)})" for i in range(len(self.axes))]
        out.line(f"inside = {' & '.join([*inside, *self.within_length(own, 'rows')])}")

    def within_length(self, letter: Letter, positions: str) -> list[str]:
        """Conditions for ``positions`` of the space to exist."""
        found = [f"({positions} < {LENGTHS[letter]})"] if self.ends_unevenly(letter) else []
        return [f"({positions} >= 0)", *found] if self.is_offset(letter) else found

    def emit_run(self, out: Emitter) -> None:
        """``first_row`` and ``last_row``, between which all positions of the owned box lie."""
        own = self.own
        first, last = f"{own}_first", [f"{own}_first"]
        for i, axis in enumerate(self.axes):
            last.append(times(self.step(axis, own), f"(last_{i} - {own}_at_{i})"))
        end = " + ".join(last)
        if self.ends_unevenly(own):
            first, end = f"tl.maximum({first}, 0)", f"tl.minimum({end}, {LENGTHS[own]} - 1)"
        out.line(f"first_row = {first}")
        out.line(f"last_row = {end}")

    def emit_class(self, out: Emitter, i: int, letter: Letter, residue: str) -> None:
        """Which coordinates a class has: its first one, with x = 0, and the end of its x."""
        axis = self.axes[i]
        if not axis.has_classes:
            return
        name = self.class_of(i, letter)
        if letter == self.own or name.startswith(letter):
            terms = [f"{axis.block} * block_{i}" if axis.block > 1 else f"block_{i}"] if axis.block else []
            terms += [residue] if axis.residue > 1 else []
            offset = self.offset(i)
            out.line(f"{name} = {' + '.join(terms)}{f' - {offset}' if offset else ''}")
            if offset:
                out.line(f"{self.low_of(i)} = {_cdiv(f'tl.maximum(-{name}, 0)', axis.residue)}")
        if not self.end_of(i, letter).isdigit():
            end = _cdiv(f"tl.maximum({self.size(axis, letter)} - {name}, 0)", axis.residue)
            if axis.block:
                end = f"tl.minimum({end}, {axis.block // axis.residue})"
            out.line(f"{self.end_of(i, letter)} = {end}")

    def class_of(self, i: int, letter: Letter) -> str:
        axis = self.axes[i]
        if not axis.has_classes:
            return "0"
        return f"{self.own if axis.shift == ZERO else letter}_class_{i}"

    def offset(self, i: int) -> str:
        """By how much blocks begin early, if they do: a number, or a variable of the program."""
        offset = self.axes[i].offset
        if isinstance(offset, Const):
            return str(offset.value) if offset.value else ""
        return f"offset_{i}"

    def low_of(self, i: int) -> str:
        """The first x of a class; blocks whose residues are shifted do not exist."""
        return f"low_{i}" if self.offset(i) else "0"

    def end_of(self, i: int, letter: Letter) -> str:
        axis = self.axes[i]
        size = _side(axis, letter).size
        if not axis.has_classes:
            return self.size(axis, letter)
        if isinstance(size, Const) and not self.offset(i) and int(size.value) % (axis.block or axis.residue) == 0:
            return str((axis.block or int(size.value)) // axis.residue)
        return f"{letter}_end_{i}"

    def emit_lanes(self, out: Emitter, letter: Letter, numbers: str = "") -> None:
        """Coordinates and distances of the tokens of a box, or those of ``numbers``, relative to its first."""
        sides, name = self.sides(letter), self.labels[letter]
        block = numbers or f"tl.arange(0, {_BLOCKS[letter]})"
        for i, side in enumerate(sides):
            later = " * ".join(sides[i + 1 :])
            lane = f"{block} // {_factor(later)}" if later else block
            out.line(f"{name}_lane_{i} = {lane}{f' % {side}' if i else ''}")
        steps = [times(self.step(a, letter), f"{name}_lane_{i}") for i, a in enumerate(self.axes)]
        out.line(f"{name}_steps = {' + '.join(steps)}")

    def emit_first(self, out: Emitter, letter: Letter) -> None:
        """The position of the first token of a box."""
        terms = [f"{letter}_origin"] if self.is_offset(letter) else []
        name = self.labels[letter]
        for i, axis in enumerate(self.axes):
            terms.append(times(self.step(axis, letter), f"{name}_at_{i}"))
            if axis.has_classes:
                terms.append(times(_side(axis, letter).stride, self.class_of(i, letter)))
        out.line(f"{name}_first = {' + '.join(terms)}")

    def step(self, axis: BoxAxis, letter: Letter) -> int:
        return _side(axis, letter).stride * axis.residue

    # --- boxes of a tensor ---

    def view(self, letter: Letter) -> tuple[list[str], list[str], list[str]]:
        """Sizes and steps (in positions) of the axes of a tensor in which a box is one, and the sides of the box."""
        sizes, steps, box = [], [], []
        for axis, side in zip(self.axes, self.sides(letter), strict=True):
            stride = _side(axis, letter).stride
            sizes.append(_cdiv(self.size(axis, letter), axis.residue, "triton."))
            steps.append(str(stride * axis.residue))
            box.append(f'options["{side}"]')
            if axis.residue > 1:
                sizes.append(str(axis.residue))
                steps.append(str(stride))
                box.append("1")
        return sizes, steps, box

    def conditions(self, letter: Letter) -> list[str]:
        """When the axes of :meth:`view` have no more tokens than there are, in Python."""
        found = []
        tokens = LENGTHS[letter]
        if self.is_offset(letter):
            found.append(f"0 <= {letter}_origin <= {tokens}")
            tokens = f"({tokens} - {letter}_origin)"
        if self.is_uneven(letter):
            row, rows = _side(self.axes[0], letter).stride, self.size(self.axes[0], letter)
            is_end = self.ends[letter] is None  # of all positions
            found.append(f"{tokens} % {row} == 0" if is_end else f"{row} * ({rows}) <= {tokens}")
        for axis in self.axes:
            size = _side(axis, letter).size
            if axis.residue == 1:
                continue
            if not isinstance(size, Const):
                text = self.size(axis, letter)
                found.append(f"{text if text.isidentifier() else f'({text})'} % {axis.residue} == 0")
            elif int(size.value) % axis.residue:
                found.append("False")
        return found

    def coordinates(self, letter: Letter) -> list[str]:
        """Where a box starts in those axes; :meth:`emit_places` comes before."""
        found = []
        for i, axis in enumerate(self.axes):
            place = f"{letter}_place_{i}" if axis.residue > 1 else self.class_of(i, letter)
            has_place = axis.block if axis.residue > 1 else axis.has_classes
            found.append(f"{place} + {letter}_at_{i}" if has_place else f"{letter}_at_{i}")
            if axis.residue > 1:
                found.append(f"{letter}_rest_{i}")
        return found

    def emit_places(self, out: Emitter, letter: Letter) -> None:
        """Where classes start in those axes."""
        for i, axis in enumerate(self.axes):
            if axis.residue > 1:
                residue = self.residue_of(i, letter)
                more = axis.residue * axis.block  # keeps the sum positive
                offset = axis.offset
                shift = f"{-int(offset.value) % axis.residue}" if isinstance(offset, Const) else f"{more} - offset_{i}"
                rest = f"({residue} + {shift}) % {axis.residue}" if shift != "0" else residue
                out.line(f"{letter}_rest_{i} = {rest}")
                if axis.block:
                    out.line(f"{letter}_place_{i} = ({self.class_of(i, letter)} - {letter}_rest_{i}) // {axis.residue}")

    def residue_of(self, i: int, letter: Letter) -> str:
        axis = self.axes[i]
        return f"residue_{i}" if letter == self.own or axis.shift == ZERO else f"{letter}_residue_{i}"


_NAMES: dict[Letter, str] = {"q": "queries", "k": "keys"}
LENGTHS: dict[Letter, str] = {"q": "q_len", "k": "kv_len"}
_BLOCKS: dict[Letter, str] = {"q": "BLOCK_M", "k": "BLOCK_N"}


def _side(axis: BoxAxis, letter: Letter) -> Side:
    return axis.query if letter == "q" else axis.key


def _name(x: Index | Score | Param | Load | Value) -> str:
    assert isinstance(x, Index | Param)
    return INDICES[x.name] if isinstance(x, Index) else user_name(x.name)


def _cdiv(text: str, divisor: int, module: str = "tl.") -> str:
    if divisor == 1:
        return text
    return str(-(-int(text) // divisor)) if text.isdigit() else f"{module}cdiv({text}, {divisor})"


def _factor(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() or text.startswith("tl.cdiv(") else f"({text})"


def times(factor: int, text: str) -> str:
    return text if factor == 1 else f"{factor} * {text if text.isidentifier() or text.startswith('(') else f'({text})'}"
