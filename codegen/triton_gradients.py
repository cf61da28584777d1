"""Gradients of captured tensors: which loads contribute, and where their sums go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.dependence import LoadClass, diagonal_form, load_class
from ..ir.differentiate import partials
from ..ir.nodes import DIAGONAL, Expr, Index, Load, Param, Score
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import substitute
from ..ir.types import F32, I32
from .emitter import Emitter
from .print_torch import Printed, Scope, helper_functions, print_torch
from .schedule import Problem
from .triton_values import user_name


@dataclass(frozen=True, slots=True)
class Contribution:
    """One load of a tensor whose gradient is wanted.

    ``partials`` gives, by the number of the score that reads it, the name and the expression of that score's
    derivative by the load, as a function of the first score. ``grad`` is the gradient's name in ``run``.
    """

    name: str
    load: Load
    kind: LoadClass
    partials: dict[int, tuple[str, Expr]]
    grad: str

    @property
    def index_names(self) -> tuple[str, ...]:
        """Names of the index expressions among a kernel's results."""
        return tuple(f"{self.name}_index_{i}" for i in range(len(self.load.indices)))

    @property
    def injective(self) -> bool:
        """Whether no two pairs of the whole call read one element, so that sums are stores."""
        names = [x.name for x in self.load.indices if isinstance(x, Index)]
        return set(names) == {"batch", "head", "q", "kv"}


def contributions(plan: TilePlan, problem: Problem) -> tuple[Contribution, ...]:
    """All of them, in order of first occurrence."""
    wanted = {p.name for p, w in zip(plan.variant.buffers, problem.buffer_gradients, strict=False) if w}
    found: dict[Load, dict[int, tuple[str, Expr]]] = {}
    before: Expr = Score()
    for i, score in enumerate(plan.variant.scores):
        for load, derivative in partials(score).loads:
            if load.buffer in wanted:
                terms = found.setdefault(load, {})
                number = list(found).index(load)
                terms[i] = (f"partial_{number}_{i}", substitute(derivative, {Score(): before}))
        before = substitute(score, {Score(): before})
    return tuple(
        Contribution(f"captured_{n}", load, load_class(load), terms, f"grad_{user_name(load.buffer)}")
        for n, (load, terms) in enumerate(found.items())
    )


SCATTER = '''
def scatter(grad, indices, values):
    """grad[indices] += values, in an order that does not vary; an index outside contributes nothing."""
    flat, inside = 0, True
    for index, size in zip(indices, grad.shape):
        index = torch.as_tensor(index, device=grad.device)
        index = torch.where(index < 0, index + size, index)
        inside = inside & (index >= 0) & (index < size)
        flat = flat * size + index.clamp(0, max(size - 1, 0))
    values = torch.where(inside, values, 0.0)
    grad.view(-1).index_put_((flat.expand(values.shape).reshape(-1),), values.reshape(-1), accumulate=True)
'''


def emit_scatter(out: Emitter, plan: TilePlan, found: Sequence[Contribution]) -> None:
    """Adds the sums that kernels left per query, key or diagonal to the gradients of captured tensors."""
    found = [c for c in found if c.kind != "pair"]
    if not found:
        return
    out.line("head = torch.arange(heads, device=query.device)[:, None, None]")
    out.line("batch = torch.arange(batches, device=query.device)[:, None, None, None]")
    out.line("kv_head = head // max(heads // kv_heads, 1)")
    kinds = {c.kind for c in found}
    if "query" in kinds:
        out.line("q = torch.arange(q_len, device=query.device)[:, None]")
    if "key" in kinds:
        out.line("kv = torch.arange(kv_len, device=query.device)")
    if "diagonal" in kinds:
        out.line("diagonal = torch.arange(1 - q_len, kv_len, device=query.device)")
    known: dict[Expr, Printed] = {
        Index(name, I32): Printed(name) for name in ("head", "kv_head", "batch", "q", "kv", DIAGONAL)
    }
    known |= {Index(name, I32): Printed(name, tensor=False) for name in ("q_len", "kv_len")}
    known |= {Param(p.name, p.type): Printed(user_name(p.name), tensor=p.type is F32) for p in plan.variant.scalars}
    scope = Scope(known, {p.name: user_name(p.name) for p in plan.variant.buffers})
    for c in found:
        indices = diagonal_form(c.load) if c.kind == "diagonal" else c.load.indices
        texts = ", ".join(print_torch(x, scope).text for x in indices)
        match c.kind:
            case "batch_head":
                values = f"{c.name}_sums.sum(-1)[..., None, None]"
            case "query":
                values = f"{c.name}_sums[..., None]"
            case _:
                values = f"{c.name}_sums[..., None, :]"
        out.line(f"scatter({c.grad}, ({texts},), {values})")
