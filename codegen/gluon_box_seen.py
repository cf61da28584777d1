"""Keys that no query sees, where boxes are visited: their values may be anything, even NaN, and zero times NaN is NaN.

Where the product of the axes is the mask, a key is seen if its coordinate is along every axis. That is known on the
host from lengths and scalars, and nearly always holds for all keys. Where it does not, values are copied once, with
zeros in place of those that nobody sees.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir.nodes import ZERO, Expr, Index
from ..ir.tiles.plan import TilePlan
from ..ir.types import I32
from .emitter import Emitter
from .print_torch import Printed, helper_functions, print_torch
from .triton_box_options import host_inputs, host_scope, in_python
from .triton_box_space import BoxSpace

_MEET = '''
def meet(start, stop, low, end):
    """Whether two intervals have a number in common; ends are numbers or tensors."""
    start, stop, low, end = map(torch.as_tensor, (start, stop, low, end))
    return torch.maximum(start, low) < torch.minimum(stop, end)
'''


def emit_seen_keys(out: Emitter, plan: TilePlan, space: BoxSpace) -> None:
    """``seen_keys``, of lengths and scalars."""
    body = Emitter()
    for i in range(len(space.axes)):
        _emit_axis(body, plan, space, i)
    helpers = helper_functions(body.text())
    if helpers:
        out.definition(helpers)
    out.definition(_MEET)
    out.section("@functools.cache")
    with out.block(f"def seen_keys({', '.join([*host_inputs(plan), 'device'])}):"):
        out.line('"""Which keys some query sees, as a column (Lkv, 1); None where these are all."""')
        out.lines(body.text())
        out.line("seen = seen_0")
        for i in range(1, len(space.axes)):
            out.line(f"seen = seen[..., None] & seen_{i}")
        out.line("return None if seen.all() else seen.reshape(-1, 1).to(device)")


def emit_clean(out: Emitter, plan: TilePlan, tensor: str) -> None:
    """``tensor``, of keys or values, without what no query sees."""
    out.line(f"seen = seen_keys({', '.join([*host_inputs(plan), 'query.device'])})")
    with out.block("if seen is not None:"):
        out.line(f"{tensor} = torch.where(seen, {tensor}, 0.0)")


def _emit_axis(out: Emitter, plan: TilePlan, space: BoxSpace, i: int) -> None:
    """``seen_i``: of every coordinate of keys along an axis, whether some coordinate of queries sees it."""
    axis, offset = space.axes[i], space.offset(i)
    scope = host_scope(plan)
    moving: dict[Expr, Printed] = {Index(f"tile_{end}", I32): Printed("x") for end in ("first", "last")}
    moving |= {Index(name, I32): Printed(name) for name in ("block", "residue")}
    scope = replace(scope, known={**scope.known, **moving})
    out.line(f"x = torch.arange({in_python(space.size(axis, 'k'))})")
    if offset:
        out.line(f"x = x + {offset}")
    terms = []
    if axis.block:
        out.line(f"block, x = x // {axis.block}, x % {axis.block}")
        terms.append(f"{axis.block} * block")
    if axis.residue > 1:
        out.line(f"residue, x = x % {axis.residue}, x // {axis.residue}")
        shift = print_torch(axis.shift, scope).text
        terms.append("residue" if axis.shift == ZERO else f"(residue - ({shift})) % {axis.residue}")
    size = in_python(space.size(axis, "q"))
    low, end = "0", size
    if axis.has_classes:
        out.line(f"first = {' + '.join(terms)}{f' - {offset}' if offset else ''}")
        low, end = f"-(first // {axis.residue})", f"-((first - {size}) // {axis.residue})"
        out.line(f"low = ({low}).clamp(min=0)")
        most = f".clamp(max={axis.block // axis.residue})" if axis.block else ""
        out.line(f"end = ({end}){most}")
        low, end = "low", "end"
    ends = [(print_torch(r.start, scope).text, print_torch(r.stop, scope).text) for r in axis.queries.may]
    found = [f"meet({start}, {stop}, {low}, {end})" for start, stop in ends] or ["torch.tensor(False)"]
    out.line(f"seen_{i} = ({' | '.join(found)}).expand(len(x))")
