"""The decorators ``mask`` and ``score``, and the parts of a variant that they make."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Literal, cast

from ..ir import build
from ..ir.errors import ParameterError, TraceError
from ..ir.nodes import INDEX_NAMES, BinaryOp
from .callsite import caller, decision, definition
from .capture import captured_values, with_captured
from .eagerly import eagerly
from .forms import Form, Kind, Value, converted, form_of_annotation, form_of_value
from .merge import merge
from .trace import Traced, trace


@dataclass(frozen=True, slots=True, eq=False)
class Application:
    """A user's function together with the values that it was given when its part was built.

    ``seen`` says of its arguments that are positions or the score which (``{"q_idx": "q"}``), ``values`` are its
    bound arguments, ``open`` those left for the call, ``captured`` the snapshot of its closure cells and globals.
    """

    function: FunctionType
    seen: Mapping[str, str]
    values: Mapping[str, Value]
    open: tuple[str, ...]
    captured: Mapping[str, Value]


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """Masks joined by ``&`` or ``|``, or one negated by ``~``."""

    op: Literal["and", "or", "not"]
    operands: tuple[MaskPart, ...]


class _Mask:
    """What masks, built or not, have in common: ``&``, ``|`` and ``~``."""

    def __and__(self, other: object) -> MaskPart:
        return _combined("and", self, other)

    def __rand__(self, other: object) -> MaskPart:
        return _combined("and", other, self)

    def __or__(self, other: object) -> MaskPart:
        return _combined("or", self, other)

    def __ror__(self, other: object) -> MaskPart:
        return _combined("or", other, self)

    @eagerly
    def __invert__(self) -> MaskPart:
        part = as_mask(self)
        negated = Traced(build.unary("not", part.traced.expr), part.traced.parameters, part.traced.values)
        return MaskPart(f"not_{part.name}", negated, Combination("not", (part,)))

    def __bool__(self) -> bool:
        raise TraceError(
            "a mask is neither true nor false by itself",
            location=decision()[0],
            hint="combine masks with `&`, `|` and `~`",
        )


@dataclass(frozen=True, slots=True, eq=False)
class MaskPart(_Mask):
    """Which pairs may attend. ``&``, ``|`` and ``~`` combine masks."""

    name: str
    traced: Traced = field(repr=False)
    origin: Application | Combination = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class ScorePart:
    """How a score is modified."""

    name: str
    traced: Traced = field(repr=False)
    origin: Application = field(repr=False)


class _Decorated:
    """A user's function as a factory of parts.

    What its arguments see is told from their names, or, where ``positions`` are given, from their order.
    """

    kind: Kind

    def __init__(self, function: Callable[..., object], positions: tuple[str, ...] = ()) -> None:
        decorator = f"@rg.{self.kind}{'_mod' if positions else ''}"
        if not isinstance(function, FunctionType):
            raise ParameterError(
                f"{decorator} takes a Python function, got {type(function).__name__}",
                location=caller(),
                hint="it is a part already"
                if isinstance(function, _Decorated | MaskPart | ScorePart)
                else "write a def or a lambda that calls it",
            )
        self._function = function
        self._signature = inspect.signature(function)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for p in self._signature.parameters.values():
            if p.kind not in named:
                raise ParameterError(
                    f"`{p}` in the arguments of a {self.kind}: what a function sees is told from its argument names",
                    location=definition(function.__code__),
                    hint="name every argument",
                )
        names = tuple(self._signature.parameters)
        if len(names) < len(positions):
            raise ParameterError(
                f"{decorator} calls a function with {len(positions)} arguments, this one takes {len(names)}",
                location=definition(function.__code__),
                hint=f"they are, in order: {', '.join(positions)}",
            )
        visible = (*INDEX_NAMES, "s") if self.kind == "score" else INDEX_NAMES
        if self.kind == "mask" and "s" in names and not positions:
            raise ParameterError(
                "a mask cannot see the score `s`",
                location=definition(function.__code__),
                hint="decorate it with @rg.score, or rename the argument",
            )
        seen = zip(names, positions, strict=False) if positions else ((x, x) for x in names if x in visible)
        self._seen = dict(seen)
        self._parameters = tuple(name for name in names if name not in self._seen)
        functools.update_wrapper(cast(Callable[..., object], self), function)

    def __repr__(self) -> str:
        return f"<{self.kind} {self._function.__qualname__}{self._signature}>"

    def _called_directly(self, args: tuple[object, ...], values: Mapping[str, object]) -> bool:
        """Whether a call is one of the plain function, inside another mask or score."""
        if args and len(args) < len(self._seen):
            raise ParameterError(
                f"parameters of `{self._function.__name__}` are bound by keyword",
                location=caller(),
                hint=self._example(),
            )
        positions = [name for name in self._seen if name in values]
        if positions and not args and len(positions) < len(self._seen):
            raise ParameterError(
                f"`{positions[0]}` is what `{self._function.__name__}` sees of a pair; it is not bound",
                location=caller(),
                hint=self._example() if self._parameters else "rename the argument if it is a parameter",
            )
        return bool(args or positions)

    def _example(self) -> str:
        call = ", ".join(f"{name}=…" for name in self._parameters)
        return f"write {self._function.__name__}({call})"

    def _build(self, given: Mapping[str, object]) -> tuple[str, Traced, Application]:
        name = self._function.__name__
        for keyword in given:
            if keyword not in self._parameters:
                close = difflib.get_close_matches(keyword, self._parameters, n=1)
                hint = f"did you mean `{close[0]}`?" if close else f"it has: {', '.join(self._parameters) or 'none'}"
                raise ParameterError(f"`{name}` has no parameter `{keyword}`", location=caller(), hint=hint)
        place = definition(self._function.__code__)
        values: dict[str, Value] = {}
        forms: dict[str, Form] = {}
        for parameter in self._parameters:
            declared = self._signature.parameters[parameter]
            value = given.get(parameter, declared.default)
            if value is inspect.Parameter.empty:
                forms[parameter] = form_of_annotation(parameter, declared.annotation, self.kind, place)
            else:
                value = converted(value, declared.annotation)
                forms[parameter] = form_of_value(parameter, value)
                values[parameter] = cast(Value, value)
        captured = {k: v for k, v in captured_values(self._function).items() if k not in self._signature.parameters}
        forms |= {k: form_of_value(k, v) for k, v in captured.items()}

        def run(symbols: Mapping[str, object]) -> object:
            function = with_captured(self._function, {k: symbols[k] for k in captured})
            return function(**{k: symbols[k] for k in self._signature.parameters})

        traced = trace(self.kind, run, self._seen, forms, {**values, **captured}, place)
        open_names = tuple(k for k in self._parameters if k not in values)
        label = name.lstrip("_") if name.isidentifier() else ""  # a lambda has none
        return label or self.kind, traced, Application(self._function, self._seen, values, open_names, captured)


class MaskFunction(_Decorated, _Mask):
    """A function decorated with :func:`mask`. Calling it with parameters by keyword builds a part."""

    kind: Kind = "mask"

    @eagerly
    def __call__(self, *args: object, **values: object) -> MaskPart:
        """Binds parameters by keyword.

        With positions as arguments it is the plain function, so that one mask can call another.
        """
        if self._called_directly(args, values):
            return cast(MaskPart, self._function(*args, **values))
        return MaskPart(*self._build(values))


class ScoreFunction(_Decorated):
    """A function decorated with :func:`score`. Calling it with parameters by keyword builds a part."""

    kind: Kind = "score"

    @eagerly
    def __call__(self, *args: object, **values: object) -> ScorePart:
        """Binds parameters by keyword; with positions as arguments it is the plain function."""
        if self._called_directly(args, values):
            return cast(ScorePart, self._function(*args, **values))
        return ScorePart(*self._build(values))


def mask(function: Callable[..., object]) -> MaskFunction:
    """Makes a mask of ``function``, which says for a pair whether it may attend.

    The names of the arguments say what the function sees: ``q`` and ``kv`` (positions, from 0), ``head``,
    ``kv_head``, ``batch``, ``q_len``, ``kv_len``. Any other argument is a parameter: bound by keyword
    (``window(size=4)``), by its default value, or left open and passed by keyword at the call of the attention.

    - ``int`` and ``float`` parameters are run-time scalars: new values do not recompile. An int that divides
      (``//``, ``%``) or that Python counts with (``range``) is baked in, as are ``bool`` and ``rg.static(x)``.
    - tensors are read at symbolic indices, ``slopes[head]``.
    - open parameters are ints, unless they are indexed or annotated: see :func:`forms.form_of_annotation`.
    - ints, floats and tensors in closure cells and globals work the same way and are snapshotted when the part
      is built; literals, and numbers that belong to other functions it calls, are constants.

    The function runs on symbols, perhaps more than once, when the part is built. Raises
    :class:`TraceError` where it needs a value it cannot have, :class:`TypeMismatchError` if the result is no
    condition, :class:`ParameterError` for unknown or unusable parameters.

    >>> @mask
    ... def window(q, kv, size):
    ...     return (q >= kv) & (q - kv < size)
    >>> window(size=4).traced.expr == window(size=5).traced.expr
    True
    """
    return MaskFunction(function)


def score(function: Callable[..., object]) -> ScoreFunction:
    """Makes a score of ``function``, which maps the scaled score ``s`` (float32) to the next one.

    It sees ``s`` besides all that a mask sees; parameters work as in :func:`mask`. Raises the same errors.

    >>> @score
    ... def softcap(s, cap: float):
    ...     return cap * (s / cap).tanh()
    >>> softcap(cap=30).traced.values
    {'cap': 30.0}
    """
    return ScoreFunction(function)


def as_mask(part: object) -> MaskPart:
    """A built mask; functions whose parameters need no value are built on the spot."""
    if isinstance(part, MaskFunction):
        return part()
    if isinstance(part, MaskPart):
        return part
    raise ParameterError(
        f"masks combine with masks only, got {type(part).__name__}",
        location=caller(),
        hint="decorate the function with @rg.mask; call stock masks, e.g. rg.sinks(4)",
    )


@eagerly
def _combined(op: Literal["and", "or"], left: object, right: object) -> MaskPart:
    a, b = as_mask(left), as_mask(right)
    (x, y), parameters, values = merge((a.traced, b.traced))
    logic: BinaryOp = op
    traced = Traced(build.binary(logic, x, y), parameters, values)
    return MaskPart(f"{a.name}_{op}_{b.name}", traced, Combination(op, (a, b)))
