"""Who runs: Regard, SDPA's back ends, FlexAttention in several ways, FlashAttention-3 and -4 where they import.

Every contender gets tensors in the layout that its kernel reads without copies, and its mask by its own best means,
built before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

import regard as rg
from regard.codegen.defaults import Direction
from regard.codegen.skeletons import Skeleton, alternatives
from regard.runtime.compile import plan_for, program
from regard.runtime.engine import Engine

from .block_masks import block_mask
from .case import Case
from .cases import Contestants, Flags

# (batch, head, length, size); (batch, length, head, size); the first with tokens in another order.
Layout = Literal["heads", "tokens", "ordered"]


class AbsentError(Exception):
    """This contender has no kernel for the case, which is no failure; the message says why."""


@dataclass(frozen=True)
class Contender:
    """An attention(query, key, value) and the layout it wants; unless ``same``, it is another one, to compare times."""

    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    layout: Layout = "heads"
    differentiable: bool = True
    same: bool = True


def contender(name: str, case: Case, made: Contestants, device: str = "cuda") -> Contender:
    """Makes one. Raises :class:`AbsentError`, ImportError where a package is missing, and what the peer raises."""
    gqa = case.heads != case.kv_heads
    match name:
        case "regard":
            return Contender(made.regard)
        case "regard-deterministic":
            return Contender(partial(made.regard, deterministic=True))
        case "regard-triton":
            return _on_skeleton("triton", case, made.regard, device)
        case "regard-gluon":
            return _on_skeleton("gluon", case, made.regard, device)
        case "regard-dense":
            return Contender(rg.attention(rg.causal if made.causal else rg.full), same=False)
        case "sdpa-cudnn":
            return Contender(_sdpa(SDPBackend.CUDNN_ATTENTION, made, gqa))
        case "sdpa-flash":
            return Contender(_sdpa(SDPBackend.FLASH_ATTENTION, made, gqa))
        case "flex":
            return Contender(_flex(case, made, device))
        case "flex-ordered":
            return Contender(_flex(case, in_order(made, case.length, device), device), "ordered")
        case "flex-flash":
            return Contender(_flex(case, made, device, kernel_options={"BACKEND": "FLASH"}))
        case "flex-autotune":
            return Contender(_flex(case, made, device, mode="max-autotune-no-cudagraphs"))
        case "fa3":
            return Contender(_flash(case, _flags(made), "fa3_fwd_interface"), "tokens", differentiable=False)
        case "fa4":
            return Contender(_flash(case, _flags(made), "flash_attn.cute"), "tokens")
    raise ValueError(f"unknown contender {name}")


def permutation(made: Contestants, length: int, device: str) -> Tensor:
    """The token at each place of the order for FlexAttention, shape (length,)."""
    assert made.position is not None
    return made.position(torch.arange(length, device=device))


def _on_skeleton(skeleton: Skeleton, case: Case, attn: rg.Attention, device: str) -> Contender:
    """Our own attention on one skeleton, by its default schedule, whatever would be chosen."""
    query, key, value = (
        torch.empty(case.batch, heads, case.length, case.head_dim, device=device, dtype=torch.bfloat16)
        for heads in (case.heads, case.kv_heads, case.kv_heads)
    )
    pinned = rg.Attention(attn.variant, attn.binding)
    # Not the engine that all attentions of this variant share.
    engine = pinned._engine = Engine(attn.variant)
    assert pinned._bound is not None
    buffers, scalars = pinned._bound
    directions: dict[Direction, tuple[tuple[Tensor, ...], tuple[bool, ...]]] = {
        "forward": ((query, key, value), ()),
        "backward": ((query, key, value, query, query), (False,) * len(buffers)),
    }
    for direction, (tensors, gradients) in directions.items():
        request, _ = engine.request(direction, tensors, buffers, scalars, gradients)
        assert request is not None
        if request.target.backend == "cpu":
            raise AbsentError("the CPU runs a program of its own")
        possible = alternatives(plan_for(request), request.problem, request.target, direction)
        found = next((x for x in possible if x.skeleton == skeleton), None)
        if found is not None:
            wanted = replace(request, schedule=found.schedule, skeleton=skeleton, fills_gpu=False)
            engine.edited[direction] = program(wanted)
    if "forward" not in engine.edited:
        raise AbsentError(f"{skeleton} cannot run it")
    return Contender(pinned, differentiable="backward" in engine.edited)


def _sdpa(backend: SDPBackend, made: Contestants, gqa: bool) -> Callable[..., Tensor]:
    causal = made.sdpa_causal
    if causal is None:
        raise AbsentError("no such mask or score without a dense tensor")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The back end is forced: on its own torch may choose another one.
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    return call


@cache
def _compiled(mode: str | None) -> Any:
    return torch.compile(flex_attention, dynamic=False, mode=mode)


def _flex(case: Case, made: Contestants, device: str, mode: str | None = None, **options: Any) -> Callable[..., Tensor]:
    blocks = None
    if made.flex_mask is not None:
        blocks = block_mask(made.flex_mask, case.heads if made.per_head else 1, case.length, device)
    gqa = case.heads != case.kv_heads
    return partial(_compiled(mode), score_mod=made.flex_score, block_mask=blocks, enable_gqa=gqa, **options)


def in_order(made: Contestants, length: int, device: str) -> Contestants:
    """The mask over places. Only places are mapped: no score of the suite is used with it."""
    mask = made.flex_mask
    if made.position is None or mask is None or made.flex_score is not None:
        raise AbsentError("its blocks fit the order of the tokens")
    # Read from memory: computed for every pair, orders of boxes take longer to compile, and to run.
    token = permutation(made, length, device).to(torch.int32)
    return replace(made, flex_mask=lambda b, h, q, k: mask(b, h, token[q], token[k]))


def _flags(made: Contestants) -> Flags:
    if made.flags is None:
        raise AbsentError("no flags say this mask or score; FlexAttention's FLASH back end runs it")
    return made.flags


def _packed(case: Case, starts: Tensor) -> tuple[Tensor, int]:
    """Borders of all documents of all batches in one sequence, int32, and the longest document."""
    bases = torch.arange(case.batch, device=starts.device, dtype=torch.int32)[:, None] * case.length
    borders = torch.cat([(bases + starts[:-1]).flatten(), starts.new_tensor([case.batch * case.length])])
    return borders, int(starts.diff().max())


def _flash(case: Case, flags: Flags, module: str) -> Callable[..., Tensor]:
    """FlashAttention-3 and -4 have the same interface, as far as it is used here."""
    peer = import_module(module)
    options: dict[str, Any] = {"causal": flags.causal, "softcap": flags.softcap}
    if flags.window is not None:
        options |= {"window_size": flags.window, "causal": False}
    if flags.starts is None:
        return lambda q, k, v: _output(peer.flash_attn_func(q, k, v, **options))
    borders, longest = _packed(case, flags.starts)
    options |= {"cu_seqlens_q": borders, "cu_seqlens_k": borders, "max_seqlen_q": longest, "max_seqlen_k": longest}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = peer.flash_attn_varlen_func(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), **options)
        return _output(flat).view(q.shape)

    return call


def _output(result: Any) -> Tensor:
    """Versions differ in whether the lse comes along."""
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out
