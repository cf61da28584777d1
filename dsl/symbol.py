"""What a mask or score function computes with while it is traced."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from ..ir import build
from ..ir.errors import TraceError, TypeMismatchError
from ..ir.nodes import LOGIC, BinaryOp, Const, Expr, Load, Param, UnaryOp
from ..ir.types import BOOL, F32, I32, I64, ScalarType
from .callsite import decision, here
from .static import StaticFloat, StaticInt

if TYPE_CHECKING:
    from .trace import Trace


class Symbol:
    """A symbolic number or truth value: operators and torch functions on it build IR.

    Arithmetic means what it means in Python (``//`` and ``%`` floor, ``/`` gives float32); ``&``, ``|`` and
    ``~`` combine conditions. Anything that needs the value now (``if``, ``int()``, ``len()``) raises
    :class:`TraceError`.
    """

    __hash__ = object.__hash__

    def __init__(self, expr: Expr, trace: Trace) -> None:
        self._expr, self._trace = expr, trace

    @property
    def expr(self) -> Expr:
        """The IR of the value."""
        return self._expr

    @property
    def trace(self) -> Trace:
        """The run of the user's function that the symbol belongs to."""
        return self._trace

    @property
    def device(self) -> None:
        """None, which every function of torch takes for a device: that of the tensors is not known yet."""

    def __repr__(self) -> str:
        from ..ir.printer import print_expr

        return f"<{print_expr(self.expr)}>"

    def _unary(self, op: UnaryOp) -> Symbol:
        return Symbol(build.unary(op, self.expr, here()), self._trace)

    def _binary(self, op: BinaryOp, other: object) -> Symbol:
        return combine(self._trace, op, self, other)

    def _reflected(self, op: BinaryOp, other: object) -> Symbol:
        return combine(self._trace, op, other, self)

    def __add__(self, other: object) -> Symbol:
        return self._binary("add", other)

    def __radd__(self, other: object) -> Symbol:
        return self._reflected("add", other)

    def __sub__(self, other: object) -> Symbol:
        return self._binary("sub", other)

    def __rsub__(self, other: object) -> Symbol:
        return self._reflected("sub", other)

    def __mul__(self, other: object) -> Symbol:
        return self._binary("mul", other)

    def __rmul__(self, other: object) -> Symbol:
        return self._reflected("mul", other)

    def __truediv__(self, other: object) -> Symbol:
        return self._binary("div", other)

    def __rtruediv__(self, other: object) -> Symbol:
        return self._reflected("div", other)

    def __floordiv__(self, other: object) -> Symbol:
        return self._binary("floordiv", other)

    def __rfloordiv__(self, other: object) -> Symbol:
        return self._reflected("floordiv", other)

    def __mod__(self, other: object) -> Symbol:
        return self._binary("mod", other)

    def __rmod__(self, other: object) -> Symbol:
        return self._reflected("mod", other)

    def __pow__(self, other: object) -> Symbol:
        return self._binary("pow", other)

    def __rpow__(self, other: object) -> Symbol:
        return self._reflected("pow", other)

    def __and__(self, other: object) -> Symbol:
        return self._binary("and", other)

    def __rand__(self, other: object) -> Symbol:
        return self._reflected("and", other)

    def __or__(self, other: object) -> Symbol:
        return self._binary("or", other)

    def __ror__(self, other: object) -> Symbol:
        return self._reflected("or", other)

    def __xor__(self, other: object) -> Symbol:
        return self._binary("xor", other)

    def __rxor__(self, other: object) -> Symbol:
        return self._reflected("xor", other)

    def __lshift__(self, other: object) -> Symbol:
        return self._binary("shl", other)

    def __rlshift__(self, other: object) -> Symbol:
        return self._reflected("shl", other)

    def __rshift__(self, other: object) -> Symbol:
        return self._binary("shr", other)

    def __rrshift__(self, other: object) -> Symbol:
        return self._reflected("shr", other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return self._binary("eq", other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return self._binary("ne", other)

    def __lt__(self, other: object) -> Symbol:
        return self._binary("lt", other)

    def __le__(self, other: object) -> Symbol:
        return self._binary("le", other)

    def __gt__(self, other: object) -> Symbol:
        return self._binary("gt", other)

    def __ge__(self, other: object) -> Symbol:
        return self._binary("ge", other)

    def __neg__(self) -> Symbol:
        return self._unary("neg")

    def __pos__(self) -> Symbol:
        return self

    def __invert__(self) -> Symbol:
        if isinstance(self.expr, Load):
            self._trace.reread(self.expr.buffer, BOOL)
        return self._unary("not")

    def __abs__(self) -> Symbol:
        return self._unary("abs")

    def __getitem__(self, index: object) -> Symbol:
        self._trace.reread_as_buffer(self.expr)
        raise TraceError("only a captured tensor can be indexed, this is a single value", location=here())

    def __bool__(self) -> bool:
        location, hint = decision()
        raise TraceError(
            "a symbolic value is neither true nor false while the function is traced", location=location, hint=hint
        )

    def __index__(self) -> int:
        self._trace.need_static(self.expr)
        self._refuse(
            "an int",
            "only a parameter bound to an int, or rg.static(...), can be used where Python counts; "
            "of a list make a tensor",
        )

    def __int__(self) -> int:
        self._refuse("an int", "write rg.to_int(x) to truncate a symbolic value")

    def __float__(self) -> float:
        self._refuse("a float", "write rg.to_float(x), or for math functions rg.exp, rg.log, rg.sqrt, …")

    def __round__(self, digits: object = None) -> Symbol:
        self._refuse("a rounded number", "write rg.floor(x + 0.5)")

    def __divmod__(self, other: object) -> tuple[Symbol, Symbol]:
        return self // other, self % other

    def __setitem__(self, index: object, value: object) -> None:
        raise TraceError(
            "a symbolic value cannot be assigned to",
            location=here(),
            hint="compute a new value: rg.where(condition, a, b)",
        )

    def __len__(self) -> int:
        self._refuse("a length", "use the arguments q_len and kv_len, or a parameter")

    def __iter__(self) -> Iterator[Symbol]:
        self._refuse("a sequence", "index captured tensors element by element, e.g. slopes[head]")

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise TraceError(f"a symbolic value is not {what} while the function is traced", location=here(), hint=hint)

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TraceError(
            "an array of numpy and a symbolic value do not go together",
            location=here(),
            hint="captured arrays are tensors here: torch.from_numpy(x), read one element at a time",
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *args: object, **kwargs: object) -> Symbol:
        from .torch_functions import apply_numpy

        return apply_numpy(self._trace, ufunc.__name__ if method == "__call__" else method, args, kwargs)

    def __array_function__(
        self, func: Callable[..., Any], types: object, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Symbol:
        from .torch_functions import apply_numpy

        return apply_numpy(self._trace, func.__name__, args, kwargs)

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        from .torch_functions import FUNCTIONS, apply

        if name.startswith("__"):
            raise AttributeError(name)
        if name not in FUNCTIONS:
            raise TraceError(
                f"a symbolic value has no attribute `{name}`",
                location=here(),
                hint="pass sizes and flags as parameters; q_len and kv_len give the lengths",
            )
        return lambda *args, **kwargs: apply(self._trace, name, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        from .torch_functions import call

        return call(func, args, kwargs or {})


class Buffer(Symbol):
    """A captured tensor: reads one element where it is indexed, and is nothing else."""

    def __init__(self, name: str, rank: int | None, trace: Trace) -> None:
        self._name, self._rank, self._trace = name, rank, trace

    @property
    def expr(self) -> NoReturn:
        raise TraceError(
            f"`{self._name}` is a tensor, and only its elements can be computed with",
            location=here(),
            hint=f"write {self._name}[{', '.join('ijklmnop'[: self._rank or 1])}]",
        )

    def __repr__(self) -> str:
        return f"<tensor {self._name}>"

    def __getitem__(self, index: object) -> Symbol:
        return self._trace.read(self._name, index)


def static_type(value: StaticInt | StaticFloat) -> ScalarType:
    """The type of a baked-in number."""
    if isinstance(value, StaticFloat):
        return F32
    return I32 if -(2**31) <= value < 2**31 else I64


def as_expr(trace: Trace, value: object) -> Expr:
    """The IR of an operand: a symbol, a number, or a tensor with no axes."""
    match value:
        case Symbol():
            return value.expr
        case StaticInt() | StaticFloat() if value.parameter:
            return Param(value.parameter, static_type(value), here())
        case bool() | int() | float():
            return build.const(value, here())
        case torch.Tensor():
            return trace.capture(value).expr
        case np.bool_():
            return build.const(bool(value), here())
        case numbers.Integral():
            return build.const(int(value), here())
        case numbers.Real():
            return build.const(float(value), here())
        case _:
            raise TraceError(
                f"a {type(value).__name__} cannot be combined with a symbolic value",
                location=here(),
                hint="use numbers, other symbolic values, and elements of captured tensors",
            )


def combine(trace: Trace, op: BinaryOp, a: object, b: object) -> Symbol:
    """``a op b`` as a symbol."""
    loc = here()
    left, right = as_expr(trace, a), as_expr(trace, b)
    if op in ("floordiv", "mod") and left.type.is_integer and right.type.is_integer:
        trace.need_static(right)
        if isinstance(b, int) and b == 0:
            raise TypeMismatchError("division by zero", location=loc)
    if op in LOGIC:
        for x, y in ((left, right), (right, left)):
            if isinstance(x, Load) and y.type is BOOL:
                trace.reread(x.buffer, BOOL)
    if op in ("add", "sub", "mul") and left.type is BOOL and right.type is BOOL:
        # Python would add them as 0 and 1, torch as truth values.
        raise TypeMismatchError(
            "arithmetic on two conditions",
            location=loc,
            hint="combine conditions with `&` and `|`; rg.to_int(a) + rg.to_int(b) counts them",
        )
    if op == "pow" and left.type is not F32 and isinstance(right, Const) and right.value in (1, 2, 3, 4):
        # Small powers of integers stay exact integers, as in Python.
        left = build.cast(left, I64, loc)
        power = left
        for _ in range(int(right.value) - 1):
            power = build.binary("mul", power, left, loc)
        return Symbol(power, trace)
    return Symbol(build.binary(op, left, right, loc), trace)


def as_condition(trace: Trace, value: object) -> Expr:
    """The IR of a truth value; numbers count as ``!= 0``, as in ``torch.logical_and``."""
    return build.cast(as_expr(trace, value), BOOL, here())
