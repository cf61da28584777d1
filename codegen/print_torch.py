"""Prints expressions of the language as PyTorch, with as few parentheses as Python needs.

Positions, identities and loads are tensors that broadcast against each other; lengths, integer
parameters and literals stay Python numbers, whose ``//``, ``%`` and comparisons already mean what
the language means. Integers in tensors are int64: narrower types only matter where registers are
scarce, and every narrowing has been proved not to change a value. Floats are float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from ..ir.errors import InternalError
from ..ir.nodes import Binary, Cast, Const, Coordinate, Expr, Index, Load, Param, Reduction, Score, Select, Unary, Value
from ..ir.types import BOOL, F32


class Precedence(IntEnum):
    """Python's operators, loosest first."""

    CONDITIONAL = 0
    NOT = 1
    COMPARISON = 2
    OR = 3
    XOR = 4
    AND = 5
    SHIFT = 6
    SUM = 7
    PRODUCT = 8
    UNARY = 9
    ATOM = 10


@dataclass(frozen=True, slots=True)
class Printed:
    """An expression as text. ``tensor`` tells a torch tensor from a Python number."""

    text: str
    precedence: Precedence = Precedence.ATOM
    tensor: bool = True

    def inside(self, at_least: Precedence) -> str:
        """The text, in parentheses where it binds more loosely than ``at_least``."""
        return self.text if self.precedence >= at_least else f"({self.text})"


@dataclass(frozen=True, slots=True)
class Scope:
    """What the names in the printed code stand for.

    ``known`` gives the text of positions, parameters and whatever else has been computed already;
    ``buffers`` the variable that holds each captured tensor.
    """

    known: Mapping[Expr, Printed]
    buffers: Mapping[str, str]


# The helpers that printed expressions call, printed into the module by `helper_functions`.
HELPERS = {
    "within": '''
def within(index, size):
    """The index, moved to the nearest end where it lies outside; negative ones count from the end."""
    return min(max(index, -size), size - 1) if isinstance(index, int) else index.clamp(-size, size - 1)
''',
    "load": '''
def load(buffer, *indices):
    """buffer[indices]; an index outside, which only a masked pair may have, reads the nearest element."""
    values = buffer[tuple(within(i, size) for i, size in zip(indices, buffer.shape))]
    if values.dtype == torch.bool:
        return values
    return values.float() if values.is_floating_point() else values.long()
''',
    "scalar": '''
def scalar(number, dtype):
    """A number as a tensor of no axes; on the host, whence it goes to any device without waiting."""
    return torch.tensor(number, dtype=dtype, device="cpu")
''',
    "divisor": '''
def divisor(x):
    """x, or 1 where it is 0: what masked pairs compute is thrown away but must not raise."""
    return torch.where(x == 0, 1, x) if isinstance(x, torch.Tensor) else x or 1
''',
}


def helper_functions(code: str) -> str:
    """The sources of the helpers that ``code`` calls, directly or not, to be printed before it."""
    found: list[str] = []
    for name, text in reversed(HELPERS.items()):  # a helper calls only earlier ones
        if re.search(rf"\b{name}\(", code + "".join(found)):
            found.insert(0, text)
    return "\n".join(found)


_INFIX: dict[str, tuple[str, Precedence]] = {
    "add": ("+", Precedence.SUM),
    "sub": ("-", Precedence.SUM),
    "mul": ("*", Precedence.PRODUCT),
    "div": ("/", Precedence.PRODUCT),
    "floordiv": ("//", Precedence.PRODUCT),
    "mod": ("%", Precedence.PRODUCT),
    "and": ("&", Precedence.AND),
    "or": ("|", Precedence.OR),
    "xor": ("^", Precedence.XOR),
    "bitand": ("&", Precedence.AND),
    "bitor": ("|", Precedence.OR),
    "bitxor": ("^", Precedence.XOR),
    "shl": ("<<", Precedence.SHIFT),
    "shr": (">>", Precedence.SHIFT),
    "eq": ("==", Precedence.COMPARISON),
    "ne": ("!=", Precedence.COMPARISON),
    "lt": ("<", Precedence.COMPARISON),
    "le": ("<=", Precedence.COMPARISON),
    "gt": (">", Precedence.COMPARISON),
    "ge": (">=", Precedence.COMPARISON),
}
_ASSOCIATIVE = frozenset(("and", "or", "xor", "bitand", "bitor", "bitxor"))


def print_torch(e: Expr, scope: Scope) -> Printed:
    """``e`` as a PyTorch expression over the names in ``scope``.

    Python numbers come out for expressions of lengths, integer parameters and literals alone.
    """

    def go(e: Expr) -> Printed:
        if (known := scope.known.get(e)) is not None:
            return known
        match e:
            case Const():
                return _literal(e)
            case Load():
                indices = "".join(f", {go(i).text}" for i in e.indices)
                return Printed(f"load({scope.buffers[e.buffer]}{indices})")
            case Unary():
                return _unary(e, go(e.x))
            case Binary():
                return _binary(e, go(e.a), go(e.b))
            case Select():
                return _select(e, go(e.condition), go(e.a), go(e.b))
            case Cast():
                return _cast(e, go(e.x))
            case Index() | Score() | Param() | Value() | Coordinate() | Reduction():
                raise InternalError(f"no name for {e} in the printed PyTorch code")
            case _:
                assert_never(e)

    return go(e)


def _literal(e: Const) -> Printed:
    if isinstance(e.value, float) and e.value - e.value != 0:  # infinite or NaN
        return Printed(f'float("{e.value}")', tensor=False)
    text = repr(e.value)
    return Printed(text, Precedence.UNARY if text.startswith("-") else Precedence.ATOM, tensor=False)


def as_tensor(x: Printed, e: Expr) -> str:
    """The text of ``x``, which prints ``e``, as a tensor."""
    if x.tensor:
        return x.text
    dtype = "torch.bool" if e.type is BOOL else "torch.float32" if e.type is F32 else "torch.int64"
    return f"scalar({x.text}, {dtype})"


def _unary(e: Unary, x: Printed) -> Printed:
    match e.op:
        case "neg":
            return Printed(f"-{x.inside(Precedence.UNARY)}", Precedence.UNARY, x.tensor)
        case "not" if x.tensor:
            return Printed(f"~{x.inside(Precedence.UNARY)}", Precedence.UNARY)
        case "not":
            return Printed(f"not {x.inside(Precedence.NOT)}", Precedence.NOT, tensor=False)
        case "abs":
            return Printed(f"abs({x.text})", tensor=x.tensor)
        case _:
            return Printed(f"torch.{e.op}({as_tensor(x, e.x)})")


def _binary(e: Binary, a: Printed, b: Printed) -> Printed:
    tensor = a.tensor or b.tensor
    if e.op in ("min", "max"):
        if a.tensor and b.tensor:
            return Printed(f"torch.{e.op}imum({a.text}, {b.text})")
        if not tensor:
            return Printed(f"{e.op}({a.text}, {b.text})", tensor=False)
        x, limit = (a, b) if a.tensor else (b, a)
        # min(x, limit) is clamp(max=limit), and the other way round.
        side = "max" if e.op == "min" else "min"
        return Printed(f"{x.inside(Precedence.ATOM)}.clamp({side}={limit.text})")
    if e.op == "pow":
        return Printed(f"torch.pow({as_tensor(a, e.a)}, {b.text})")
    symbol, own = _INFIX[e.op]
    left = own + 1 if own is Precedence.COMPARISON else own
    right = own if e.op in _ASSOCIATIVE else own + 1
    if e.op in ("floordiv", "mod") and not isinstance(e.b, Const):
        b = Printed(f"divisor({b.text})", tensor=b.tensor)
    # float32 arithmetic needs one float32 operand: two Python floats would meet in double precision.
    a_text = a.inside(Precedence(left)) if tensor or e.type is not F32 else as_tensor(a, e.a)
    return Printed(f"{a_text} {symbol} {b.inside(Precedence(right))}", own, tensor or e.type is F32)


def _select(e: Select, condition: Printed, a: Printed, b: Printed) -> Printed:
    if condition.tensor:
        text = f"torch.where({condition.text}, {a.text}, {b.text})"
        # Of two Python floats torch would make whatever its default dtype is.
        return Printed(text if a.tensor or b.tensor or e.type is not F32 else f"{text}.float()")
    tensor = a.tensor or b.tensor
    left, right = (as_tensor(a, e.a), as_tensor(b, e.b)) if tensor else (a.inside(Precedence.NOT), b.text)
    return Printed(f"{left} if {condition.inside(Precedence.NOT)} else {right}", Precedence.CONDITIONAL, tensor)


def _cast(e: Cast, x: Printed) -> Printed:
    old, new = e.x.type, e.type
    if old is new or (old.is_integer and new.is_integer):
        return x
    if new is F32:
        return Printed(f"{x.inside(Precedence.ATOM)}.float()" if x.tensor else as_tensor(x, e))
    if new is BOOL:
        return Printed(f"{x.inside(Precedence.OR)} != 0", Precedence.COMPARISON, x.tensor)
    return Printed(f"{x.inside(Precedence.ATOM)}.long()" if x.tensor else f"int({x.text})", tensor=x.tensor)
