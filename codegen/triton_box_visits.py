"""Which boxes a program visits: along each axis the ranges of the plan, in coordinates of the class, and their loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from ..ir.build import binary, const
from ..ir.nodes import ZERO, Const, Expr
from ..ir.tiles.narrowing import run_of
from ..ir.tiles.plan import BoxAxis, BoxTerm, Ranges
from ..ir.types import I64
from .box_groups import Letter
from .emitter import Emitter
from .triton_box_space import LENGTHS, BoxSpace, times
from .triton_program import INDICES
from .triton_tiles import Masked, ranges_results, sorted_intervals
from .triton_values import Guard, Values


@dataclass(slots=True)
class Visit:
    """What is visited along one axis, as text: intervals of coordinates, and the number of boxes."""

    may: list[tuple[str, str]]
    must: list[tuple[str, str]]
    ends: list[str] = field(default_factory=list)


class BoxVisits(BoxSpace):
    """Writes the scalar arithmetic over the boxes that a box of ``own`` visits.

    With ``on_line`` they are runs of positions, and the owned box counts as the run that it lies in.
    """

    def __init__(self, term: BoxTerm, own: Letter, on_line: bool = False) -> None:
        super().__init__(term, own, on_line)
        self.visits: list[Visit] = []
        self._bounds: list[tuple[str, str]] = []

    def emit_other(self, out: Emitter) -> None:
        """The class that is visited, and coordinates of its boxes."""
        self.emit_other_class(out)
        self.emit_lanes(out, self.other)

    def emit_other_class(self, out: Emitter) -> None:
        """The class that is visited."""
        other = self.other
        for i, axis in enumerate(self.axes):
            if axis.shift != ZERO:
                values = Values({"shift": _shift(axis, self.own)}, INDICES, prefix=f"shift_{i}_")
                values.emit(out, "program", ("shift",), Guard())
                moved = f"(residue_{i} + {values.result('shift')}).to(tl.int32)"
                out.line(f"{other}_residue_{i} = {moved} % {axis.residue}")
            self.emit_class(out, i, other, self.residue_of(i, other))

    def emit_visits(self, out: Emitter, box: BoxVisits) -> None:
        """Along each axis the coordinates that may be, and all must be, allowed; ``count``: boxes to visit.

        ``box`` is the space of the box that is owned.
        """
        self.visits = [self.emit_axis(out, i) for i in range(len(self.axes))]
        counts = [v.ends[-1] for v in self.visits if v.ends]
        count = " * ".join(counts) or "1"
        out.line(f"count = {box.if_exists(count)}")

    def if_exists(self, count: str) -> str:
        """``count``, or 0 where the owned box lies behind the end of its class."""
        exist = [
            f"({self.own}_at_{i} <= last_{i})"
            for i, a in enumerate(self.axes)
            if a.has_classes and not self.end_of(i, self.own).isdigit()
        ]
        return f"tl.where({' & '.join(exist)}, {count}, 0)" if exist else count

    def emit_ranges(
        self, out: Emitter, i: int, full: bool = True
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """What the owned box may, and with ``full`` must, see along one axis: intervals within the class, as text."""
        ranges = self.within(self.axes[i])
        ranges = ranges if full else Ranges(ranges.may, ())
        own = ("first_row", "last_row") if self.on_line else (f"{self.own}_at_{i}", f"last_{i}")
        names = {"tile_first": own[0], "tile_last": own[1], "block": f"block_{i}"}
        names["residue"] = f"residue_{i}" if self.axes[i].residue > 1 else "0"
        values = Values(ranges_results(ranges), INDICES | names | self.names_before(i), prefix=f"along_{i}_")
        values.emit(out, "program", tuple(ranges_results(ranges)), Guard())
        may = [self._clipped(out, values, i, "may", j, x.start, x.stop) for j, x in enumerate(ranges.may)]
        must = [self._clipped(out, values, i, "must", j, x.start, x.stop) for j, x in enumerate(ranges.must)]
        return may, must

    def names_before(self, i: int) -> dict[str, str]:
        """What ranges along an axis call the boxes along the axes before it, and the classes along all."""
        found: dict[str, str] = {}
        position: dict[Letter, str] = {"q": "q", "k": "kv"}
        for j in range(i):
            for letter in (self.own, self.other):
                first, last = run_of(position[letter], j)
                end = f"last_{j}" if letter == self.own else f"{letter}_last_{j}"
                found |= {first.name: f"{letter}_at_{j}", last.name: end}
        for j, axis in enumerate(self.axes):
            found |= {f"block {j}": f"block_{j}", f"residue {j}": f"residue_{j}" if axis.residue > 1 else "0"}
        return found

    def emit_axis(self, out: Emitter, i: int, full: bool = True) -> Visit:
        """The boxes to visit along one axis, and how many there are."""
        may, must = self.emit_ranges(out, i, full)
        visit = Visit(sorted_intervals(out, f"may_{i}", may), must)
        if not self.is_moving(i):
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
            out.line(f"{first} = {_limited('tl.maximum', text, self.low_of(i), start)}")
        if not end:
            end, text = f"{kind}_{i}_{j}_stop", values.result(f"{kind}_{j}_stop")
            out.line(f"{end} = {_limited('tl.minimum', text, self.end_of(i, self.other), stop)}")
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
                coordinates = "rows" if self.on_line else f"({self.own}_at_{i} + {self.own}_lane_{i})"
                out.line(f"{x} = {coordinates}[:, None]")
                values.emit(out, "program", tuple(results), Guard())
            if not start:
                text = _limited("tl.maximum", values.result("may_0_start"), self.low_of(i), interval.start)
                out.line(f"from_{i} = {text}")
            if not stop:
                text = _limited("tl.minimum", values.result("may_0_stop"), self.end_of(i, self.other), interval.stop)
                out.line(f"until_{i} = {text}")
            until = stop or f"until_{i}"
            if not start:
                out.line(f"many_{i} = tl.maximum({until} - from_{i}, 0)")
            self._bounds.append(("" if start else f"from_{i}", until))

    def emit_product(self, out: Emitter, rows: str = "inside[:, None]") -> None:
        """``allowed``, where the product of the axes is the mask; :meth:`emit_bounds` comes before.

        ``rows``: which of them count, if not all.
        """
        conditions = [rows] if rows else []
        conditions += ["visible[None, :]"] if self.ends_unevenly(self.other) else []
        name = self.labels[self.other]
        for i, (start, stop) in enumerate(self._bounds):
            x = f"{name}_at_{i}"
            if start:  # one comparison of both ends: what is less than the first wraps around
                column = f"{name}_lane_{i}[None, :] - ({start} - {x})"
                conditions.append(f"({column}).to(tl.uint32) < many_{i}")
            else:
                conditions.append(f"({x} + {name}_lane_{i})[None, :] < {stop}")
        for i, condition in enumerate(conditions):
            out.line(f"allowed {'&' if i else ''}= {condition}")

    def _start(self, i: int, start: Expr) -> str:
        """The start of a class where an interval starts no later, else nothing."""
        return self.low_of(i) if isinstance(start, Const) and start.value <= 0 else ""

    def _stop(self, i: int, stop: Expr) -> str:
        """The end of a class where an interval ends no earlier, as far as can be told, else nothing."""
        axis, end = self.axes[i], self.end_of(i, self.other)
        if isinstance(stop, Const) and axis.block and stop.value >= axis.block // axis.residue:
            return end
        names = INDICES | _NOWHERE | dict.fromkeys(self.names_before(i), "?")
        return end if Values({"stop": stop}, names).result("stop") == end else ""

    def emit_loop(
        self, out: Emitter, numbers: str, step: Callable[[Masked], None], masked: Masked, positions: Callable[[], None]
    ) -> None:
        """The loop over the boxes; ``numbers`` is its range with places for the ends."""
        moving = [i for i in range(len(self.axes)) if self.is_moving(i)]
        if len(moving) > 1:
            out.line(f"{', '.join(f't_{i}' for i in moving)} = {', '.join('0' for _ in moving)}")
        with out.block(f"for t in {numbers.format('0', 'count')}:"):
            for i in range(len(self.axes)):
                self.emit_place(out, i, f"t_{i}" if len(moving) > 1 else "t")
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

    def is_moving(self, i: int) -> bool:
        """Whether there may be several boxes along an axis."""
        return self.extent(self.axes[i], self.other) != "1"

    def emit_place(self, out: Emitter, i: int, number: str) -> None:
        """The first coordinate of box ``number`` along an axis, and the end of the interval that it is in."""
        visit = self.visits[i]
        other, side = self.labels[self.other], self.sides(self.other)[i]
        start, stop = visit.may[-1]
        if not visit.ends:
            out.line(f"{other}_at_{i} = {start}")
            return
        if len(visit.may) == 1:
            out.line(f"{other}_at_{i} = {'' if start == '0' else f'{start} + '}{number} * {side}")
            return
        first, end = f"{start} + ({number} - {visit.ends[-2]}) * {side}", stop
        for j in reversed(range(len(visit.may) - 1)):
            start, stop = visit.may[j]
            here = number if j == 0 else f"({number} - {visit.ends[j - 1]})"
            first = f"tl.where({number} < {visit.ends[j]}, {start} + {here} * {side}, {first})"
            end = f"tl.where({number} < {visit.ends[j]}, {stop}, {end})"
        out.line(f"{other}_at_{i} = {first}")
        out.line(f"stop_{i} = {end}")

    def stop(self, i: int) -> str:
        """The end of the interval that the box is in."""
        visit = self.visits[i]
        return visit.may[0][1] if len(visit.may) == 1 else f"stop_{i}"

    def emit_positions(self, out: Emitter, name: str) -> None:
        """``name``, the positions of the box that is visited, and which of them are ``visible``."""
        other = self.labels[self.other]
        out.line(f"{name} = {other}_first + {other}_steps")
        terms = [f"({other}_at_{i} + {other}_lane_{i} < {self.stop(i)})" for i in range(len(self.axes))]
        out.line(f"visible = {' & '.join([*terms, *self.within_length(self.other, name)])}")

    def _emit_full(self, out: Emitter) -> None:
        """``full``: whether all rows see the whole box."""
        terms = []
        for i, (visit, side) in enumerate(zip(self.visits, self.sides(self.other), strict=True)):
            x = f"{self.labels[self.other]}_at_{i}"
            choices = [
                " & ".join([*([f"({x} >= {a})"] if a != "0" else []), f"({x} + {side} <= {b})"]) for a, b in visit.must
            ]
            terms.append(choices[0] if len(choices) == 1 else f"({' | '.join(f'({c})' for c in choices)})")
        terms += self.full_within()
        if self.is_offset(self.other):
            terms.append(f"({self.other}_first >= 0)")
        if self.ends_unevenly(self.other):
            steps = [
                times(self.step(a, self.other), f"({s} - 1)")
                for a, s in zip(self.axes, self.sides(self.other), strict=True)
            ]
            terms.append(f"({self.other}_first + {' + '.join(steps)} < {LENGTHS[self.other]})")
        out.line(f"full = {terms[0]}")
        for term in terms[1:]:
            out.line(f"full &= {term}")

    def full_within(self) -> list[str]:
        """What besides the ranges that all rows see asks of a full box."""
        return []


# Names that no end of a class has.
_NOWHERE = dict.fromkeys(("tile_first", "tile_last", "block", "residue"), "?")



def _limited(function: str, text: str, limit: str, e: Expr) -> str:
    """``text``, which prints ``e``, and no more, or less, than ``limit``."""
    if text.isdigit() and limit.isdigit():
        return str(max(int(text), int(limit)) if function == "tl.maximum" else min(int(text), int(limit)))
    return f"{function}({text}, {limit}){'.to(tl.int32)' if e.type is I64 else ''}"


def _shift(axis: BoxAxis, own: Letter) -> Expr:
    """What is added to the residue of the owned class; at least 0."""
    return axis.shift if own == "q" else binary("sub", const(axis.residue), axis.shift)
