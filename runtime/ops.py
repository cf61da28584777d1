"""The operators ``regard::attention`` and ``regard::attention_backward``.

``torch.compile``, ``torch.export``, function transforms, tensor subclasses and dispatch modes see attention through
them; plain eager calls do without (:mod:`.autograd`). They carry the variant as text, so that a graph can be run by
a process that never saw the Python function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..ir.errors import UnsupportedError
from ..ir.types import F32
from ..ir.variant import Variant
from .engines import engine_of

library = torch.library.Library("regard", "DEF")

# `integers` and `floats` are the scalar parameters by type, each in order. `reuse_tables` is false in compiled
# graphs, where buffers change without their version counters. `deterministic` concerns gradients only.
library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor[] buffers, SymInt[] integers, float[] floats, *, "
    "str variant, bool deterministic, bool reuse_tables) -> (Tensor, Tensor)"
)
library.define(
    "attention_backward(Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor grad_out, "
    "Tensor? grad_lse, Tensor[] buffers, SymInt[] integers, float[] floats, *, str variant, "
    "bool[] buffer_gradients, bool deterministic, bool reuse_tables) -> Tensor[]"
)


def attention(
    variant: Variant,
    text: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    buffers: Sequence[Tensor],
    scalars: Sequence[int | float],
    deterministic: bool,
    reuse_tables: bool,
) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` through the operator, hence differentiable and traceable."""
    out, lse = torch.ops.regard.attention(
        query, key, value, list(buffers), *_by_type(variant, scalars),
        variant=text, deterministic=deterministic, reuse_tables=reuse_tables,
    )  # fmt: skip
    return out, lse


def attention_backward(
    variant: Variant,
    text: str,
    saved: Sequence[Tensor],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Sequence[Tensor],
    scalars: Sequence[int | float],
    buffer_gradients: Sequence[bool],
    deterministic: bool,
    reuse_tables: bool,
) -> list[Tensor]:
    """Gradients through the operator; ``saved`` are query, key, value, ``out`` and ``lse``."""
    gradients: list[Tensor] = torch.ops.regard.attention_backward(
        *saved, grad_out, grad_lse, list(buffers), *_by_type(variant, scalars),
        variant=text, buffer_gradients=buffer_gradients, deterministic=deterministic, reuse_tables=reuse_tables,
    )  # fmt: skip
    return gradients


def _by_type(variant: Variant, scalars: Sequence[int | float]) -> tuple[list[int | float], list[int | float]]:
    """Integers and floats."""
    found: tuple[list[int | float], list[int | float]] = [], []
    for p, x in zip(variant.scalars, scalars, strict=True):
        found[p.type is F32].append(x)
    return found


def _merged(variant: Variant, integers: Sequence[int], floats: Sequence[float]) -> list[int | float]:
    """The scalar parameters in the order of the variant."""
    remaining: dict[bool, list[Any]] = {False: list(integers), True: list(floats)}
    return [remaining[p.type is F32].pop(0) for p in variant.scalars]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    buffers: Sequence[Tensor],
    integers: Sequence[int],
    floats: Sequence[float],
    *,
    variant: str,
    deterministic: bool,
    reuse_tables: bool,
) -> tuple[Tensor, Tensor]:
    engine = engine_of(variant)
    return engine.forward(query, key, value, buffers, _merged(engine.variant, integers, floats), reuse_tables)


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Sequence[Tensor],
    integers: Sequence[int],
    floats: Sequence[float],
    *,
    variant: str,
    buffer_gradients: Sequence[bool],
    deterministic: bool,
    reuse_tables: bool,
) -> list[Tensor]:
    engine = engine_of(variant)
    scalars = _merged(engine.variant, integers, floats)
    return engine.backward(
        query, key, value, out, lse, grad_out, grad_lse, buffers, scalars, buffer_gradients, deterministic, reuse_tables
    )


def _forward_fake(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    return out, query.new_empty(query.shape[:3], dtype=torch.float32)


def _backward_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    buffers: Sequence[Tensor],
    *_: object,
    buffer_gradients: Sequence[bool],
    **__: object,
) -> list[Tensor]:
    marked = [b for b, wanted in zip(buffers, buffer_gradients, strict=True) if wanted]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value, *marked)]


def _save(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, Tensor]
) -> None:
    query, key, value, buffers, integers, floats = inputs
    out, lse = output
    ctx.save_for_backward(query, key, value, out, lse, *buffers)
    ctx.scalars = integers, floats
    ctx.options = keyword_only_inputs
    ctx.buffer_gradients = engine_of(keyword_only_inputs["variant"]).buffer_gradients(buffers)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    query, key, value, out, lse, *buffers = ctx.saved_tensors
    # PyTorch wants the structure of the inputs back; to it an empty list is a structure, others here are not.
    of_scalars: list[Any] = [None if x else [] for x in ctx.scalars]
    if grad_out is None and grad_lse is None:
        return None, None, None, [None] * len(buffers), *of_scalars
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    gradients = torch.ops.regard.attention_backward(
        query, key, value, out, lse, grad_out, grad_lse, buffers, *ctx.scalars,
        buffer_gradients=ctx.buffer_gradients, **ctx.options,
    )  # fmt: skip
    of_buffers = iter(gradients[3:])
    spread = [next(of_buffers) if wanted else None for wanted in ctx.buffer_gradients]
    return *gradients[:3], spread, *of_scalars


def refuse_second_derivative(ctx: Any, *gradients: object) -> NoReturn:
    """The gradients of gradients, which attention does not have."""
    raise UnsupportedError(
        "attention can be differentiated once, not twice",
        hint="for second derivatives (create_graph=True) use torch.nn.functional.scaled_dot_product_attention "
        "with the math backend",
    )


def refuse_tangents(ctx: Any, *grad_inputs: Any) -> NoReturn:
    """Attention has no forward-mode derivative; without one PyTorch would take it for constant."""
    raise UnsupportedError(
        "attention has no forward-mode derivative (jvp, jacfwd, linearize, hessian)",
        hint="use reverse mode: torch.func.grad, vjp, jacrev or .backward()",
    )


for _name, _implementation, _fake in (
    ("attention", _forward, _forward_fake),
    ("attention_backward", _backward, _backward_fake),
):
    library.impl(_name, _implementation, "CPU")
    library.impl(_name, _implementation, "CUDA")
    torch.library.register_fake(f"regard::{_name}", _fake, lib=library)
torch.library.register_autograd("regard::attention", _differentiate, setup_context=_save, lib=library)
torch.library.register_autograd("regard::attention_backward", refuse_second_derivative, lib=library)
