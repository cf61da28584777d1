"""Which calls are taken for the like of a recent one, and which are not."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import regard as rg
from regard.codegen.schedule import Schedule
from regard.runtime import devices, engine, tables
from regard.runtime.bounded import Bounded
from regard.runtime.compile import Request
from replays import inputs, kept

pytest.importorskip("triton")

Launches = list[tuple[Any, ...]]


pytestmark = pytest.mark.usefixtures("shared_cache", "without_gradients")


@rg.score
def add(s: Any, q: Any, kv: Any, bias: Any) -> Any:
    return s + bias[q, kv]


@rg.score
def times(s: Any, by: float) -> Any:
    return s * by


def warmed(attn: rg.Attention, *x: Tensor, **parameters: Any) -> Callable[..., Any]:
    """What says whether the engine knows a call, after four with ``x``."""
    for _ in range(4):
        attn(*x, **parameters)

    def known(*tensors: Tensor) -> bool:
        buffers, scalars = attn._with_open(parameters) if parameters else attn._bound or ((), ())
        query, key, value, *captured = tensors or x
        return attn._engine.again(query, key, value, captured or buffers, scalars) is not None

    assert known()
    return known


def test_a_warm_call_launches_the_same_and_prepares_nothing(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    attn, x = rg.attention(rg.causal()), inputs(1, 2, 64, 32)
    warmed(attn, *x)
    before = [a for a in launches[0] if isinstance(a, tuple)][-3:]
    monkeypatch.setattr(engine.Engine, "_prepare", None)
    launches.clear()
    out, aux = attn(*x, aux=("lse",))
    assert out.shape == x[0].shape and aux.lse.shape == x[0].shape[:3]
    (launch,) = launches
    assert [a for a in launch if isinstance(a, tuple)][-3:] == before
    assert attn(x[0], x[0], x[0]).shape == out.shape  # one tensor passed three times looks the same


def test_a_faster_program_is_used_from_the_next_call_on(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    attn, x = rg.attention(rg.causal()), inputs(1, 2, 64, 32)
    known = warmed(attn, *x)
    usual = launches[-1]

    def found(request: Request, device: torch.device) -> Request:
        return replace(request, schedule=Schedule(16, 16), skeleton="triton")

    monkeypatch.setattr(engine, "tuned", found)
    attn._engine.forget_programs()
    assert not known()
    for _ in range(4):
        launches.clear()
        attn(*x)
        assert launches[-1][0] > usual[0]  # more programs, as tiles are smaller
    assert known()


def test_calls_of_several_shapes_stay_warm(launches: Launches) -> None:
    attn = rg.attention(rg.causal())
    shapes = [inputs(1, 2, n, 32) for n in (64, 80, 96, 112)]
    asked = [warmed(attn, *x) for x in shapes]
    assert all(known() for known in asked)
    for n in range(8):
        warmed(attn, *inputs(1, 1, 32 + 16 * n, 16))
    assert len(attn._engine._recent._calls) == 4 and not asked[0]()


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "a mode": Watching,
    "autocast": lambda: torch.autocast("cpu", torch.float16),
    "tangents": forward_ad.dual_level,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_watches_is_seen(launches: Launches, name: str) -> None:
    known = warmed(rg.attention(rg.causal()), *inputs(1, 2, 64, 32))
    with CONTEXTS[name]():
        assert not known()
    assert known()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_transforms_and_traces_are_seen(launches: Launches) -> None:
    known, asked = warmed(rg.attention(rg.causal()), *inputs(1, 2, 64, 32)), list[bool]()

    def ask(x: Tensor) -> Tensor:
        asked.append(known())
        return x.sum()

    torch.func.vmap(ask)(torch.zeros(2, 3))
    torch.func.grad(ask)(torch.zeros(3))
    torch.jit.trace(ask, torch.zeros(3), check_trace=False)
    assert len(asked) >= 3 and not any(asked)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a subclass": lambda x: TwoTensor(x, x.clone()),
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "no memory": lambda x: x.to("meta"),
    "a pending sign": lambda x: torch._neg_view(x),
    "another dtype": lambda x: x.bfloat16(),
    "other strides": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "another shape": lambda x: x[:, :, :-1],
    "another alignment": lambda x: torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape),
    "a required gradient": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("place", range(3))
def test_tensors_that_look_otherwise_are_seen(launches: Launches, name: str, place: int) -> None:
    x = inputs(1, 2, 64, 32)
    known = warmed(rg.attention(rg.causal()), *x)
    assert not known(*x[:place], OTHERS[name](x[place]), *x[place + 1 :])
    assert known(*(t.clone() for t in x))


@pytest.mark.parametrize("name", [n for n in OTHERS if n != "no memory"])
def test_captured_tensors_that_look_otherwise_are_seen(launches: Launches, name: str) -> None:
    x, bias = inputs(1, 2, 64, 32), torch.zeros(1, 64, 64, dtype=torch.float16)

    @rg.score
    def added(s: Any, q: Any, kv: Any, table: Any) -> Any:
        return s + table[0, q, kv]

    known = warmed(rg.attention(added), *x, table=bias)
    assert known(*x, bias.clone())
    assert not known(*x, OTHERS[name](bias))


def test_gradients_are_asked_for(launches: Launches) -> None:
    x = [t.requires_grad_() for t in inputs(1, 2, 64, 32)]
    attn = rg.attention(rg.causal())
    known = warmed(attn, *x)
    with torch.enable_grad():
        assert not known()
        assert attn(*x).requires_grad
    assert not attn(*x).requires_grad


def test_what_torch_allows_is_asked_for(launches: Launches) -> None:
    known = warmed(rg.attention(rg.causal()), *(t.float() for t in inputs(1, 2, 64, 32)))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
        assert not known()
    finally:
        torch.set_float32_matmul_precision(before)
    assert known()


def test_scalars_are_told_apart_exactly(launches: Launches) -> None:
    attn, x = rg.attention(times), inputs(1, 2, 48, 16)
    for by in (math.inf, 0.0, -0.0, 2.0) * 4:
        attn(*x, by=float(str(by)))  # another object every time
        (passed,) = {str(a) for a in launches[-1] if isinstance(a, float)} - {"0.25"}
        assert passed == str(by)
    assert len(kept(attn)) == 4 and all(kept(attn))


# What the mask reads: how it changes, and whether the tensor is another one then.
CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda ids: ids.add_(1),
    "through a view": lambda ids: ids[3:].zero_(),
    "other memory": lambda ids: setattr(ids, "data", ids + 1),
}


def numbers(attn: rg.Attention, x: list[Tensor], launches: Launches) -> tuple[Any, ...]:
    """Addresses of the tile tables that a call launches with."""
    attn(*x)
    made = [k.flat for k in tables._tables.values()]
    return tuple(t.data_ptr() for flat in made for t in flat if t.data_ptr() in launches[-1])


@pytest.mark.parametrize("change", CHANGES)
def test_tables_follow_their_data(launches: Launches, change: str) -> None:
    tables._tables.clear()
    ids = torch.arange(65) // 9
    attn, x = rg.attention(rg.document(ids)), inputs(1, 2, 65, 16)
    known = warmed(attn, *x)
    before = numbers(attn, x, launches)
    assert len(before) == 2
    CHANGES[change](ids)
    assert not known()
    after = numbers(attn, x, launches)
    assert len(after) == 2 and not set(after) & set(before)
    assert known()


def test_memory_that_another_tensor_got(launches: Launches) -> None:
    tables._tables.clear()
    memory, x = np.arange(65) // 9, inputs(1, 2, 65, 16)
    ids = torch.from_numpy(memory)

    @rg.mask
    def same(q: Any, kv: Any, ids: torch.Tensor) -> Any:
        return ids[q] == ids[kv]

    attn = rg.attention(same)
    known = warmed(attn, *x, ids=ids)
    assert not known(*x, torch.from_numpy(memory))
    del known, ids
    gc.collect()
    assert not tables._tables  # they die with their data, although a warm call knows them
    # Likely one with the identity of the first, too.
    assert attn._engine.again(x[0], x[1], x[2], (torch.from_numpy(memory),), ()) is None


def test_tables_are_those_of_the_stream_and_not_for_a_graph(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = warmed(rg.attention(rg.document(torch.arange(65) // 9)), *inputs(1, 2, 65, 16))
    for name, value in (("_stream", 18), ("_capturing", True)):
        with monkeypatch.context() as patch:
            patch.setattr(tables, name, lambda _, value=value: value)
            assert not known()
        assert known()


def test_another_device_is_seen(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    known = warmed(rg.attention(rg.causal()), *inputs(1, 2, 64, 32))
    monkeypatch.setattr("regard.runtime.warm.is_here", lambda x: False)
    assert not known()


def test_each_thread_asks_for_a_context_of_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []
    current = 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: asked.append((threading.current_thread().name, d)))
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current, raising=False)
    monkeypatch.setattr(devices, "_thread", threading.local())
    on: list[Any] = [SimpleNamespace(is_cuda=True, get_device=lambda device=device: device) for device in (0, 1)]

    def ask() -> None:
        for _ in range(2):
            assert devices.is_here(on[0]) and not devices.is_here(on[1])

    thread = threading.Thread(target=ask, name="other")
    ask()
    thread.start()
    thread.join()
    main = threading.current_thread().name
    assert asked == [(main, 0), (main, 1), ("other", 0), ("other", 1)]


def test_addresses_that_are_unaligned_in_another_way(launches: Launches) -> None:
    attn, x, memory = rg.attention(add), inputs(1, 2, 48, 16), torch.zeros(48 * 48 + 2)
    first, second = (memory[n : n + 48 * 48].view(48, 48) for n in (1, 2))
    # Both are unaligned, but a view of 12 bytes further on is aligned in one of them only.
    for _ in range(3):
        attn(*x, bias=first)
    (repeated,) = kept(attn)
    assert repeated((*x, first)) is not None and repeated((*x, second)) is None


def test_what_launches_alone_use_does_not_overlap(launches: Launches) -> None:
    attn, x = rg.attention(rg.causal(), align="end"), inputs(1, 2, 1, 32, kv_len=9000)
    warmed(attn, *x)
    launches.clear()
    out, aux = attn(*x, aux=("lse",))
    (repeated,) = kept(attn)
    assert len(repeated._allocations) == 3
    named = {t.data_ptr() for t in (*x, out, aux.lse)}
    pieces = sorted({a for launch in launches for a in launch if type(a) is int and a > 2**40} - named)
    parts = launches[1][0]  # the programs of the merge: one for each row
    assert len(pieces) == 2 and parts >= 1
    splits = (pieces[1] - pieces[0]) // (2 * 32 * 4)
    assert splits > 1 and not any(a % 16 for a in pieces)
    assert repeated._allocations[-1][0][0] >= (pieces[1] - pieces[0]) + splits * 2 * 4


def test_kept_launches_are_bounded(launches: Launches) -> None:
    attn = rg.attention(times)
    attn._engine._replays = Bounded(5)
    x = inputs(1, 2, 48, 16)
    for n in range(20):
        for _ in range(3):
            attn(*x, by=float(n))
            assert float(n) in launches[-1]
    assert len(attn._engine._replays) == 5 and len(kept(attn)) == 5


def test_masks_that_are_made_again_find_their_engine(launches: Launches) -> None:
    def made() -> rg.Attention:
        return rg.attention(rg.causal() & rg.document(torch.arange(65) // 9))

    first = made()
    known = first._engine
    del first
    gc.collect()
    assert made()._engine is known
    assert rg.attention(rg.causal(), name="other")._engine is not rg.attention(rg.causal())._engine
    zeros = [rg.attention(rg.causal(), scale=scale) for scale in (0.0, -0.0)]
    assert zeros[0]._text != zeros[1]._text
