"""A variant: the structure of one attention, without any values of run-time parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .location import Location
from .nodes import TRUE, Expr
from .types import BufferType, ScalarType


@dataclass(frozen=True, slots=True)
class ScalarParameter:
    """A run-time scalar (i32 or f32): changing its value never recompiles."""

    name: str
    type: ScalarType
    loc: Location | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StaticParameter:
    """A scalar that is baked in, because a proof or a shape needs it."""

    name: str
    type: ScalarType
    value: bool | int | float
    loc: Location | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BufferParameter:
    """A captured tensor."""

    name: str
    type: BufferType
    loc: Location | None = field(default=None, compare=False, repr=False)


Parameter = ScalarParameter | StaticParameter | BufferParameter


@dataclass(frozen=True, slots=True)
class Softmax:
    """Rows are normalised by softmax over the allowed keys."""


Normalizer = Softmax
Align = Literal["start", "end"]


@dataclass(frozen=True, slots=True)
class Variant:
    """Mask, ordered score modifications and normaliser of one attention.

    ``mask`` is boolean over ``INDEX_NAMES``; each of ``scores`` maps ``Score()`` to the next score;
    ``scale`` None means D**-0.5. ``align`` says which positions meet: the first query and key
    ("start") or the last ones ("end"). The name is a label: it takes no part in equality.
    """

    mask: Expr = TRUE
    scores: tuple[Expr, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    normalizer: Normalizer = Softmax()
    align: Align = "start"
    scale: float | None = None
    name: str = field(default="attention", compare=False)

    @property
    def scalars(self) -> tuple[ScalarParameter, ...]:
        """Run-time scalars in order; a kernel takes them as arguments in this order."""
        return tuple(p for p in self.parameters if isinstance(p, ScalarParameter))

    @property
    def statics(self) -> tuple[StaticParameter, ...]:
        return tuple(p for p in self.parameters if isinstance(p, StaticParameter))

    @property
    def buffers(self) -> tuple[BufferParameter, ...]:
        """Captured tensors in order; a kernel takes them, with their strides, in this order."""
        return tuple(p for p in self.parameters if isinstance(p, BufferParameter))
