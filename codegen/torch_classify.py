"""The device program that classifies pairs of tiles where ranges have no sharp closed form.

Printed PyTorch for the modules of the CPU; those of GPUs have kernels for it (:mod:`.triton_classify`). It never waits
for the device or asks it for a value. The layout of its lists is in docs/internals.md, "Generated modules".
"""

from __future__ import annotations

from ..ir.build import index
from ..ir.errors import InternalError
from ..ir.nodes import Expr, Reduction, Value
from ..ir.tiles.plan import Classification, TilePlan
from ..ir.tiles.steps import steps
from ..ir.traverse import index_names, substitute, walk
from .emitter import Emitter
from .print_torch import Printed, Scope, as_tensor
from .torch_definitions import (
    RESERVED,
    Call,
    arguments,
    emit_float_parameters,
    emit_steps,
    parameter_names,
)

# Names that the printed functions use; a module that contains them reserves these.
CLASSIFY_NAMES = RESERVED | {
    "classify_pairs", "list_tiles", "per_tile", "may", "must", "q_tiles", "kv_tiles", "rows", "columns",
    "block_m", "block_n", "i", "j", "whole", "code", "order", "counts", "reduce", "axis", "block", "length", "keep",
    "sizes", "looks", "q_looked", "kv_looked",
}  # fmt: skip

# Pairs of positions at a time where the mask itself is evaluated: 16 MiB for each int64 temporary.
PAIRS = 1 << 21

_LIST_TILES = '''
def list_tiles(may, must, length, block):
    """Tiles of each row: (indices, counts), full ones first, then partial ones; counts has both numbers.

    A tile that reaches beyond ``length`` is never full: what is beyond has to be masked.
    """
    whole = torch.arange(1, may.shape[-1] + 1, device=may.device) * block <= length
    code = 2 - may.to(torch.int8) - (may & must & whole).to(torch.int8)
    order = code.sort(dim=-1, stable=True).indices.to(torch.int32).contiguous()
    return order, torch.stack(((code == 0).sum(-1), (code == 1).sum(-1)), -1).to(torch.int32)
'''

_PER_TILE = '''
def per_tile(reduce, x, axis, block):
    """x (…, positions of the padded length along axis) reduced to one number for each tile."""
    return reduce(x.unflatten(axis, (-1, block)), axis)
'''

_EXACT = '''
may = torch.empty(sizes, dtype=torch.bool, device=device)
must = torch.empty_like(may)
step = max(1, {pairs} // (sizes[0] * sizes[1] * block_m * block_n))  # tiles at a time
columns = min(step, kv_tiles)
rows = step // columns
for i in range(0, q_tiles, rows):
    q = torch.arange(i * block_m, min(i + rows, q_tiles) * block_m, device=device).clamp(max=q_len - 1)[:, None]
    for j in range(0, kv_tiles, columns):
        kv = torch.arange(j * block_n, min(j + columns, kv_tiles) * block_n, device=device).clamp(max=kv_len - 1)
        keep = {mask}.expand(*sizes[:2], q.shape[0], kv.shape[0])
        keep = keep.unflatten(-1, (-1, block_n)).unflatten(-3, (-1, block_m))
        may[..., i : i + rows, j : j + columns] = keep.any(dim=(-3, -1))
        must[..., i : i + rows, j : j + columns] = keep.all(dim=(-3, -1))
return may, must
'''


def emit_classify_functions(
    out: Emitter,
    plan: TilePlan,
    scope: Scope,
    mask: Call | None,
    blocks: tuple[int, int],
) -> None:
    """Prints ``classify`` into a module that has the helpers and the mask function already.

    ``blocks`` are the (block_m, block_n) of its tiles. ``out`` has reserved ``CLASSIFY_NAMES``.
    """
    out.definition(_LIST_TILES)
    classification = plan.classification
    if plan.method == "exact":
        if mask is None:
            raise InternalError("an exact plan without a mask")
        pairs = _emit_exact(out, plan, mask)
    elif classification is not None:
        out.definition(_PER_TILE)
        pairs = _emit_classified(out, plan, classification, scope)
    else:
        raise InternalError(f"a {plan.method} plan has nothing to classify")
    _emit_classify(out, plan, scope, pairs, blocks)


_SIZES = ("batch_size", "heads", "q_len", "kv_len", "block_m", "block_n", "device")


def _begin_pairs(out: Emitter, plan: TilePlan) -> None:
    out.line('"""For pairs of tiles, (B or 1, H or 1, rows, columns): may any pair attend, must all?"""')
    used = index_names(plan.variant.mask)
    batch = "batch_size" if "batch" in used else "1"
    head = "heads" if {"head", "kv_head"} & used else "1"
    out.line("q_tiles, kv_tiles = -(-q_len // block_m), -(-kv_len // block_n)")
    out.line(f"sizes = ({batch}, {head}, q_tiles, kv_tiles)")
    with out.block("if 0 in sizes:"):
        out.line("return torch.zeros(2, *sizes, dtype=torch.bool, device=device).unbind()")


def _emit_exact(out: Emitter, plan: TilePlan, mask: Call) -> Call:
    call = Call("classify_pairs", (*(x for x in mask.arguments if x not in ("q", "kv", *_SIZES)), *_SIZES))
    with out.define(str(call)):
        _begin_pairs(out, plan)
        out.lines(_EXACT.format(mask=mask, pairs=PAIRS))
    return call


def _emit_classified(out: Emitter, plan: TilePlan, classification: Classification, scope: Scope) -> Call:
    conditions = [classification.may, classification.must]
    used = arguments(conditions, scope)
    call = Call("classify_pairs", (*(x for x in used if x not in ("q", "kv", *_SIZES)), *_SIZES))
    with out.define(str(call)):
        _begin_pairs(out, plan)
        if "q" in used or "kv" in used:
            out.comment("A ragged last tile repeats its last position, which changes no extreme.")
        if "q" in used:
            out.line("q = torch.arange(q_tiles * block_m, device=device).clamp(max=q_len - 1)[:, None]")
        if "kv" in used:
            out.line("kv = torch.arange(kv_tiles * block_n, device=device).clamp(max=kv_len - 1)[None, :]")
        vectors = _emit_reductions(out, conditions, scope)
        known: dict[Expr, Printed] = dict(scope.known)
        known.update((value, Printed(value.name)) for value in vectors.values())
        over_tiles = {
            "may": substitute(classification.may, vectors),
            "must": substitute(classification.must, vectors),
        }
        printed = emit_steps(out, over_tiles, Scope(known, scope.buffers))
        may, must = (
            x.text if x.tensor else f"torch.tensor({x.text}, device=device)" for x in printed.values()
        )
        out.line(f"may = {may}")
        out.line(f"must = {must}")
        out.line("return may.expand(sizes), must.expand(sizes)")
    return call


_REDUCE = {"min": "torch.amin", "max": "torch.amax", "any": "torch.any", "all": "torch.all"}
_NAMES = {"min": "low", "max": "high", "any": "any", "all": "all"}


def _emit_reductions(out: Emitter, conditions: list[Expr], scope: Scope) -> dict[Expr, Value]:
    """One vector over the tiles of an axis for each reduction in the conditions."""
    found = list(dict.fromkeys(x for e in conditions for x in walk(e) if isinstance(x, Reduction)))
    inner = emit_steps(out, {str(i): x.x for i, x in enumerate(found) if x.axis != "both"}, scope)
    vectors: dict[Expr, Value] = {}
    for i, x in enumerate(found):
        vectors[x] = Value(f"{_NAMES[x.op]}_{x.axis}_{i}", x.type)
        if x.axis == "both":
            continue
        axis, block = (-2, "block_m") if x.axis == "q" else (-1, "block_n")
        over = as_tensor(inner[str(i)], x.x)
        out.line(f"{vectors[x].name} = per_tile({_REDUCE[x.op]}, {over}, {axis}, {block})")
    # Afterwards: they take names of steps that those above have used by now.
    for x in found:
        if x.axis == "both":
            _emit_pair_reduction(out, vectors[x].name, x, scope)
    return vectors


def _emit_pair_reduction(out: Emitter, name: str, x: Reduction, scope: Scope) -> None:
    """One matrix over pairs of tiles, of which it looks at one position of every block that a tile touches."""
    found = steps(x.x)
    assert found is not None
    for axis, length, block in (("q", found[0], "block_m"), ("kv", found[1], "block_n")):
        out.line(f"looks = torch.arange(0, {block} + {length} - 1, {length}, device=device).clamp(max={block} - 1)")
        out.line(f"first = torch.arange({axis}_tiles, device=device)[:, None] * {block}")
        shape = "[:, None]" if axis == "q" else ""
        out.line(f"{axis}_looked = (first + looks).clamp(max={axis}_len - 1).flatten(){shape}")
    known = dict(scope.known)
    known.update((index(axis), Printed(f"{axis}_looked")) for axis in ("q", "kv"))
    printed = emit_steps(out, {name: x.x}, Scope(known, scope.buffers))[name]
    out.line(f"{name} = {as_tensor(printed, x.x)}")
    out.line(f"{name} = {name}.unflatten(-1, (kv_tiles, -1)).unflatten(-3, (q_tiles, -1)).{x.op}(dim=(-3, -1))")


def _emit_classify(out: Emitter, plan: TilePlan, scope: Scope, pairs: Call, blocks: tuple[int, int]) -> None:
    extents = "batch_size, heads, kv_heads, q_len, kv_len, device"
    with out.define(f"classify({', '.join([*parameter_names(plan.variant, scope), extents])})"):
        out.line('"""Lists of tiles for `run`, which depend on the captured tensors, scalars and sizes only."""')
        if "batch" in pairs.arguments:
            out.line("batch = torch.arange(batch_size, device=device)[:, None, None, None]")
        if {"head", "kv_head"} & set(pairs.arguments):
            out.line("head = torch.arange(heads, device=device)[:, None, None]")
        if "kv_head" in pairs.arguments:
            out.line("kv_head = head // (heads // kv_heads)")
        emit_float_parameters(out, plan.variant, scope)
        sizes = dict(zip(("block_m", "block_n"), map(str, blocks), strict=True))
        out.line(f"may, must = {pairs.name}({', '.join(sizes.get(x, x) for x in pairs.arguments)})")
        out.line(f"return list_tiles(may, must, kv_len, {blocks[1]})")
