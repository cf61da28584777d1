"""Expression nodes. Frozen, hashable, typed; ``loc`` takes no part in equality.

Build them with :mod:`regard.ir.build`, which computes types and reports mismatches; the
constructors here check nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from .location import Location
from .types import BOOL, F32, I64, ScalarType

UnaryOp = Literal[
    "neg", "not", "abs", "exp", "exp2", "log", "log2", "sqrt", "rsqrt",
    "tanh", "sigmoid", "sin", "cos", "floor",
]  # fmt: skip
BinaryOp = Literal[
    "add", "sub", "mul", "div", "floordiv", "mod", "pow", "min", "max",
    "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge",
    "bitand", "bitor", "bitxor", "shl", "shr",
]  # fmt: skip
COMPARISONS: frozenset[str] = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
LOGIC: frozenset[str] = frozenset(("and", "or", "xor"))
BITWISE: frozenset[str] = frozenset(("bitand", "bitor", "bitxor", "shl", "shr"))

# What a user's function can see. All are i32; `q` is the row's index until `align_positions`.
INDEX_NAMES = ("q", "kv", "head", "kv_head", "batch", "q_len", "kv_len")
# `kv - q`: what indices of class "diagonal" are rewritten to (ir/dependence.py); never written by users.
DIAGONAL = "diagonal"
# First and last position (inclusive, clipped to the length) of the tile that ranges are asked for.
TILE_NAMES = ("tile_first", "tile_last")


class _Node:
    """What is found out about a node is kept with it.

    Its hash and text, the indices, parameters, values and elements of tensors that it reads (``traverse``), what it
    always lies between (``bounds``), the sum that it is (``symbolic``).
    """

    __slots__ = (
        "_hash", "_text",
        "known_indices", "known_loads", "known_parameters", "known_range", "known_sum", "known_values",
    )  # fmt: skip
    known_indices: frozenset[str]
    known_parameters: frozenset[str]
    known_values: frozenset[str]
    known_range: tuple[float, float]

    @property
    def operands(self) -> tuple[Expr, ...]:
        """What the node is made of; nothing, for most kinds."""
        return ()


_N = TypeVar("_N", bound=_Node)


def _described_once(node: type[_N]) -> type[_N]:
    """An expression is asked for its hash, and sums for the text of their terms, at every node of larger ones."""
    compute, describe = node.__hash__, node.__repr__

    def kept_hash(self: _N) -> int:
        found = getattr(self, "_hash", None)
        if found is None:
            found = compute(self)
            object.__setattr__(self, "_hash", found)
        return found

    def kept_text(self: _N) -> str:
        try:
            return self._text  # type: ignore[attr-defined, no-any-return]
        except AttributeError:
            found = describe(self)
            object.__setattr__(self, "_text", found)
            return found

    node.__hash__, node.__repr__ = kept_hash, kept_text  # type: ignore[method-assign, assignment]
    return node


@_described_once
@dataclass(frozen=True, slots=True, eq=False)
class Const(_Node):
    """A literal. Unlike Python's floats, equal means interchangeable: nan equals nan, 0.0 is not -0.0."""

    value: bool | int | float
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    def _key(self) -> tuple[ScalarType, bool | int | str]:
        return self.type, self.value.hex() if isinstance(self.value, float) else self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@_described_once
@dataclass(frozen=True, slots=True)
class Index(_Node):
    """A position, identity or length: one of ``INDEX_NAMES``, or in ranges of ``TILE_NAMES``."""

    name: str
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)


@_described_once
@dataclass(frozen=True, slots=True)
class Score(_Node):
    """The score ``s`` that a score function receives, in float32, already scaled."""

    type: ScalarType = F32
    loc: Location | None = field(default=None, compare=False, repr=False)


@_described_once
@dataclass(frozen=True, slots=True)
class Param(_Node):
    """A scalar parameter, by name: i32, f32, or the type of its static value."""

    name: str
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)


@_described_once
@dataclass(frozen=True, slots=True)
class Load(_Node):
    """One element of a captured tensor. Negative indices count from the end, as in torch."""

    buffer: str
    indices: tuple[Expr, ...]
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.indices


@_described_once
@dataclass(frozen=True, slots=True)
class Unary(_Node):
    """``neg`` and ``abs`` keep the type of a number, ``not`` takes a boolean; the rest compute in float32."""

    op: UnaryOp
    x: Expr
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.x,)


@_described_once
@dataclass(frozen=True, slots=True)
class Binary(_Node):
    """``floordiv`` and ``mod`` floor as in Python; ``div`` is float32."""

    op: BinaryOp
    a: Expr
    b: Expr
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.a, self.b


@_described_once
@dataclass(frozen=True, slots=True)
class Select(_Node):
    """``a`` where ``condition`` holds, else ``b``. Neither side has effects."""

    condition: Expr
    a: Expr
    b: Expr
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return self.condition, self.a, self.b


@_described_once
@dataclass(frozen=True, slots=True)
class Cast(_Node):
    """Conversion; float to integer truncates towards zero, anything to bool is ``!= 0``."""

    x: Expr
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.x,)


@_described_once
@dataclass(frozen=True, slots=True)
class Coordinate(_Node):
    """Coordinate ``axis`` of position ``x`` in a row-major grid of ``sizes``; what it computes, :attr:`steps` says.

    Its type is that of ``x``: no coordinate is larger than the position.
    """

    x: Expr
    axis: int
    sizes: tuple[int, ...]
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.x,)

    @property
    def stride(self) -> int:
        """Positions between neighbours along the axis."""
        return math.prod(self.sizes[self.axis + 1 :])

    @property
    def steps(self) -> tuple[tuple[Literal["floordiv", "mod"], int], ...]:
        """What is done to ``x``, in order. Axis 0 has no end: only the length bounds it."""
        quotient: tuple[Literal["floordiv", "mod"], int] = "floordiv", self.stride
        return (quotient, ("mod", self.sizes[self.axis])) if self.axis else (quotient,)


ReductionOp = Literal["min", "max", "any", "all"]


@_described_once
@dataclass(frozen=True, slots=True)
class Reduction(_Node):
    """``x`` reduced over the positions of one tile of ``axis``; only in tile classification.

    ``x`` depends on ``q`` or ``kv`` (the one that ``axis`` names); with "both" on the blocks of both alone, see
    :func:`regard.ir.tiles.steps.steps`, and is reduced over all pairs of two tiles.
    """

    op: ReductionOp
    x: Expr
    axis: Literal["q", "kv", "both"]
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)

    @property
    def operands(self) -> tuple[Expr, ...]:
        return (self.x,)


@_described_once
@dataclass(frozen=True, slots=True)
class Value(_Node):
    """The result of an earlier step of lowered IR, by name."""

    name: str
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)


Expr = Const | Index | Score | Param | Load | Unary | Binary | Select | Cast | Coordinate | Reduction | Value

TRUE, FALSE = Const(True, BOOL), Const(False, BOOL)
ZERO, ONE = Const(0, I64), Const(1, I64)
