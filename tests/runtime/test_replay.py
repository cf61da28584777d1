"""Repeated launches without a GPU: Triton's own launcher over a C function that only notes what it is given."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import regard as rg
from regard.runtime import counters, engine, tables
from regard.runtime.bounded import Bounded
from replays import TensorMap, inputs, kept, with_names

triton = pytest.importorskip("triton")

from regard.runtime import direct  # noqa: E402  (they import triton)

pytestmark = pytest.mark.usefixtures("shared_cache", "without_gradients")


@rg.score
def add(s: Any, q: Any, kv: Any, bias: Any) -> Any:
    return s + bias[q, kv]


CASES: dict[str, tuple[Callable[[], rg.Attention], Callable[[], list[Tensor]], int]] = {
    "descriptors": (lambda: rg.attention(rg.sliding_window(31), rg.alibi(heads=4)), lambda: inputs(2, 4, 65, 32), 1),
    "pointers": (lambda: rg.attention(rg.causal()), lambda: [x[..., 1:] for x in inputs(1, 2, 33, 18)], 1),
    "split keys": (lambda: rg.attention(rg.causal(), align="end"), lambda: inputs(1, 2, 1, 32, kv_len=9000), 2),
    "documents": (lambda: rg.attention(rg.document(torch.arange(65) // 9)), lambda: inputs(1, 2, 65, 16), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_replay_passes_what_the_module_passes(launches: list[tuple[Any, ...]], way: str, case: str) -> None:
    make, tensors, count = CASES[case]
    attn, x = make(), tensors()
    seen: list[list[list[Any]]] = []
    for _ in range(4):
        launches.clear()
        out, aux = attn(*x, aux=("lse",))
        if case == "documents" and not seen:
            del launches[:2]  # the table of tiles, which is kept
        assert len(launches) == count
        names = dict(zip(("query", "key", "value", "out", "lse"), (*x, out, aux.lse), strict=True))
        seen.append(with_names(launches, names))
        assert any("out" in launch for launch in seen[-1])
    assert seen == [seen[0]] * 4
    (repeated,) = kept(attn)
    assert repeated is not None
    for step in repeated._steps:
        assert (type(step.function).__name__ == "CFunction") == (way == "direct")


def test_the_warp_specialised_kernel_is_replayed_with_a_fresh_counter(
    launches: list[tuple[Any, ...]], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_fills", lambda *_: True)
    attn, x = rg.attention(rg.causal()), inputs(1, 2, 300, 128)
    seen, used = [], []
    for _ in range(6):
        launches.clear()
        out, aux = attn(*x, aux=("lse",))
        names = dict(zip(("query", "key", "value", "out", "lse"), (*x, out, aux.lse), strict=True))
        seen.append(with_names(launches, names))
        place = seen[-1][0].index("memory 0")  # nothing else is neither input nor output
        used.append(launches[0][place])
    assert seen == [seen[0]] * 6 and "memory 1" not in seen[0][0]
    fresh = used[2:]
    assert len(set(fresh)) == len(fresh) and not any(a % 16 for a in fresh)
    # What is captured resets its counter itself.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(counters, "take", None)
    attn(*x)
    assert launches[-1][place] not in fresh


def test_a_work_list_is_made_once_and_anew_in_every_graph(
    launches: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_fills", lambda *_: True)
    attn, x = rg.attention(rg.global_tokens(5) | rg.sliding_window(9, 9)), inputs(1, 2, 300, 128)
    counts = []

    def call(attn: rg.Attention) -> None:
        launches.clear()
        attn(*x)
        counts.append(len(launches))

    for _ in range(5):
        call(attn)
    assert counts == [4, 2, 2, 2, 2]
    call(rg.attention(rg.global_tokens(6) | rg.sliding_window(9, 9)))  # other values, another list
    call(attn)
    assert counts[5:] == [4, 2]
    monkeypatch.setattr(tables, "_capturing", lambda _: True)
    for _ in range(2):
        call(attn)
    assert counts[7:] == [4, 4]


def test_maps_are_encoded_once_for_an_address(driver: Any, launches: list[tuple[Any, ...]], way: str) -> None:
    attn = rg.attention(rg.causal())
    x, y = inputs(1, 2, 64, 32), inputs(1, 2, 64, 32)
    for tensors in (x, x, x, y):
        attn(*tensors)
    before = driver.encoded
    for _ in range(3):
        attn(*x)
        attn(*y)
    assert driver.encoded - before == (0 if way == "direct" else 18)
    maps = [a for a in launches[-1] if isinstance(a, TensorMap)]
    assert [m[0] for m in maps] == [t.data_ptr() for t in y]


def test_kept_maps_are_bounded(launches: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_MAPS_LIMIT", 3)
    attn = rg.attention(rg.causal())
    alive = [inputs(1, 2, 64, 32) for _ in range(8)]
    for x in alive:
        attn(*x)
        assert [a[0] for a in launches[-1] if isinstance(a, TensorMap)] == [t.data_ptr() for t in x]
    (repeated,) = kept(attn)
    assert all(0 < len(m[-1].kept) <= 3 for step in repeated._steps for m in step.maps)


def test_memory_that_is_reused_with_another_shape(launches: list[tuple[Any, ...]], way: str) -> None:
    attn, memory = rg.attention(rg.causal()), torch.zeros(8 * 64 * 32, dtype=torch.float16)
    for _ in range(4):
        for shape in ((1, 8, 64, 32), (2, 4, 64, 32), (4, 8, 16, 32)):
            x = memory.view(shape)
            attn(x, x, x)
            for encoded in (a for a in launches[-1] if isinstance(a, TensorMap)):
                assert encoded[0] == memory.data_ptr()
                assert x.shape in encoded and x.stride() in encoded


def test_other_strides_of_a_captured_tensor(launches: list[tuple[Any, ...]]) -> None:
    attn, x = rg.attention(add), inputs(1, 2, 48, 16)
    straight = torch.zeros(48, 48)
    turned = torch.zeros(48, 96)[:, ::2]
    for _ in range(4):
        for bias in (straight, turned):
            attn(*x, bias=bias)
            place = launches[-1].index(bias.data_ptr())
            assert tuple(launches[-1][place + 1 : place + 3]) == bias.stride()


def test_a_captured_tensor_whose_sign_is_pending(driver: Any, launches: list[tuple[Any, ...]]) -> None:
    attn, x, read = rg.attention(add), inputs(1, 2, 48, 16), list[float]()
    bias = torch.full((48, 48), 2j).conj().imag  # memory holds 2, a flag says that -2 is meant
    strided = torch.zeros(48, 96)[:, ::2]
    attn(*x, bias=strided)
    place = launches[-1].index(strided.data_ptr())

    def look(launch: tuple[Any, ...]) -> None:
        read.append(float(np.frombuffer(ctypes.string_at(launch[place], 4), np.float32)[0]))

    driver.launched = look
    for _ in range(4):
        attn(*x, bias=bias)
    assert bias.is_neg() and read == [-2.0] * 4


def test_zeros_of_both_signs(launches: list[tuple[Any, ...]]) -> None:
    @rg.score
    def over(s: Any, by: float) -> Any:
        return s / by

    attn, x = rg.attention(over), inputs(1, 2, 48, 16)
    for _ in range(4):
        for by in (0.0, -0.0, 1.0):
            attn(*x, by=by)
            passed = [a for a in launches[-1] if isinstance(a, float)]
            assert str(by) in map(str, passed)


def test_another_alignment_goes_through_the_module(launches: list[tuple[Any, ...]], compiled: list[str]) -> None:
    attn, x = rg.attention(add), inputs(1, 2, 48, 16)
    memory = torch.zeros(48 * 48 + 1)
    aligned, unaligned = memory[:-1].view(48, 48), memory[1:].view(48, 48)
    for _ in range(3):
        attn(*x, bias=aligned)
    count = len(compiled)
    attn(*x, bias=unaligned)
    assert len(compiled) == 2 * count
    assert unaligned.data_ptr() in launches[-1]


def test_hooks_see_every_launch(launches: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    attn, x = rg.attention(rg.causal()), inputs(1, 2, 64, 16)
    for _ in range(3):
        attn(*x)
    assert kept(attn)[0]
    hook = SimpleNamespace(calls=[lambda described: None])
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", hook)
    attn(*x)
    assert hook in launches[-1]
    monkeypatch.undo()


def test_inputs_are_not_kept_alive(launches: list[tuple[Any, ...]], way: str) -> None:
    attn = rg.attention(rg.causal())
    arrays = [np.zeros((1, 2, 64, 32), np.float16) for _ in range(3)]
    alive = [weakref.ref(a) for a in arrays]
    x = list(map(torch.from_numpy, arrays))
    for _ in range(3):
        attn(*x)
    assert kept(attn)[0]
    del x, arrays
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_a_module_that_computes_is_replayed_with_its_operators(
    driver: Any, launches: list[tuple[Any, ...]], way: str
) -> None:
    attn, x = rg.attention(rg.causal(), scale=-0.25), inputs(1, 2, 64, 16)
    read: list[float] = []

    def look(launch: tuple[Any, ...]) -> None:
        query = next(a for a in launch if isinstance(a, TensorMap))[0]
        read.append(float(np.frombuffer(ctypes.string_at(query, 2), np.float16)[0]))

    driver.launched = look
    for value in (1.0, 2.0, 3.0, 4.0):
        attn(x[0].fill_(value), *x[1:])  # negates the query, so that the scale is positive
    assert kept(attn)[0]
    assert read == [-1.0, -2.0, -3.0, -4.0]


def test_launches_that_need_scratch_memory(launches: list[tuple[Any, ...]], driver: Any) -> None:
    usual = driver.launcher_cls

    def with_scratch(source: Any, metadata: Any) -> Any:
        made = usual(source, metadata)
        made.global_scratch_size = 64
        return made

    driver.launcher_cls = with_scratch
    taken: list[int] = []

    def allocate(size: int, alignment: int, stream: int | None) -> Any:
        taken.append(size)
        return torch.empty(size, dtype=torch.int8)

    triton.set_allocator(allocate)
    try:
        attn, x = rg.attention(rg.causal()), inputs(1, 2, 64, 16)
        for _ in range(4):
            attn(*x)
    finally:
        triton.set_allocator(triton.runtime._allocation.NullAllocator())
    assert len(taken) == 4 and kept(attn)[0]


def test_each_thread_launches_with_its_own_tensors(launches: list[tuple[Any, ...]]) -> None:
    attn = rg.attention(rg.causal())
    attn(*inputs(1, 2, 64, 32))
    alive = [[inputs(1, 2, 64, 32) for _ in range(20)] for _ in range(4)]

    def call(own: list[list[Tensor]]) -> None:
        with torch.no_grad():
            for x in own:
                attn(*x)

    threads = [threading.Thread(target=call, args=(own,)) for own in alive]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    expected = {tuple(t.data_ptr() for t in x) for own in alive for x in own}
    passed = {tuple(a[0] for a in launch if isinstance(a, TensorMap)) for launch in launches[1:]}
    assert passed == expected


def test_counters_are_handed_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_blocks", Bounded(4))
    monkeypatch.setattr(counters, "_COUNT", 50)
    cpu, taken = torch.device("cpu"), []

    def take(stream: int) -> None:
        for _ in range(300):
            taken.append(counters.take(cpu, stream))

    threads = [threading.Thread(target=take, args=(stream,)) for stream in (1, 1, 1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    addresses = [address for address, _ in taken]
    assert len(set(addresses)) == len(addresses) == 1200
    for address, memory in taken:
        assert address % 16 == 0 and 0 <= address - memory.data_ptr() < memory.nbytes
        assert not memory.any()
