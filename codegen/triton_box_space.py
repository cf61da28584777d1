"""Boxes inside of a kernel: which one a program owns, which ones it visits, and where their tokens are.

A box of queries has the sides ``Q_0``, ``Q_1`` …, one of keys ``K_0``, ``K_1`` …, powers of two. Its first coordinates
inside of its class (``x`` in :class:`BoxAxis`) are ``q_0`` … or ``k_0`` …; boxes that are visited start where the first
token is that the owned box sees, not on a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from ..ir.build import binary, const
from ..ir.nodes import ZERO, Const, Expr
from ..ir.tiles.plan import BoxAxis, BoxTerm, Ranges, Side
from ..ir.types import I64
from .emitter import Emitter
from .triton_program import INDICES
from .triton_tiles import Masked, ranges_results, sorted_intervals
from .triton_values import Guard, Values

Letter = Literal["q", "k"]


@dataclass(slots=True)
class _Visit:
    """What is visited along one axis, as text: intervals of coordinates, and the number of boxes."""

    may: list[tuple[str, str]]
    must: list[tuple[str, str]]
    ends: list[str] = field(default_factory=list)


class BoxSpace:
    """Writes the scalar arithmetic over the boxes of one term; the program owns a box of ``own``."""

    def __init__(self, term: BoxTerm, own: Letter) -> None:
        self.axes, self.own = term.axes, own
        self.other: Letter = "k" if own == "q" else "q"
        self._visits: list[_Visit] = []
        self._bounds: list[tuple[str, str]] = []
        # Whether the ranges of single tokens along each axis are the mask.
        self.is_product = not (
            term.remaining
            or any(len(self.ranges(a).may) != 1 for a in self.axes)
            or any(self._is_uneven(x) for x in ("q", "k"))
        )
        self.has_full_boxes = not term.remaining and all(self.ranges(a).must for a in self.axes)

    # --- sizes, as text that is both Triton and Python ---

    def size(self, axis: BoxAxis, letter: Letter) -> str:
        """How many coordinates an axis has."""
        return Values({"size": _side(axis, letter).size}, INDICES).result("size")

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
                blocks = str(-(-(int(size.value) + axis.offset) // axis.block)) if isinstance(size, Const) else ""
                shifted = f"{self.size(axis, letter)} + {axis.offset}" if axis.offset else self.size(axis, letter)
                found.append((f"block_{i}", blocks or _cdiv(shifted, axis.block)))
        found += [(f"residue_{i}", str(a.residue)) for i, a in enumerate(self.axes) if a.residue > 1]
        return found

    def sides(self, letter: Letter) -> list[str]:
        """Names of the sides of a box."""
        return [f"{letter.upper()}_{i}" for i in range(len(self.axes))]

    def _is_uneven(self, letter: Letter) -> bool:
        """Whether the last row of the outermost axis may end before its inner axes do."""
        side = _side(self.axes[0], letter)
        return side.stride > 1 and not isinstance(side.size, Const)

    def ranges(self, axis: BoxAxis) -> Ranges:
        """What a run of owned coordinates sees."""
        return axis.keys if self.own == "q" else axis.queries

    # --- the box that a program owns ---

    def emit_tiles(self, out: Emitter) -> None:
        """``tiles``: the boxes of one head."""
        own = self.own
        out.comment(f"Boxes of {_NAMES[own]} in a class along each axis, and in all classes.")
        for i, (axis, side) in enumerate(zip(self.axes, self.sides(own), strict=True)):
            out.line(f"boxes_{i} = tl.cdiv({self.extent(axis, own)}, {side})")
        out.line(f"tiles = {' * '.join(_factor(count) for _, count in self.counts(own))}")

    def emit_own(self, out: Emitter) -> None:
        """The class and the first coordinates of the box ``tile``; ``rows``, its positions, and which are ``inside``."""
        own, rest = self.own, "tile"
        *digits, (last, _) = self.counts(own)
        for name, count in digits:
            out.line(f"{name} = {rest} % {_factor(count)}")
            out.line(f"rest = {rest} // {_factor(count)}")
            rest = "rest"
        out.line(f"{last} = {rest}")
        for i, (axis, side) in enumerate(zip(self.axes, self.sides(own), strict=True)):
            self._emit_class(out, i, own, f"residue_{i}")
            low = self._low(i)
            out.line(f"{own}_{i} = {'' if low == '0' else f'{low} + '}box_{i} * {side}")
            out.line(f"last_{i} = tl.minimum({own}_{i} + {side}, {self._end(i, own)}) - 1")
        self._emit_lanes(out, own)
        self.emit_first(out, own)
        out.line(f"rows = {own}_first + {own}_steps")
        inside = [f"({own}_{i} + {own}_lane_{i} < {self._end(i, own)})" for i in range(len(self.axes))]
        if self._is_uneven(own):
            inside.append(f"(rows < {_LENGTHS[own]})")
        out.line(f"inside = {' & '.join(inside)}")

    def _emit_class(self, out: Emitter, i: int, letter: Letter, residue: str) -> None:
        """Which coordinates a class has: its first one, with x = 0, and the end of its x."""
        axis = self.axes[i]
        if not axis.has_classes:
            return
        name = self._class(i, letter)
        if letter == self.own or name.startswith(letter):
            terms = [f"{axis.block} * block_{i}" if axis.block > 1 else f"block_{i}"] if axis.block else []
            terms += [residue] if axis.residue > 1 else []
            out.line(f"{name} = {' + '.join(terms)}{f' - {axis.offset}' if axis.offset else ''}")
            if axis.offset:
                out.line(f"{self._low(i)} = {_cdiv(f'tl.maximum(-{name}, 0)', axis.residue)}")
        if not self._end(i, letter).isdigit():
            end = _cdiv(f"tl.maximum({self.size(axis, letter)} - {name}, 0)", axis.residue)
            if axis.block:
                end = f"tl.minimum({end}, {axis.block // axis.residue})"
            out.line(f"{self._end(i, letter)} = {end}")

    def _class(self, i: int, letter: Letter) -> str:
        axis = self.axes[i]
        if not axis.has_classes:
            return "0"
        return f"{self.own if axis.shift == ZERO else letter}_class_{i}"

    def _low(self, i: int) -> str:
        """The first x of a class; blocks whose residues are shifted do not exist."""
        return f"low_{i}" if self.axes[i].offset else "0"

    def _end(self, i: int, letter: Letter) -> str:
        axis = self.axes[i]
        size = _side(axis, letter).size
        if not axis.has_classes:
            return self.size(axis, letter)
        if isinstance(size, Const) and axis.offset == 0 and int(size.value) % (axis.block or axis.residue) == 0:
            return str((axis.block or int(size.value)) // axis.residue)
        return f"{letter}_end_{i}"

    def _emit_lanes(self, out: Emitter, letter: Letter) -> None:
        """Coordinates and distances of the tokens of a box, relative to its first."""
        sides = self.sides(letter)
        block = f"tl.arange(0, {_BLOCKS[letter]})"
        for i, axis_side in enumerate(sides):
            later = " * ".join(sides[i + 1 :])
            lane = block if not later else f"{block} // {later if '*' not in later else f'({later})'}"
            out.line(f"{letter}_lane_{i} = {lane}{f' % {axis_side}' if i else ''}")
        out.line(f"{letter}_steps = {' + '.join(_times(self._step(a, letter), f'{letter}_lane_{i}') for i, a in enumerate(self.axes))}")

    def emit_first(self, out: Emitter, letter: Letter) -> None:
        """The position of the first token of a box."""
        terms = []
        for i, axis in enumerate(self.axes):
            terms.append(_times(self._step(axis, letter), f"{letter}_{i}"))
            if axis.has_classes:
                terms.append(_times(_side(axis, letter).stride, self._class(i, letter)))
        out.line(f"{letter}_first = {' + '.join(terms)}")

    def _step(self, axis: BoxAxis, letter: Letter) -> int:
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
        if self._is_uneven(letter):
            found.append(f"{_LENGTHS[letter]} % {_side(self.axes[0], letter).stride} == 0")
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
            place = f"{letter}_place_{i}" if axis.residue > 1 else self._class(i, letter)
            has_place = axis.block if axis.residue > 1 else axis.has_classes
            found.append(f"{place} + {letter}_{i}" if has_place else f"{letter}_{i}")
            if axis.residue > 1:
                found.append(f"{letter}_rest_{i}")
        return found

    def emit_places(self, out: Emitter, letter: Letter) -> None:
        """Where classes start in those axes."""
        for i, axis in enumerate(self.axes):
            if axis.residue > 1:
                residue = self._residue(i, letter)
                shift = -axis.offset % axis.residue
                out.line(f"{letter}_rest_{i} = {f'({residue} + {shift}) % {axis.residue}' if shift else residue}")
                if axis.block:
                    out.line(f"{letter}_place_{i} = ({self._class(i, letter)} - {letter}_rest_{i}) // {axis.residue}")

    def _residue(self, i: int, letter: Letter) -> str:
        axis = self.axes[i]
        return f"residue_{i}" if letter == self.own or axis.shift == ZERO else f"{letter}_residue_{i}"

    # --- the boxes that it visits ---

    def emit_other(self, out: Emitter) -> None:
        """The class that is visited, and coordinates of its boxes."""
        other = self.other
        for i, axis in enumerate(self.axes):
            if axis.shift != ZERO:
                values = Values({"shift": _shift(axis, self.own)}, INDICES, prefix=f"shift_{i}_")
                values.emit(out, "program", ("shift",), Guard())
                out.line(f"{other}_residue_{i} = (residue_{i} + {values.result('shift')}).to(tl.int32) % {axis.residue}")
            self._emit_class(out, i, other, self._residue(i, other))
        self._emit_lanes(out, other)

    def emit_visits(self, out: Emitter) -> None:
        """Along each axis the coordinates that may be, and all must be, allowed; ``count``: boxes to visit."""
        self._visits = [self._emit_axis(out, i) for i in range(len(self.axes))]
        counts = [v.ends[-1] for v in self._visits if v.ends]
        count = " * ".join(counts) or "1"
        exist = [
            f"({self.own}_{i} <= last_{i})"
            for i, a in enumerate(self.axes)
            if a.has_classes and not self._end(i, self.own).isdigit()
        ]
        out.line(f"count = tl.where({' & '.join(exist)}, {count}, 0)" if exist else f"count = {count}")

    def _emit_axis(self, out: Emitter, i: int) -> _Visit:
        axis, ranges = self.axes[i], self.ranges(self.axes[i])
        names = {"tile_first": f"{self.own}_{i}", "tile_last": f"last_{i}", "block": f"block_{i}"}
        names["residue"] = f"residue_{i}" if axis.residue > 1 else "0"
        values = Values(ranges_results(ranges), INDICES | names, prefix=f"along_{i}_")
        values.emit(out, "program", tuple(ranges_results(ranges)), Guard())
        may = [self._clipped(out, values, i, "may", j, x.start, x.stop) for j, x in enumerate(ranges.may)]
        must = [self._clipped(out, values, i, "must", j, x.start, x.stop) for j, x in enumerate(ranges.must)]
        visit = _Visit(sorted_intervals(out, f"may_{i}", may), must)
        if self.extent(axis, self.other) == "1":
            return visit
        side, total = self.sides(self.other)[i], ""
        for j, (start, stop) in enumerate(visit.may):
            name = f"count_{i}" if j == len(visit.may) - 1 else f"count_{i}_{j}"
            length = f"tl.maximum({stop if start == '0' else f'{stop} - {start}'}, 0)"
            out.line(f"{name} = {f'{total} + ' if total else ''}tl.cdiv({length}, {side})")
            visit.ends.append(name)
            total = name
        return visit

    def _clipped(
        self, out: Emitter, values: Values, i: int, kind: str, j: int, start: Expr, stop: Expr
    ) -> tuple[str, str]:
        """An interval within its class, as text."""
        first, end = self._start(i, start), self._stop(i, stop)
        if not first:
            first, text = f"{kind}_{i}_{j}_start", values.result(f"{kind}_{j}_start")
            out.line(f"{first} = {_limited('tl.maximum', text, self._low(i), start)}")
        if not end:
            end, text = f"{kind}_{i}_{j}_stop", values.result(f"{kind}_{j}_stop")
            out.line(f"{end} = {_limited('tl.minimum', text, self._end(i, self.other), stop)}")
        return first, end

    def emit_bounds(self, out: Emitter) -> None:
        """Where the coordinates that each row sees begin and end along each axis, as columns."""
        out.comment("What each row sees along each axis.")
        self._bounds = []
        for i, axis in enumerate(self.axes):
            (interval,) = self.ranges(axis).may
            x, results = f"x_{i}", ranges_results(Ranges((interval,), ()))
            names = {"tile_first": x, "tile_last": x, "block": f"block_{i}"}
            names["residue"] = f"residue_{i}" if axis.residue > 1 else "0"
            values = Values(results, INDICES | names, prefix=f"row_{i}_")
            start, stop = self._start(i, interval.start), self._stop(i, interval.stop)
            if not (start and stop):
                out.line(f"{x} = ({self.own}_{i} + {self.own}_lane_{i})[:, None]")
                values.emit(out, "program", tuple(results), Guard())
            if not start:
                text = _limited("tl.maximum", values.result("may_0_start"), self._low(i), interval.start)
                out.line(f"from_{i} = {text}")
            if not stop:
                text = _limited("tl.minimum", values.result("may_0_stop"), self._end(i, self.other), interval.stop)
                out.line(f"until_{i} = {text}")
            until = stop or f"until_{i}"
            if not start:
                out.line(f"many_{i} = tl.maximum({until} - from_{i}, 0)")
            self._bounds.append(("" if start else f"from_{i}", until))

    def emit_product(self, out: Emitter) -> None:
        """``allowed``, where the product of the axes is the mask; :meth:`emit_bounds` comes before."""
        out.line("allowed = inside[:, None]")
        for i, (start, stop) in enumerate(self._bounds):
            x = f"{self.other}_{i}"
            if start:  # one comparison of both ends: what is less than the first wraps around
                column = f"{self.other}_lane_{i}[None, :] - ({start} - {x})"
                out.line(f"allowed &= ({column}).to(tl.uint32) < many_{i}")
            else:
                out.line(f"allowed &= ({x} + {self.other}_lane_{i})[None, :] < {stop}")

    def _start(self, i: int, start: Expr) -> str:
        """The start of a class where an interval starts no later, else nothing."""
        return self._low(i) if isinstance(start, Const) and start.value <= 0 else ""

    def _stop(self, i: int, stop: Expr) -> str:
        """The end of a class where an interval ends no earlier, as far as can be told, else nothing."""
        axis, end = self.axes[i], self._end(i, self.other)
        if isinstance(stop, Const) and axis.block and stop.value >= axis.block // axis.residue:
            return end
        return end if Values({"stop": stop}, INDICES | _NOWHERE).result("stop") == end else ""

    def emit_loop(
        self, out: Emitter, numbers: str, step: Callable[[Masked], None], masked: Masked, positions: Callable[[], None]
    ) -> None:
        """The loop over the boxes; ``numbers`` is its range with places for the ends."""
        moving = [i for i, v in enumerate(self._visits) if v.ends]
        if len(moving) > 1:
            out.line(f"{', '.join(f't_{i}' for i in moving)} = {', '.join('0' for _ in moving)}")
        with out.block(f"for t in {numbers.format('0', 'count')}:"):
            for i, visit in enumerate(self._visits):
                self._emit_start(out, i, visit, f"t_{i}" if len(moving) > 1 else "t")
            if len(moving) > 1:
                out.line(f"t_{moving[-1]} += 1")
            for before, i in reversed(list(pairwise(moving))):
                out.line(f"wrap = t_{i} == count_{i}")
                out.line(f"t_{before}, t_{i} = tl.where(wrap, t_{before} + 1, t_{before}), tl.where(wrap, 0, t_{i})")
            self.emit_first(out, self.other)
            positions()
            if masked == "some":
                self._emit_full(out)
            step(masked)

    def _emit_start(self, out: Emitter, i: int, visit: _Visit, number: str) -> None:
        """The first coordinate of a box, and the end of the interval that it is in."""
        other, side = self.other, self.sides(self.other)[i]
        start, stop = visit.may[-1]
        if not visit.ends:
            out.line(f"{other}_{i} = {start}")
            return
        if len(visit.may) == 1:
            out.line(f"{other}_{i} = {'' if start == '0' else f'{start} + '}{number} * {side}")
            return
        first, end = f"{start} + ({number} - {visit.ends[-2]}) * {side}", stop
        for j in reversed(range(len(visit.may) - 1)):
            start, stop = visit.may[j]
            here = number if j == 0 else f"({number} - {visit.ends[j - 1]})"
            first = f"tl.where({number} < {visit.ends[j]}, {start} + {here} * {side}, {first})"
            end = f"tl.where({number} < {visit.ends[j]}, {stop}, {end})"
        out.line(f"{other}_{i} = {first}")
        out.line(f"stop_{i} = {end}")

    def stop(self, i: int) -> str:
        """The end of the interval that the box is in."""
        visit = self._visits[i]
        return visit.may[0][1] if len(visit.may) == 1 else f"stop_{i}"

    def emit_positions(self, out: Emitter, name: str) -> None:
        """``name``, the positions of the box that is visited, and which of them are ``visible``."""
        other = self.other
        out.line(f"{name} = {other}_first + {other}_steps")
        terms = [f"({other}_{i} + {other}_lane_{i} < {self.stop(i)})" for i in range(len(self.axes))]
        if self._is_uneven(other):
            terms.append(f"({name} < {_LENGTHS[other]})")
        out.line(f"visible = {' & '.join(terms)}")

    def _emit_full(self, out: Emitter) -> None:
        """``full``: whether all rows see the whole box."""
        terms = []
        for i, (visit, side) in enumerate(zip(self._visits, self.sides(self.other), strict=True)):
            x = f"{self.other}_{i}"
            choices = [
                " & ".join([*([f"({x} >= {a})"] if a != "0" else []), f"({x} + {side} <= {b})"]) for a, b in visit.must
            ]
            terms.append(choices[0] if len(choices) == 1 else f"({' | '.join(f'({c})' for c in choices)})")
        if self._is_uneven(self.other):
            steps = [
                _times(self._step(a, self.other), f"({s} - 1)")
                for a, s in zip(self.axes, self.sides(self.other), strict=True)
            ]
            terms.append(f"({self.other}_first + {' + '.join(steps)} < {_LENGTHS[self.other]})")
        out.line(f"full = {' & '.join(terms)}")


# Names that no end of a class has.
_NOWHERE = dict.fromkeys(("tile_first", "tile_last", "block", "residue"), "?")
_NAMES: dict[Letter, str] = {"q": "queries", "k": "keys"}
_LENGTHS: dict[Letter, str] = {"q": "q_len", "k": "kv_len"}
_BLOCKS: dict[Letter, str] = {"q": "BLOCK_M", "k": "BLOCK_N"}


def _side(axis: BoxAxis, letter: Letter) -> Side:
    return axis.query if letter == "q" else axis.key


def _shift(axis: BoxAxis, own: Letter) -> Expr:
    """What is added to the residue of the owned class; at least 0."""
    return axis.shift if own == "q" else binary("sub", const(axis.residue), axis.shift)


def _cdiv(text: str, divisor: int, module: str = "tl.") -> str:
    if divisor == 1:
        return text
    return str(-(-int(text) // divisor)) if text.isdigit() else f"{module}cdiv({text}, {divisor})"


def _limited(function: str, text: str, limit: str, e: Expr) -> str:
    """``text``, which prints ``e``, and no more, or less, than ``limit``."""
    if text.isdigit() and limit.isdigit():
        return str(max(int(text), int(limit)) if function == "tl.maximum" else min(int(text), int(limit)))
    return f"{function}({text}, {limit}){'.to(tl.int32)' if e.type is I64 else ''}"


def _factor(text: str) -> str:
    return text if text.isidentifier() or text.isdigit() or text.startswith("tl.cdiv(") else f"({text})"


def _times(factor: int, text: str) -> str:
    return text if factor == 1 else f"{factor} * {text if text.isidentifier() or text.startswith('(') else f'({text})'}"
