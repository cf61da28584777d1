"""What an attention should give: the user's own functions on the full index grid, apart from tracing.

:func:`oracle` computes scores and sums in float64, :func:`eager` is the usual attention in the inputs' dtype, and
:func:`assert_close_to_oracle` asks that a result errs no more than eager does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, assert_never

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard.dsl.capture import with_captured
from regard.dsl.part import Application, Combination, MaskFunction, MaskPart, ScoreFunction, ScorePart
from regard.ir.variant import Normalizer

Part = MaskFunction | MaskPart | ScoreFunction | ScorePart | Normalizer
Grid = Mapping[str, Tensor]


def oracle(
    parts: Sequence[Part],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    align: Literal["start", "end"] = "start",
    scale: float | None = None,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Lq, Dv) and log-sum-exp (B, H, Lq), both float64 and differentiable.

    Masks are evaluated in the language's own types (int64, float32), scores and sums in float64. Scores are
    evaluated on allowed pairs only. Rows that may attend to nothing give output 0 and lse −inf.
    """
    inputs = (query.double(), key.double(), value.double())
    return _attention(parts, *inputs, torch.float64, align, scale, parameters)


def eager(
    parts: Sequence[Part],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    align: Literal["start", "end"] = "start",
    scale: float | None = None,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    """The same with both matmuls in the inputs' dtype, scores and softmax in float32; lse is float32."""
    return _attention(parts, query, key, value, torch.float32, align, scale, parameters)


def gradients(
    attention: Callable[..., tuple[Tensor, Tensor]],
    parts: Sequence[Part],
    inputs: Sequence[Tensor],
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
    captured: Sequence[Tensor] = (),
    **options: Any,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value and the ``captured`` tensors under :func:`oracle` or :func:`eager`."""
    leaves = [x.detach().to(torch.float64 if attention is oracle else x.dtype).requires_grad_() for x in inputs]
    out, lse = attention(parts, *leaves, **options)
    empty = lse.isneginf()
    results, weights = [out], [grad_out.to(out.dtype)]
    if grad_lse is not None:
        results.append(lse.masked_fill(empty, 0.0))
        weights.append(grad_lse.to(lse.dtype))
    return torch.autograd.grad(results, [*leaves, *captured], weights, allow_unused=True, materialize_grads=True)


def allowed_pairs(
    parts: Sequence[Part],
    shape: tuple[int, int, int, int, int],
    *,
    align: Literal["start", "end"] = "start",
    device: torch.device | str = "cpu",
    **parameters: Any,
) -> Tensor:
    """The mask, bool (B, H, Lq, Lkv), for ``shape`` = (B, H, Hkv, Lq, Lkv)."""
    batch, heads, _, q_len, kv_len = shape
    b, h, q, kv = (
        torch.arange(n, device=device).view([n if i == axis else 1 for i in range(4)])
        for axis, n in enumerate((batch, heads, q_len, kv_len))
    )
    grid = _grid(b, h, q, kv, shape, align)
    mask = torch.ones(batch, heads, q_len, kv_len, dtype=torch.bool, device=device)
    for part in _built(parts):
        if isinstance(part, MaskPart):
            mask = mask & _evaluate_mask(part, grid, parameters)
    return mask


def _attention(
    parts: Sequence[Part],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    compute: torch.dtype,
    align: Literal["start", "end"],
    scale: float | None,
    parameters: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    (batch, heads, q_len, dim), (kv_heads, kv_len) = query.shape, key.shape[1:3]
    shape = (batch, heads, kv_heads, q_len, kv_len)
    mask = allowed_pairs(parts, shape, align=align, device=query.device, **parameters)
    group = heads // kv_heads if kv_heads else 1
    # A key that no query of its batch and head sees must not matter, even if it is not finite.
    seen = mask.any(dim=2).unsqueeze(-1)
    key = torch.where(seen, key.repeat_interleave(group, dim=1), 0.0)
    value = torch.where(seen, value.repeat_interleave(group, dim=1), 0.0)
    scores = (query @ key.transpose(-1, -2)).to(compute) * (dim**-0.5 if scale is None else scale)

    pairs = b, h, i, j = mask.nonzero(as_tuple=True)
    grid = {**_grid(b, h, i, j, shape, align), "s": scores[pairs]}
    for part in _built(parts):
        if isinstance(part, ScorePart):
            with _language(compute):
                grid["s"] = torch.as_tensor(_apply(part.origin, grid, parameters, compute)).to(compute)
            grid["s"] = grid["s"].expand(b.shape)
    logits = torch.full_like(scores, -math.inf).index_put(pairs, grid["s"])

    highest = logits.detach().amax(dim=-1, keepdim=True) if kv_len else logits.new_zeros(batch, heads, q_len, 1)
    highest = torch.where(highest == -math.inf, 0.0, highest)
    weights = torch.exp(logits - highest)
    total = weights.sum(dim=-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    out = (weights / total).to(value.dtype) @ value
    lse = torch.where(empty, -math.inf, highest + torch.log(total)).squeeze(-1)
    return out, lse


def _built(parts: Sequence[Part]) -> Iterator[MaskPart | ScorePart | Normalizer]:
    for part in parts:
        yield part() if isinstance(part, MaskFunction | ScoreFunction) else part


def _grid(
    batch: Tensor, head: Tensor, q: Tensor, kv: Tensor, shape: tuple[int, int, int, int, int], align: str
) -> dict[str, Tensor]:
    """What a user's function can see, as int64 tensors that broadcast."""
    _, heads, kv_heads, q_len, kv_len = shape
    lengths = {"q_len": torch.tensor(q_len, device=q.device), "kv_len": torch.tensor(kv_len, device=q.device)}
    kv_head = head // (heads // kv_heads if kv_heads else 1)
    position = q + (kv_len - q_len) if align == "end" else q
    return {"batch": batch, "head": head, "kv_head": kv_head, "q": position, "kv": kv, **lengths}


def _evaluate_mask(part: MaskPart, grid: Grid, parameters: Mapping[str, Any]) -> Tensor:
    match part.origin:
        case Application() as application:
            with _language(torch.float32):
                return torch.as_tensor(_apply(application, grid, parameters, torch.float32), device=grid["q"].device)
        case Combination("and", (a, b)):
            return _evaluate_mask(a, grid, parameters) & _evaluate_mask(b, grid, parameters)
        case Combination("or", (a, b)):
            return _evaluate_mask(a, grid, parameters) | _evaluate_mask(b, grid, parameters)
        case Combination("not", (a,)):
            return ~_evaluate_mask(a, grid, parameters)
        case Combination():
            raise AssertionError(part.origin)
        case _:
            assert_never(part.origin)


def _apply(application: Application, grid: Grid, parameters: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Calls the user's function with the values its part was built with."""

    def typed(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype is torch.bool:
            return x
        return x.to(dtype if x.is_floating_point() else torch.int64)

    captured = {name: typed(x) for name, x in application.captured.items()}
    arguments = {argument: grid[name] for argument, name in application.seen.items()}
    arguments |= {name: typed(x) for name, x in application.values.items()}
    arguments |= {name: typed(parameters[name]) for name in application.open}
    return with_captured(application.function, captured)(**arguments)


class _ClampedReads(TorchFunctionMode):
    """Reads of tensors at index grids, with what lies outside moved to the nearest element.

    Pairs that a mask excludes may index anything; their values do not matter.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.__getitem__:
            tensor, index = args
            indices = index if isinstance(index, tuple) else (index,)
            if len(indices) == tensor.dim() and all(isinstance(i, Tensor | int) for i in indices):
                return func(tensor, tuple(_clamped(i, n) for i, n in zip(indices, tensor.shape, strict=True)))
        return func(*args, **(kwargs or {}))


def _clamped(index: Tensor | int, size: int) -> Tensor:
    index = torch.as_tensor(index)
    return torch.where(index < 0, index + size, index).clamp(0, size - 1)


@contextmanager
def _language(dtype: torch.dtype) -> Iterator[None]:
    """Integers that meet a float, and quotients of integers, become ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _ClampedReads():
            yield
    finally:
        torch.set_default_dtype(before)


def assert_close_to_oracle(actual: Tensor, exact: Tensor, eager: Tensor, what: str = "output") -> None:
    """Asks that ``actual`` errs at most 1.2 times as much as ``eager`` (RMS), and twice plus 4 ulp (maximum).

    An ulp is that of ``actual``'s dtype at the largest magnitude of ``exact``. An RMS below that of rounding the
    exact values once (0.29 ulp at their own RMS) always passes: eager may be exact by chance. Elements that
    are not finite must be the same.
    """
    actual, exact, eager = actual.detach(), exact.detach(), eager.detach()
    assert actual.shape == exact.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == eager.dtype, f"{what}: {actual.dtype}, expected {eager.dtype}"
    finite = exact.isfinite()
    same = torch.equal(actual[~finite].double().nan_to_num(nan=1.0), exact[~finite].double().nan_to_num(nan=1.0))
    assert same, f"{what}: other infinite elements than expected"
    if not finite.any():
        return
    wanted = exact[finite].double()
    error, allowed = ((x[finite].double() - wanted).abs() for x in (actual, eager))
    assert error.isfinite().all(), f"{what}: {int((~error.isfinite()).sum())} elements are not finite"
    eps = torch.finfo(actual.dtype).eps
    ulp, rounding = eps * wanted.abs().max(), 0.29 * eps * _rms(wanted)
    assert _rms(error) <= max(1.2 * _rms(allowed), rounding), (
        f"{what}: RMS error {_rms(error):.3g}, eager has {_rms(allowed):.3g}"
    )
    assert error.max() <= 2 * allowed.max() + 4 * ulp, (
        f"{what}: largest error {error.max():.3g}, eager has {allowed.max():.3g}, 4 ulp are {4 * ulp:.3g}"
    )


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def by_tile(keep: Tensor, block_m: int, block_n: int) -> tuple[Tensor, Tensor]:
    """Any and all of a mask (B, H, Lq, Lkv) for each tile; what is beyond the mask is False."""
    pad = (0, -keep.shape[3] % block_n, 0, -keep.shape[2] % block_m)
    tiles = torch.nn.functional.pad(keep, pad).unflatten(-1, (-1, block_n)).unflatten(-3, (-1, block_m))
    beyond = torch.nn.functional.pad(torch.ones_like(keep), pad).unflatten(-1, (-1, block_n))
    rows_exist = beyond.unflatten(-3, (-1, block_m)).any(-1, keepdim=True)
    return tiles.any(dim=(-3, -1)), (tiles | ~rows_exist).all(dim=(-3, -1))
