"""Wrong arguments: one error each, whose text is in ``argument_errors.txt``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regard as rg
from regard import ArgumentError, IndexRangeError, ParameterError, RegardError, UnsupportedError

GOLDEN = Path(__file__).with_name("argument_errors.txt")


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape or (2, 4, 7, 16), dtype=dtype)


@rg.mask
def window(q: Any, kv: Any, size: int) -> Any:
    return (q >= kv) & (q - kv < size)


@rg.score
def slope(s: Any, q: Any, kv: Any, head: Any, slopes: Any) -> Any:
    return s + slopes[head] * (kv - q)


@rg.score
def table(s: Any, q: Any, kv: Any, bias: Any) -> Any:
    return s + bias[q - kv]


@rg.score
def third(s: Any, bias: Any) -> Any:
    return s + bias[2]


full = rg.attention()
opened = rg.attention(window, slope)
biased = rg.attention(rg.causal(), table)

CASES: dict[str, tuple[type[RegardError], Callable[[], object]]] = {
    "not a tensor": (ArgumentError, lambda: full([1.0], x(), x())),  # type: ignore[arg-type]
    "three axes": (ArgumentError, lambda: full(x(4, 7, 16), x(), x())),
    "five axes": (ArgumentError, lambda: full(x(), x(1, 2, 4, 7, 16), x())),
    "float64": (ArgumentError, lambda: full(x(dtype=torch.float64), x(), x())),
    "sparse": (ArgumentError, lambda: full(x().to_sparse(), x(), x())),
    "sparse key": (ArgumentError, lambda: full(x(), x().to_sparse(), x())),
    "sparse captured tensor": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=x(4).to_sparse())),
    "nested": (ArgumentError, lambda: full(torch.nested.as_nested_tensor([x(4, 7, 16)]), x(), x())),
    "nested with gaps": (
        ArgumentError,
        lambda: full(torch.nested.as_nested_tensor([x(7, 16)], layout=torch.jagged), x(), x()),
    ),
    "mixed dtypes": (ArgumentError, lambda: full(x(), x(dtype=torch.float16), x())),
    "another device": (UnsupportedError, lambda: full(x().to("meta"), x(), x())),
    "batch": (ArgumentError, lambda: full(x(), x(3, 4, 7, 16), x(3, 4, 7, 16))),
    "batch of one": (ArgumentError, lambda: full(x(), x(1, 4, 7, 16), x(1, 4, 7, 16))),
    "key and value": (ArgumentError, lambda: full(x(), x(2, 4, 8, 16), x())),
    "head sizes": (ArgumentError, lambda: full(x(), x(2, 4, 7, 32), x(2, 4, 7, 32))),
    "head counts": (ArgumentError, lambda: full(x(), x(2, 3, 7, 16), x(2, 3, 7, 16))),
    "small heads": (ArgumentError, lambda: full(x(2, 4, 7, 8), x(2, 4, 7, 8), x())),
    "large values": (ArgumentError, lambda: full(x(), x(), x(2, 4, 7, 257))),
    "strided last axis": (ArgumentError, lambda: full(x(2, 4, 16, 7).mT, x(), x())),
    "missing parameters": (ParameterError, lambda: opened(x(), x(), x(), size=3)),
    "names of another library": (
        ParameterError,
        lambda: rg.attention(rg.mask(lambda q_idx, kv_idx: q_idx >= kv_idx))(x(), x(), x()),
    ),
    "new value of a constant": (ParameterError, lambda: rg.attention(rg.dilated(4)).with_values(dilation=2)),
    "new value of nothing": (ParameterError, lambda: rg.attention(window(size=3)).with_values(sizes=2)),
    "misspelt parameter": (ParameterError, lambda: opened(x(), x(), x(), sise=3, slopes=torch.zeros(4))),
    "unknown parameter": (ParameterError, lambda: full(x(), x(), x(), size=3)),
    "bound parameter": (ParameterError, lambda: rg.attention(window(size=2))(x(), x(), x(), size=3)),
    "float for an int": (ArgumentError, lambda: opened(x(), x(), x(), size=3.5, slopes=torch.zeros(4))),
    "no number": (
        ArgumentError,
        lambda: rg.attention(rg.score(lambda s, by: s * by)(by=1.0)).with_values(by=float("nan")),
    ),
    "tensor for an int": (ArgumentError, lambda: opened(x(), x(), x(), size=torch.tensor(3), slopes=torch.zeros(4))),
    "huge int": (ArgumentError, lambda: opened(x(), x(), x(), size=2**31, slopes=torch.zeros(4))),
    "list for a tensor": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=[1.0])),  # type: ignore[arg-type]
    "integer tensor": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=torch.zeros(4).int())),
    "numbers to add for a condition": (
        ArgumentError,
        lambda: rg.attention(rg.key_mask())(x(), x(), x(), visible=torch.zeros(2, 7)),
    ),
    "rank": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=torch.zeros(4, 1))),
    "tensor's device": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=torch.zeros(4, device="meta"))),
    "too short for the heads": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=torch.zeros(3))),
    "too short for the queries": (
        ArgumentError,
        lambda: rg.attention(rg.mask(lambda q, seen: (q < 5) & seen[q]))(x(), x(), x(), seen=torch.ones(5).bool()),
    ),
    "no broadcasting": (ArgumentError, lambda: opened(x(), x(), x(), size=3, slopes=torch.zeros(1))),
    "index out of range": (IndexRangeError, lambda: biased(x(), x(), x(), bias=torch.zeros(6))),
    "constant index": (IndexRangeError, lambda: rg.attention(third)(x(), x(), x(), bias=torch.zeros(2))),
    "aux that is a flag": (ArgumentError, lambda: full(x(), x(), x(), aux=True)),  # type: ignore[arg-type]
    "deterministic as text": (ArgumentError, lambda: full(x(), x(), x(), deterministic="yes")),  # type: ignore[arg-type]
    "unknown aux": (ArgumentError, lambda: full(x(), x(), x(), aux=("max",))),
}


@pytest.mark.parametrize("title", CASES)
def test_error(title: str, update_golden: bool) -> None:
    kind, call = CASES[title]
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value).replace(str(Path(__file__).parent) + "/", "")
    texts = dict(section.split("\n", 1) for section in GOLDEN.read_text().split("== ")[1:]) if GOLDEN.exists() else {}
    if update_golden:
        texts[title] = text + "\n\n"
        GOLDEN.write_text("".join(f"== {t}\n{texts[t].rstrip()}\n\n" for t in CASES if t in texts))
    assert texts[title].rstrip() == text


def test_indices_that_fit_are_no_error() -> None:
    assert biased(x(), x(), x(), bias=torch.zeros(7)).shape == (2, 4, 7, 16)


def test_pairs_that_the_mask_excludes_may_index_anything() -> None:
    # q - kv reaches 6, but only distances up to 3 are allowed.
    near = rg.attention(rg.sliding_window(3), table)
    assert near(x(), x(), x(), bias=torch.zeros(4)).shape == (2, 4, 7, 16)


def test_a_scalar_that_moves_an_index_out_of_range() -> None:
    @rg.score
    def shifted(s: Any, q: Any, kv: Any, by: int, bias: Any) -> Any:
        return s + bias[q - kv + by]

    attn = rg.attention(rg.causal(), shifted)
    bias = torch.zeros(9)
    attn(x(), x(), x(), by=2, bias=bias)
    with pytest.raises(IndexRangeError):
        attn(x(), x(), x(), by=3, bias=bias)


def test_any_strides_but_the_last() -> None:
    torch.manual_seed(0)
    sliced = torch.randn(7, 2, 5, 3, 32).permute(1, 3, 0, 2, 4)[:, :, :, 2, 5:25]
    broadcast = torch.randn(1, 1, 7, 20).expand(2, 3, 7, 20)
    out = full(sliced, broadcast, sliced)
    assert torch.allclose(out, full(sliced.contiguous(), broadcast.contiguous(), sliced.contiguous()), atol=1e-6)
