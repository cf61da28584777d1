"""What the CPU's programs over runs of keys and those over boxes print alike."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.tiles.plan import TilePlan
from ..ir.traverse import index_names
from .emitter import Emitter
from .print_torch import Scope
from .schedule import Problem
from .torch_definitions import Call, emit_score_gradients, parameter_names

_TIMES = '''
def times(grad, partial):
    """grad * partial, but 0 where grad is 0: masked pairs may have derivatives that are infinite or NaN."""
    return torch.where(grad == 0, 0.0, grad * partial)
'''

_ACCUMULATE = '''
def accumulate(total, grad, *indices):
    """Adds to total[indices] the sum of grad over the axes along which the indices do not vary, one by one."""
    place = 0
    for index, size in zip(indices, total.shape):
        place = place * size + within(index, size) % size
    place = torch.as_tensor(place, device="cpu")
    total.view(-1).index_add_(0, place.reshape(-1), grad.sum_to_size(place.shape).reshape(-1).double())
'''

_HIDDEN = {
    "value": "A probability of 0 hides a value, but not one that is infinite or NaN.",
    "key": "A gradient of 0 hides a key, but not one that is infinite or NaN.",
}


@dataclass(frozen=True, slots=True)
class Printed:
    """A plan, the names in its program, and the functions for its scores."""

    plan: TilePlan
    scope: Scope
    scores: list[Call]

    @property
    def parameters(self) -> list[str]:
        """Captured tensors and scalars, as ``run`` takes them."""
        return parameter_names(self.plan.variant, self.scope)

    @property
    def mask_differs_by_head(self) -> bool:
        return bool({"head", "kv_head"} & index_names(self.plan.variant.mask))


def emit_finite(out: Emitter, program: Printed, name: str) -> None:
    """Whether rows of ``name``, "key" or "value", have to be cleared where no query sees them."""
    out.comment(_HIDDEN[name])
    out.line(f"finite = bool({name}.sum(dtype=torch.float32).isfinite())")
    if program.mask_differs_by_head:
        with out.block("if not finite:  # heads of a group may see different rows"):
            out.line("key, value = (x.repeat_interleave(group, 1) for x in (key, value))")
            out.line("kv_heads, group = heads, 1")


def emit_modified(out: Emitter, program: Printed, product: str, *, keep_stages: bool) -> list[str]:
    """``product`` and what the scores make of it.

    Returns the variables that hold the score before, between and after the modifications: one, or with
    ``keep_stages`` one for each.
    """
    scores = program.plan.variant.scores
    stages = [f"s_{i}" if keep_stages and scores else "s" for i in range(len(scores) + 1)]
    out.line(f"{stages[0]} = {product}")
    for call, before, after in zip(program.scores, stages, stages[1:], strict=False):
        out.line(f"{after} = {call.passing(before, to='s')}")
    return stages


def emit_buffer_gradients(out: Emitter, program: Printed, problem: Problem) -> tuple[dict[str, str], list[Call]]:
    """Names for the gradients of captured tensors that need one, and functions for the derivatives of the scores."""
    v = program.plan.variant
    wanted = [p.name for p, needed in zip(v.buffers, problem.buffer_gradients, strict=False) if needed]
    gradients = {name: out.fresh(f"grad_{program.scope.buffers[name]}") for name in wanted}
    chain = emit_score_gradients(out, v, program.scope, gradients)
    if chain:
        out.definition(_TIMES)
    if gradients:
        out.definition(_ACCUMULATE)
    return gradients, chain


def emit_zero_gradients(out: Emitter, program: Printed, gradients: dict[str, str]) -> None:
    """Their sums, in float64, because so many pairs may share an element."""
    for buffer, name in gradients.items():
        out.line(f'{name} = torch.zeros({program.scope.buffers[buffer]}.shape, dtype=torch.float64, device="cpu")')


def backward_inputs(program: Printed, last: str = "scale=None, tiles=None") -> str:
    """The arguments of ``run`` in a backward module, as text, with ``last`` for what every program has."""
    inputs = ["query", "key", "value", "out", "lse", "grad_out", "grad_lse", *program.parameters]
    return ", ".join([*inputs, last])
