"""Runs generated Gluon modules on the CPU: a small emulator of the part of Gluon that they use.

Triton's interpreter does not know Gluon. Here each partition of a program is a thread, mbarriers count arrivals
and bytes as the hardware does, shared memory starts as NaN, and a product is computed only when it is waited
for: releasing a buffer too early, a barrier that nobody completes, or an index out of bounds is an error.
Layouts mean nothing here. Scalars are tensors of rank 0; integer division rounds down, so it is only tested
where generated code divides what is not negative.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import ast
import functools
import math
import re
import threading
import types
from inspect import signature
from typing import Any

import torch

from gluon_barriers import Barrier, BarrierLayout, NamedBarriers, condition, failures, mbarrier, program
from gluon_literals import Literals


class Number(int):
    """A literal in a kernel."""

    @property
    def value(self):
        return int(self)

    def to(self, dtype):
        return torch.tensor(int(self), dtype=dtype)


class Layout:
    """Any layout; whatever it is made from does not matter."""

    def __init__(self, *arguments, **options):
        self.value = self

    @classmethod
    def get_default_for(cls, *arguments):
        return cls()


class Pointer:
    """A tensor in global memory and an offset into it, in elements."""

    def __init__(self, x: torch.Tensor, offset=0):
        self.x, self.offset = x, offset

    def __add__(self, offset):
        return Pointer(self.x, self.offset + offset)

    def __sub__(self, offset):
        return Pointer(self.x, self.offset - offset)

    @property
    def dtype(self):
        return types.SimpleNamespace(element_ty=self.x.dtype)

    def storage(self):
        """All elements that strides can reach, in order."""
        return self.x.as_strided((self.x.untyped_storage().nbytes() // self.x.element_size(),), (1,), 0)


class Shared:
    """A buffer in shared memory, or a view of it."""

    def __init__(self, x: torch.Tensor):
        self.x = x

    @property
    def shape(self):
        return list(self.x.shape)

    def index(self, i):
        assert 0 <= int(i) < self.x.shape[0]
        return Shared(self.x[int(i)])

    def reshape(self, shape):
        return Shared(self.x.view(shape))

    def permute(self, order):
        return Shared(self.x.permute(order))

    def slice(self, start, length, dim=0):
        return Shared(self.x.narrow(int(dim), int(start), int(length)))

    def load(self, layout):
        return self.x.clone()

    def store(self, value):
        assert self.x.shape == value.shape and self.x.dtype == value.dtype
        self.x.copy_(value)


def _inline_asm(asm, constraints, arguments, dtype, is_pure, pack):
    """Barriers, and moves of the first argument to the result; or what else kernels say that way."""
    if "tanh" in asm:
        return torch.tanh(*arguments)
    if "fma" in asm:
        assert "mov.b32 zero, 0;" in asm and "$0, $2, zero, $1" in asm
        return arguments[0] + 0 * arguments[1]
    if "cvt.rn." in asm:
        half = torch.float16 if ".f16x2" in asm else torch.bfloat16
        return torch.stack([x.to(half) for x in arguments], -1).view(torch.int32).squeeze(-1)
    outputs = constraints.count("=")
    for operation, operand, threads in re.findall(r"bar\.(arrive|sync) \$(\d+), (\d+);", asm):
        number = arguments[(int(operand) - outputs) // int(pack)]
        getattr(program.named, operation)(int(number), int(threads))
    return arguments[0]


class TensorDescriptor:
    """Blocks of up to five axes over a tensor's memory, as ``shape`` and ``strides`` say."""

    def __init__(self, base, shape, strides, block, layout):
        self.base, self.block = base, [int(n) for n in block]
        self.shape, self.strides = [int(n) for n in shape], [int(n) for n in strides]
        assert len(shape) == len(strides) == len(block) <= 5 and strides[-1] == 1 and min(shape) > 0
        assert all(n & (n - 1) == 0 and n <= 256 for n in self.block)
        assert all(n * base.element_size() % 16 == 0 for n in (*strides[:-1], self.block[-1]))
        # Addresses have 64 bits. Where strides make them wrap around, only those of blocks can be checked.
        self.addresses = 2**64 // base.element_size()
        last = base.storage_offset() + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        inside = (last + 1) * base.element_size() <= base.untyped_storage().nbytes()
        assert inside or max(strides) >= 2**33, "a descriptor past the tensor"
        self.block_type = types.SimpleNamespace(shape=self.block)

    def place(self, where):
        """The part of the tensor under a block, which may reach past the end of axes, and where in the block it is."""
        starts = [int(i) for i in where]
        assert min(starts) >= 0
        assert starts[-1] * self.base.element_size() % 16 == 0, "the hardware calls this an illegal instruction"
        sides = [max(0, min(n, end - i)) for i, n, end in zip(starts, self.block, self.shape, strict=True)]
        first = sum(i * s for i, s in zip(starts, self.strides, strict=True)) % self.addresses
        first = first + self.base.storage_offset() if all(sides) else 0
        # PyTorch checks that this is memory of the tensor.
        return self.base.as_strided(sides, self.strides, first), tuple(slice(0, n) for n in sides)


class tma:
    @staticmethod
    def load(descriptor, where, barrier, target):
        part, inside = descriptor.place(where)
        assert list(target.x.shape) == descriptor.block
        target.x.zero_()
        target.x[inside] = part
        barrier.change(0, -target.x.numel() * target.x.element_size())

    @staticmethod
    def store(descriptor, where, source):
        part, inside = descriptor.place(where)
        part.copy_(source.x[inside])

    @staticmethod
    def add(descriptor, where, source):
        part, inside = descriptor.place(where)
        with condition:
            part += source.x[inside]

    async_copy_global_to_shared = async_load = load
    async_copy_shared_to_global = async_store = store
    async_atomic_add = add

    @staticmethod
    def store_wait(pending):
        pass


class Product:
    """A product on its way: operands are read when it is waited for."""

    def __init__(self, a, b, acc, use_acc):
        self.operands = a, b, acc if use_acc else None
        if not hasattr(program, "products"):
            program.products = []
        program.products.append(self)

    @functools.cached_property
    def result(self):
        a, b, acc = self.operands
        a = a.x if isinstance(a, Shared) else a
        acc = acc.result if isinstance(acc, Product) else acc
        assert a.dtype == b.x.dtype and a.dtype.itemsize == 2
        product = a.float() @ b.x.float()
        return product if acc is None else acc + product


def warpgroup_mma(a, b, acc, use_acc=True, is_async=False):
    assert is_async
    return Product(a, b, acc, use_acc)


def warpgroup_mma_wait(pending, deps):
    """All but the last ``pending`` products are computed now, not earlier, as late as the hardware may be."""
    done = program.products[: len(program.products) - pending]
    assert all(any(x is product for x in done) for product in deps), "read before it was waited for"
    results = tuple(x.result for x in deps)
    for x in done:
        x.result  # noqa: B018
    program.products = program.products[len(done) :]
    return results[0] if len(results) == 1 else results


def _tensor(x):
    return x if isinstance(x, torch.Tensor) else torch.tensor(x)


def _offsets(pointer, mask):
    flat = pointer.storage()
    offset = _tensor(pointer.offset)
    if mask is not None:
        offset, mask = torch.broadcast_tensors(offset, _tensor(mask))
        offset = torch.where(mask, offset, 0)
    assert flat.numel() and bool(((offset >= 0) & (offset < flat.numel())).all()), "access out of bounds"
    return flat, offset, mask


def _load(pointer, mask=None, other=None):
    flat, offset, mask = _offsets(pointer, mask)
    found = flat[offset.long()]
    return found if mask is None else torch.where(mask, found, torch.tensor(other, dtype=found.dtype))


def _store(pointer, value, mask=None):
    flat, offset, mask = _offsets(pointer, torch.tensor(True) if mask is None else mask)
    flat[offset[mask].long()] = value.expand(offset.shape)[mask].to(flat.dtype)


def _atomic_add(pointer, value, sem):
    with condition:
        old = pointer.x[0].clone()
        pointer.x[0] += value
    return old


def _allocate(dtype, shape, layout):
    if isinstance(layout, BarrierLayout):
        return Barrier(int(shape[0]))
    shape = [int(n) for n in shape]
    return Shared(torch.full(shape, float("nan") if dtype.is_floating_point else -(2**30), dtype=dtype))


def _warp_specialize(partitions, warps, registers):
    def run(function, arguments, own_warps):
        program.number, program.count = place
        program.named, program.warps = named, own_warps
        try:
            function(*arguments)
        except BaseException as e:
            with condition:
                failures.append(e)
                condition.notify_all()

    assert sum(128 * r for r in (registers[0], *registers)) <= 1 << 16
    place, named = (program.number, program.count), NamedBarriers()
    threads = [
        threading.Thread(target=run, args=(*x, int(n)), daemon=True)
        for x, n in zip(partitions, (4, *warps), strict=True)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        raise next((e for e in failures if not isinstance(e, TimeoutError)), failures[0])


def _full(shape, value, dtype, layout=None):
    return _tensor(value).to(dtype).expand([int(n) for n in shape])


def _math(name):
    return lambda x: getattr(torch, name)(_tensor(x).float())


gl = types.SimpleNamespace(
    **{name: getattr(torch, name) for name in ("int32", "int64", "float16", "bfloat16", "float32")},
    **{name: _math(name) for name in ("exp", "exp2", "log", "log2", "rsqrt", "sin", "cos", "floor")},
    int1=torch.bool,
    abs=torch.abs,
    sqrt_rn=_math("sqrt"),
    constexpr=lambda x: Number(x) if type(x) is int else x,
    BlockedLayout=Layout,
    SliceLayout=Layout,
    DotOperandLayout=Layout,
    NVMMADistributedLayout=Layout,
    NVMMASharedLayout=Layout,
    SwizzledSharedLayout=Layout,
    allocate_shared_memory=_allocate,
    warp_specialize=_warp_specialize,
    program_id=lambda axis: torch.tensor(program.number),
    num_programs=lambda axis: torch.tensor(program.count),
    atomic_add=_atomic_add,
    load=_load,
    store=_store,
    to_tensor=_tensor,
    zeros=lambda shape, dtype, layout=None: torch.zeros([int(n) for n in shape], dtype=dtype),
    full=_full,
    arange=lambda start, stop, layout=None: torch.arange(int(start), int(stop), dtype=torch.int32),
    convert_layout=lambda x, layout: x,
    static_range=range,
    cdiv=lambda a, b: (a + b - 1) // b,
    where=lambda c, a, b: torch.where(_tensor(c), a, b),
    split=lambda x: x.unbind(-1),
    join=lambda a, b: torch.stack([a, b], -1),
    cast=lambda x, dtype, bitcast: x.view(dtype),
    minimum=lambda a, b: torch.minimum(_tensor(a), _tensor(b)),
    maximum=lambda a, b: torch.maximum(_tensor(a), _tensor(b)),
    max=lambda x, axis: x.amax(axis),
    min=lambda x, axis: x.amin(axis),
    cumsum=lambda x, axis: x.cumsum(axis),
    associative_scan=lambda x, axis, combine: _scanned(x, combine),
    int8=torch.int8, int16=torch.int16,
    sum=lambda x, axis: x.sum(axis),
    barrier=lambda: None,
    thread_barrier=lambda: None,
    inline_asm_elementwise=_inline_asm,
)  # fmt: skip


# Programs run one after the other, in this order of their numbers.
order = range


def _scanned(x, combine):
    """All results of combining the first elements of a vector, each with those of twice as many in every step."""
    reach = 1
    while reach < len(x):
        x = torch.cat([x[:reach], combine(x[:-reach], x[reach:])])
        reach *= 2
    return x


def _unsigned(x):
    return x.long() & 0xFFFFFFFF


def load(text: str) -> Any:
    """A generated module as a namespace; its ``run`` takes tensors on the CPU."""
    tree = ast.parse(text)
    tree.body = [x for x in tree.body if not isinstance(x, ast.Import | ast.ImportFrom)]
    for x in tree.body:
        if isinstance(x, ast.FunctionDef) and x.decorator_list:
            x.body = [Literals().visit(y) for y in x.body]
    jit = lambda f=None, **options: f or (lambda g: g)  # noqa: E731
    names: dict[str, Any] = {
        "torch": torch, "functools": functools, "math": math, "gl": gl, "Number": Number,
        "gluon": types.SimpleNamespace(jit=jit),
        "triton": types.SimpleNamespace(cdiv=lambda a, b: -(-a // b), jit=jit), "mbarrier": mbarrier, "tma": tma,
        "_unsigned": _unsigned, "tl": gl, "builtin": lambda f: f,
        "warpgroup_mma": warpgroup_mma, "warpgroup_mma_wait": warpgroup_mma_wait,
        "fence_async_shared": lambda: None, "TensorDescriptor": TensorDescriptor,
    }  # fmt: skip
    exec(compile(ast.fix_missing_locations(tree), "generated", "exec"), names)
    names["launch"], names["add_tile"] = _launch, tma.add
    names["device_limits"] = lambda device: (3, 1 << 20)
    return types.SimpleNamespace(**{"run": names["run"], "names": names})


def _launch(kernel, grid, *arguments, **options):
    def argument(x):
        match x:
            case torch.Tensor():
                return Pointer(x)
            case int():
                return torch.tensor(x)
            case float():
                return torch.tensor(x, dtype=torch.float32)
            case _:
                return x

    constants = {name: x for name, x in options.items() if name in signature(kernel).parameters}
    for name, x in constants.items():
        constants[name] = tuple(map(Number, x)) if isinstance(x, tuple) else Number(x)
    for number in order(grid[0]):
        failures.clear()
        program.number, program.count = number, grid[0]
        kernel(*(argument(x) for x in arguments), **constants)
