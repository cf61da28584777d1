"""Compiles a generated module for a target, with or without a GPU: PTX, SASS, shared memory, spills."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .schedule import COMPILER_OPTIONS, Problem, Target


@dataclass(frozen=True, slots=True)
class Binary:
    """One compiled kernel.

    ``assembly`` maps stages ("ttgir", "llir", "ptx", "cubin"; "amdgcn" for hip) to text or bytes;
    ``shared`` is bytes of shared memory a program.
    """

    kernel: str
    assembly: dict[str, Any]
    shared: int

    def sass(self) -> str:
        """Disassembled by the cuobjdump that Triton carries; ``asm["sass"]`` of Triton 3.6 is cut off."""
        return self._dumped("-sass")

    def registers(self) -> int:
        """Registers of a thread, on which depends how many programs a multiprocessor holds."""
        return int(re.findall(r"\bREG:(\d+)", self._dumped("-res-usage"))[0])

    def _dumped(self, option: str) -> str:
        import triton.knobs

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(self.assembly["cubin"])
            tool = triton.knobs.nvidia.cuobjdump.path
            return subprocess.run([tool, option, str(path)], capture_output=True, text=True, check=True).stdout

    def spills(self) -> int:
        """Stores to and loads from thread-local memory, which registers that do not suffice cause."""
        return len(re.findall(r"\b(?:STL|LDL)\b", self.sass()))


def compile_launches(module: ModuleType, target: Target, arguments: Sequence[Any]) -> tuple[Binary, ...]:
    """Every kernel that ``module.run(*arguments)`` launches, compiled for ``target``.

    ``arguments`` may be tensors on the "meta" device: nothing runs. ``module.launch`` is replaced meanwhile.
    """
    found: list[Binary] = []
    variables = module.__dict__
    original = variables["launch"]

    def record(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        binary = compile_kernel(kernel, target, args, options)
        if all(x.kernel != binary.kernel or x.shared != binary.shared for x in found):
            found.append(binary)

    variables["launch"] = record
    try:
        module.run(*arguments)
    finally:
        variables["launch"] = original
    return tuple(found)


def compile_kernel(kernel: Any, target: Target, args: Sequence[Any], options: dict[str, Any]) -> Binary:
    """One kernel for ``target``, with the types of ``args``; options and constants as at a launch."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
    from triton.tools.tensor_descriptor import TensorDescriptor

    constants = {name: options[name] for name in kernel.arg_names if name in options}
    rest = {name: value for name, value in options.items() if name not in constants}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    values = iter(args)
    for parameter in kernel.params:
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
            continue
        value = next(values)
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _type_name(value)
            if not parameter.do_not_specialize:
                attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[parameter.name] = f"tensordesc<{_type_name(value.base)}{value.block_shape}>"
        elif isinstance(value, GluonDescriptor):
            signature[parameter.name] = f"tensordesc<{_type_name(value.base)}{value.block_shape},{value.layout!r}>"
        else:
            signature[parameter.name] = parameter.annotation_type
    gpu = GPUTarget(target.backend, target.arch, 32 if target.backend == "cuda" else 64)
    source_type = GluonASTSource if kernel.is_gluon() else ASTSource
    source = source_type(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=gpu, options=COMPILER_OPTIONS | rest)
    return Binary(kernel.__name__, dict(compiled.asm), compiled.metadata.shared)


_TYPES = {
    "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64", "bool": "i1", "uint8": "u8",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
}  # fmt: skip


def _type_name(x: Any) -> str:
    return _TYPES[str(x.dtype).removeprefix("torch.")]


def sample_arguments(problem: Problem, q_len: int = 1024, kv_len: int = 1024) -> tuple[Any, Any, Any]:
    """Query, key and value on the "meta" device: shapes and types without memory."""
    import torch

    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[problem.dtype]
    sizes = (q_len, problem.head_dim), (kv_len, problem.head_dim), (kv_len, problem.value_dim)
    query, key, value = (torch.empty((4, 16, *size), dtype=dtype, device="meta") for size in sizes)
    return query, key, value
