"""Repeating a forward pass for a shape that was seen before, without the Python of the generated module.

The second call for a shape, strides and scalar values runs the module under :func:`record`. Where all that it does
is to allocate and to launch kernels on its inputs and on what it allocated, later calls do the same with their own
tensors. Everything else (copies of inputs, computed tables) goes through the module every time.
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

_Forward = tuple[Tensor, Tensor]
_Allocate = Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor]
_aten = torch.ops.aten


class _Watch(TorchDispatchMode):
    """Notes what operators make while a module runs, and where views of it and of the inputs begin."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated: list[Tensor] = []
        self.zeros: list[Tensor] = []
        self.only_allocates = True
        # Base and offset in bytes by identity, and the views themselves, so that no identity is used twice.
        self.begins: dict[int, tuple[Tensor, int]] = {id(x): (x, 0) for x in inputs}
        self._views: list[Tensor] = []
        self._device = inputs[0].device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, Tensor) or made.device != self._device:
            self.only_allocates = False
        elif func is _aten.empty.memory_format:
            self.allocated.append(made)
            self.begins[id(made)] = made, 0
        elif func is _aten.zeros.default and made.dtype is torch.int32 and made.numel() == 1:
            self.zeros.append(made)
            self.begins[id(made)] = made, 0
        elif func.is_view and id(args[0]) in self.begins:
            base, offset = self.begins[id(args[0])]
            self._views.append(made)
            self.begins[id(made)] = base, offset + made.data_ptr() - args[0].data_ptr()
        else:
            self.only_allocates = False
        return made

    def is_whole(self, x: Tensor) -> bool:
        """Whether ``x`` is, or looks exactly like, something that was allocated."""
        base, _ = self.begins.get(id(x), (x, 0))
        form = x.dtype, x.shape, x.stride()
        return any(base is a for a in self.allocated) and (base.dtype, base.shape, base.stride()) == form


class _Step(NamedTuple):
    """A launch. Its tensors are (index of the argument, number of the tensor, offset in bytes, …)."""

    function: Callable[..., object]
    arguments: list[Any]
    head: list[Any] | None
    pointers: list[tuple[int, int, int]]
    maps: list[tuple[int, int, int, TensorMaps]]


class Replay:
    """Recorded launches. Calling it with the same kind of inputs gives ``(out, lse)``, both newly allocated.

    Tensors are numbered: inputs, then what is allocated, then counters at zero.
    """

    def __init__(self, launches: Sequence[Launch], inputs: Sequence[Tensor], watch: _Watch, outputs: _Forward) -> None:
        """Raises :class:`KeyError` where a launch reads memory that is not one of these."""
        device = inputs[0].device
        numbers = {id(x): i for i, x in enumerate((*inputs, *watch.allocated, *watch.zeros))}
        self._steps = [_step(call_of(launch), watch.begins, numbers) for launch in launches]
        self._allocations = [(tuple(x.shape), x.stride(), x.dtype) for x in watch.allocated]
        self._out, self._lse = (numbers[id(watch.begins[id(x)][0])] - len(inputs) for x in outputs)
        self._counters = len(watch.zeros)
        self._unaligned = _unaligned([x.data_ptr() for x in inputs])
        self._device = device.index
        self._allocate = _allocator(device)
        self._current_stream = driver.active.get_current_stream

    def __call__(self, tensors: Sequence[Tensor]) -> _Forward | None:
        """None where this call must go through the module: other alignment, or a profiler that wants to know.

        The device of the tensors is the current one.
        """
        hooks = knobs.runtime
        enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            return None
        addresses = [x.data_ptr() for x in tensors]
        bits = self._unaligned
        for address in addresses:
            bits |= address
        if bits & 15 and _unaligned(addresses) != self._unaligned:
            return None
        # A captured graph must reset its counters in each of its runs.
        if self._counters and torch.cuda.is_current_stream_capturing():
            return None
        allocate, made = self._allocate, []
        for size, stride, dtype in self._allocations:
            x = allocate(size, stride, dtype)
            made.append(x)
            addresses.append(x.data_ptr())
        stream = self._current_stream(self._device)
        if self._counters:
            taken = [counters.take(tensors[0].device, stream) for _ in range(self._counters)]
            addresses += [address for address, _ in taken]
        for function, template, head, pointers, maps in self._steps:
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
        return made[self._out], made[self._lse]


def record(
    launcher: Launcher, run: Callable[..., _Forward], tensors: Sequence[Tensor]
) -> tuple[_Forward, Replay | None]:
    """``run(*tensors)``, and how to repeat it if it does nothing but allocate and launch."""
    # Aliases tell the inputs apart where one tensor is passed twice.
    aliases = [x.detach() for x in tensors]
    watch = _Watch(aliases)
    with launcher.recording() as launches, watch:
        outputs = run(*aliases)
    if not launches or not watch.only_allocates or not all(map(watch.is_whole, outputs)):
        return outputs, None
    try:
        return outputs, Replay(launches, aliases, watch, outputs)
    except KeyError:
        return outputs, None


def _step(call: Call, begins: dict[int, tuple[Tensor, int]], numbers: dict[int, int]) -> _Step:
    def place(x: Tensor) -> tuple[int, int]:
        base, offset = begins[id(x)]
        return numbers[id(base)], offset

    pointers = [(i, *place(x)) for i, x in call.pointers]
    maps = [(i, *place(x), known) for i, x, known in call.maps]
    return _Step(call.function, call.arguments, call.head, pointers, maps)


def _allocator(device: torch.device) -> _Allocate:
    """``torch.empty_strided`` on ``device``, which is the current one.

    The function that compiled graphs allocate by takes a fifth of the time: it skips the dispatcher, which nobody
    watches here.
    """
    usual = functools.partial(_empty_strided, device)
    return getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", usual)


def _empty_strided(device: torch.device, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device=device)


def _unaligned(addresses: Sequence[int]) -> int:
    """Which tensors do not start at a multiple of 16 bytes, as bits: kernels are compiled for one pattern.

    >>> bin(_unaligned([64, 72, 80, 4]))
    '0b1010'
    """
    return sum(1 << i for i, address in enumerate(addresses) if address % 16)
