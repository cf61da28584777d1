"""What the printed PyTorch programs for the CPU share: names, mask, scores, tile loop, header."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..ir.dependence import constant_along_diagonals
from ..ir.nodes import TRUE
from ..ir.printer import print_expr, print_variant
from ..ir.tiles.overflow import is_exact
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import index_names
from ..ir.variant import Variant
from .emitter import Emitter
from .print_torch import helper_functions
from .schedule import Schedule, Source
from .torch_classify import CLASSIFY_NAMES, emit_classify_functions
from .torch_definitions import Call, emit_mask, emit_scores, module_scope
from .torch_printed import Printed, emit_modified
from .torch_tiles import TILE_NAMES, emit_tile_loop

# Scores of one run of keys: 2 MiB of float32, about what a core or two keep in their own caches.
TILE_ELEMENTS = 1 << 19
# Gaps of fewer keys than this are not worth a matrix product of their own.
SHORT_RUN = 64
# Parts of a run of fewer keys than this are masked even where all pairs may attend.
SHORT_SPAN = 192
# Masks kept for later tiles, where tiles see the same of them: those of the first tiles and of all others.
KEPT_MASKS = 8

# Names that the programs use themselves; a user's parameter of such a name is renamed.
PROGRAM_NAMES = CLASSIFY_NAMES | TILE_NAMES | {
    "query", "key", "value", "out", "lse", "scale", "tiles", "head_dim", "value_dim", "group", "finite", "batches",
    "rows", "keys", "values", "spans", "p", "top", "total", "sums", "peak", "base", "decay", "cleared", "keep",
    "grad_out", "grad_lse", "grad_query", "grad_key", "grad_value", "grad_rows", "delta", "empty", "accumulate",
    "times", "a", "b", "positions", "hide", "exponential", "NEGATIVE_INFINITY",
    "LOWEST", "bits", "stay", "hidden", "masks", "place",
}  # fmt: skip

_POSITIONS = '''
def positions(start, stop):
    """start..stop as a row of key positions."""
    return torch.arange(start, stop, device="cpu")[None, :]
'''

EXPONENTIAL = '''
def exponential(x):
    """exp(x), into x. What would be no normal float32 is 0: arithmetic on such numbers is fifty times as slow."""
    return torch.threshold_(x.clamp_(min=-87.0).exp_(), 1.7e-38, 0.0)
'''

HIDE = '''
def bits(keep):
    """The mask for `hide`: all bits of a float32 where keep is True and none elsewhere; the bits of -inf there."""
    stay = -keep.to(torch.int32)
    return stay, ~stay & NEGATIVE_INFINITY


def hide(x, stay, filling=None):
    """Overwrites x by ``filling``, or 0, where ``stay`` has no bits: masked_fill_ is ten times as slow."""
    x = x.view(torch.int32).bitwise_and_(stay)
    if filling is not None:
        x.bitwise_or_(filling)
'''

_CLEARED = '''
def cleared(rows, start, spans):
    """A copy of key or value rows, the first of which is ``start``; those that no query sees are zero."""
    rows = rows.clone()
    for a, b, stay, _ in spans:
        rows[:, :, a - start : b - start].masked_fill_(~stay.any(-2).unsqueeze(-1), 0.0)
    return rows
'''


@dataclass(frozen=True, slots=True)
class Program(Printed):
    """``mask`` is None where every pair may attend."""

    mask: Call | None
    tile_loop: Call

    @property
    def masks_repeat(self) -> bool:
        """Whether tiles that lie alike have the same mask."""
        mask = self.plan.variant.mask
        return "batch" not in index_names(mask) and is_exact(mask) and constant_along_diagonals(mask)


def emit_program(out: Emitter, plan: TilePlan, schedule: Schedule) -> Program:
    """Prints everything that comes before ``run`` in both directions."""
    scope = module_scope(plan.variant, out)
    mask = emit_mask(out, plan.variant.mask, scope)
    scores = emit_scores(out, plan.variant, scope)
    if plan.method != "closed":
        emit_classify_functions(out, plan, scope, mask, (schedule.block_m, schedule.block_n))
    tile_loop = emit_tile_loop(out, plan, scope)
    out.definition(_POSITIONS)
    out.definition(EXPONENTIAL)
    if mask is not None:
        out.definition(HIDE)
        out.definition(_CLEARED)
    return Program(plan, scope, scores, mask, tile_loop)


def emit_sizes(out: Emitter, v: Variant) -> None:
    """Sizes and the scale of the scores."""
    out.line("batch_size, heads, q_len, head_dim = query.shape")
    out.line("kv_heads, kv_len, value_dim = key.shape[1], key.shape[2], value.shape[3]")
    out.line("group = heads // kv_heads")
    out.line(f"scale = {'head_dim**-0.5' if v.scale is None else v.scale} if scale is None else scale")


def emit_positions(out: Emitter, program: Program) -> None:
    """The vectors of batch items and heads that the printed functions read."""
    v = program.plan.variant
    used = index_names(v.mask).union(program.tile_loop.arguments, *map(index_names, v.scores))
    if "batch" in used:
        out.line('batches = torch.arange(batch_size, device="cpu")[:, None, None, None]')
    if {"head", "kv_head"} & used:
        out.line('head = torch.arange(heads, device="cpu")[:, None, None]')
    if "kv_head" in used:
        out.line("kv_head = head // group")
    if program.mask is not None and program.masks_repeat:
        out.line("masks = {}  # of earlier tiles")
    if program.plan.method != "closed":
        with out.block("if tiles is None:"):
            sizes = "batch_size, heads, kv_heads, q_len, kv_len"
            out.line(f"tiles = classify({', '.join([*program.parameters, sizes])}, query.device)")


def emit_tile_positions(out: Emitter, program: Program) -> None:
    """Positions of the rows of one tile."""
    v = program.plan.variant
    used = index_names(v.mask).union(*map(index_names, v.scores))
    if "batch" in used:
        out.line("batch = batches[here]")
    if "q" in used:
        out.line('q = torch.arange(first, stop, device="cpu")[:, None]')


def emit_run_scores(out: Emitter, program: Program, *, keep_stages: bool = False) -> list[str]:
    """``keys`` and the scores of one run, -inf where the mask forbids; ``spans`` has the masks.

    Returns what :func:`emit_modified` does.
    """
    out.line("keys = key[here, :, start:end].float()")
    if any("kv" in index_names(e) for e in program.plan.variant.scores):
        out.line("kv = positions(start, end)")
    product = "torch.bmm(rows, keys.flatten(0, 1).mT).view(-1, heads, stop - first, end - start)"
    stages = emit_modified(out, program, product, keep_stages=keep_stages)
    if program.mask is not None:
        _emit_spans(out, program, program.mask)
        with out.block("for a, b, stay, hidden in spans:"):
            out.line(f"hide({stages[-1]}[..., a - start : b - start], stay, hidden)")
    return stages


def _emit_spans(out: Emitter, program: Program, mask: Call) -> None:
    """``spans``: the masked parts of a run, (start, stop, two tensors for `hide`)."""
    made = f"bits({mask.passing('positions(a, b)', to='kv')})"
    if not program.masks_repeat:
        out.line(f"spans = [(a, b, *{made}) for a, b in masked]")
        return
    out.line("spans = []")
    with out.block("for a, b in masked:"):
        out.line("place = (stop - first, a - first, b - first)  # the mask depends on nothing else")
        with out.block("if place not in masks:"):
            with out.block(f"if len(masks) == {KEPT_MASKS}:"):
                out.line("masks.clear()")
            out.line(f"masks[place] = {made}")
        out.line("spans.append((a, b, *masks[place]))")


def finish(out: Emitter, title: str, plan: TilePlan, schedule: Schedule) -> Source:
    """The module: header, import, constants, the helpers that the code calls, the code."""
    v = plan.variant
    head = Emitter()
    head.comment(f"{title}, generated by Regard for the CPU.\n\n{print_variant(v)}")
    places = [x.loc for x in (v.mask, *v.scores) if x.loc is not None]
    for place in dict.fromkeys(f"{os.path.basename(p.file)}:{p.line}" for p in places):
        head.comment(f"  from {place}")
    head.comment(f"\nTiles: {plan.method}; {schedule.block_m} queries at a time.")
    for proof in plan.proofs:
        head.comment(f"  {print_expr(proof.atom)}: {proof.verdict}, {proof.reason}")
    head.comment(f"  rows: {plan.rows_reason}")
    head.lines("\nimport torch\n")
    head.line()
    head.line(f"BLOCK_M = {schedule.block_m}  # queries at a time")
    if plan.method != "closed":
        head.line(f"BLOCK_N = {schedule.block_n}  # keys in a tile of the table")
    head.line(f"TILE = {TILE_ELEMENTS}  # scores at a time")
    if plan.variant.mask != TRUE:
        head.line("NEGATIVE_INFINITY = -0x800000  # the bits of float32")
    head.line(f"MERGE = {SHORT_RUN}  # runs of keys with a smaller gap are one")
    head.line(f"PLAIN = {SHORT_SPAN}  # parts of a run without a mask have at least so many keys")
    head.line("LINE = 16  # float32 in a line of the cache")
    code = out.text()
    if "LOWEST" in code:
        head.line("LOWEST = torch.finfo(torch.float32).min")
    helpers = helper_functions(code)
    if helpers:
        head.definition(helpers)
    return Source(head.text() + code)
