"""Derivatives inside the backward kernels: of scores, and of captured tensors and where their sums go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.dependence import LoadClass, diagonal_form, load_class
from ..ir.differentiate import partials
from ..ir.nodes import DIAGONAL, TRUE, Const, Expr, Index, Load, Param, Score
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import substitute
from ..ir.types import F32, I32
from .emitter import Emitter
from .print_torch import Printed, Scope, print_torch
from .schedule import Problem
from .triton_skeleton import Skeleton
from .triton_values import Guard, Values, user_name

_ONE = Const(1.0, F32)


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


class Gradients(Skeleton):
    """Base of the backward kernels: from raw products to probabilities, and from their gradients to scores'."""

    # What gradients of scores are multiplied by first.
    weight = "p"

    def __init__(self, plan: TilePlan, problem: Problem, descriptors: bool) -> None:
        self.contributions = contributions(plan, problem)
        self.factors: list[str] = []
        results: dict[str, Expr] = {}
        if plan.variant.mask != TRUE:
            results["mask"] = plan.variant.mask
        before: Expr = Score()
        for i, score in enumerate(plan.variant.scores):
            factor = substitute(partials(score).score, {Score(): before})
            self.factors.append("" if factor == _ONE else f"factor_{i}")
            results[f"factor_{i}"] = factor
            results["score"] = before = substitute(score, {Score(): before})
        for c in self.contributions:
            results |= {name: e for name, e in c.partials.values()}
            if c.kind == "pair":
                results |= dict(zip(c.index_names, c.load.indices, strict=True))
        super().__init__(plan, problem, descriptors, results)

    def of_kinds(self, *kinds: LoadClass) -> list[Contribution]:
        """The contributions whose loads are of these classes."""
        return [c for c in self.contributions if c.kind in kinds]

    def wanted(self, here: Sequence[Contribution], *, masked: bool) -> list[str]:
        """The results that a kernel needs which adds up the contributions ``here``."""
        names = self.wanted_for_probabilities(masked=masked)
        names += [name for c in here for name, _ in c.partials.values()]
        names += [x for c in here if c.kind == "pair" for x in c.index_names]
        return names + [x for x in self.factors if x]

    def wanted_for_probabilities(self, *, masked: bool) -> list[str]:
        """The results that a kernel needs which has no use for derivatives."""
        return [*(self.mask_result if masked else ()), *(["score"] if self.has_scores else [])]

    @property
    def exact_rows(self) -> bool:
        """Whether :mod:`.triton_row_terms` walks the keys, so that every row of P sums to one."""
        return not self.fused or bool(self.contributions)

    @property
    def row_terms(self) -> tuple[str, ...]:
        """What the kernel for row terms finds, (B, H, Lq) float32 each."""
        return ("delta", "norm") if self.exact_rows else ("delta",)

    @property
    def row_unit(self) -> str:
        """What is multiplied to the log-sum-exp of a row as it is loaded, as text."""
        return " * LOG2E" if self.fused else ""

    def emit_probabilities(
        self, out: Emitter, values: Values, done: frozenset[str], wanted: Sequence[str], *, shape: str, rows: str,
        lanes: str, normed: bool = True, select: bool = False,
    ) -> None:  # fmt: skip
        """``p`` of ``shape`` from the raw product ``s``; leaves all that the derivatives need computed.

        ``rows`` spreads a vector over queries to the pairs; ``lanes`` are the pairs whose loads may be read;
        with ``select`` pairs that are not allowed have p = 0, else anything.
        """
        final = "s"
        self.emit_scaled(out)
        if self.has_scores:
            values.emit(out, "pair", [x for x in wanted if x != "mask"], Guard(pair=lanes), done)
            final = "final"
            out.line(f"final = {values.result('score', shape)}")
        text = self.exponential(final, f"lse_rows{rows}")
        if self.exact_rows and normed:
            text += f" * norm_rows{rows}"
        out.line(f"p = {f'tl.where(allowed, {text}, 0.0)' if select else text}")

    def emit_score_gradient(
        self, out: Emitter, values: Values, here: Sequence[Contribution], *, delta: str, counting: str = ""
    ) -> tuple[str, ...]:
        """``ds``, the gradient of the scaled product, from ``p`` and ``dp``, and contributions on the way.

        ``delta`` is what is still to be subtracted from ``dp``, as text. Returns the names of what was computed and has
        yet to be selected from where pairs are not allowed: nothing where ``counting``, which pairs may have gradients,
        could be asked before the product with ``p``. Compilers move what is asked after it behind the rounding, where
        halves of registers are selected from.
        """
        if counting and not here and not any(self.factors):
            out.line(f"ds = {self.weight} * tl.where({counting}, {f'dp - {delta}' if delta else 'dp'}, 0.0)")
            return ()
        out.line(f"ds = {self.weight} * (dp - {delta})" if delta else f"ds = {self.weight} * dp")
        started: set[str] = set()
        for i in reversed(range(len(self.factors))):
            for c in here:
                if i in c.partials:
                    name, derivative = c.partials[i]
                    text = "ds" if derivative == _ONE else f"ds * ({values.result(name)})"
                    out.line(f"{c.name} {'+=' if c.name in started else '='} {text}")
                    started.add(c.name)
            if self.factors[i]:
                out.line(f"ds *= {values.result(self.factors[i])}")
        return (*sorted(started), "ds")


def emit_select(out: Emitter, names: Sequence[str], pairs: str = "allowed") -> None:
    """Zeroes what other ``pairs`` have in these matrices."""
    for x in names:
        out.line(f"{x} = tl.where({pairs}, {x}, 0.0)")
