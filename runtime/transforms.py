"""Attention under ``torch.func``: ``vmap``, ``grad``, ``vjp``, ``jacrev`` and what they are made of.

The operators' own autograd cannot be transformed; the functions here can. ``vmap`` of an operator is one call with more
batch entries where nothing tells entries apart, and otherwise a call for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..ir.traverse import index_names
from ..ir.variant import Variant
from . import ops
from .arguments import check_layouts
from .engine import Engine
from .engines import engine_of

Dims = Sequence[int | None]


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
    """``(out, lse)`` where something watches: through functions that transforms can follow, or the operator."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        apply: Any = _Attention.apply
        out, lse = apply((engine, text, scalars, deterministic), query, key, value, *buffers)
        return out, lse
    check_layouts(engine.variant, (query, key, value), buffers)
    _check_tangents(query, key, value, *buffers)
    return ops.attention(engine.variant, text, query, key, value, buffers, scalars, deterministic, reuse_tables=True)


def _check_tangents(*tensors: Tensor) -> None:
    """Refuses tangents, which the operators would drop."""
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        ops.refuse_tangents(None)


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(call: Any, query: Tensor, key: Tensor, value: Tensor, *buffers: Tensor) -> tuple[Tensor, Tensor]:
        engine, text, scalars, deterministic = call
        return ops.attention(engine.variant, text, query, key, value, buffers, scalars, deterministic, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])
        ctx.buffer_gradients = ctx.call[0].buffer_gradients(tensors[3:])

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        apply: Any = _Backward.apply
        gradients = apply(ctx.call, ctx.buffer_gradients, grad_out, grad_lse, *ctx.saved_tensors)
        of_buffers = iter(gradients[3:])
        return None, *gradients[:3], *(next(of_buffers) if wanted else None for wanted in ctx.buffer_gradients)

    jvp = staticmethod(ops.refuse_tangents)


class _Backward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        call: Any, buffer_gradients: Sequence[bool], grad_out: Tensor, grad_lse: Tensor, *saved: Tensor
    ) -> tuple[Tensor, ...]:
        engine, text, scalars, deterministic = call
        gradients = ops.attention_backward(
            engine.variant, text, saved[:5], grad_out, grad_lse, saved[5:], scalars, buffer_gradients, deterministic,
            reuse_tables=True,
        )  # fmt: skip
        return (*gradients,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(ops.refuse_second_derivative)
    jvp = staticmethod(ops.refuse_tangents)


def _map_attention(info: Any, in_dims: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    query, key, value, buffers, *scalars = arguments
    dims, of_buffers = in_dims[:3], in_dims[3]

    def run(tensors: Sequence[Tensor], buffers: Sequence[Tensor]) -> Sequence[Tensor]:
        out: Sequence[Tensor] = torch.ops.regard.attention(*tensors, buffers, *scalars, **options)
        return out

    engine = engine_of(options["variant"])
    results = _mapped(engine.variant, info.batch_size, (query, key, value), dims, buffers, of_buffers, run)
    return tuple(results), (0, 0)


def _map_backward(info: Any, in_dims: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    *tensors, buffers, integers, floats = arguments
    dims, of_buffers = in_dims[: len(tensors)], in_dims[len(tensors)]
    present = [x is not None for x in tensors]  # the gradient of lse may be missing

    def run(given: Sequence[Tensor], buffers: Sequence[Tensor]) -> Sequence[Tensor]:
        rest = iter(given)
        full = [next(rest) if there else None for there in present]
        gradients: Sequence[Tensor] = torch.ops.regard.attention_backward(*full, buffers, integers, floats, **options)
        return gradients

    engine = engine_of(options["variant"])
    given = [x for x in tensors if x is not None]
    dims = [d for d, there in zip(dims, present, strict=True) if there]
    wanted = any(options["buffer_gradients"])
    results = _mapped(engine.variant, info.batch_size, given, dims, buffers, of_buffers, run, fold=not wanted)
    return list(results), [0] * len(results)


def _mapped(
    variant: Variant,
    size: int,
    tensors: Sequence[Tensor],
    dims: Dims,
    buffers: Sequence[Tensor],
    buffer_dims: Dims,
    run: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]],
    fold: bool = True,
) -> list[Tensor]:
    """Results of ``run`` with the mapped axis first; ``fold``: no result is a sum over batch entries."""
    if fold and _entries_are_alike(variant) and all(d is None for d in buffer_dims):
        spread = [_front(x, d, size) for x, d in zip(tensors, dims, strict=True)]
        folded = run([x.flatten(0, 1) for x in spread], buffers)
        return [x.unflatten(0, (size, spread[0].shape[1])) for x in folded]
    each = [
        run(
            [x if d is None else x.select(d, i) for x, d in zip(tensors, dims, strict=True)],
            [x if d is None else x.select(d, i) for x, d in zip(buffers, buffer_dims, strict=True)],
        )
        for i in range(size)
    ]
    return [torch.stack(results) for results in zip(*each, strict=True)]


def _front(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _entries_are_alike(variant: Variant) -> bool:
    return not any("batch" in index_names(e) for e in (variant.mask, *variant.scores))


for _name, _rule in (("attention", _map_attention), ("attention_backward", _map_backward)):
    torch.library.register_vmap(f"regard::{_name}", _rule, lib=ops.library)
