"""Gradients of plain eager calls, past the operators.

What PyTorch puts around an operator with registered autograd costs more host time than attention itself. Where nobody
watches operators, a call is recorded by a function of autograd instead. Its backward pass uses the operator after all
where it is recorded or watched in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ir.errors import UnsupportedError
from . import ops
from .engine import Engine

# Tensors of autograd's own vmap, which knows no rules for operators: ``is_grads_batched``.
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_PLAIN = (Tensor, torch.nn.Parameter)


def is_watched(*tensors: Tensor) -> bool:
    """Whether something besides plain eager execution must see operators: a mode, a transform, a subclass, a trace.

    Tensors whose memory is not what they stand for (``meta``, negated views) need PyTorch's dispatcher too.
    """
    return (
        any([type(x) not in _PLAIN or x.is_neg() for x in tensors])
        # A mixture with other devices is an error, which the plain way reports.
        or (tensors[0].is_meta and all(x.is_meta for x in tensors[:3]))
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def attention(
    engine: Engine,
    text: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    buffers: Sequence[Tensor],
    scalars: Sequence[int | float],
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """``(out, lse)``, recorded for one backward pass; nothing is watched now."""
    apply: Any = _Attention.apply
    out, lse = apply((engine, text, scalars, deterministic), query, key, value, *buffers)
    return out, lse


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        call: tuple[Engine, str, Sequence[int | float], bool],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *buffers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        engine, _, scalars, _ = call
        out, lse = engine.forward(query, key, value, buffers, scalars, True)
        ctx.save_for_backward(query, key, value, out, lse, *buffers)
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.buffer_gradients = engine.buffer_gradients(buffers)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, *buffers = ctx.saved_tensors
        if grad_out is None:
            if grad_lse is None:
                return (None,) * (4 + len(buffers))
            grad_out = torch.zeros_like(out)
        (engine, text, scalars, deterministic), wanted = ctx.call, ctx.buffer_gradients
        given = (grad_out,) if grad_lse is None else (grad_out, grad_lse)
        if any(map(_is_batched, given)):
            raise UnsupportedError(
                "attention has no gradients of many outputs at once (is_grads_batched=True, vectorize=True)",
                hint="torch.func.jacrev and torch.func.vmap have them",
            )
        compiling = torch.compiler.is_compiling()
        if compiling or torch.is_grad_enabled() or is_watched(query, *given):
            gradients = ops.attention_backward(
                engine.variant, text, (query, key, value, out, lse), grad_out, grad_lse, buffers, scalars, wanted,
                deterministic, not compiling,
            )  # fmt: skip
        else:
            gradients = engine.backward(
                query, key, value, out, lse, grad_out, grad_lse, buffers, scalars, wanted, deterministic, True
            )
        of_buffers = iter(gradients[3:])
        return None, *gradients[:3], *(next(of_buffers) if of_buffer else None for of_buffer in wanted)

    jvp = staticmethod(ops.refuse_tangents)
