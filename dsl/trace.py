"""Runs a mask or score function once on symbols and takes down what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import torch
from torch.overrides import TorchFunctionMode

from ..ir import build
from ..ir.errors import ParameterError, TraceError, TypeMismatchError
from ..ir.limits import check_size
from ..ir.location import Location
from ..ir.nodes import Expr, Index, Load, Param, Score
from ..ir.traverse import loads, parameter_names, walk
from ..ir.types import BOOL, F32, I32, BufferType, ScalarType
from ..ir.variant import BufferParameter, Parameter, ScalarParameter, StaticParameter
from .callsite import here, name_of
from .elsewhere import elsewhere
from .forms import BufferForm, ConstantForm, Form, Kind, ScalarForm, Value, form_of_value, guessed_element
from .static import StaticFloat, StaticInt
from .symbol import Buffer, Symbol, as_expr, static_type
from .torch_functions import call, trace_of


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """One boolean or float expression, its parameters in order, and the values of the bound run-time ones."""

    expr: Expr
    parameters: tuple[Parameter, ...] = ()
    values: Mapping[str, int | float | torch.Tensor] = field(default_factory=dict)


class Reinterpret(BaseException):
    """A parameter turned out to have another form; the trace starts again. No user code may catch it."""

    def __init__(self, name: str, form: Form) -> None:
        self.name, self.form = name, form


class Trace:
    """One run of a user's function: the forms of its parameters and the tensors it came across."""

    def __init__(self, kind: Kind, forms: Mapping[str, Form], values: Mapping[str, Value]) -> None:
        self.kind, self.forms, self.values = kind, dict(forms), dict(values)

    def symbol(self, name: str) -> object:
        """What the user's function receives for parameter ``name``."""
        form = self.forms[name]
        match form:
            case ScalarForm(type):
                return Symbol(Param(name, type, here()), self)
            case ConstantForm(StaticInt() | StaticFloat() as value):
                return value.named(name)
            case ConstantForm(value):
                return value
            case BufferForm(element, 0):
                return Symbol(Load(name, (), element, here()), self)
            case BufferForm():
                return Buffer(name, form.rank, self)
            case _:
                assert_never(form)

    def capture(self, tensor: torch.Tensor) -> Symbol:
        """A symbol for a tensor that the function reaches by itself, through an attribute, say."""
        name = next((name for name, value in self.values.items() if value is tensor), None)
        if name is None:
            base = name_of(tensor) or "captured"
            name = next(n for n in numbered(base) if n not in self.forms)
            self.forms[name], self.values[name] = form_of_value(name, tensor), tensor
        symbol = self.symbol(name)
        assert isinstance(symbol, Symbol)
        return symbol

    def read(self, name: str, index: object) -> Symbol:
        """``name[index]``."""
        form = self.forms[name]
        assert isinstance(form, BufferForm)
        indices = tuple(self._index(name, i) for i in (index if isinstance(index, tuple) else (index,)))
        rank = len(indices) if form.rank is None else form.rank
        if form.rank is None:
            self.forms[name] = BufferForm(form.element, rank, form.guessed)
        for i in indices:
            if isinstance(i, Load) and i.type is F32:
                self.reread(i.buffer, I32)
        axes = tuple("ijklmnop"[:rank])
        return Symbol(build.load(name, BufferType(form.element, axes), indices, here()), self)

    def _index(self, name: str, index: object) -> Expr:
        if index is None or index is Ellipsis or isinstance(index, slice | bool | list):
            raise TraceError(
                f"`{name}` is read one element at a time; slices, None and ... are not part of the language",
                location=here(),
                hint=f"give one integer for every axis of `{name}`",
            )
        return as_expr(self, index)

    def reread(self, name: str, element: ScalarType) -> None:
        """Starts again with ``element`` as that of tensor ``name``, if nothing but a guess stands against it."""
        form = self.forms[name]
        if isinstance(form, BufferForm) and form.guessed:
            raise Reinterpret(name, BufferForm(element, form.rank))

    def reread_as_buffer(self, expr: Expr) -> None:
        """An open parameter without annotation is indexed: it is a tensor."""
        if isinstance(expr, Param):
            form = self.forms[expr.name]
            if isinstance(form, ScalarForm) and form.guessed:
                raise Reinterpret(expr.name, BufferForm(guessed_element(self.kind), None, guessed=True))

    def need_static(self, expr: Expr) -> None:
        """``expr`` must be constant for the proofs: integers bound to its parameters are baked in."""
        for x in walk(expr):
            if isinstance(x, Param) and isinstance(self.forms[x.name], ScalarForm) and x.type is I32:
                value = self.values.get(x.name)
                if not isinstance(value, int):
                    raise ParameterError(
                        f"`{x.name}` must be constant here, so it cannot be left open",
                        location=here(),
                        hint=f"bind it when the part is built: ({x.name}=…)",
                    )
                raise Reinterpret(x.name, ConstantForm(StaticInt(value)))


class _Watch(TorchFunctionMode):
    """Hands every torch call that involves a symbol to the language."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if trace_of((args, kwargs or {})) is None:
            return func(*args, **(kwargs or {}))
        return call(func, args, kwargs or {})


def trace(
    kind: Kind,
    function: Callable[[Mapping[str, object]], object],
    seen: Mapping[str, str],
    forms: Mapping[str, Form],
    values: Mapping[str, Value],
    definition: Location,
) -> Traced:
    """Calls ``function`` with a table of symbols: one for each of ``seen``, which says what, and of ``forms``.

    ``values`` holds the bound parameters. The function runs again where a use shows that a parameter
    must be static or a tensor. Raises :class:`TraceError` and :class:`TypeMismatchError`.
    """
    forms = dict(forms)
    while True:
        run = Trace(kind, forms, values)
        positions = {name: Symbol(_seen(what), run) for name, what in seen.items()}
        table = positions | {name: run.symbol(name) for name in forms}
        try:
            with _Watch():
                result = function(table)
            expr = _checked(run, result, definition)
        except Reinterpret as found:
            forms[found.name] = found.form
            continue
        return _traced(run, expr, definition)


def _seen(name: str) -> Expr:
    return Score() if name == "s" else build.index(name)


def _checked(run: Trace, result: object, definition: Location) -> Expr:
    """The IR of what the function returned; it must be a condition for a mask, a number for a score."""
    if result is None:
        raise TypeMismatchError(
            f"this {run.kind} returns nothing", location=definition, hint="end the function with `return …`"
        )
    single = result.dim() == 0 if isinstance(result, torch.Tensor) else isinstance(result, Symbol | bool | int | float)
    if not single:
        raise TypeMismatchError(
            f"this {run.kind} returns a {type(result).__name__} instead of one symbolic value",
            location=definition,
            hint="return a single expression",
        )
    expr = as_expr(run, result)
    check_size(expr)
    where = expr.loc or definition
    if run.kind == "mask" and isinstance(expr, Load):
        run.reread(expr.buffer, BOOL)
    if run.kind == "mask" and expr.type is not BOOL:
        raise TypeMismatchError(
            f"a mask returns a condition, this one returns {expr.type}", location=where, hint="compare: … != 0"
        )
    if run.kind == "score" and expr.type is BOOL:
        raise TypeMismatchError(
            "a score returns a number, this one returns a condition",
            location=where,
            hint="decorate it with @rg.mask, or write rg.where(condition, s, other)",
        )
    return expr if run.kind == "mask" else build.cast(expr, F32, where)


def _traced(run: Trace, expr: Expr, definition: Location) -> Traced:
    used = parameter_names(expr)
    parameters = tuple(_parameter(run, name, expr, definition) for name in run.forms if name in used)
    for name, form in run.forms.items():
        if name not in used and name not in run.values and not isinstance(form, ConstantForm):
            raise ParameterError(
                f"`{name}` is never used",
                location=definition,
                hint=elsewhere(name) or "remove it from the arguments, or give it a value",
            )
    bound = ((p.name, run.values.get(p.name)) for p in parameters if not isinstance(p, StaticParameter))
    values = {name: value for name, value in bound if isinstance(value, int | float | torch.Tensor)}
    return Traced(expr, parameters, values)


def _parameter(run: Trace, name: str, expr: Expr, definition: Location) -> Parameter:
    form = run.forms[name]
    match form:
        case ScalarForm(type):
            return ScalarParameter(name, type, definition)
        case ConstantForm(StaticInt() | StaticFloat() as value):
            plain = int(value) if isinstance(value, StaticInt) else float(value)
            return StaticParameter(name, static_type(value), plain, definition)
        case BufferForm(element):
            return BufferParameter(name, BufferType(element, _axes(name, expr)), definition)
        case ConstantForm():
            raise AssertionError(f"{name} is a plain Python value and cannot occur in an expression")
        case _:
            assert_never(form)


def _axes(name: str, expr: Expr) -> tuple[str, ...]:
    """For each axis the one index that reads it, or ``_``."""
    reads = [load.indices for load in loads(expr) if load.buffer == name]
    return tuple(
        axis[0].name if isinstance(axis[0], Index) and all(x == axis[0] for x in axis) else "_"
        for axis in zip(*reads, strict=True)
    )


def numbered(base: str) -> Iterable[str]:
    """``base``, ``base_1``, ``base_2`` and so on."""
    yield base
    n = 1
    while True:
        yield f"{base}_{n}"
        n += 1
