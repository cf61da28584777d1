"""Small PyTorch functions printed from expressions: the mask, the scores and their derivatives, key ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..ir.differentiate import partials
from ..ir.lowered import lower
from ..ir.nodes import INDEX_NAMES, TRUE, Const, Expr, Index, Load, Param, Score, Value
from ..ir.tiles.plan import Ranges
from ..ir.traverse import children, walk
from ..ir.types import F32, I32
from ..ir.variant import Variant
from .emitter import Emitter
from .print_torch import HELPERS, Printed, Scope, as_tensor, print_torch

# Names that every printed PyTorch module uses itself; a user's parameter of such a name is renamed.
RESERVED = frozenset((
    "torch", "allowed", "run", "classify", "s", "grad", "first", "last", "batch_size", "heads", "kv_heads", "device",
    *INDEX_NAMES, *HELPERS,
))  # fmt: skip

_VECTORS = {"q": "q", "kv": "kv", "head": "head", "kv_head": "kv_head", "batch": "batch"}
_TILE = {"tile_first": "first", "tile_last": "last"}
_LENGTHS = {"q_len": "q_len", "kv_len": "kv_len"}
_LONGEST_INLINE = 80


@dataclass(frozen=True, slots=True)
class Call:
    """A printed function and the variables that it takes, which have the same names where it is called."""

    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})"

    def passing(self, text: str, *, to: str) -> str:
        """The call with ``text`` for the argument ``to``."""
        return str(Call(self.name, tuple(text if x == to else x for x in self.arguments)))


def module_scope(v: Variant, out: Emitter) -> Scope:
    """Names for everything an expression of ``v`` can read, positions shaped to broadcast.

    ``batch`` is (B, 1, 1, 1), ``head`` and ``kv_head`` (H, 1, 1), ``q`` (M, 1), ``kv`` (1, N); the first
    and last row of tiles are (T, 1). Float parameters are tensors of no axes: :func:`float_parameters`.
    """
    known: dict[Expr, Printed] = {Score(): Printed("s")}
    for name, text in (_VECTORS | _TILE).items():
        known[Index(name, I32)] = Printed(text)
    for name, text in _LENGTHS.items():
        known[Index(name, I32)] = Printed(text, tensor=False)
    buffers = {p.name: out.fresh(p.name) for p in v.buffers}
    for p in v.scalars:
        known[Param(p.name, p.type)] = Printed(out.fresh(p.name), tensor=p.type is F32)
    return Scope(known, buffers)


def parameter_names(v: Variant, scope: Scope) -> list[str]:
    """The variables that hold the captured tensors and scalars, in the order in which ``run`` takes them."""
    return [scope.buffers[p.name] for p in v.buffers] + [
        scope.known[Param(p.name, p.type)].text for p in v.scalars
    ]


def emit_float_parameters(out: Emitter, v: Variant, scope: Scope) -> None:
    """Makes float32 of the Python floats that come in: the language knows no double precision."""
    for p in v.scalars:
        if p.type is F32:
            name = scope.known[Param(p.name, p.type)].text
            out.line(f"{name} = scalar({name}, torch.float32)")


def arguments(expressions: Iterable[Expr], scope: Scope) -> list[str]:
    """The variables that ``expressions`` read, in one order everywhere: score, positions, buffers, scalars."""
    found = {x for e in expressions for x in walk(e)}
    read = {x.buffer for x in found if isinstance(x, Load)}
    indices = [printed.text for x, printed in scope.known.items() if x in found and not isinstance(x, Param)]
    scalars = [printed.text for x, printed in scope.known.items() if x in found and isinstance(x, Param)]
    return indices + [name for buffer, name in scope.buffers.items() if buffer in read] + scalars


def emit_steps(out: Emitter, results: Mapping[str, Expr], scope: Scope) -> dict[str, Printed]:
    """Prints the work that several of ``results`` (or several places of one) share; returns their texts."""
    lowered = lower(results)
    roots = [step.expr for step in lowered.steps] + [e for _, e in lowered.results]
    uses = Counter(x for root in roots for x in (root, *(c for e in walk(root) for c in children(e))))
    known = dict(scope.known)
    for step in lowered.steps:
        value = Value(step.name, step.expr.type)
        printed = print_torch(step.expr, Scope(known, scope.buffers))
        atom = printed.text.isidentifier() or printed.text.isdigit()
        if not atom and (uses[value] > 1 or len(printed.text) > _LONGEST_INLINE):
            out.line(f"{step.name} = {printed.text}")
            printed = Printed(step.name, tensor=printed.tensor)
        known[value] = printed
    return {name: print_torch(e, Scope(known, scope.buffers)) for name, e in lowered.results}


def emit_mask(out: Emitter, mask: Expr, scope: Scope, name: str = "allowed") -> Call | None:
    """Prints ``name(...)``; nothing where every pair is allowed."""
    if mask == TRUE:
        return None
    call = Call(name, tuple(arguments([mask], scope)))
    with out.define(str(call)):
        out.line('"""Which pairs may attend, broadcast over batch, heads, queries and keys."""')
        printed = emit_steps(out, {"mask": mask}, scope)["mask"]
        flat = not {"q", "kv"} & set(call.arguments)
        text = as_tensor(printed, mask)
        out.line(f"return torch.atleast_2d({text})" if flat else f"return {text}")
    return call


def emit_scores(out: Emitter, v: Variant, scope: Scope) -> list[Call]:
    """Prints one function for each score modification."""
    calls = []
    for i, score in enumerate(v.scores):
        name = "score" if len(v.scores) == 1 else f"score_{i + 1}"
        calls.append(Call(name, tuple(arguments([score, Score()], scope))))
        with out.define(str(calls[-1])):
            out.line('"""The score of each pair after this modification; s is (B, H, M, N)."""')
            printed = emit_steps(out, {"score": score}, scope)["score"]
            constant = "s" not in arguments([score], scope)
            text = as_tensor(printed, score)
            out.line(f"return torch.zeros_like(s) + {text}" if constant else f"return {text}")
    return calls


def emit_score_gradients(out: Emitter, v: Variant, scope: Scope, gradients: Mapping[str, str]) -> list[Call]:
    """Prints the chain rule through each score modification, as functions of ``s`` and ``grad``.

    ``gradients`` names the accumulator of each captured tensor that needs one.
    """
    calls = []
    for i, score in enumerate(v.scores):
        found = partials(score)
        loads = [(load, d) for load, d in found.loads if load.buffer in gradients]
        name = "score_gradient" if len(v.scores) == 1 else f"score_{i + 1}_gradient"
        read = [found.score, *(e for pair in loads for e in pair)]
        sums = [name for buffer, name in gradients.items() if any(load.buffer == buffer for load, _ in loads)]
        used = [x for x in arguments(read, scope) if x != "s"]
        calls.append(Call(name, ("s", "grad", *used, *sums)))
        with out.define(str(calls[-1])):
            out.line('"""The gradient of the score before this modification, from the one after it."""')
            results = {"score": found.score} | {f"load {k}": d for k, (_, d) in enumerate(loads)}
            indices = {
                f"index {k} {axis}": e for k, (load, _) in enumerate(loads) for axis, e in enumerate(load.indices)
            }
            printed = emit_steps(out, results | indices, scope)
            for k, (load, d) in enumerate(loads):
                where = ", ".join(printed[f"index {k} {axis}"].text for axis in range(len(load.indices)))
                product = _times(printed[f"load {k}"], d)
                out.line(f"accumulate({gradients[load.buffer]}, {product}, {where})")
            out.line(f"return {_times(printed['score'], found.score)}")
    return calls


def _times(partial: Printed, e: Expr) -> str:
    if isinstance(e, Const):
        return "grad" if e.value == 1 else f"grad * {partial.text}"
    return f"times(grad, {partial.text})"


def emit_ranges(out: Emitter, name: str, ranges: Ranges, scope: Scope) -> Call:
    """Prints ``name(first, last, ...)``, the ranges of one axis for tiles of the other."""
    parts = {"may": ranges.may, "must": ranges.must}
    bounds = {
        f"{part} {i} {end}": e
        for part, intervals in parts.items()
        for i, interval in enumerate(intervals)
        for end, e in (("start", interval.start), ("stop", interval.stop))
    }
    used = [x for x in arguments(bounds.values(), scope) if x not in _TILE.values()]
    call = Call(name, ("first", "last", *used))
    with out.define(str(call)):
        out.line('"""Where tiles first..last may, and where they must attend: unions of (start, stop)."""')
        printed = emit_steps(out, bounds, scope)
        for part, intervals in parts.items():
            out.line(f"{part} = [{', '.join(_pair(printed, part, i) for i in range(len(intervals)))}]")
        out.line("return may, must")
    return call


def _pair(printed: Mapping[str, Printed], part: str, i: int) -> str:
    return f"({printed[f'{part} {i} start'].text}, {printed[f'{part} {i} stop'].text})"
