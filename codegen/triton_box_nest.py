"""Which boxes a program visits where what an axis allows depends on where boxes lie along the axes before it.

All are numbered one after the other, so that one loop walks them and loads come early: how many there are is counted
before it, and inside of it scalars say where each box along the outer axes has its boxes along the inner ones.
"""

from __future__ import annotations

from ..ir.tiles.box_walk import names_in
from ..ir.tiles.narrowing import run_of
from ..ir.tiles.plan import BoxTerm
from .box_groups import Letter
from .emitter import Emitter
from .triton_box_visits import BoxVisits, Visit


class NestedVisits(BoxVisits):
    """Writes the scalar arithmetic over the boxes that a box of ``own`` visits."""

    def __init__(self, term: BoxTerm, own: Letter) -> None:
        super().__init__(term, own)
        axes = range(len(self.axes))
        used = [names_in([self.within(a)]) for a in self.axes]
        runs = [{end.name for position in ("q", "kv") for end in run_of(position, i)} for i in axes]
        # Axes that depend on others, and those on which others depend.
        self._inner = [i for i in axes if any(used[i] & run for run in runs)]
        self._outer = [i for i in axes if any(names & runs[i] for names in used)]

    def emit_visits(self, out: Emitter, box: BoxVisits) -> None:
        """Along each axis that depends on no other what may, and must, be allowed; ``count``: all boxes to visit."""
        self.visits = [Visit([], []) if i in self._inner else self.emit_axis(out, i) for i in range(len(self.axes))]
        out.comment("Boxes along the other axes, for each one along those that they depend on.")
        out.line("count = 0")
        self._emit_count(out, 0, [])
        alone = [f"count_{i}" for i in self._alone() if i not in self._inner]
        counts = " * ".join(["count", *alone])
        if counts != box.if_exists(counts) or alone:
            out.line(f"count = {box.if_exists(counts)}")

    def _alone(self) -> list[int]:
        """Axes on whose boxes no other axis depends."""
        return [i for i in range(len(self.axes)) if self.is_moving(i) and i not in self._outer]

    def _emit_count(self, out: Emitter, i: int, factors: list[str]) -> None:
        """Adds to ``count`` what is visited from axis ``i`` on."""
        if i == len(self.axes):
            out.line(f"count += {' * '.join(factors) or '1'}")
            return
        if i in self._inner:
            self._emit_inner(out, i, full=False)
        if i not in self._outer:
            more = [f"count_{i}"] if i in self._inner and self.is_moving(i) else []
            self._emit_count(out, i + 1, factors + more)
        elif not self.is_moving(i):
            self._emit_run(out, i, "0")
            self._emit_count(out, i + 1, factors)
        else:
            with out.block(f"for number_{i} in range(0, count_{i}):"):
                self._emit_run(out, i, f"number_{i}")
                self._emit_count(out, i + 1, factors)

    def _emit_inner(self, out: Emitter, i: int, *, full: bool) -> None:
        """What is visited along an axis that depends on others; where that is nothing, one box of nothing."""
        self.visits[i] = self.emit_axis(out, i, full)
        if self.is_moving(i):
            out.line(f"count_{i} = tl.maximum(count_{i}, 1)")

    def _emit_run(self, out: Emitter, i: int, number: str) -> None:
        """First and last coordinate of box ``number`` along an axis on which others depend."""
        super().emit_place(out, i, number)
        x = f"{self.other}_at_{i}"
        out.line(f"{self.other}_last_{i} = tl.minimum({x} + {self.sides(self.other)[i]}, {self.stop(i)}) - 1")

    def emit_place(self, out: Emitter, i: int, number: str) -> None:
        """The first coordinate of box ``number`` along an axis, and the end of the interval that it is in."""
        if i in self._inner:
            self._emit_inner(out, i, full=True)
        if i in self._outer:
            self._emit_run(out, i, number)
        else:
            super().emit_place(out, i, number)

    def full_within(self) -> list[str]:
        """Other axes say what is full for the run up to the end of what may be seen, where a box may reach further."""
        sides = self.sides(self.other)
        return [f"({self.other}_at_{i} + {sides[i]} <= {self.stop(i)})" for i in self._outer]
