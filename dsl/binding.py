"""Values of the parameters of a variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch


class Binding(Mapping[str, int | float | torch.Tensor]):
    """Immutable table from parameter names to the values bound when the parts were built.

    The open parameters of a variant are those without an entry. Static values are part of the variant.
    Two bindings are equal only if they are the same object, because tensors are not compared.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, int | float | torch.Tensor] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> int | float | torch.Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        shown = {name: f"tensor{tuple(x.shape)}" for name, x in self.tensors.items()} | self.scalars
        return f"Binding({', '.join(f'{name}={x}' for name, x in shown.items())})"

    @property
    def scalars(self) -> dict[str, int | float]:
        """The numbers among the values."""
        return {name: x for name, x in self.items() if not isinstance(x, torch.Tensor)}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The captured tensors among the values."""
        return {name: x for name, x in self.items() if isinstance(x, torch.Tensor)}
