"""Compilation, streams, devices, graphs and threads on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from regard import UnsupportedError

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of the kernels that Triton compiles during a test."""
    from triton import knobs

    names: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            names.append(src.name)

    with knobs.compilation.scope():
        knobs.compilation.listener = listen
        yield names


def tensors(
    batch: int = 2,
    heads: int = 4,
    length: int = 200,
    dim: int = 64,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> list[Tensor]:
    return [torch.randn(batch, heads, length, dim, device=device, dtype=dtype) for _ in range(3)]


def reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_fifty_shapes_compile_once(compilations: list[str]) -> None:
    def attend(batch: int, heads: int, kv_heads: int, length: int, window: int) -> None:
        query, key, value = (
            torch.randn(batch, h, length, 96, device="cuda", dtype=torch.float16, requires_grad=True)
            for h in (heads, kv_heads, kv_heads)
        )
        attn = rg.attention(rg.sliding_window(window), rg.softcap(7.0 + window))
        attn(query, key, value).sum().backward()
        with torch.no_grad():
            attn(query, key, value)
            attn(query[:, :, :1], key, value)  # decoding

    # Small calls share rows of keys, and heads of groups if there are any; large ones have kernels of their own.
    attend(2, 4, 2, 256, 100)
    attend(2, 4, 4, 256, 100)
    attend(3, 8, 4, 2000, 700)
    attend(1, 4, 1, 17, 1)
    compiled = len(compilations)
    assert compiled > 0
    for i in range(50):
        attend(1 + i % 3, 4 << (i % 2), 1 << (i % 3), 17 + 41 * i, 1 + 16 * i)
    assert compilations[compiled:] == []


COLD_AND_WARM = """
import time, torch, triton
import regard as rg
from triton import knobs
names = []
knobs.compilation.listener = lambda *, src, cache_hit, **_: cache_hit or names.append(src.name)
q = torch.randn(1, 2, 333, 80, device="cuda", dtype=torch.bfloat16, requires_grad=True)
torch.cuda.synchronize()
out = rg.attention(rg.causal(), rg.temperature(1.5))(q, q, q)
out.sum().backward()
print(len(names), out.isfinite().all().item(), q.grad.isfinite().all().item())
"""


def test_a_warm_disk_cache_compiles_nothing(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "REGARD_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths}
    outputs: list[list[str]] = []
    for _ in range(2):
        # Triton's own cache must not be what helps the second process.
        environment["TRITON_CACHE_DIR"] = str(tmp_path / f"triton{len(outputs)}")
        done = subprocess.run([sys.executable, "-c", COLD_AND_WARM], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.split())
    assert int(outputs[0][0]) > 0
    assert outputs[1] == ["0", "True", "True"]


def test_a_stream_that_is_not_the_default_one() -> None:
    attn = rg.attention(rg.causal())
    x = tensors(8, 16, 1024)
    expected = reference(*x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = [t + 0 for t in x]  # ready only once the stream has slept
        out = attn(*late)
    stream.synchronize()
    close(out, expected)


def test_tables_of_one_stream_are_not_used_on_another() -> None:
    ids = (torch.arange(512, device="cuda") // 100).int().expand(2, -1).contiguous()
    attn = rg.attention(rg.causal(), rg.document(ids))
    x = tensors(length=512)
    expected = attn(*x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = attn(*x)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_tables_follow_their_data() -> None:
    ids = (torch.arange(512, device="cuda") // 100).int().expand(2, -1).contiguous()
    attn = rg.attention(rg.causal(), rg.document(ids))
    x = tensors(length=512)
    attn(*x)
    ids.zero_()
    close(attn(*x), reference(*x))


def test_warm_calls_follow_their_data() -> None:
    attn, x = rg.attention(rg.causal(), _same), tensors(length=512)
    ids = (torch.arange(512, device="cuda") // 100).int()
    with torch.no_grad():
        for step in range(40):
            if step % 4 == 3:
                ids.fill_(0).add_(torch.arange(512, device="cuda").int() // (20 + step))
            if step % 10 == 9:
                values = ids.flip(0)
                del ids
                ids = torch.empty(512, device="cuda", dtype=torch.int32).copy_(values)  # likely in the same memory
            allowed = (ids[:, None] == ids) & torch.ones(512, 512, device="cuda", dtype=torch.bool).tril()
            expected = torch.nn.functional.scaled_dot_product_attention(x[0], x[1], x[2], attn_mask=allowed)
            close(attn(*x, ids=ids), expected)
        assert attn._engine._recent._calls


@rg.mask
def _same(q: Any, kv: Any, ids: torch.Tensor) -> Any:
    return ids[q] == ids[kv]


def test_warm_calls_on_streams_threads_and_in_graphs() -> None:
    ids = (torch.arange(512, device="cuda") // 100).int()
    one = [t[:, :, :1] for t in tensors(length=2)]
    cases = [
        (rg.attention(rg.causal()), tensors(8, 16, 300, 128)),
        (rg.attention(rg.causal(), rg.document(ids)), tensors(length=512)),
        (rg.attention(rg.causal(), align="end"), [one[0], *tensors(length=9000)[1:]]),
    ]

    def same(attn: rg.Attention, x: list[Tensor], expected: Tensor) -> None:
        for _ in range(20):
            assert torch.equal(attn(*x), expected)

    with torch.no_grad():
        for attn, x in cases:
            expected = attn(*x)
            same(attn, x, expected)
            assert attn._engine._recent._calls
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                same(attn, x, expected)
            stream.synchronize()
            failed: list[BaseException] = []
            threads = [threading.Thread(target=_guarded, args=(failed, same, attn, x, expected)) for _ in range(3)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert failed == []
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = attn(*x)
            for _ in range(3):
                out.zero_()
                graph.replay()
                assert torch.equal(out, expected)
            same(attn, x, expected)


def _guarded(failed: list[BaseException], run: Any, *arguments: Any) -> None:
    try:
        with torch.no_grad():
            run(*arguments)
    except BaseException as error:  # a thread would only print it
        failed.append(error)


def test_a_scale_of_zero_has_no_gradients() -> None:
    x = [t.requires_grad_() for t in tensors(8, 16, 512, 128)]
    grad_query, grad_key, grad_value = torch.autograd.grad(rg.attention(rg.causal(), scale=0.0)(*x).sum(), x)
    assert not grad_query.any() and not grad_key.any() and grad_value.any()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    torch.cuda.set_device(0)
    attn = rg.attention(rg.causal())
    for device in ("cuda:1", "cuda:0"):
        x = [t.requires_grad_() for t in tensors(device=device)]
        out = attn(*x)
        out.sum().backward()
        assert out.device == torch.device(device)
        close(out, reference(*x))
        assert all(t.grad is not None and t.grad.isfinite().all() for t in x)
    assert torch.cuda.current_device() == 0


def test_cuda_graphs() -> None:
    ids = (torch.arange(300, device="cuda") // 70).int().expand(2, -1).contiguous()
    for attn in (rg.attention(rg.causal()), rg.attention(rg.causal(), rg.document(ids))):
        x = tensors(length=300)
        attn(*x)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attn(*x)
        for t in x:
            t.normal_()
        graph.replay()
        close(out, attn(*x))


def test_a_captured_graph_reads_its_data_anew() -> None:
    ids = (torch.arange(300, device="cuda") // 70).int().expand(2, -1).contiguous()
    attn = rg.attention(rg.causal(), rg.document(ids))
    x = tensors(length=300)
    attn(*x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attn(*x)
    ids.zero_()
    graph.replay()
    close(out, reference(*x))


def test_threads_compile_once(compilations: list[str]) -> None:
    x = tensors(dim=112)
    attn = rg.attention(rg.causal(), rg.temperature(2.5))
    outs: list[Tensor] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            outs.append(attn(*x))
        except BaseException as error:  # a thread would only print it
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []
    assert all(torch.equal(o, outs[0]) for o in outs)
    assert len(compilations) == len(set(compilations))


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_with_inductor(dynamic: bool) -> None:
    torch._dynamo.reset()
    attn = rg.attention(rg.causal())

    def model(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = attn(query * 2, key, value)
        return out.relu()

    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for length in (200, 333):
        x = [t.requires_grad_() for t in tensors(length=length)]
        a, b = compiled(*x), model(*x)
        close(a, b)
        for g, w in zip(torch.autograd.grad(a.sum(), x), torch.autograd.grad(b.sum(), x), strict=True):
            close(g, w)


def test_reduce_overhead_mode() -> None:
    torch._dynamo.reset()
    attn = rg.attention(rg.causal())
    compiled = torch.compile(lambda q, k, v: attn(q, k, v) + 1, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        x = tensors()
        close(compiled(*x).clone(), attn(*x) + 1)


def test_deterministic_mode_names_what_it_cannot_do() -> None:
    @rg.score
    def biased(s: Any, q: Any, kv: Any, bias: Any) -> Any:
        return s + bias[(q * kv) % 64]

    bias = torch.zeros(64, device="cuda", requires_grad=True)
    attn = rg.attention(rg.causal(), biased(bias=bias))
    attn(*tensors())
    with pytest.raises(UnsupportedError, match="atomic"):
        attn(*tensors(), deterministic=True)
    with pytest.raises(UnsupportedError, match="atomic"):
        torch.use_deterministic_algorithms(True)
        try:
            attn(*tensors())
        finally:
            torch.use_deterministic_algorithms(False)


def test_float32_follows_the_precision_that_torch_allows() -> None:
    x = tensors(dtype=torch.float32, dim=128)
    attn = rg.attention()
    query, key, value = (t.double() for t in x)
    exact = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    errors = {}
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        errors[precision] = (attn(*x) - exact).abs().max().item()
    torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 1e-5 < errors["high"] < 1e-2


def test_no_host_synchronisation() -> None:
    ids = (torch.arange(300, device="cuda") // 70).int().expand(2, -1).contiguous()
    attn = rg.attention(rg.causal(), rg.document(ids))
    x = [t.requires_grad_() for t in tensors(length=300)]
    attn(*x).sum().backward()
    ids.add_(1)  # classify again
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings(action="ignore"):
            attn(*x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
