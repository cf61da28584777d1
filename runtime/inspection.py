"""Looking at a variant without running it: generated source, PTX, machine code, IR. No GPU is needed.

The methods of :class:`regard.Attention` of the same names call these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..codegen.binaries import Binary, compile_launches, sample_arguments
from ..codegen.defaults import Direction
from ..codegen.schedule import DType, Problem, Schedule, Target
from ..ir.errors import ArgumentError, ParameterError, UnsupportedError
from ..ir.lengths import check_lengths, fit_of_lengths
from ..ir.limits import finite_stack
from ..ir.lowered import lower
from ..ir.passes import after_pipeline, run_pipeline, stages
from ..ir.printer import print_lowered, print_plan, print_variant
from ..ir.tiles import TilePlan, make_plan
from ..ir.tiles.numeric import Sizes
from ..ir.tiles.plan import Fit
from ..ir.traverse import loads
from ..ir.types import BOOL, F32, I32, I64, ScalarType
from ..ir.variant import Variant
from .arguments import DTYPES, check_buffers, check_head_sizes, check_scalar, check_tensors
from .arguments import Sizes as Extents
from .compile import Request, generate, target_of
from .modules import load_module
from .storage import as_stored

if TYPE_CHECKING:
    from .attention import Attention

Shape = Sequence[int]
_TORCH_DTYPES: dict[DType, torch.dtype] = {name: dtype for dtype, name in DTYPES.items()}
# Older GPUs have no assembler in the packages of Triton that are supported.
OLDEST_SM = 75
# The storage dtype that code is printed for where a captured tensor is still open.
_STORAGE: dict[ScalarType, str] = {BOOL: "bool", I32: "int32", I64: "int64", F32: "float32"}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a variant is looked at for. ``sizes`` is None where neither tensors nor shapes were given.

    ``values`` has every parameter that is known: those bound in the variant and those given by keyword.
    """

    target: Target
    dtype: DType
    head_dim: int
    value_dim: int
    sizes: Sizes | None
    values: Mapping[str, Tensor | int | float]
    deterministic: bool = False

    def numbers(self) -> dict[str, npt.NDArray[np.generic] | bool | int | float]:
        """``values`` as the counting functions take them: arrays for tensors."""
        return {name: _array(x) if isinstance(x, Tensor) else x for name, x in self.values.items()}

    def storage(self, variant: Variant) -> tuple[str, ...]:
        """Dtypes of the captured tensors, in torch's names; for those that are open what their type suggests."""
        tensors = [self.values.get(p.name) for p in variant.buffers]
        return tuple(
            str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else _STORAGE[p.type.element]
            for p, x in zip(variant.buffers, tensors, strict=True)
        )

    def problem(self, variant: Variant, direction: Direction, aligned: bool = True) -> Problem:
        """What code is specialised on; gradients of captured tensors are those that the values require."""
        if direction not in get_args(Direction):
            raise ArgumentError(f"there is no direction {direction!r}", hint='write "forward" or "backward"')
        tensors = [self.values.get(p.name) for p in variant.buffers]
        read = {x.buffer for score in variant.scores for x in loads(score) if x.type is F32}
        wanted = tuple(
            isinstance(x, Tensor) and x.requires_grad and p.name in read
            for p, x in zip(variant.buffers, tensors, strict=True)
        )
        return Problem(
            dtype=self.dtype,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            aligned=aligned,
            buffers=self.storage(variant),
            buffer_gradients=wanted if direction == "backward" else (),
            deterministic=self.deterministic and direction == "backward",
            fit=self.fit(variant),
        )

    def fit(self, variant: Variant) -> Fit:
        """How the lengths fit the grids that the mask divides positions into."""
        return "any" if self.sizes is None else fit_of_lengths(variant, self.sizes.q_len, self.sizes.kv_len)


def setting(
    attn: Attention,
    inputs: Sequence[Tensor | Shape] = (),
    *,
    target: Target | str | None = None,
    dtype: DType | torch.dtype | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    parameters: Mapping[str, object] | None = None,
    deterministic: bool = False,
) -> Setting:
    """Completes what the caller left out.

    ``inputs``: query, key and value, as tensors or shapes (batch, heads, length, head size), or one that
    stands for all three. The target defaults to the tensors' device, else to this machine's GPU or CPU; the dtype to
    that of the tensors, else bfloat16 on GPUs and float32 on the CPU. ``deterministic``: gradients must repeat
    bit by bit.
    """
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if len(inputs) not in (0, 1, 3):
        raise ArgumentError(f"expected query, key and value (or one for all three), got {len(inputs)}")
    device = tensors[0].device if tensors else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = parse_target(target) if target is not None else target_of(device)
    name = _dtype_name(dtype) if dtype is not None else None
    if name is None and not tensors:
        name = "f32" if chosen.backend == "cpu" else "bf16"
    sizes = None
    if not inputs:
        check_head_sizes(head_dim, value_dim or head_dim)
    else:
        query, key, value = (_as_tensor(x, name) for x in ([*inputs] * 3 if len(inputs) == 1 else inputs))
        checked = check_tensors(query, key, value)
        sizes = Sizes(checked.batch, checked.heads, checked.kv_heads, checked.q_len, checked.kv_len)
        head_dim, value_dim = checked.head_dim, checked.value_dim
        name = name or _dtype_name(query.dtype)
    assert name is not None  # either given, or told from a tensor
    return Setting(chosen, name, head_dim, value_dim or head_dim, sizes, _values(attn, parameters or {}), deterministic)


def check_inputs(attn: Attention, what: Setting) -> None:
    """Raises what a call with such inputs raises, but for computed indices: the report says what they are."""
    n = what.sizes
    if n is None:
        return
    check_lengths(attn.variant, n.q_len, n.kv_len)
    tensors = {name: x for name, x in what.values.items() if isinstance(x, Tensor)}
    extents = Extents(n.batch, n.heads, n.kv_heads, n.q_len, n.kv_len, what.head_dim, what.value_dim)
    check_buffers(attn.variant, tensors, extents)


def source(
    attn: Attention,
    *,
    direction: Direction = "forward",
    target: Target | str | None = None,
    dtype: DType | torch.dtype | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    aligned: bool = True,
    schedule: Schedule | None = None,
    deterministic: bool = False,
) -> str:
    """The generated module: Python that imports torch (and triton) only, with ``run(...)`` at its foot.

    ``direction``: "forward" or "backward". ``target``: "cpu", "sm_80", "sm_90", "sm_100", "gfx942" …, by default this
    machine's. ``dtype``: "f16", "bf16", "f32" or torch's. ``aligned``: for tensors whose addresses and strides are
    multiples of 16 bytes. ``schedule``: tile sizes and pipeline, by default those of the target's table.
    ``deterministic``: gradients must repeat bit by bit.
    """
    what = setting(
        attn, target=target, dtype=dtype, head_dim=head_dim, value_dim=value_dim, deterministic=deterministic
    )
    problem = what.problem(attn.variant, direction, aligned)
    return generate(
        Request(attn.variant, problem, what.target, direction, schedule, fills_gpu=schedule is None)
    ).source.text


def ptx(attn: Attention, **options: Any) -> str:
    """The PTX of every kernel of a module; options as for :func:`source`.

    The target defaults to this machine's GPU, else to sm_90; no GPU is needed. Raises :class:`UnsupportedError` for
    targets that have no PTX.
    """
    target = _gpu_target(options)
    if target.backend == "hip":
        raise UnsupportedError(f"{target} has no PTX", hint='attn.sass(target="gfx942") gives its assembly')
    return _sections((x.kernel, str(x.assembly["ptx"])) for x in _binaries(attn, target, **options))


def sass(attn: Attention, **options: Any) -> str:
    """The machine code of every kernel of a module, disassembled: SASS, or the assembly of an AMD target.

    Options and target as for :func:`ptx`.
    """
    target = _gpu_target(options)
    binaries = _binaries(attn, target, **options)
    if target.backend == "hip":
        return _sections((x.kernel, str(x.assembly["amdgcn"])) for x in binaries)
    return _sections((x.kernel, x.sass()) for x in binaries)


def ir(attn: Attention, stage: str = "lowered") -> str:
    """The variant after a stage of compilation.

    "traced", the name of a pass (``regard.ir.passes.PIPELINE``), "lowered" (common sub-expressions named, all types
    shown) or "plan" (what is proved about tiles).
    """
    passes = stages(attn.variant)
    if stage in passes:
        return print_variant(passes[stage], attn.binding.scalars)
    final = run_pipeline(attn.variant)
    match stage:
        case "lowered":
            scores = {f"score_{i}": score for i, score in enumerate(final.scores)}
            return print_lowered(lower({"mask": final.mask, **scores}))
        case "plan":
            return print_plan(make_plan(final))
        case _:
            known = ", ".join([*passes, "lowered", "plan"])
            raise ParameterError(f"there is no stage {stage!r}", hint=f"stages: {known}")


def plan_of(attn: Attention, what: Setting) -> TilePlan:
    """The tile plan of a variant for captured tensors as they are stored."""
    return _plan(as_stored(attn.variant, what.storage(attn.variant)), what.fit(attn.variant))


@lru_cache(maxsize=64)
def _plan(variant: Variant, fit: Fit) -> TilePlan:
    with finite_stack(variant):
        return make_plan(after_pipeline(variant), fit)


def parse_target(target: Target | str) -> Target:
    """ "sm_90" and the like as a :class:`Target`.

    >>> parse_target("sm_90"), parse_target("cpu").backend, parse_target("gfx942").backend
    (Target(backend='cuda', arch=90), 'cpu', 'hip')
    """
    if isinstance(target, Target):
        return target
    match target:
        case "cpu":
            return Target("cpu")
        case str() if (digits := target.removeprefix("sm_").rstrip("a")).isdecimal() and target.startswith("sm_"):
            if int(digits) < OLDEST_SM:
                raise UnsupportedError(f"Triton compiles for sm_{OLDEST_SM} and later, not for {target}")
            return Target("cuda", int(digits))
        case str() if target.startswith("gfx"):
            return Target("hip", target)
    raise ArgumentError(f"unknown target {target!r}", hint='write "cpu", "sm_80", "sm_90", "sm_100" or "gfx942"')


def _gpu_target(options: dict[str, Any]) -> Target:
    """Takes the target out of ``options``."""
    given = options.pop("target", None)
    if given is None and not torch.cuda.is_available():
        return Target("cuda", 90)
    target = parse_target(given) if given is not None else target_of(torch.device("cuda"))
    if target.backend == "cpu":
        raise UnsupportedError(
            "the CPU runs a printed PyTorch program, which has no machine code of its own",
            hint='attn.source(target="cpu") shows it; name a GPU for its code, e.g. target="sm_90"',
        )
    return target


def _binaries(attn: Attention, target: Target, **options: Any) -> tuple[Binary, ...]:
    """The kernels that a call launches, compiled; tensors on the "meta" device stand for its arguments."""
    direction = options.get("direction", "forward")
    names = ("dtype", "head_dim", "value_dim")
    what = setting(attn, target=target, **{name: options[name] for name in names if name in options})
    problem = what.problem(attn.variant, direction)
    text = source(attn, target=target, **options)
    module = load_module("regard_inspected", text, f"<regard {attn.variant.name}, {direction}, {target}>")
    query, key, value = sample_arguments(problem)
    call: list[Any] = [query, key, value]
    if direction == "backward":
        out = query.new_empty((*query.shape[:3], problem.value_dim))
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        call += [out, lse, out, None]
    for p, dtype in zip(attn.variant.buffers, problem.buffers, strict=True):
        call.append(torch.empty((1024,) * p.type.rank, dtype=getattr(torch, dtype), device="meta"))
    call += [what.values.get(p.name, 1) for p in attn.variant.scalars]
    return compile_launches(module, target, call)


def _sections(parts: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"// {name}\n{text.rstrip()}\n" for name, text in parts)


def _values(attn: Attention, parameters: Mapping[str, object]) -> dict[str, Tensor | int | float]:
    values: dict[str, Tensor | int | float] = dict(attn.binding)
    scalars = {p.name: p for p in attn.variant.scalars if p.name not in values}
    buffers = {p.name for p in attn.variant.buffers if p.name not in values}
    for name, value in parameters.items():
        if name in scalars:
            values[name] = check_scalar(scalars[name], value)
        elif name in buffers and isinstance(value, Tensor):
            values[name] = value
        elif name in buffers:
            raise ArgumentError(f"{name} must be a tensor, got {type(value).__name__}")
        else:
            known = ", ".join([*scalars, *buffers]) or "none"
            raise ParameterError(f"there is no open parameter {name!r}", hint=f"open parameters: {known}")
    return values


def _as_tensor(x: Tensor | Shape, dtype: DType | None) -> Tensor:
    """``x``, or a tensor of that shape which takes no memory (every axis but the last repeats one row)."""
    if isinstance(x, Tensor):
        return x
    shape = tuple(x) if isinstance(x, Sequence) and not isinstance(x, str) else ()
    if not shape or not all(isinstance(n, Integral) and n >= 0 for n in shape):
        raise ArgumentError(
            f"expected a tensor or its shape, got {x!r}",
            hint="a shape is four whole numbers: (batch, heads, length, head size)",
        )
    row = torch.empty(shape[-1], dtype=_TORCH_DTYPES[dtype or "f32"], device="cpu")
    return row.expand(shape)


def _dtype_name(dtype: DType | torch.dtype) -> DType:
    found = DTYPES.get(dtype) if isinstance(dtype, torch.dtype) else dtype
    if found not in _TORCH_DTYPES:
        raise UnsupportedError(f"dtype {dtype} is not supported", hint="use float16, bfloat16 or float32")
    return found


def _array(x: Tensor) -> npt.NDArray[np.generic]:
    values = x.detach().cpu()
    array: npt.NDArray[np.generic] = (values.float() if values.is_floating_point() else values).numpy()
    return array
