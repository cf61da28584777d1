"""Checks of what is passed at a call. Each failure is one error that says what to write instead.

They run once per combination of shapes, strides and dtypes; warm calls skip them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..codegen.schedule import DType
from ..ir.errors import ArgumentError, UnsupportedError
from ..ir.nodes import Index, Load
from ..ir.traverse import loads
from ..ir.types import BOOL, F32
from ..ir.variant import BufferParameter, ScalarParameter, Variant

DTYPES: dict[torch.dtype, DType] = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 256
LENGTH_LIMIT = 2**28
SCALAR_LIMIT = 2**30

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DISCRETE = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8, torch.bool)


class Sizes(NamedTuple):
    """The extents of one call."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int

    def of_index(self, name: str, align: str) -> int | None:
        """How many values the index ``name`` takes, counted from 0; None for lengths."""
        match name:
            case "batch":
                return self.batch
            case "head":
                return self.heads
            case "kv_head":
                return self.kv_heads
            case "q":
                return self.kv_len if align == "end" else self.q_len
            case "kv":
                return self.kv_len
            case _:
                return None


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> Sizes:
    """The sizes of a call with these tensors. Raises :class:`ArgumentError`, :class:`UnsupportedError`."""
    named = {"query": query, "key": key, "value": value}
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise ArgumentError(f"{name} must be a tensor, got {type(x).__name__}")
        _check_layout(name, x)
        if x.ndim != 4:
            raise ArgumentError(
                f"{name} must have four axes (batch, heads, length, head size), got shape {tuple(x.shape)}",
                hint=f"for a single head write {name}.unsqueeze(1)" if x.ndim == 3 else "",
            )
        if x.dtype not in DTYPES:
            raise ArgumentError(
                f"{name} is {_dtype(x)}; supported are float16, bfloat16 and float32",
                hint=f"write {name}.to(torch.{'float32' if x.dtype is torch.float64 else 'bfloat16'})",
            )
        if x.device.type not in ("cpu", "cuda"):
            raise UnsupportedError(f"{name} is on {x.device}; supported are CPU and CUDA (or ROCm) devices")
    for name, x in list(named.items())[1:]:
        if x.dtype != query.dtype:
            raise ArgumentError(
                f"query is {_dtype(query)}, {name} is {_dtype(x)}: they must agree",
                hint=f"write {name}.to(query.dtype)",
            )
        if x.device != query.device:
            raise ArgumentError(
                f"query is on {query.device}, {name} is on {x.device}: they must agree",
                hint=f"write {name}.to(query.device)",
            )
        if x.shape[0] != query.shape[0]:
            raise ArgumentError(
                f"query has batch {query.shape[0]}, {name} has {x.shape[0]}: they must agree",
                hint=f"write {name}.expand({query.shape[0]}, -1, -1, -1); it copies nothing" if x.shape[0] == 1 else "",
            )
    return _check_sizes(query, key, value)


def _check_sizes(query: Tensor, key: Tensor, value: Tensor) -> Sizes:
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, key_dim = key.shape
    if value.shape[1:3] != key.shape[1:3]:
        raise ArgumentError(
            f"key has {kv_heads} heads of length {kv_len}, value has {value.shape[1]} of length {value.shape[2]}: "
            "they must agree"
        )
    if key_dim != head_dim:
        raise ArgumentError(f"query has head size {head_dim}, key has {key_dim}: they must agree")
    if kv_heads == 0 or heads % kv_heads:
        raise ArgumentError(
            f"{heads} query heads cannot share {kv_heads} key/value heads evenly",
            hint="the number of query heads must be a multiple of the number of key/value heads",
        )
    check_head_sizes(head_dim, value.shape[3])
    for name, x in (("query", query), ("key", key), ("value", value)):
        if max(x.shape[:3]) >= LENGTH_LIMIT:
            raise ArgumentError(f"{name} has shape {tuple(x.shape)}; every axis must be shorter than 2**28")
        if x.stride(3) != 1 and x.numel():
            raise ArgumentError(
                f"the last axis of {name} must be contiguous, its stride is {x.stride(3)}",
                hint=f"write {name}.contiguous(); all other axes may have any stride",
            )
    return Sizes(batch, heads, kv_heads, q_len, kv_len, head_dim, value.shape[3])


def check_head_sizes(head_dim: int, value_dim: int) -> None:
    """Raises :class:`ArgumentError` for sizes that no kernel is made for."""
    for name, size in (("query and key", head_dim), ("value", value_dim)):
        if not MIN_HEAD_SIZE <= size <= MAX_HEAD_SIZE:
            raise ArgumentError(
                f"head size {size} of {name}; supported are {MIN_HEAD_SIZE} to {MAX_HEAD_SIZE}",
                hint="pad with zeros (and pass scale=) to reach 16" if size < MIN_HEAD_SIZE else "",
            )


def check_scalar(parameter: ScalarParameter, value: object) -> int | float:
    """``value`` as the parameter takes it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentError(
            f"{parameter.name} must be {'an int' if parameter.type.is_integer else 'a number'}, "
            f"got {type(value).__name__}",
            hint=f"write {parameter.name}=….item()" if isinstance(value, Tensor) else "",
        )
    if value != value:
        raise ArgumentError(f"{parameter.name} is NaN")
    if parameter.type is F32:
        return float(value)
    if not isinstance(value, int):
        raise ArgumentError(
            f"{parameter.name} must be an int, got {value}",
            hint=f"for fractions declare it in the function, {parameter.name}: float",
        )
    if not -SCALAR_LIMIT <= value <= SCALAR_LIMIT:
        raise ArgumentError(f"{parameter.name} is {value}; integer parameters must lie within ±2**30")
    return value


def check_buffers(
    variant: Variant, buffers: Mapping[str, Tensor], sizes: Sizes, device: torch.device | None = None
) -> None:
    """Dtype, device, rank and the extent of every axis that a bare index reads; of those that are in ``buffers``."""
    for parameter in variant.buffers:
        if parameter.name in buffers:
            _check_buffer(parameter, buffers[parameter.name], device)
    for expr in (variant.mask, *variant.scores):
        for load in loads(expr):
            if load.buffer in buffers:
                _check_bare_indices(load, buffers[load.buffer], variant, sizes)


def check_is_tensor(parameter: BufferParameter, value: object) -> Tensor:
    """``value`` if it is a tensor; :func:`check_buffers` checks the rest."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{parameter.name} must be a tensor ({parameter.type}), got {type(value).__name__}")
    return value


def _check_buffer(parameter: BufferParameter, tensor: Tensor, device: torch.device | None) -> None:
    name, type = parameter.name, parameter.type
    _check_layout(name, tensor)
    allowed = _FLOATS if type.element is F32 else _DISCRETE  # see `storage` for the conversions
    if tensor.dtype not in allowed:
        raise ArgumentError(
            f"{name} is {_dtype(tensor)}; {type} takes {', '.join(str(d).removeprefix('torch.') for d in allowed)}",
            hint=f"write a condition: {name} > 0, or {name} >= 0 for what would be added to scores"
            if type.element is BOOL and tensor.is_floating_point()
            else f"write {name}.to({allowed[0]})",
        )
    if tensor.ndim != type.rank:
        raise ArgumentError(
            f"{name} must have {type.rank} {'axis' if type.rank == 1 else 'axes'} ({', '.join(type.axes)}), "
            f"got shape {tuple(tensor.shape)}"
        )
    if device is not None and tensor.device != device:
        raise ArgumentError(
            f"query is on {device}, {name} is on {tensor.device}: they must agree",
            hint=f"write {name}.to(query.device)",
        )


def _check_bare_indices(load: Load, tensor: Tensor, variant: Variant, sizes: Sizes) -> None:
    for axis, index in enumerate(load.indices):
        if not isinstance(index, Index):
            continue  # computed indices: `index_range`
        needed = sizes.of_index(index.name, variant.align)
        if needed is not None and tensor.shape[axis] < needed:
            raise ArgumentError(
                f"{load.buffer} has shape {tuple(tensor.shape)}, but axis {axis} is indexed by `{index.name}`, "
                f"which takes {needed} values",
                location=load.loc,
                hint=_longer(load.buffer, index.name, tensor.shape[axis]),
            )


def _longer(buffer: str, index: str, size: int) -> str:
    if size == 1:
        return f"write {buffer}.expand(…) to share one value"
    if index not in ("q", "kv"):
        return ""
    return f"give a value for each; where the mask leaves out those beyond, read at rg.minimum({index}, {size - 1})"


def check_layouts(variant: Variant, tensors: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    """Raises :class:`ArgumentError` for tensors without strides: sparse and nested ones. ``tensors``: query, key …"""
    for name, x in zip(
        ("query", "key", "value", *(p.name for p in variant.buffers)), (*tensors[:3], *buffers), strict=True
    ):
        _check_layout(name, x)


def _check_layout(name: str, x: Tensor) -> None:
    if x.layout is not torch.strided or x.is_nested:
        raise ArgumentError(
            f"{name} is {'nested' if x.is_nested else 'sparse'}; supported are dense tensors",
            hint="pack sequences of different lengths into one and use rg.document(ids), or pad them and use "
            "rg.padding(lengths)"
            if x.is_nested
            else f"write {name}.to_dense()",
        )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
