"""Runs one variant on tensors, without autograd: checks once per shape, then tiles and program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from struct import Struct
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..codegen.defaults import Direction
from ..codegen.schedule import Problem, Target
from ..codegen.skeletons import fills, is_long
from ..ir.dependence import load_class
from ..ir.lengths import check_lengths, fit_of_lengths
from ..ir.nodes import TRUE, Index
from ..ir.traverse import loads, parameter_names
from ..ir.types import F32
from ..ir.variant import ScalarParameter, Variant
from . import arguments, config, tables
from .arguments import DTYPES, Sizes
from .bounded import Bounded
from .compile import Program, Request, program, target_of
from .devices import is_here, tf32_allowed
from .index_range import check_index_ranges
from .tuned import tuned
from .warm import Recent

if TYPE_CHECKING:
    from .replay import Replay

# Shapes for which a prepared call is kept, per variant; a decoding loop sees a new one every step.
_PREPARED_LIMIT = 4096
# Shapes and values of scalars for which launches are kept, per variant.
_REPLAYS_LIMIT = 256
_numbers = count()


class _Prepared(NamedTuple):
    """All that depends on shapes, strides, dtypes and device, but not on the contents of tensors."""

    program: Program | None  # None where there is nothing to compute: no rows, no keys
    sizes: Sizes
    number: int  # unlike any other


class Engine:
    """One variant, ready to run. Layers with equal variants share one engine: see :func:`engine_of`."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        # The scale is an argument of each run, so that it changes no program.
        self._unscaled = replace(variant, scale=None)
        self.edited: dict[Direction, Program] = {}
        self._prepared = Bounded[tuple[object, ...], _Prepared](_PREPARED_LIMIT)
        # By the number of what is prepared, the number of tensors and the values of scalars; None where the program
        # cannot be replayed, False before a second call tries.
        self._replays: Bounded[tuple[int, int, bytes], Replay | Literal[False] | None] = Bounded(_REPLAYS_LIMIT)
        self._programs: dict[tuple[Direction, Problem, Target, bool, bool], Program] = {}
        mask_reads = parameter_names(variant.mask)
        self._mask_buffers = [i for i, p in enumerate(variant.buffers) if p.name in mask_reads]
        self._mask_scalars = [i for i, p in enumerate(variant.scalars) if p.name in mask_reads]
        self._values = _packer(variant.scalars)
        self._recent = Recent(self._values, self._mask_buffers)
        self._mask_values = _packer([variant.scalars[i] for i in self._mask_scalars])
        score_loads = [load for score in variant.scores for load in loads(score)]
        self._score_buffers = frozenset(x.buffer for x in score_loads if x.type is F32)
        self._atomic_buffers = frozenset(x.buffer for x in score_loads if load_class(x) == "pair")
        indices = [i for x in (*loads(variant.mask), *score_loads) for i in x.indices]
        self._ranges_depend_on_scalars = any(not isinstance(i, Index) for i in indices)

    def again(
        self, query: Tensor, key: Tensor, value: Tensor, buffers: Sequence[Tensor], scalars: Sequence[int | float]
    ) -> tuple[Tensor, ...] | None:
        """What :meth:`forward` returns, where this is the like of a recent plain call; None otherwise."""
        return self._recent.again((query, key, value), buffers, scalars)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        reuse_tables: bool,
        plain: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """``out`` (B, H, Lq, Dv) and ``lse`` (B, H, Lq), float32.

        ``reuse_tables``: the version counters of ``buffers`` can be trusted (see :mod:`.tables`). ``plain``: nothing
        watches, so that :meth:`again` may take the next call.
        """
        prepared = self._prepare("forward", (query, key, value), buffers, scalars)
        if prepared.program is None:
            return _nothing_attended(query, value)
        out, lse = self._run(prepared, (query, key, value), buffers, scalars, reuse_tables, plain=plain)
        return out, lse

    def backward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        buffer_gradients: Sequence[bool],
        deterministic: bool,
        reuse_tables: bool,
    ) -> list[Tensor]:
        """Gradients of query, key and value, then of each buffer that ``buffer_gradients`` marks.

        ``deterministic``: they must repeat bit by bit, which may take longer.
        """
        # Autograd hands over gradients with any strides, `out.sum()` for one with only zeros. One that is not
        # aligned would need a program of its own.
        if grad_out.stride(3) != 1 or not _aligned((grad_out,)):
            grad_out = grad_out.contiguous()
            if grad_out.data_ptr() % 16:
                grad_out = grad_out.clone()
        tensors = (query, key, value, out, grad_out)
        prepared = self._prepare("backward", tensors, buffers, scalars, tuple(buffer_gradients), deterministic)
        if prepared.program is None:
            marked = [b for b, wanted in zip(buffers, buffer_gradients, strict=True) if wanted]
            return [x.new_zeros(x.shape) for x in (query, key, value, *marked)]
        given = (query, key, value, out, lse.contiguous(), grad_out)
        if grad_lse is None:
            return list(self._run(prepared, given, buffers, scalars, reuse_tables, (None,)))
        return list(self._run(prepared, (*given, grad_lse.contiguous()), buffers, scalars, reuse_tables))

    def _run(
        self,
        prepared: _Prepared,
        given: tuple[Tensor, ...],
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        reuse_tables: bool,
        missing: tuple[None, ...] = (),
        plain: bool = False,
    ) -> tuple[Tensor, ...]:
        """The program on ``given``, ``missing``, buffers and tile tables, in this order, or a replay of it."""
        device = given[0].device
        if not is_here(given[0]):
            with torch.cuda.device(device):
                return self._run(prepared, given, buffers, scalars, reuse_tables, missing)
        if torch.is_autocast_enabled(device.type):
            # Autocast is for what surrounds attention; `torch.autocast` itself would take longer.
            torch.set_autocast_enabled(device.type, False)
            try:
                return self._run(prepared, given, buffers, scalars, reuse_tables, missing)
            finally:
                torch.set_autocast_enabled(device.type, True)
        program, _, number = prepared
        assert program is not None
        tiles = self._tiles(prepared, device, buffers, scalars, reuse_tables)
        launcher, scale = program.launcher, self.variant.scale
        if launcher is None:
            made = None if tiles is None else tiles.made
            return program.run(*given, *missing, *buffers, *scalars, scale=scale, tiles=made)
        passed = len(given)
        inputs = passed + len(buffers)
        tensors = (*given, *buffers) if tiles is None else (*given, *buffers, *tiles.flat)
        values = self._values(*scalars)
        facts = (number, passed, values)
        replay = self._replays.get(facts)
        if replay:
            done = replay(tensors)
            if done is not None:
                if plain:
                    self._recent.add((*given, *buffers), scalars, replay, tiles)
                return done

        def run(*flat: Tensor) -> tuple[Tensor, ...]:
            made = None if tiles is None else tiles.like(flat[inputs:])
            return program.run(
                *flat[:passed], *missing, *flat[passed:inputs], *scalars, scale=scale, tiles=made
            )

        if replay is False:
            from .replay import record  # it imports triton

            outputs, repeatable = record(launcher, run, tensors)
            self._replays.put(facts, repeatable)
            return outputs
        if facts not in self._replays:
            self._replays.put(facts, False)
        return run(*tensors)

    def buffer_gradients(self, buffers: Sequence[Tensor]) -> list[bool]:
        """Which captured tensors take part in autograd: float ones that a score reads and that require it."""
        return [
            b.requires_grad and p.name in self._score_buffers
            for p, b in zip(self.variant.buffers, buffers, strict=True)
        ]

    def uses_atomics(self, buffer_gradients: Sequence[bool]) -> bool:
        """Whether, on a GPU, the gradient of some captured tensor depends on the order of atomic additions."""
        return any(
            wanted and p.name in self._atomic_buffers
            for p, wanted in zip(self.variant.buffers, buffer_gradients, strict=True)
        )

    def _prepare(
        self,
        direction: Direction,
        tensors: tuple[Tensor, ...],
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        gradients: tuple[bool, ...] = (),
        deterministic: bool = False,
    ) -> _Prepared:
        key: tuple[object, ...] = (direction, gradients, deterministic)
        bases = 0
        try:
            for x in tensors:
                key += (x.shape, x.stride(), x.dtype, x.device)
                bases |= x.data_ptr()
            key += (bases & 15,)
            for x in buffers:
                key += (x.shape, x.stride(), x.dtype, x.device)
        except RuntimeError:
            arguments.check_layouts(self.variant, tensors, buffers)
            raise
        if self._ranges_depend_on_scalars:
            key += (self._values(*scalars),)
        if tensors[0].dtype is torch.float32:
            key += (tf32_allowed(),)
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._check_and_compile(direction, tensors, buffers, scalars, gradients, deterministic)
            self._prepared.put(key, prepared)
        return prepared

    def _check_and_compile(
        self,
        direction: Direction,
        tensors: tuple[Tensor, ...],
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        gradients: tuple[bool, ...],
        deterministic: bool,
    ) -> _Prepared:
        request, sizes = self.request(direction, tensors, buffers, scalars, gradients, deterministic)
        if request is None:
            return _Prepared(None, sizes, next(_numbers))
        wanted = (direction, request.problem, request.target, request.fills_gpu, request.long)
        if wanted not in self._programs:
            self._programs[wanted] = self.edited.get(direction) or program(tuned(request, tensors[0].device))
        return _Prepared(self._programs[wanted], sizes, next(_numbers))

    def request(
        self,
        direction: Direction,
        tensors: tuple[Tensor, ...],
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        gradients: tuple[bool, ...] = (),
        deterministic: bool = False,
    ) -> tuple[Request | None, Sizes]:
        """What program runs on these arguments, all of which are checked; None where there is nothing to compute."""
        query, key, value = tensors[:3]
        sizes = arguments.check_tensors(query, key, value)
        named = {p.name: b for p, b in zip(self.variant.buffers, buffers, strict=True)}
        arguments.check_buffers(self.variant, named, sizes, query.device)
        values = {p.name: x for p, x in zip(self.variant.scalars, scalars, strict=True)}
        check_lengths(self.variant, sizes.q_len, sizes.kv_len)
        check_index_ranges(self.variant, named, values, sizes)
        if 0 in sizes:
            return None, sizes
        target = target_of(query.device)
        on_cpu = target.backend == "cpu"
        problem = Problem(
            dtype=DTYPES[query.dtype],
            head_dim=sizes.head_dim,
            value_dim=sizes.value_dim,
            aligned=on_cpu or _aligned(tensors),
            buffers=tuple(str(b.dtype).removeprefix("torch.") for b in buffers),
            buffer_gradients=gradients,
            tf32=not on_cpu and query.dtype is torch.float32 and tf32_allowed(),
            debug=bool(config.debug_topics()),
            deterministic=deterministic,
            fit=fit_of_lengths(self.variant, sizes.q_len, sizes.kv_len),
        )
        length = sizes.q_len if direction == "forward" else sizes.kv_len
        fills_gpu = target.backend == "cuda" and _fills(length, sizes, query.device)
        masked = self.variant.mask != TRUE
        long = fills_gpu and is_long(sizes.q_len, sizes.kv_len, problem, masked=masked)
        return Request(self._unscaled, problem, target, direction, fills_gpu=fills_gpu, long=long), sizes

    def forget_programs(self) -> None:
        """Calls ask anew which programs they run: a faster one was found."""
        # From the last that a call asks to the first, so that none is filled from one that is cleared after it.
        self._programs.clear()
        self._prepared.clear()
        self._replays.clear()
        self._recent.forget()

    def _tiles(
        self,
        prepared: _Prepared,
        device: torch.device,
        buffers: Sequence[Tensor],
        scalars: Sequence[int | float],
        reuse: bool,
    ) -> tables.Kept | None:
        """Tile tables for a program that follows some, else None."""
        program, sizes, _ = prepared
        assert program is not None
        if program.classify is None:
            return None
        classify = program.classify
        extents = sizes[:5]

        def make() -> Any:
            return classify(*buffers, *scalars, *extents, device)

        if not reuse:
            return tables.fresh(make)
        facts = (program.key, device, extents, self._mask_values(*[scalars[i] for i in self._mask_scalars]))
        return tables.tiles(facts, [buffers[i] for i in self._mask_buffers], device, make)


def _packer(parameters: Sequence[ScalarParameter]) -> Callable[..., bytes]:
    """What turns values into bytes: as parts of a key they tell -0.0 from 0.0."""
    return Struct("".join("d" if p.type is F32 else "q" for p in parameters)).pack


def _nothing_attended(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = query.new_zeros((*query.shape[:3], value.shape[3]))
    lse = torch.full(query.shape[:3], -torch.inf, dtype=torch.float32, device=query.device)
    return out, lse


def _aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether bases and strides are multiples of 16 bytes, also those of outputs, which are contiguous.

    Broadcast axes (stride 0) count as unaligned: tensor descriptors cannot express them.
    """
    for x in tensors:
        size = x.element_size()
        if x.data_ptr() % 16 or x.shape[3] * size % 16:
            return False
        if any(stride == 0 or stride * size % 16 for stride in x.stride()[:3]):
            return False
    return True


def _fills(length: int, sizes: Sizes, device: torch.device) -> bool:
    """Whether ``device`` is a GPU that tiles along ``length`` fill."""
    if device.type != "cuda":  # Triton's interpreter
        return False
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return fills(length, sizes.batch, sizes.heads, multiprocessors)
