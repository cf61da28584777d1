"""From parse trees of expressions to typed expressions, for the surface form and for lowered IR."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from . import build
from .errors import TextError, TypeMismatchError
from .grids import check_grid_sizes, shape
from .limits import MAX_DEPTH
from .location import Location
from .nodes import (
    BITWISE,
    COMPARISONS,
    DIAGONAL,
    INDEX_NAMES,
    LOGIC,
    TILE_NAMES,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Expr,
    Param,
    Reduction,
    ReductionOp,
    Score,
    Select,
    Unary,
    UnaryOp,
    Value,
)
from .types import BOOL, F32, I32, I64, BufferType, ScalarType

if TYPE_CHECKING:
    from lark import Token, Tree

CONSTANTS: dict[str, bool | float] = {"true": True, "false": False, "inf": math.inf, "nan": math.nan}
_OPERATORS: dict[str, BinaryOp] = {
    "or": "or", "xor": "xor", "and": "and", "|": "or", "^": "xor", "&": "and",
    "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge", "<<": "shl", ">>": "shr",
    "+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow",
}  # fmt: skip
_UNARY_FUNCTIONS: dict[str, UnaryOp] = {op: op for op in get_args(UnaryOp) if op not in ("neg", "not")}
_BINARY_FUNCTIONS: dict[str, BinaryOp] = {"min": "min", "max": "max"}
_REDUCTIONS: dict[str, ReductionOp] = {f"tile_{op}": op for op in get_args(ReductionOp)}
_SURFACE_CASTS: dict[str, ScalarType] = {"int": I64, "i32": I32, "float": F32, "bool": BOOL}
_TYPED_CASTS: dict[str, ScalarType] = {str(type): type for type in ScalarType}


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint naming what ``name`` may have been meant to be."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(known)}"


@dataclass(slots=True)
class Reader:
    """Builds the expressions of one text.

    ``scalars``, ``buffers`` and ``steps`` are the names declared so far. With ``typed`` the text is lowered IR:
    nothing is converted by itself, and an integer literal is i32.
    """

    text: str
    typed: bool = False
    scalars: dict[str, ScalarType] = field(default_factory=dict)
    buffers: dict[str, BufferType] = field(default_factory=dict)
    steps: dict[str, ScalarType] = field(default_factory=dict)
    _lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._lines = self.text.split("\n")

    def at(self, place: Token | Tree[Token]) -> Location:
        """Where a token or tree lies; only the first line of one that spans several."""
        span = place if isinstance(place, str) else place.meta
        assert span.line is not None and span.column is not None and span.end_column is not None
        line = self._lines[span.line - 1]
        end = span.end_column - 1 if span.end_line == span.line else len(line)
        return Location("<text>", span.line, span.column - 1, end, line)

    def expression(self, tree: Tree[Token]) -> Expr:
        """The expression that ``tree`` stands for. Works from the leaves up, without recursion."""
        built: dict[int, Expr] = {}
        depth: dict[int, int] = {}
        for part in tree.iter_subtrees():
            operands = [c for c in part.children if c is not None and not isinstance(c, str)]
            depth[id(part)] = 1 + max((depth[id(c)] for c in operands), default=0)
            if depth[id(part)] > MAX_DEPTH:
                raise TextError(
                    f"the expression is nested more than {MAX_DEPTH} levels deep",
                    location=self.at(part),
                    hint="split it with parentheses into shorter groups",
                )
            tokens = [c for c in part.children if isinstance(c, str)]
            built[id(part)] = self._node(part, tokens, [built[id(c)] for c in operands])
        return built[id(tree)]

    def _node(self, tree: Tree[Token], tokens: list[Token], operands: list[Expr]) -> Expr:
        loc = self.at(tree)
        match tree.data:
            case "number":
                return self._literal(number(tokens[0], loc), loc)
            case "name":
                return self._name(tokens[0], loc)
            case "unary":
                return self._unary("neg" if tokens[0] == "-" else "not", operands[0], loc)
            case "binary":
                return self._binary(tokens[0], operands[0], operands[1], loc)
            case "load":
                return self._load(tokens[0], operands, loc)
            case _:
                return self._call(tokens[0], operands, loc)

    def _literal(self, value: bool | int | float, loc: Location) -> Expr:
        literal = build.const(value, loc)
        return replace(literal, type=I32) if self.typed and literal.type is I64 else literal

    def _name(self, name: Token, loc: Location) -> Expr:
        indices = (*INDEX_NAMES, *TILE_NAMES, DIAGONAL) if self.typed else INDEX_NAMES
        if name in self.steps:
            return Value(str(name), self.steps[name], loc)
        if name in self.scalars:
            return Param(str(name), self.scalars[name], loc)
        if name in indices:
            return build.index(str(name), loc)
        if name == "s":
            return Score(loc=loc)
        if name in CONSTANTS:
            return self._literal(CONSTANTS[name], loc)
        if name in self.buffers:
            axes = ", ".join(self.buffers[name].axes)
            raise TextError(f"`{name}` is a tensor: it is read at indices", location=loc, hint=f"write {name}[{axes}]")
        known = (*self.scalars, *self.buffers, *self.steps, *indices, "s")
        raise TextError(f"unknown name `{name}`", location=loc, hint=suggestion(name, known))

    def _load(self, name: Token, indices: list[Expr], loc: Location) -> Expr:
        if name not in self.buffers:
            hint = suggestion(name, self.buffers) if self.buffers else f"declare it: {name}: f32[head]"
            raise TextError(f"there is no tensor `{name}`", location=loc, hint=hint)
        return build.load(str(name), self.buffers[name], tuple(indices), loc)

    def _unary(self, op: UnaryOp, x: Expr, loc: Location) -> Expr:
        if not self.typed:
            return build.unary(op, x, loc)
        if op == "neg" and isinstance(x, Const) and x.type is not BOOL:
            return Const(-x.value, x.type, loc)
        expected = BOOL if op == "not" else x.type if op in ("neg", "abs") and x.type is not BOOL else F32
        return Unary(op, self._expect(x, expected, loc), expected, loc)

    def _binary(self, symbol: str, a: Expr, b: Expr, loc: Location) -> Expr:
        op = _OPERATORS[symbol]
        if symbol in LOGIC and not a.type is b.type is BOOL:
            raise TypeMismatchError(
                f"`{symbol}` needs two booleans, got {a.type} and {b.type}",
                location=loc,
                hint=f"compare first, or write `{ {'and': '&', 'or': '|', 'xor': '^'}[symbol] }` for bits",
            )
        return self._operation(op, a, b, loc)

    def _operation(self, op: BinaryOp, a: Expr, b: Expr, loc: Location) -> Expr:
        if not self.typed:
            return build.binary(op, a, b, loc)
        if op in LOGIC and a.type.is_integer:
            op = {"and": "bitand", "or": "bitor", "xor": "bitxor"}[op]  # type: ignore[assignment]
        self._expect(b, a.type, loc)
        if op in ("div", "pow"):
            self._expect(a, F32, loc)
        numeric = op not in LOGIC and op not in ("eq", "ne")
        if (numeric and a.type is BOOL) or (op in BITWISE and not a.type.is_integer) or (op in LOGIC and a.type is F32):
            raise TypeMismatchError(f"{op} of {a.type} and {b.type}", location=loc)
        return Binary(op, a, b, BOOL if op in COMPARISONS or op in LOGIC else a.type, loc)

    def _expect(self, x: Expr, type: ScalarType, loc: Location) -> Expr:
        if x.type is not type:
            raise TypeMismatchError(
                f"expected {type}, got {x.type}", location=x.loc or loc, hint=f"lowered IR converts by {type}(…) only"
            )
        return x

    def _call(self, name: Token, operands: list[Expr], loc: Location) -> Expr:
        casts = _TYPED_CASTS if self.typed else _SURFACE_CASTS
        if name in casts:
            (x,) = self._arguments(name, operands, 1, loc)
            return self._cast(x, casts[name], loc)
        if name in _UNARY_FUNCTIONS:
            (x,) = self._arguments(name, operands, 1, loc)
            return self._unary(_UNARY_FUNCTIONS[name], x, loc)
        if name in _BINARY_FUNCTIONS:
            a, b = self._arguments(name, operands, 2, loc)
            return self._operation(_BINARY_FUNCTIONS[name], a, b, loc)
        if name == "where":
            condition, a, b = self._arguments(name, operands, 3, loc)
            if not self.typed:
                return build.select(condition, a, b, loc)
            return Select(self._expect(condition, BOOL, loc), a, self._expect(b, a.type, loc), a.type, loc)
        if self.typed and name in _REDUCTIONS:
            axis = _axis(operands[1:], loc)
            return Reduction(_REDUCTIONS[name], operands[0], axis, operands[0].type, loc)
        if name == "coordinate":
            return self._coordinate(operands, loc)
        others = ("where", "coordinate", *(_REDUCTIONS if self.typed else ()))
        known = (*casts, *_UNARY_FUNCTIONS, *_BINARY_FUNCTIONS, *others)
        raise TextError(f"unknown function `{name}`", location=loc, hint=suggestion(name, known))

    def _coordinate(self, operands: list[Expr], loc: Location) -> Expr:
        numbers = [x.value for x in operands[1:] if isinstance(x, Const) and x.type.is_integer]
        if len(operands) < 3 or len(numbers) < len(operands) - 1:
            raise TextError(
                "`coordinate` takes a position, an axis, and the sizes of the grid as numbers",
                location=loc,
                hint="write coordinate(q, 0, 16, 32)",
            )
        axis, *sizes = map(int, numbers)
        check_grid_sizes(sizes, loc)
        if not axis < len(sizes):
            raise TextError(f"a grid of {shape(sizes)} has no axis {axis}", location=loc)
        return build.coordinate(operands[0], axis, tuple(sizes), loc)

    def _arguments(self, name: str, operands: list[Expr], count: int, loc: Location) -> list[Expr]:
        if len(operands) != count:
            plural = "s" if count > 1 else ""
            raise TextError(f"`{name}` takes {count} argument{plural}, got {len(operands)}", location=loc)
        return operands

    def _cast(self, x: Expr, type: ScalarType, loc: Location) -> Expr:
        if self.typed and isinstance(x, Const) and x.type is I32 and type.is_integer:
            return replace(x, type=type, loc=loc)  # how a literal states its type
        return Cast(x, type, loc) if self.typed else build.cast(x, type, loc)


def _axis(names: list[Expr], loc: Location) -> Literal["q", "kv", "both"]:
    q, kv = build.index("q"), build.index("kv")
    if names == [q]:
        return "q"
    if names == [kv]:
        return "kv"
    if names == [q, kv]:
        return "both"
    raise TextError("a reduction is over q or kv", location=loc)


def number(token: str, loc: Location) -> int | float:
    """The value of a literal without its sign: an integer of at most 64 bits, or a float."""
    if not token.isascii():
        raise TextError("numbers are written with the digits 0 to 9", location=loc)
    if not token.isdigit():
        return float(token)
    if len(token) > 19 or int(token) > build.MAX_I64:
        raise TextError("the integer does not fit 64 bits", location=loc)
    return int(token)
