"""Generated kernels compiled for several targets, without a GPU."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import re
from functools import cache
from typing import Literal

import pytest
import torch

import regard as rg
from generated_triton import H100, Generated, generated, load
from regard.codegen.binaries import Binary, compile_launches, sample_arguments
from regard.codegen.schedule import Target

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def compiled(module: Generated, direction: Literal["forward", "backward"], target: Target = H100) -> dict[str, Binary]:
    """The kernels that a call on tensors of 1024 positions launches."""
    query, key, value = sample_arguments(module.problem)
    arguments = [query, key, value]
    if direction == "backward":
        out = torch.empty((*query.shape[:3], value.shape[3]), dtype=query.dtype, device="meta")
        lse = torch.empty(query.shape[:3], device="meta")
        arguments += [out, lse, out, None]
    values = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in module.values]
    source = module.sources[direction == "backward"]
    return {x.kernel: x for x in compile_launches(load(source), target, [*arguments, *values])}


@cache
def on_h100(size: int, direction: Literal["forward", "backward"]) -> dict[str, Binary]:
    return compiled(generated([rg.causal()], sizes=(size, size)), direction)


@pytest.mark.parametrize("size", [64, 128])
def test_forward_on_sm_90_uses_the_tensor_cores_and_spills_nothing(size: int) -> None:
    binary = on_h100(size, "forward")["attention_forward"]
    assert binary.sass().count("HGMMA") >= 16
    assert binary.sass().count("UTMALDG") >= 5  # tiles are loaded by the tensor memory accelerator
    assert binary.spills() == 0
    assert binary.registers() <= 2 * size  # of 65,536: four programs of 128 threads, or two
    assert binary.shared <= 227 * 1024


@pytest.mark.parametrize(("group", "q_len"), [(8, 1), (8, 16)])
def test_few_queries_on_sm_90(group: int, q_len: int) -> None:
    module = generated([rg.causal(), rg.alibi(heads=2 * group)], sizes=(128, 128), align="end")
    query = torch.empty(1, 2 * group, q_len, 128, dtype=BF16, device="meta")
    key = torch.empty(1, 2, 4096, 128, dtype=BF16, device="meta")
    binaries = compile_launches(load(module.sources[0]), H100, [query, key, key, *module.values])
    assert [x.kernel for x in binaries] == ["attention_forward_few_queries", "merge_shares"]
    assert binaries[0].sass().count("UTMALDG") >= 5
    assert not any(x.spills() for x in binaries)


@pytest.mark.parametrize("size", [64, 128])
def test_backward_on_sm_90(size: int) -> None:
    kernels = on_h100(size, "backward")
    assert set(kernels) == {"row_terms", "attention_grad_key_value", "attention_grad_query"}
    for name, binary in kernels.items():
        assert ("HGMMA" in binary.sass()) == (name != "row_terms")
        assert binary.spills() <= 64
        assert binary.shared <= 227 * 1024


@pytest.mark.parametrize("size", [64, 128])
def test_tiles_from_a_table_on_sm_90(size: int) -> None:
    module = generated([rg.causal(), rg.document(torch.zeros(1024, dtype=torch.int32))], sizes=(size, size))
    kernels = compiled(module, "forward") | compiled(module, "backward")
    for name in ("attention_forward", "attention_grad_query"):
        loops = re.finditer(r"^( *)\S+ = scf\.for.*?^\1\}", kernels[name].assembly["ttgir"], re.MULTILINE | re.DOTALL)
        loop = next(loops).group()
        assert loop.count("async_tma_copy") == 2  # of a tile to come, while this one is computed
        assert "local_alloc" not in loop  # no tile passes through registers on its way to the tensor cores
        assert kernels[name].spills() <= 8


@pytest.mark.parametrize("aligned", [True, False])
def test_only_aligned_tensors_are_loaded_sixteen_bytes_at_a_time(aligned: bool) -> None:
    module = generated([rg.causal()], target=Target("cuda", 80), dtype=F16, aligned=aligned)
    ptx = compiled(module, "forward", Target("cuda", 80))["attention_forward"].assembly["ptx"]
    assert bool(re.search(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", ptx)) is aligned


@pytest.mark.parametrize(
    ("target", "instruction"), [(Target("cuda", 100), "tcgen05"), (Target("hip", "gfx942"), "mfma")]
)
def test_other_targets(target: Target, instruction: str) -> None:
    module = generated([rg.causal()], sizes=(128, 128), target=target)
    for direction in ("forward", "backward"):
        for name, binary in compiled(module, direction, target).items():
            text = binary.assembly["ptx" if target.backend == "cuda" else "amdgcn"]
            assert name == "row_terms" or instruction in text


@pytest.mark.parametrize(("dtype", "sizes"), [(BF16, (256, 192)), (F32, (80, 40)), (F32, (256, 256))])
def test_head_sizes_fit_into_shared_memory(dtype: torch.dtype, sizes: tuple[int, int]) -> None:
    module = generated([rg.sliding_window(100)], sizes=sizes, dtype=dtype)
    for direction in ("forward", "backward"):
        for binary in compiled(module, direction).values():
            assert binary.shared <= 227 * 1024


def test_captured_gradients_compile() -> None:
    @rg.score
    def per_distance(s, head, q, kv, bias):
        return s + bias[head, q - kv + 1023]

    bias = torch.zeros(16, 2047, requires_grad=True)
    slopes = torch.zeros(16, requires_grad=True)
    module = generated([rg.causal(), rg.alibi(slopes=slopes), per_distance(bias=bias), rg.softcap(30.0)])
    kernels = compiled(module, "backward")
    assert "attention_grad_diagonal" in kernels
