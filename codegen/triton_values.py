"""Mask and score expressions inside a kernel: every step is computed at the outermost level that can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..ir.dependence import dependence
from ..ir.lowered import Lowered, Step, lower
from ..ir.nodes import TILE_NAMES, Binary, Cast, Const, Expr, Index, Load, Param, Score, Select, Value
from ..ir.traverse import walk
from .emitter import Emitter
from .print_triton import TRITON_TYPES, print_triton

Level = Literal["program", "query", "key", "pair"]
LEVELS: tuple[Level, ...] = ("program", "query", "key", "pair")

# The user's names stand between these until the module is complete and collisions can be seen.
MARK = "§"


def user_name(name: str) -> str:
    """A parameter's name in a module under construction; :func:`.triton_module.finish` makes it final."""
    return f"{MARK}{name}{MARK}"


def level_of(names: frozenset[str]) -> Level:
    """The level at which a value that depends on these indices is computed."""
    match "q" in names, "kv" in names, "s" in names:
        case _, _, True:
            return "pair"
        case True, True, _:
            return "pair"
        case True, False, _:
            return "query"
        case False, True, _:
            return "key"
        case _:
            return "program"


@dataclass(frozen=True, slots=True)
class Guard:
    """Conditions under which lanes may load, as text, by level: "" where every lane may."""

    query: str = ""
    key: str = ""
    pair: str = ""


class Values:
    """The steps of some expressions, printed level by level.

    ``indices`` spells the positions and lengths; bare indices in ``checked`` are known to lie inside every
    axis that they alone read, because the call is checked. ``prefix`` tells the variables of several apart.
    ``known``: variables that are there already, as :class:`Value`, and their levels. ``rows``: identities that
    differ between the rows of a tile, as positions of queries do. ``columns``: the position whose tile begins at
    ``tile_first``; what depends on that is computed for each tile.
    """

    def __init__(
        self, results: Mapping[str, Expr], indices: Mapping[str, str], debug: bool = False, prefix: str = "",
        known: Mapping[str, Level] | None = None, rows: frozenset[str] = frozenset(), columns: str = "",
    ) -> None:  # fmt: skip
        self._lowered: Lowered = lower(results)
        self._prefix = prefix
        self._indices = indices
        self._debug = debug
        self._rows, self._columns = rows, columns
        self._levels: dict[str, Level] = dict(known or {})
        self._nonnegative: set[str] = set()
        found = {name: _AT[level] for name, level in self._levels.items()}
        for step in self._lowered.steps:
            found[step.name] = dependence(step.expr, found)
            self._levels[step.name] = self._level_of(found[step.name])
            if self.never_negative(step.expr):
                self._nonnegative.add(step.name)
        self._results = dict(self._lowered.results)
        self._names = {name: name for name in known or {}} | self._choose_names()

    def result(self, name: str, shape: str = "") -> str:
        """The text of a result, whose steps must have been emitted; spread to ``shape`` if it is smaller."""
        e = self._results[name]
        text = self._print(e)
        return f"tl.zeros([{shape}], tl.float32) + {text}" if shape and self._level(e) != "pair" else text

    def emit(
        self, out: Emitter, level: Level, wanted: Sequence[str], guard: Guard, done: frozenset[str] = frozenset()
    ) -> frozenset[str]:
        """Writes the steps of ``level`` that the results ``wanted`` need, but for those ``done``; returns all done."""
        needed = self._needed(wanted)
        written: set[str] = set()
        for step in self._lowered.steps:
            if step.name in needed and step.name not in done and self._levels[step.name] == level:
                if self._debug and isinstance(step.expr, Load):
                    self._emit_assertion(out, step.expr, level, guard)
                out.lines(f"{self._names[step.name]} = {self._step(step, guard)}")
                written.add(step.name)
        return done | written

    def reads(self, name: str, level: Level) -> bool:
        """Whether the result ``name``, if there is one, needs an element of a tensor at this level."""
        needed = self._needed([x for x in self._results if x == name])
        return any(
            step.name in needed and isinstance(step.expr, Load) and self._levels[step.name] == level
            for step in self._lowered.steps
        )

    def _needed(self, wanted: Sequence[str]) -> set[str]:
        by_name = {step.name: step.expr for step in self._lowered.steps}
        needed: set[str] = set()
        stack = [x.name for name in wanted for x in walk(self._results[name]) if isinstance(x, Value)]
        while stack:
            name = stack.pop()
            if name not in needed and name in by_name:
                needed.add(name)
                stack.extend(x.name for x in walk(by_name[name]) if isinstance(x, Value))
        return needed

    def _choose_names(self) -> dict[str, str]:
        """`doc_q` for a load at bare indices, else the level and a number."""
        names: dict[str, str] = {}
        counts: dict[str, int] = {}
        for step in self._lowered.steps:
            stem = {"program": "uniform", "query": "row", "key": "column", "pair": "pair"}[self._levels[step.name]]
            if isinstance(step.expr, Load):
                load = step.expr
                bare = all(isinstance(x, Index) for x in load.indices)
                at = "_".join(x.name for x in load.indices if isinstance(x, Index)) if bare else "value"
                stem = f"{user_name(load.buffer)}_at_{at}" if bare else f"{user_name(load.buffer)}_value"
            count = counts.get(stem, 0)
            counts[stem] = count + 1
            name = f"{stem}_{count}" if count or not isinstance(step.expr, Load) else stem
            names[step.name] = self._prefix + name
        return names

    def _step(self, step: Step, guard: Guard) -> str:
        if isinstance(step.expr, Load):
            return self._load(step.expr, self._levels[step.name], guard)
        return self._print(step.expr)

    def _print(self, e: Expr) -> str:
        return print_triton(e, self._leaf, self.never_negative)

    def _leaf(self, x: Index | Score | Param | Load | Value) -> str:
        match x:
            case Index(name):
                return self._indices[name]
            case Score():
                return "s"
            case Param(name):
                return user_name(name)
            case Value(name):
                return self._names[name]
            case Load():
                raise AssertionError("every load is a step")

    def _load(self, load: Load, level: Level, guard: Guard) -> str:
        address, conditions = self._address(load.indices, user_name(load.buffer), user_name(load.buffer))
        lanes = _lanes(guard, level)
        conditions = ([lanes] if lanes else []) + conditions
        arguments = [address, f"mask={' & '.join(conditions)}", "other=0"] if conditions else [address]
        text = ", ".join(arguments)
        if len(text) > 80:
            text = "\n" + "".join(f"    {x},\n" for x in arguments)
        return f"tl.load({text}).to({TRITON_TYPES[load.type]})"

    def _emit_assertion(self, out: Emitter, load: Load, level: Level, guard: Guard) -> None:
        """Stops the kernel where a lane that may load is out of bounds; without it such a lane reads 0."""
        _, conditions = self._address(load.indices, user_name(load.buffer), user_name(load.buffer))
        if conditions:
            lanes = _lanes(guard, level)
            inside = " & ".join(conditions) + (f" | ~{lanes}" if lanes else "")
            out.line(f'tl.device_assert({inside}, "index of {load.buffer} out of range")')

    def address(self, names: Sequence[str], buffer: str, base: str) -> tuple[str, list[str]]:
        """Where the results ``names``, as indices of ``buffer``, point in ``base``; and when that is inside.

        ``base`` has the shape of ``buffer`` and strides of its own.
        """
        return self._address(tuple(self._results[x] for x in names), user_name(buffer), base)

    def _address(self, indices: tuple[Expr, ...], buffer: str, base: str) -> tuple[str, list[str]]:
        terms: list[tuple[int, str]] = []
        conditions: list[str] = []
        for axis, x in enumerate(indices):
            text = self._print(x)
            if not is_checked(x):
                size = f"{buffer}_size_{axis}"
                position = text if text.isidentifier() else f"({text})"
                if not self.never_negative(x):
                    position = f"tl.where({text} < 0, {position} + {size}, {text})"
                    conditions.append(f"({position} >= 0)")
                conditions.append(f"({position} < {size})")
                text = position
            terms.append((_ORDER[self._level(x)], f"{text} * {base}_stride_{axis}"))
        # Sorted so that the parts of the address that are constant in the loop are added first.
        return " + ".join([base, *(text for _, text in sorted(terms, key=lambda t: t[0]))]), conditions

    def _level(self, x: Expr) -> Level:
        names = dependence(x, {name: _AT[level] for name, level in self._levels.items()})
        return self._level_of(names)

    def _level_of(self, names: frozenset[str]) -> Level:
        names |= {"q"} if names & self._rows else frozenset()
        return level_of(names | {self._columns} if self._columns and TILE_NAMES[0] in names else names)

    def never_negative(self, x: Expr) -> bool:
        """Whether an integer is proved to be at least zero: positions, identities and lengths are."""
        match x:
            case Const(value):
                return value >= 0
            case Index(name):
                return True
            case Value(name):
                return name in self._nonnegative
            case Cast(a):
                return self.never_negative(a)
            case Binary("add" | "mul" | "floordiv" | "min" | "bitand", a, b):
                return self.never_negative(a) and self.never_negative(b)
            case Binary("max", a, b):
                return self.never_negative(a) or self.never_negative(b)
            case Binary("mod", _, b):
                return self.never_negative(b)
            case Select(_, a, b):
                return self.never_negative(a) and self.never_negative(b)
            case _:
                return False


def _lanes(guard: Guard, level: Level) -> str:
    match level:
        case "program":
            return ""
        case "query":
            return guard.query
        case "key":
            return guard.key
        case "pair":
            return guard.pair


_ORDER: dict[Level, int] = {"program": 0, "query": 1, "key": 2, "pair": 3}
_AT: dict[Level, frozenset[str]] = {
    "program": frozenset(),
    "query": frozenset(("q",)),
    "key": frozenset(("kv",)),
    "pair": frozenset(("q", "kv")),
}


def is_checked(index: Expr) -> bool:
    """Whether an index is a bare position or identity, whose axis the caller has checked to be long enough."""
    return isinstance(index, Index) and index.name in ("q", "kv", "head", "kv_head", "batch")
