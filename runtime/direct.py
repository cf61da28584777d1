"""Repeating a launch of a Triton kernel with other addresses, past the Python of Triton's launcher.

Triton's launcher encodes a tensor map for each tensor descriptor, in every launch (4 µs each), and asks the driver
about every pointer. Here the C function below it is called with addresses as integers, and with tensor maps that
are kept: a map holds an address, a shape and strides, but no reference to memory, so the same map serves whatever
the allocator puts at that address. Shapes and strides are those of the launch that is repeated.

How the C function is called depends on Triton's version; with versions that were not read, and wherever a launch
needs more than arguments (scratch memory, instrumentation), Triton's own launcher is called.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType, SimpleNamespace
from typing import Any

import triton
from torch import Tensor
from triton.runtime import driver

from .bounded import Bounded
from .launch import Launch

# Versions of Triton whose launcher is known: it passes (grid, stream, …, arguments of the kernel) to a C function,
# flat or, from 3.7 on, with the kernel's arguments as one sequence; in these a tensor descriptor takes up
# a tensor map, sizes and strides.
_KNOWN = ((3, 6), (3, 7), (3, 8))
_MODULE = "triton.backends.nvidia.driver"
_FORM = {"swizzle", "elem_size", "elem_type", "block_size", "fp4_padded", "is_im2col"}
# Addresses for which one descriptor's maps are kept: those of the layers of a model.
_MAPS_LIMIT = 256


def _no_maps() -> Bounded[int, Any]:
    return Bounded(_MAPS_LIMIT)


@dataclass(frozen=True, slots=True)
class TensorMaps:
    """What a launcher takes for one descriptor, by the address of its tensor."""

    make: Callable[[int], Any]
    kept: Bounded[int, Any] = field(default_factory=_no_maps)

    def add(self, address: int) -> Any:
        """For an address that is not among ``kept``."""
        made = self.make(address)
        self.kept.put(address, made)
        return made


@dataclass(frozen=True, slots=True)
class Call:
    """A launch without its stream and addresses.

    The call is ``function(*arguments)`` with the stream at index 3, or where ``head`` is given
    ``function(*head, arguments)``, with the stream in ``head``. ``pointers`` and ``maps`` are the places of
    ``arguments`` to fill in, each with the tensor that was there.
    """

    function: Callable[..., object]
    arguments: list[Any]
    head: list[Any] | None
    pointers: tuple[tuple[int, Tensor], ...]
    maps: tuple[tuple[int, Tensor, TensorMaps], ...]


def is_descriptor(argument: object) -> bool:
    """Whether it is a tensor descriptor, of Triton or of Gluon."""
    return hasattr(argument, "block_shape")


def call_of(launch: Launch) -> Call:
    """``launch`` as a call of Triton's C function, or else of its launcher."""
    return _direct(launch) or _ordinary(launch)


def _ordinary(launch: Launch) -> Call:
    """Triton's own launcher, which takes a tensor descriptor where the C function takes a map."""
    ready, grid, given = launch
    arguments = [*grid, None, ready.function, ready.metadata, None, None, None, *given, *ready.trailing]
    pointers, maps = [], []
    for i, a in enumerate(arguments):
        if isinstance(a, Tensor):
            pointers.append((i, a))
            arguments[i] = None
        elif is_descriptor(a):
            maps.append((i, a.base, TensorMaps(functools.partial(_with_base, _with_base(a, None)))))
            arguments[i] = None
    return Call(ready.run, arguments, None, tuple(pointers), tuple(maps))


def _with_base(like: Any, address: int | None) -> Any:
    """A descriptor of another tensor of the same shape; its constructor would check the shape again."""
    descriptor = copy.copy(like)
    descriptor.base = None if address is None else SimpleNamespace(data_ptr=lambda: address)
    return descriptor


def _direct(launch: Launch) -> Call | None:
    """The C function below Triton's launcher; None where that is not known to be all that the launcher does."""
    ready, grid, given = launch
    run: Any = ready.run
    if _version() not in _KNOWN or type(run).__module__ != _MODULE:
        return None
    if run.global_scratch_size or run.profile_scratch_size or getattr(run, "gsan_enabled", False):
        return None
    function = _c_function(run.launch)
    if function is None:
        return None
    # A copy of the launcher that ends in a list instead of the C function shows the arguments in their order.
    stream, passed, noted = object(), (*given, *ready.trailing), list[Any]()
    probe = copy.copy(run)
    probe.launch = lambda *arguments: noted.extend(arguments)
    probe(*grid, stream, ready.function, ready.metadata, None, None, None, *passed)
    nested = type(noted[-1]) is tuple and _same(noted[-1], passed)
    front = noted[:-1] if nested else noted[: -len(passed)]
    if not (_same(front[:4], (*grid, stream)) and (nested or _same(noted[len(front) :], passed))):
        return None
    front[3] = None
    arguments: list[Any] = [] if nested else front.copy()
    pointers, maps = [], []
    formats = iter(getattr(ready.kernel.metadata, "tensordesc_meta", None) or ())
    for a in passed:
        if is_descriptor(a):
            make = _encoder(a, next(formats, None))
            if make is None:
                return None
            maps.append((len(arguments), a.base, TensorMaps(make)))
            arguments += (None, *a.shape, *a.strides)
            continue
        if isinstance(a, Tensor):
            pointers.append((len(arguments), a))
            a = None
        arguments.append(a)
    return Call(function, arguments, front if nested else None, tuple(pointers), tuple(maps))


@functools.cache
def _version() -> tuple[int, int]:
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def _c_function(launch: Any) -> Callable[..., object] | None:
    """``launch`` itself, or what it calls after it has taken tensor descriptors apart."""
    if isinstance(launch, FunctionType):
        launch = inspect.getclosurevars(launch).nonlocals.get("launcher")
    return None if isinstance(launch, FunctionType) else launch


def _same(some: Sequence[object], others: Sequence[object]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _encoder(descriptor: Any, form: dict[str, Any] | None) -> Callable[[int], Any] | None:
    """The driver's function that encodes a tensor map, by address; None for a form of map that is not known."""
    if form is None or set(form) - _FORM or form["fp4_padded"] or form.get("is_im2col"):
        return None
    if getattr(descriptor, "round_f32_to_tf32", False):
        return None
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    utils = driver.active.utils
    encode = utils.fill_tma_descriptor if _version() == (3, 6) else utils.fill_tma_descriptor_tiled
    swizzle, size, block = form["swizzle"], form["elem_size"], form["block_size"]
    # The driver numbers element types otherwise than the compiler.
    element = TMA_DTYPE_DEVICE_TO_HOST[form["elem_type"]]
    shape, strides, padding = list(descriptor.shape), list(descriptor.strides), int(descriptor.padding == "nan")
    return lambda address: encode(address, swizzle, size, element, block, shape, strides, padding)
