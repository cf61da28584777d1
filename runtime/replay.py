"""Repeating a forward or backward pass for a shape that was seen before, without the Python of the generated module.

The second call for a shape, strides and scalar values runs the module under :func:`record`, which notes what it does:
allocations, launches of kernels, and PyTorch's operators on tensors (sums over groups, a copy of an input). Later calls
do the same with their own tensors. Modules that look into a tensor, or that use memory from elsewhere, are not
repeated: they run every time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.runtime import driver

from . import counters
from .direct import Call, TensorMaps, call_of
from .launch import Launch, Launcher

_Allocate = Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor]
_aten = torch.ops.aten
_EMPTY = (_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default)
# Of what shares an allocation, in bytes: as the allocator's.
_ALIGNMENT = 512


class _Noted(NamedTuple):
    """An operator that was called after ``launches`` launches."""

    launches: int
    function: Any
    args: Any
    kwargs: dict[str, Any]
    made: Tensor


class _Watch(TorchDispatchMode):
    """Notes what operators make while a module runs, and where views begin."""

    def __init__(self, inputs: Sequence[Tensor], launches: Sequence[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated: list[Tensor] = []
        self.zeros: list[Tensor] = []
        # All else that was called. It holds what was made, so that no identity is used twice.
        self.operators: list[_Noted] = []
        self.only_tensors = True
        # Base and offset in bytes by identity. What is made from memory that nobody noted has none.
        self.begins: dict[int, tuple[Tensor, int]] = {id(x): (x, 0) for x in inputs}
        self._launches = launches
        self._device = inputs[0].device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, Tensor):
            self.only_tensors = False
            return made
        here = made.device == self._device
        # Who copies a tensor to the host may look into it there.
        self.only_tensors &= here or not _tensors((args, kwargs))
        if here and func in _EMPTY:
            self.allocated.append(made)
        elif here and func is _aten.zeros.default and made.dtype is torch.int32 and made.numel() == 1:
            self.zeros.append(made)
        else:
            self.operators.append(_Noted(len(self._launches), func, args, kwargs or {}, made))
        if not func.is_view:
            self.begins.setdefault(id(made), (made, 0))
        elif id(args[0]) in self.begins:
            base, offset = self.begins[id(args[0])]
            self.begins[id(made)] = base, offset + made.data_ptr() - args[0].data_ptr()
        return made

    def as_made(self, x: Tensor) -> Tensor:
        """``x``, or what it is a view of if that looks exactly like it."""
        base, _ = self.begins.get(id(x), (x, 0))
        return base if (base.dtype, base.shape, base.stride()) == (x.dtype, x.shape, x.stride()) else x

    def needed(self, outputs: Sequence[Tensor]) -> list[_Noted]:
        """The operators to repeat: all but views that only launches read, by their addresses."""
        wanted, found = {id(x) for x in outputs}, []
        for noted in reversed(self.operators):
            if not noted.function.is_view or id(noted.made) in wanted:
                found.append(noted)
                wanted |= {id(self.as_made(x)) for x in _tensors((noted.args, noted.kwargs))}
        return found[::-1]


class _Launch(NamedTuple):
    """Its tensors are (index of the argument, number of the tensor, offset in bytes, …)."""

    function: Callable[..., object]
    arguments: list[Any]
    head: list[Any] | None
    pointers: list[tuple[int, int, int]]
    maps: list[tuple[int, int, int, TensorMaps]]


class _Operator(NamedTuple):
    """Its arguments have :class:`_Number` in place of tensors."""

    function: Any
    args: Any
    kwargs: Any


class _Number(int):
    """A tensor by its number."""


class Replay:
    """Recorded steps. Calling it with the same kind of inputs gives the outputs, newly allocated.

    Tensors are numbered: inputs, what is allocated, counters at zero, then what operators make, in their order. What
    launches alone use shares one allocation, the last.
    """

    def __init__(
        self, launches: Sequence[Launch], inputs: Sequence[Tensor], watch: _Watch, outputs: Sequence[Tensor]
    ) -> None:
        """Raises :class:`KeyError` where a step reads memory that is not one of these."""
        device = inputs[0].device
        self._steps: list[_Launch | _Operator] = []
        outputs = [watch.as_made(x) for x in outputs]
        operators = watch.needed(outputs)
        named = {id(watch.as_made(x)) for x in (*outputs, *_tensors([(o.args, o.kwargs) for o in operators]))}
        allocated = [x for x in watch.allocated if id(x) in named]
        scratch = [x for x in watch.allocated if id(x) not in named]
        self._allocations = [(tuple(x.shape), x.stride(), x.dtype) for x in allocated]
        # Counters are used up by launches; nothing else may read them.
        known = {id(x): i for i, x in enumerate((*inputs, *allocated))}
        places, size = {name: (number, 0) for name, number in known.items()}, 0
        for x in scratch:
            places[id(x)] = len(known), size
            size += -(-x.untyped_storage().nbytes() // _ALIGNMENT) * _ALIGNMENT
        if scratch:
            self._allocations.append(((size,), (1,), torch.uint8))
        fixed = len(inputs) + len(self._allocations)
        places |= {id(x): (fixed + i, 0) for i, x in enumerate(watch.zeros)}
        fixed, done = fixed + len(watch.zeros), 0

        def number_of(x: Tensor) -> _Number:
            return _Number(known[id(watch.as_made(x))])

        for i, noted in enumerate(operators):
            self._steps += [_step(call_of(x), watch.begins, places) for x in launches[done : noted.launches]]
            done = noted.launches
            args, kwargs = _replaced((noted.args, noted.kwargs), number_of, Tensor)
            self._steps.append(_Operator(noted.function, args, kwargs))
            known.setdefault(id(noted.made), fixed + i)
            places.setdefault(id(noted.made), (fixed + i, 0))
        self._steps += [_step(call_of(x), watch.begins, places) for x in launches[done:]]
        self._outputs = [number_of(x) for x in outputs]
        if any(number < len(inputs) for number in self._outputs):
            raise KeyError("an input is returned")
        self._counters = len(watch.zeros)
        self._unaligned = [x.data_ptr() & 15 for x in inputs]
        self._device = device.index
        self._allocate = _allocator(device)
        self._current_stream = driver.active.get_current_stream

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """None where this call must go through the module: other alignment, or a profiler that wants to know.

        The device of the tensors is the current one.
        """
        hooks = knobs.runtime
        enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            return None
        addresses = [x.data_ptr() for x in tensors]
        # Kernels are compiled for what the addresses of their tensors are modulo 16, views of inputs included.
        if [address & 15 for address in addresses] != self._unaligned:
            return None
        # A captured graph must reset its counters in each of its runs.
        if self._counters and torch.cuda.is_current_stream_capturing():
            return None
        allocate, held = self._allocate, list(tensors)
        for size, stride, dtype in self._allocations:
            x = allocate(size, stride, dtype)
            held.append(x)
            addresses.append(x.data_ptr())
        stream = self._current_stream(self._device)
        for _ in range(self._counters):
            address, memory = counters.take(tensors[0].device, stream)
            held.append(memory)
            addresses.append(address)
        for step in self._steps:
            if isinstance(step, _Operator):
                function, args, kwargs = _replaced(step, held.__getitem__, _Number)
                x = function(*args, **kwargs)
                held.append(x)
                addresses.append(x.data_ptr())
                continue
            function, template, head, pointers, maps = step
            arguments = template.copy()
            for i, number, offset in pointers:
                arguments[i] = addresses[number] + offset
            for i, number, offset, known in maps:
                address = addresses[number] + offset
                arguments[i] = known.kept.get(address) or known.add(address)
            if head is None:
                arguments[3] = stream
                function(*arguments)
            else:
                front = head.copy()
                front[3] = stream
                function(*front, arguments)
        return tuple([held[number] for number in self._outputs])


def record(
    launcher: Launcher, run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Replay | None]:
    """``run(*tensors)``, and how to repeat it if nothing that it does depends on the contents of tensors."""
    # Aliases tell the inputs apart where one tensor is passed twice.
    aliases = [x.detach() for x in tensors]
    with launcher.recording() as launches, _Watch(aliases, launches) as watch:
        outputs = run(*aliases)
    if not launches or not watch.only_tensors:
        return outputs, None
    try:
        return outputs, Replay(launches, aliases, watch, outputs)
    except KeyError:
        return outputs, None


def _replaced(x: Any, replace: Callable[[Any], Any], type_: type) -> Any:
    """Nested tuples, lists and dictionaries with each ``type_`` in them replaced."""
    if isinstance(x, type_):
        return replace(x)
    if isinstance(x, tuple | list):
        return [_replaced(y, replace, type_) for y in x]
    if isinstance(x, dict):
        return {name: _replaced(y, replace, type_) for name, y in x.items()}
    return x


def _tensors(x: Any) -> list[Tensor]:
    """Those in nested tuples, lists and dictionaries."""
    found: list[Tensor] = []
    _replaced(x, found.append, Tensor)
    return found


def _step(call: Call, begins: dict[int, tuple[Tensor, int]], places: dict[int, tuple[int, int]]) -> _Launch:
    def place(x: Tensor) -> tuple[int, int]:
        base, offset = begins[id(x)]
        number, first = places[id(base)]
        return number, first + offset

    pointers = [(i, *place(x)) for i, x in call.pointers]
    maps = [(i, *place(x), known) for i, x, known in call.maps]
    return _Launch(call.function, call.arguments, call.head, pointers, maps)


def _allocator(device: torch.device) -> _Allocate:
    """``torch.empty_strided`` on ``device``, which is the current one.

    The function that compiled graphs allocate by takes a fifth of the time: it skips the dispatcher, which nobody
    watches here.
    """
    usual = functools.partial(_empty_strided, device)
    return getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", usual)


def _empty_strided(device: torch.device, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device=device)
