"""What the printed CPU programs over boxes share: masks of the terms, gathered tiles, scores, header."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..ir.nodes import Expr
from ..ir.printer import print_boxes, print_variant
from ..ir.tiles.classes import is_settled, is_uniform
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import children, index_names
from .emitter import Emitter
from .print_torch import helper_functions, print_torch
from .schedule import Schedule, Source
from .torch_boxes import BOX_NAMES, emit_box_loop
from .torch_definitions import Call, arguments, emit_mask, emit_scores, module_scope
from .torch_module import EXPONENTIAL, HIDE, PROGRAM_NAMES, TILE_ELEMENTS
from .torch_printed import Printed, emit_modified

# Names that the programs use themselves; a user's parameter of such a name is renamed.
BOX_PROGRAM_NAMES = PROGRAM_NAMES | BOX_NAMES | {
    "number", "by_head", "flat", "seen", "before", "itertools", "columns_of", "joined", "extents", "queries", "m", "n",
    "g", "grouped", "ungrouped", "alike", "run_alike", "facts", "which", "entries", "some", "found", "part", "part_lse",
}  # fmt: skip

_GROUPED = '''
def grouped(x, kv_heads):
    """(B, H, g, M, …) as one matrix for each batch item, key head and box: (B * Hkv * g, H // Hkv * M, …)."""
    x = x.unflatten(1, (kv_heads, -1)).transpose(2, 3)
    return x.flatten(0, 2).flatten(1, 2)


def ungrouped(x, kv_heads, rows):
    """The inverse, for boxes with the positions ``rows`` (g, M)."""
    x = x.unflatten(0, (-1, kv_heads, len(rows))).unflatten(3, (-1, rows.shape[1]))
    return x.transpose(2, 3).flatten(1, 2)


def cleared(x, stay, kv_heads, columns):
    """``x`` (B * Hkv * g, N, D) without the keys or values that no query of their box sees."""
    x = x.unflatten(0, (-1, kv_heads, len(columns)))
    seen = stay.any(-2).expand(*x.shape[:2], *columns.shape)
    return x.masked_fill(~seen.unsqueeze(-1), 0.0).flatten(0, 2)
'''


@dataclass(frozen=True, slots=True)
class BoxProgram(Printed):
    """``masks`` are those of the terms, in order."""

    masks: tuple[Call, ...]
    loop: Call

    @property
    def by_head(self) -> bool:
        """Whether heads, or batch items, have classes of their own: then ``run`` is ``run_alike`` of some at a time."""
        return bool(_facts(self.plan))


def emit_box_program(out: Emitter, plan: TilePlan) -> BoxProgram:
    """Prints everything that comes before ``run`` in both directions."""
    scope = module_scope(plan.variant, out)
    names = ["allowed"] if len(plan.boxes) == 1 else [f"allowed_{i}" for i in range(len(plan.boxes))]
    masks = [emit_mask(out, term.mask, scope, name) for term, name in zip(plan.boxes, names, strict=True)]
    scores = emit_scores(out, plan.variant, scope)
    loop = emit_box_loop(out, plan.boxes, scope)
    out.definition(_GROUPED)
    out.definition(EXPONENTIAL)
    out.definition(HIDE)
    assert all(mask is not None for mask in masks)  # a term with classes or limits is no constant
    return BoxProgram(plan, scope, scores, tuple(mask for mask in masks if mask is not None), loop)


def _facts(plan: TilePlan) -> list[Expr]:
    """What makes classes, or which of them are visited, differ from head to head."""
    axes = [a for t in plan.boxes for a in t.axes]
    ends = [e for a in axes for i in (*a.keys.may, *a.keys.must) for e in (i.start, i.stop)]
    wholes = [e for a in axes for e in (a.offset, a.shift)] + [e for e in ends if {"block", "residue"} & index_names(e)]
    return list(dict.fromkeys(x for e in wholes for x in _of_heads(e)))


def _of_heads(e: Expr) -> Iterator[Expr]:
    """The largest parts of ``e`` that differ from head to head, or between batch items, but not between pairs."""
    if is_settled(e):
        if not is_uniform(e):
            yield e
    else:
        for x in children(e):
            yield from _of_heads(x)


def emit_alike(out: Emitter, program: BoxProgram) -> str:
    """Prints the generator of heads that have the same classes; returns its call."""
    plan, scope = program.plan, program.scope
    facts = _facts(plan)
    sizes = ("batch_size", "heads", "kv_heads", "q_len", "kv_len")
    vectors = (*sizes, "batch", "head", "kv_head")
    call = Call("alike", (*sizes, *(x for x in arguments(facts, scope) if x not in vectors)))
    with out.define(str(call)):
        out.line('"""Yields (batch items, heads), vectors of equal length: those whose classes are the same."""')
        out.line('batch, head = torch.arange(batch_size, device="cpu")[:, None], torch.arange(heads, device="cpu")')
        out.line("kv_head = head // (heads // kv_heads)")
        texts = ", ".join(print_torch(e, scope).text for e in facts)
        out.line(f"facts = torch.broadcast_tensors(batch * heads + head, {texts})[1:]")
        out.line("_, which = torch.stack(facts).flatten(1).unique(dim=1, return_inverse=True)")
        with out.block("for number in which.unique().tolist():"):
            out.line("entries = (which == number).nonzero().squeeze(1)")
            out.line("yield entries // heads, entries % heads")
    return str(call)


def emit_vectors(out: Emitter, program: BoxProgram) -> None:
    """Batch items and heads, shaped to broadcast against (B, H, g, M, N)."""
    v = program.plan.variant
    used = index_names(v.mask).union(program.loop.arguments, *map(index_names, v.scores))
    if program.by_head:  # given
        used = frozenset()
    if "batch" in used:
        out.line('batch = torch.arange(batch_size, device="cpu")[:, None, None, None, None]')
    if {"head", "kv_head"} & used:
        out.line('head = torch.arange(heads, device="cpu")[:, None, None, None]')
    if "kv_head" in used:
        out.line("kv_head = head // group")
    out.line("limit = max(TILE // (batch_size * heads), 1)")


def emit_box_scores(out: Emitter, program: BoxProgram, *, keep_stages: bool = False) -> list[str]:
    """``keys`` and the scores (B, H, g, M, N) of some boxes, -inf where the mask forbids; ``stay`` is the mask or None.

    Returns what :func:`emit_modified` does.
    """
    out.line("q, kv = rows[:, :, None], columns[:, None, :]")
    out.line("keys = grouped(key[:, :, columns].float(), kv_heads)")
    product = "ungrouped(torch.bmm(x, keys.mT), kv_heads, rows)"
    stages = emit_modified(out, program, product, keep_stages=keep_stages)
    out.line("stay = None")
    for i, mask in enumerate(program.masks):
        chosen = f" and number == {i}" if len(program.masks) > 1 else ""
        with out.block(f"if not full{chosen}:"):
            out.line(f"stay, hidden = bits({mask})")
    with out.block("if stay is not None:"):
        out.line(f"hide({stages[-1]}, stay, hidden)")
    return stages


def finish_boxes(out: Emitter, title: str, plan: TilePlan, schedule: Schedule) -> Source:
    """The module: header, imports, constants, the helpers that the code calls, the code."""
    v = plan.variant
    head = Emitter()
    head.comment(f"{title}, generated by Regard for the CPU.\n\n{print_variant(v)}")
    places = [x.loc for x in (v.mask, *v.scores) if x.loc is not None]
    for place in dict.fromkeys(f"{os.path.basename(p.file)}:{p.line}" for p in places):
        head.comment(f"  from {place}")
    head.comment("\nTiles are boxes:")
    head.comment("\n".join(f"  {line}" for line in print_boxes(plan.boxes).splitlines()))
    head.lines("\nimport itertools\n\nimport torch\n")
    head.line()
    head.line(f"BLOCK_M = {schedule.block_m}  # queries in a box, at most")
    head.line(f"TILE = {TILE_ELEMENTS}  # scores at a time")
    head.line("LOWEST = torch.finfo(torch.float32).min")
    head.line("NEGATIVE_INFINITY = -0x800000  # the bits of float32")
    code = out.text()
    helpers = helper_functions(code)
    if helpers:
        head.definition(helpers)
    return Source(head.text() + code)
