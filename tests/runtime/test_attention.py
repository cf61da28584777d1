"""Attention as an object, and the engine behind it."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from oracle import oracle
from regard import ArgumentError, ParameterError
from regard.runtime import compile, engines
from regard.runtime.compile import Request


@rg.mask
def within(q: Any, kv: Any, size: int) -> Any:
    return (q >= kv) & (q - kv < size)


@rg.score
def slanted(s: Any, q: Any, kv: Any, head: Any, slopes: Any) -> Any:
    return s + slopes[head] * (kv - q)


def x(length: int = 19, heads: int = 2) -> list[Tensor]:
    torch.manual_seed(length)
    return [torch.randn(2, heads, length, 16) for _ in range(3)]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The programs generated during a test, none of which were in memory before."""
    requests: list[Request] = []
    generate = compile.generate

    def note(request: Request) -> Any:
        requests.append(request)
        return generate(request)

    monkeypatch.setattr(compile, "generate", note)
    monkeypatch.setattr(compile, "_programs", {})
    monkeypatch.setattr(engines, "_engines", {})
    return requests


def test_text_and_back() -> None:
    attn = rg.attention(within(size=7), rg.softcap(30.0), align="end", scale=0.5, name="mine")
    assert rg.parse(str(attn)) == attn
    assert torch.equal(rg.parse(str(attn))(*x()), attn(*x()))


def test_only_text_is_parsed() -> None:
    with pytest.raises(ArgumentError, match="takes text, got NoneType"):
        rg.parse(None)  # type: ignore[arg-type]


def test_tensors_are_open_in_the_text() -> None:
    slopes = torch.rand(2)
    bound = rg.attention(within(size=7), slanted(slopes=slopes))
    parsed = rg.parse(str(bound))
    assert parsed == bound and repr(parsed).endswith("open: slopes>")
    assert torch.equal(parsed(*x(), slopes=slopes), bound(*x()))


def test_equality_is_structure_and_scalars() -> None:
    a = rg.attention(within(size=7), name="a")
    assert a == rg.attention(within(size=7), name="b") and hash(a) == hash(rg.attention(within(size=7)))
    assert a != rg.attention(within(size=8)) and a != rg.attention(within(size=7), scale=1.0) and a != "a"
    by_tensor = [rg.attention(slanted(slopes=torch.rand(2))) for _ in range(2)]
    assert by_tensor[0] == by_tensor[1]


def test_open_parameters() -> None:
    slopes = torch.rand(2)
    bound = rg.attention(within(size=5), slanted(slopes=slopes))
    half = rg.attention(within, slanted(slopes=slopes))
    whole = rg.attention(within, slanted)
    assert torch.equal(half(*x(), size=5), bound(*x()))
    assert torch.equal(whole(*x(), size=5, slopes=slopes), bound(*x()))
    assert torch.equal(whole.with_values(size=5, slopes=slopes)(*x()), bound(*x()))


def test_with_values() -> None:
    attn = rg.attention(within(size=5))
    assert attn.with_values(size=6) == rg.attention(within(size=6)) and attn == rg.attention(within(size=5))
    with pytest.raises(ParameterError, match="did you mean `size`"):
        attn.with_values(sise=6)
    with pytest.raises(ArgumentError, match="must be an int"):
        attn.with_values(size=6.5)


def test_pickle() -> None:
    attn = rg.attention(within(size=5), slanted(slopes=torch.rand(2)))
    assert torch.equal(pickle.loads(pickle.dumps(attn))(*x()), attn(*x()))


def test_aux() -> None:
    out, aux = rg.attention(within(size=5))(*x(), aux=("lse",))
    assert torch.equal(out, rg.attention(within(size=5))(*x()))
    assert aux.lse.shape == (2, 2, 19) and aux.lse.dtype is torch.float32


def test_scale() -> None:
    query, key, value = x()
    by_two = rg.attention(scale=0.5)(query, key, value)  # the default for heads of 16 is a quarter
    torch.testing.assert_close(by_two, rg.attention()(query * 2, key, value))
    torch.testing.assert_close(rg.attention(scale=0.25)(query, key, value), rg.attention()(query, key, value))


def test_fifty_shapes_and_values_are_one_program(generated: list[Request]) -> None:
    for i in range(50):
        attn = rg.attention(within(size=1 + i), rg.softcap(5.0 + i), scale=0.1 + 0.01 * i, name=f"name{i}")
        query, _, _ = x(1 + 7 * i, heads=2 << (i % 3))
        _, key, value = x(3 + 5 * i)
        attn(query[: 1 + i % 2], key[: 1 + i % 2], value[: 1 + i % 2])
    assert len(generated) == 1


@rg.mask
def near_on_rows_of_six(q: Any, kv: Any) -> Any:
    return (abs(q // 6 - kv // 6) <= 1) & (abs(q % 6 - kv % 6) <= 2)


@rg.mask
def odd_to_odd(q: Any, kv: Any) -> Any:
    return q % 2 == kv % 2


@pytest.mark.parametrize(
    ("part", "programs"), [(near_on_rows_of_six(), 2), (odd_to_odd(), 1)], ids=["a grid", "classes"]
)
def test_lengths_that_fit_a_grid_of_divisions_have_a_program_of_their_own(
    generated: list[Request], part: Any, programs: int
) -> None:
    """Where they make a difference: few are loaded, whatever the lengths."""
    attn = rg.attention(part)
    loaded = set()
    for lengths in ((24, 24), (30, 18), (23, 23), (24, 20), (1, 1), (6, 48)):
        query, key, value = x(lengths[0])[0], *x(lengths[1])[:2]
        found = attn(query, key, value)
        expected, _ = oracle([part], query, key, value)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
        engine = engines.engine_for(attn.variant)[1]
        loaded |= {program.key for program in engine._programs.values()}
    assert len(loaded) == programs


def test_other_dtypes_and_head_sizes_are_other_programs(generated: list[Request]) -> None:
    attn = rg.attention(within(size=5))
    for dtype in (torch.float32, torch.bfloat16):
        for size in (16, 24):
            attn(*(torch.zeros(1, 1, 4, size, dtype=dtype) for _ in range(3)))
    assert len(generated) == 4


def test_threads_generate_once(generated: list[Request]) -> None:
    attn = rg.attention(within(size=6))
    outs: list[Tensor] = []
    inputs = x()
    threads = [threading.Thread(target=lambda: outs.append(attn(*inputs))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(generated) == 1
    assert len(outs) == 8 and all(torch.equal(out, outs[0]) for out in outs)


def test_an_edited_source_runs_in_place_of_the_generated_one(tmp_path: Path) -> None:
    attn = rg.attention(within(size=6))
    path = tmp_path / "edited.py"
    path.write_text(attn.source(target="cpu", dtype="f32", head_dim=16) + "\ngenerated = run\n"
                    "def run(*args, **options):\n    out, lse = generated(*args, **options)\n    return 2 * out, lse\n")
    edited = rg.load_source(path, attn)
    assert torch.equal(edited(*x()), 2 * attn(*x()))
    inputs = [t.requires_grad_() for t in x()]
    assert torch.equal(edited(*inputs), 2 * attn(*inputs))  # through the operator
    wider = edited.with_values(size=9)
    assert torch.equal(wider(*x()), 2 * attn.with_values(size=9)(*x()))
    edited(*inputs).sum().backward()
    assert inputs[0].grad is not None


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers_serve_as_open_ids(dtype: torch.dtype) -> None:
    attn = rg.attention(rg.document())
    ids = (torch.arange(19) // 6).expand(2, -1)
    assert torch.equal(attn(*x(), ids=ids.to(dtype)), rg.attention(rg.document(ids.int()))(*x()))


def test_ids_beyond_32_bits_are_told_apart() -> None:
    attn = rg.attention(rg.document())
    ids = (torch.arange(19) // 6).expand(2, -1)
    assert torch.equal(attn(*x(), ids=ids * 2**32), attn(*x(), ids=ids))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_serve_where_a_condition_is_open(dtype: torch.dtype) -> None:
    attn = rg.attention(rg.key_mask())
    visible = torch.arange(19).remainder(4).gt(0).expand(2, -1)
    query, key, value = (t.requires_grad_() for t in x())
    expected = torch.autograd.grad(attn(query, key, value, visible=visible).sum(), value)
    actual = torch.autograd.grad(attn(query, key, value, visible=visible.to(dtype)).sum(), value)
    assert torch.equal(*actual, *expected)


def test_a_condition_serves_where_integers_are_open() -> None:
    @rg.mask
    def same(q: Any, kv: Any, batch: Any, kind: Any) -> Any:
        return kind[batch, q] == kind[batch, kv]

    kind = torch.arange(19).remainder(4).gt(0).expand(2, -1)
    attn = rg.attention(same)
    assert torch.equal(attn(*x(), kind=kind), attn(*x(), kind=kind.int()))
