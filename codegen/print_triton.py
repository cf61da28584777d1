"""Expressions as Triton source."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from ..ir.nodes import (
    Binary,
    BinaryOp,
    Cast,
    Const,
    Coordinate,
    Expr,
    Index,
    Load,
    Param,
    Reduction,
    Score,
    Select,
    Unary,
    UnaryOp,
    Value,
)
from ..ir.types import BOOL, F32, I32, I64, ScalarType

# How tightly Python binds what is printed; `&` and `|` bind tighter than comparisons.
COMPARE, BIT_OR, BIT_XOR, BIT_AND, SHIFT, SUM, PRODUCT, SIGN, POSTFIX = range(9)

_OPERATORS: dict[BinaryOp, tuple[str, int]] = {
    "eq": ("==", COMPARE), "ne": ("!=", COMPARE), "lt": ("<", COMPARE),
    "le": ("<=", COMPARE), "gt": (">", COMPARE), "ge": (">=", COMPARE),
    "or": ("|", BIT_OR), "xor": ("^", BIT_XOR), "and": ("&", BIT_AND),
    "bitor": ("|", BIT_OR), "bitxor": ("^", BIT_XOR), "bitand": ("&", BIT_AND),
    "shl": ("<<", SHIFT), "shr": (">>", SHIFT),
    "add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT),
}  # fmt: skip
_CALLS: dict[UnaryOp, str] = {
    "abs": "tl.abs", "exp": "tl.exp", "exp2": "tl.exp2", "log": "tl.log", "log2": "tl.log2",
    "sqrt": "tl.sqrt_rn", "rsqrt": "tl.rsqrt", "tanh": "tanh", "sigmoid": "tl.sigmoid",
    "sin": "tl.sin", "cos": "tl.cos", "floor": "tl.floor",
}  # fmt: skip
TRITON_TYPES: dict[ScalarType, str] = {BOOL: "tl.int1", I32: "tl.int32", I64: "tl.int64", F32: "tl.float32"}

# Functions that generated modules define where they are used: Triton divides towards zero, and its
# interpreter has no library of mathematical functions.
HELPERS: dict[str, str] = {
    "tanh": '''
@triton.jit
def tanh(x):
    """Odd polynomial near zero, where 1 - exp(-2x) would cancel."""
    a = tl.abs(x)
    e = tl.exp2(-2.8853900817779268 * a)
    far = (1.0 - e) / (1.0 + e)
    z = a * a
    near = a * (1.0 + z * (-0.33333334 + z * (0.13333334 + z * (-0.05396825 + z * 0.02186949))))
    t = tl.where(a < 0.25, near, far)
    return tl.where(x < 0.0, -t, t)
''',
    "precise_exp": '''
@triton.jit
def precise_exp(x):
    """e ** x within one unit in the last place; powers of two by hardware, of rounded exponents, err by several.

    x = n log(2) + r, where log(2) is a short number (whose multiples are exact) and its rest; a series for r.
    """
    n = tl.floor(x * 1.44269504 + 0.5)
    r = x - n * 0.693359375 + n * 2.12194440e-4
    y = 0.041666667 + r * (0.0083333333 + r * (0.0013888889 + r * 1.9841270e-4))
    y = 1.0 + (r + r * r * (0.5 + r * (0.16666667 + r * y)))
    return tl.where(x < -104.0, 0.0, y * tl.exp2(n))
''',
    "power": '''
@triton.jit
def power(x, y):
    """x ** y of floats: NaN for a negative x unless y is a whole number."""
    size = tl.where(y == 0.0, 1.0, tl.exp2(y * tl.log2(tl.abs(x))))
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
    return tl.where(x < 0.0, tl.where(whole, tl.where(odd, -size, size), float("nan")), size)
''',
    "floor_divide": '''
@triton.jit
def floor_divide(a, b):
    """a // b rounded down, as in Python; Triton rounds towards zero."""
    remainder = a % b
    return a // b - ((remainder != 0) & ((remainder < 0) != (b < 0))).to(tl.int32)
''',
    "floor_modulo": '''
@triton.jit
def floor_modulo(a, b):
    """a % b with the sign of b, as in Python; Triton's has the sign of a."""
    remainder = a % b
    return remainder + tl.where((remainder != 0) & ((remainder < 0) != (b < 0)), b, 0)
''',
}


def print_triton(
    e: Expr, leaf: Callable[[Index | Score | Param | Load | Value], str], never_negative: Callable[[Expr], bool]
) -> str:
    """``e`` as a Triton expression.

    ``leaf`` spells everything that has a name; ``never_negative`` says of which integers it is proved that
    they are at least zero, so that division needs no correction.
    """

    def go(x: Expr, at_least: int) -> str:
        text, binding = show(x)
        return f"({text})" if binding < at_least else text

    def call(name: str, *operands: Expr) -> tuple[str, int]:
        return f"{name}({', '.join(go(x, COMPARE) for x in operands)})", POSTFIX

    def show(x: Expr) -> tuple[str, int]:
        match x:
            case Const():
                text = print_literal(x.value)
                return text, SIGN if text.startswith("-") else POSTFIX
            case Index() | Score() | Param() | Load() | Value():
                return leaf(x), POSTFIX
            case Unary("neg", a):
                return f"-{go(a, SIGN)}", SIGN
            case Unary("not", a):
                return f"~{go(a, SIGN)}", SIGN
            case Unary(op, a):
                return call(_CALLS[op], a)
            case Binary():
                return binary(x)
            case Select(condition, a, b):
                return call("tl.where", condition, a, b)
            case Cast(a, type) if type is BOOL:
                return f"{go(a, BIT_OR)} != 0", COMPARE
            case Cast(a, type):
                return f"{go(a, POSTFIX)}.to({TRITON_TYPES[type]})", POSTFIX
            case Reduction() | Coordinate():
                raise ValueError("reductions and coordinates have no place in a kernel")
            case _:
                assert_never(x)

    def binary(x: Binary) -> tuple[str, int]:
        a, b = x.a, x.b
        match x.op:
            case "min" | "max":
                return call(f"tl.{x.op}imum", a, b)
            case "pow":
                if isinstance(b, Const) and b.value == 2:
                    return f"{go(a, PRODUCT)} * {go(a, SIGN)}", PRODUCT
                return call("power", a, b)
            case "floordiv" | "mod" if x.type is F32:
                quotient = f"tl.floor({go(a, PRODUCT)} / {go(b, SIGN)})"
                if x.op == "floordiv":
                    return quotient, POSTFIX
                return f"{go(a, SUM)} - {go(b, PRODUCT)} * {quotient}", SUM
            case "floordiv" | "mod":
                if never_negative(a) and never_negative(b):
                    return f"{go(a, PRODUCT)} {'//' if x.op == 'floordiv' else '%'} {go(b, SIGN)}", PRODUCT
                return call("floor_divide" if x.op == "floordiv" else "floor_modulo", a, b)
            case _:
                operator, binding = _OPERATORS[x.op]
                # Comparisons do not associate: both operands bind tighter.
                left = binding + 1 if binding == COMPARE else binding
                return f"{go(a, left)} {operator} {go(b, binding + 1)}", binding

    return show(e)[0]


def print_literal(value: bool | int | float) -> str:
    """A literal as Triton reads it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def used_helpers(text: str) -> list[str]:
    """The definitions of all helpers that ``text`` calls."""
    return [source for name, source in HELPERS.items() if f" {name}(" in text or f"({name}(" in text]
