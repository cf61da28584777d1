"""Backward passes repeated without a GPU: launches as in ``test_replay.py``, and operators on tensors for real."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace as changed
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import regard as rg
from regard.runtime import engine, tables
from replays import inputs, with_names

pytest.importorskip("triton")

from regard.runtime import replay
from regard.runtime.direct import Call

pytestmark = pytest.mark.usefixtures("shared_cache")


@rg.score
def add(s: Any, q: Any, kv: Any, bias: Any) -> Any:
    return s + bias[q, kv]


@rg.mask
def image_after_text(q: Any, kv: Any, text: Any) -> Any:
    """Few rows see all: programs share what these visit."""
    (y, x), (j, i) = IMAGE(q - text), IMAGE(kv - text)
    return (q < text) | (kv < text) | (abs(y - j) <= 2) & (abs(x - i) <= 2)


def learned(*shape: int) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def shared(heads: int, kv_heads: int, length: int, dim: int) -> list[Tensor]:
    """Keys and values that several heads of queries share."""
    query, *rest = inputs(1, heads, length, dim)
    return [query, *(x[:, :kv_heads] for x in rest)]


IMAGE = rg.grid(8, 64)

# An attention, its inputs, and how many kernels its backward pass launches.
CASES: dict[str, tuple[Callable[[], rg.Attention], Callable[[], list[Tensor]], int]] = {
    "descriptors": (lambda: rg.attention(rg.sliding_window(31)), lambda: inputs(2, 4, 65, 32), 3),
    "pointers": (lambda: rg.attention(rg.causal()), lambda: [x[..., 1:] for x in inputs(1, 2, 33, 18)], 3),
    "documents": (lambda: rg.attention(rg.document(torch.arange(65) // 9)), lambda: inputs(1, 2, 65, 16), 3),
    "sums over groups": (lambda: rg.attention(rg.causal()), lambda: shared(4, 2, 65, 16), 3),
    "captured, by head": (lambda: rg.attention(rg.alibi(learned(2))), lambda: inputs(1, 2, 33, 16), 3),
    "captured, by pair": (lambda: rg.attention(add(bias=learned(33, 33))), lambda: inputs(1, 2, 33, 16), 3),
}


@contextmanager
def no_runs(attn: rg.Attention) -> Iterator[None]:
    """Within it, generated modules may not run."""

    def run(*_: object, **__: object) -> Any:
        raise AssertionError("the module ran")

    prepared = attn._engine._prepared
    before = dict(prepared)
    for key, p in before.items():
        assert p.program is not None
        prepared[key] = p._replace(program=changed(p.program, run=run))
    try:
        yield
    finally:
        prepared.update(before)


def backward(
    attn: rg.Attention, x: list[Tensor], grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """All tensors by name, and the gradients, of a forward and a backward pass."""
    x = [t.requires_grad_() for t in x]
    out, aux = attn(*x, aux=("lse",))
    assert attn._bound is not None
    wanted = [*x, *(b for b in attn._bound[0] if b.requires_grad)]
    outputs, given = ([out], [grad_out]) if grad_lse is None else ([out, aux.lse], [grad_out, grad_lse])
    gradients = torch.autograd.grad(outputs, wanted, given)
    names = {"query": x[0], "key": x[1], "value": x[2], "out": out, "lse": aux.lse, "grad_out": grad_out}
    names |= {f"gradient {i}": g for i, g in enumerate(gradients)}
    return names | ({} if grad_lse is None else {"grad_lse": grad_lse}), gradients


@pytest.mark.parametrize("with_lse", [False, True], ids=["out", "out and lse"])
@pytest.mark.parametrize("case", CASES)
def test_a_replay_passes_what_the_module_passes(launches: list[tuple[Any, ...]], case: str, with_lse: bool) -> None:
    make, tensors, count = CASES[case]
    attn, x = make(), tensors()
    grad_out = torch.zeros_like(x[2][:, :1].expand(-1, x[0].shape[1], -1, -1), memory_format=torch.contiguous_format)
    grad_lse = torch.zeros(grad_out.shape[:3]) if with_lse else None
    seen = []
    for n in range(4):
        launches.clear()
        with no_runs(attn) if n > 1 else nullcontext():
            names, _ = backward(attn, x, grad_out, grad_lse)
        if case == "documents" and n == 0:
            del launches[:2], launches[1:5]  # the tables of tiles of both passes, which are kept
        assert len(launches) == 1 + count
        seen.append(with_names(launches, names))
    assert seen == [seen[0]] * 4


def test_shares_are_added_up_between_launches(launches: list[tuple[Any, ...]]) -> None:
    attn, x = rg.attention(image_after_text(text=32)), inputs(1, 2, 544, 16)
    grad_out, seen = torch.zeros_like(x[0]), []
    for n in range(4):
        launches.clear()
        with no_runs(attn) if n > 1 else nullcontext():
            names, _ = backward(attn, x, grad_out, None)
        assert [launch[0] for launch in launches[:3]] == [8, 64, 8]  # shares, rows that are merged, boxes
        assert len(launches) == 3 + 5
        seen.append(with_names(launches[3:], names))
    assert seen == [seen[0]] * 4


@pytest.mark.parametrize("spread", [False, True], ids=["one program for a group", "one for each head"])
def test_the_warp_specialised_kernel(
    launches: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, spread: bool
) -> None:
    monkeypatch.setattr(engine, "_fills", lambda *_: True)
    attn, x = rg.attention(rg.causal()), shared(4, 2 if spread else 4, 300, 128)
    grad_out, seen = torch.zeros(1, 4, 300, 128, dtype=torch.float16), []
    for n in range(4):
        launches.clear()
        with no_runs(attn) if n > 1 else nullcontext():
            names, _ = backward(attn, x, grad_out, None)
        assert len(launches) == 4
        seen.append(with_names(launches[1:], names))
    assert seen == [seen[0]] * 4
    assert any("gradient 0" in launch for launch in seen[0])


def test_groups_are_summed_after_the_launches(driver: Any, launches: list[tuple[Any, ...]]) -> None:
    attn, x = rg.attention(rg.causal()), shared(4, 2, 65, 16)
    grad_out, value = torch.zeros_like(x[0]), 0.0

    def fill(launch: tuple[Any, ...]) -> None:
        """The gradients of keys and values of each head are ``value`` times its number, in float32."""
        if len(launches) % 4 == 3:
            heads = np.repeat(np.arange(4, dtype=np.float32), 65 * 16) * value
            for address in [a for a in launch if type(a) is int and a > 2**40][:2]:
                ctypes.memmove(address, heads.ctypes.data, heads.nbytes)

    driver.launched = fill
    for value in (1.0, 2.0, 3.0, 4.0):
        _, (_, grad_key, grad_value) = backward(attn, x, grad_out, None)
        for gradient in (grad_key, grad_value):
            assert gradient.dtype is torch.float16
            assert (gradient[:, 0] == value).all() and (gradient[:, 1] == 5 * value).all()


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda g: g,
    "expanded": lambda g: g[:1, :1, :1, :1].expand(g.shape),
    "transposed": lambda g: g.transpose(1, 2).contiguous().transpose(1, 2),
    "last axis": lambda g: g.mT.contiguous().mT,
    "unaligned": lambda g: torch.zeros(g.numel() + 1, dtype=g.dtype)[1:].view(g.shape),
}


def test_gradients_of_all_kinds_in_turn(launches: list[tuple[Any, ...]]) -> None:
    attn, x = rg.attention(rg.causal()), inputs(2, 4, 65, 32)
    grad_out, grad_lse = torch.zeros_like(x[0]), torch.zeros(2, 4, 65)
    kinds = [(name, lse) for name in GRADIENTS for lse in (None, grad_lse, grad_lse.mT.contiguous().mT)]
    seen: dict[Any, list[Any]] = {}
    for _ in range(4):
        for i, (name, lse) in enumerate(kinds):
            launches.clear()
            names, _ = backward(attn, x, GRADIENTS[name](grad_out), lse)
            seen.setdefault(i, []).append(with_names(launches, names))
    for repeated in seen.values():
        assert repeated == [repeated[0]] * 4
    passed = [kinds[i] for i, launches in seen.items() if any("grad_out" in str(x) for x in launches[0])]
    assert {name for name, _ in passed} == {"contiguous", "transposed"}  # the others are copied


def test_a_graph_is_differentiated_twice(launches: list[tuple[Any, ...]]) -> None:
    attn, x = rg.attention(rg.causal()), [t.requires_grad_() for t in inputs(1, 2, 64, 16)]
    for _ in range(3):
        launches.clear()
        out = attn(*x)
        first = torch.autograd.grad(out, x, torch.zeros_like(out), retain_graph=True)
        second = torch.autograd.grad(out, x, torch.zeros_like(out))
        assert len(launches) == 7
        assert not {t.data_ptr() for t in first} & {t.data_ptr() for t in second}


def test_tables_are_made_once(launches: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    ids, made = torch.arange(65) // 9, []
    attn, x = rg.attention(rg.document(ids)), inputs(1, 2, 65, 16)
    usual = tables.tiles

    def tiles(facts: Any, data: Any, device: Any, classify: Any) -> Any:
        def noted() -> Any:
            made.append(facts)
            return classify()

        return usual(facts, data, device, noted)

    monkeypatch.setattr(tables, "tiles", tiles)
    for _ in range(4):
        backward(attn, x, torch.zeros_like(x[0]), None)
    assert len(made) == 2  # forward and backward
    ids += 1
    backward(attn, x, torch.zeros_like(x[0]), None)
    assert len(made) == 4


def test_each_thread_has_its_own_tensors(launches: list[tuple[Any, ...]]) -> None:
    attn = rg.attention(rg.causal())
    alive = [[inputs(1, 2, 64, 32) for _ in range(10)] for _ in range(4)]
    grad_out = torch.zeros_like(alive[0][0][0])
    for _ in range(2):
        backward(attn, alive[0][0], grad_out, None)
    launches.clear()

    def call(own: list[list[Tensor]]) -> None:
        for x in own:
            backward(attn, x, grad_out, None)

    threads = [threading.Thread(target=call, args=(own,)) for own in alive]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    text = [str(launch) for launch in launches]
    for x in (x for own in alive for x in own):
        assert [sum(str(t.data_ptr()) in launch for launch in text) for t in x] == [3, 3, 3]


class Kernels:
    """A launcher of Python functions on float32 vectors of four elements, by their addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launches: list[Any] = []
        monkeypatch.setattr(replay, "call_of", self._call_of)

    @contextmanager
    def recording(self) -> Iterator[list[Any]]:
        self.launches = []
        yield self.launches

    def __call__(self, kernel: Callable[..., None], *tensors: Tensor) -> None:
        self.launches.append((kernel, tensors))
        self._run(kernel, [x.data_ptr() for x in tensors])

    def _run(self, kernel: Callable[..., None], addresses: list[int]) -> None:
        kernel(*(np.ctypeslib.as_array((ctypes.c_float * 4).from_address(a)) for a in addresses))

    def _call_of(self, launch: Any) -> Call:
        kernel, tensors = launch

        def function(x: int, y: int, z: int, stream: int, *addresses: int) -> None:
            self._run(kernel, [*addresses])

        pointers = tuple((4 + i, x) for i, x in enumerate(tensors))
        return Call(function, [1, 1, 1, None, *([None] * len(tensors))], None, pointers, ())


def double(to: Any, x: Any) -> None:
    to[:] = 2 * x


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, driver: Any) -> Kernels:
    return Kernels(monkeypatch)


def test_operators_and_launches_in_their_order(kernels: Kernels) -> None:
    def run(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        twice, pairs = torch.empty_like(x), torch.zeros(2, 4)
        kernels(double, twice, x)
        kernels(double, pairs[1], twice)
        torch.ops.aten.index_put_(pairs, [None, places], torch.ones(2, 2), True)
        total = pairs.sum(0)
        kernels(double, twice, total)  # again, from what an operator made
        kernels(double, x := torch.empty(4), total.view(2, 2)[:1])
        return twice, pairs.t(), torch.cat([twice, x], dim=0).view(2, 4)

    _, repeated = replay.record(kernels, run, (torch.ones(4), torch.tensor([1, 1])))  # type: ignore[arg-type]
    assert repeated is not None
    for t in range(3):
        x, places = torch.arange(4.0) + t, torch.tensor([0, 2 - t])
        expected, actual = run(x, places), repeated((x, places))
        assert actual is not None
        for a, b in zip(actual, expected, strict=True):
            assert a.stride() == b.stride() and torch.equal(a, b)
        assert not {a.data_ptr() for a in actual} & {x.data_ptr() for x in expected}


CONSTANT = torch.ones(4)


def returns(x: Tensor) -> Tensor:
    return x


def looks(x: Tensor) -> Tensor:
    return x * 2 if x[0].item() else x * 3


def copies_and_looks(x: Tensor) -> Tensor:
    return x * float(x.to("meta").shape[0])


def reads_elsewhere(x: Tensor) -> Tensor:
    return x * CONSTANT


def splits(x: Tensor) -> Tensor:
    first, _ = torch.split(x, 2)
    return torch.relu(first)


@pytest.mark.parametrize("function", [returns, looks, copies_and_looks, reads_elsewhere, splits])
def test_what_is_not_replayed(kernels: Kernels, function: Callable[[Tensor], Tensor]) -> None:
    def run(x: Tensor) -> tuple[Tensor]:
        kernels(double, torch.empty_like(x), x)
        return (function(x),)

    x = torch.ones(4)
    (out,), repeated = replay.record(kernels, run, (x,))  # type: ignore[arg-type]
    assert repeated is None and torch.equal(out, function(x))


def test_inputs_are_not_kept_alive(launches: list[tuple[Any, ...]]) -> None:
    attn = rg.attention(rg.alibi(learned(2)))
    arrays = [np.zeros((1, 2, 64, 32), np.float16) for _ in range(4)]
    alive = [weakref.ref(a) for a in arrays]
    *x, grad_out = map(torch.from_numpy, arrays)
    for _ in range(3):
        backward(attn, x, grad_out, None)
    del x, arrays, grad_out
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4
