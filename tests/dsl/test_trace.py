"""Operators and functions on symbols build the expression that they spell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import regard as rg
from regard.ir.nodes import Binary, Load
from regard.ir.printer import print_expr
from regard.ir.traverse import loads, walk

HALF = torch.tensor(0.5)
BIAS = torch.zeros(3, 9)


def traced(function: Callable[..., Any]) -> str:
    """What a score function computes, in the text language."""
    return print_expr(rg.score(function)().traced.expr)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s, q: 2 * s + 1 - q / 3, "2.0 * s + 1.0 - q / 3.0"),
        (lambda s, q: s * (7 - q) // 2 % 5, "s * (7 - q) // 2.0 % 5.0"),
        (lambda s, q: s + (1 << q >> 1), "s + (1 << q >> 1)"),
        (lambda s, q: s + (q & 3 | 4 ^ q), "s + (q & 3 | 4 ^ q)"),
        (lambda s, q: s + 2**q, "s + 2.0 ** q"),
        (lambda s, q: s**2, "s ** 2.0"),
        (lambda s, q: s + q**2, "s + q * q"),
        (lambda s, q: -s + +q, "-s + q"),
        (lambda s, q: s + abs(q), "s + abs(q)"),
        (lambda s, q: s * (q == 1) + (q != 2), "s * (q == 1) + (q != 2)"),
        (lambda s, q: 7 // (q + 1) * s + 7 % (q + 1), "7 // (q + 1) * s + 7 % (q + 1)"),
        (lambda s, q: s + (4 | q) - (6 ^ q) * (5 & q) + (q << 2), "s + (4 | q) - (6 ^ q) * (5 & q) + (q << 2)"),
        (
            lambda s, q: rg.where((q > 1) & ~(q >= 3) | (q == 7), s, -1),
            "where(q > 1 and not q >= 3 or q == 7, s, -1.0)",
        ),
        (lambda s, q: rg.where((q > 1) ^ True, s, 0), "where(q > 1 xor true, s, 0.0)"),
        (lambda s, q: rg.clamp(s, -1, q), "min(max(s, -1.0), q)"),
        (lambda s: rg.exp(rg.log(rg.exp2(rg.log2(s)))), "exp(log(exp2(log2(s))))"),
        (lambda s: rg.tanh(rg.sigmoid(rg.sqrt(rg.rsqrt(s)))), "tanh(sigmoid(sqrt(rsqrt(s))))"),
        (lambda s: rg.sin(rg.cos(rg.abs(rg.floor(s)))), "sin(cos(abs(floor(s))))"),
        (lambda s, q: s + rg.to_float(rg.to_int(s) + q), "s + (int(s) + q)"),
    ],
)
def test_operators_and_own_functions(function: Callable[..., Any], expected: str) -> None:
    assert traced(function) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s, q: torch.where(q > 1, s, -float("inf")), "where(q > 1, s, -inf)"),
        (lambda s: torch.exp(torch.abs(s)), "exp(abs(s))"),
        (lambda s: 20.0 * torch.tanh(s / 20.0), "20.0 * tanh(s / 20.0)"),
        (lambda s, q: torch.minimum(s, torch.maximum(q, s)), "min(s, max(q, s))"),
        (lambda s: torch.sigmoid(s).log().log2().exp2(), "exp2(log2(log(sigmoid(s))))"),
        (lambda s: torch.sqrt(s) * s.rsqrt(), "sqrt(s) * rsqrt(s)"),
        (lambda s: torch.floor(s).clamp(min=0, max=3), "min(max(floor(s), 0.0), 3.0)"),
        (lambda s: torch.clamp(s, max=3), "min(s, 3.0)"),
        (lambda s, q: s + torch.remainder(torch.floor_divide(q, 3), 2), "s + q // 3 % 2"),
        (
            lambda s, q: torch.where(
                torch.logical_and(q > 1, torch.logical_not(q)) | torch.logical_or(q, q == 0), s, 0
            ),
            "where(q > 1 and not bool(q) or (bool(q) or q == 0), s, 0.0)",
        ),
        (lambda s, q: (q - 1).to(torch.float32) * s.float() + s.int(), "(q - 1) * s + int(s)"),
        (lambda s: torch.add(s, 1).sub(2).mul(3).div(4), "(s + 1.0 - 2.0) * 3.0 / 4.0"),
    ],
)
def test_torch_functions_and_methods(function: Callable[..., Any], expected: str) -> None:
    assert traced(function) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s: HALF * s, "HALF[] * s"),
        (lambda s: s - HALF, "s - HALF[]"),
        (lambda s: torch.maximum(HALF, s), "max(HALF[], s)"),
        (lambda s, head, q, kv: s + BIAS[head, q - kv], "s + BIAS[head, q - kv]"),
        (lambda s, head: s + BIAS[head, -1], "s + BIAS[head, -1]"),
    ],
)
def test_captured_tensors(function: Callable[..., Any], expected: str) -> None:
    assert traced(function) == expected


def test_real_tensors_that_no_variable_of_the_function_holds() -> None:
    class Model:
        bias = torch.zeros(2, 4)
        gain = torch.tensor(2.0)

    part = rg.score(lambda s, head, q, kv: Model.gain * s + Model.bias[head, q - kv] + Model.bias[head, 0])()
    assert print_expr(part.traced.expr) == "captured[] * s + bias[head, q - kv] + bias[head, 0]"
    assert part.traced.values["captured"] is Model.gain
    assert part.traced.values["bias"] is Model.bias


def test_a_real_tensor_inside_a_called_function_takes_the_name_it_has_there() -> None:
    def look_up(table: torch.Tensor, i: Any) -> Any:
        return table[i]

    holder = [torch.zeros(4)]
    part = rg.score(lambda s, head: s + look_up(holder[0], head))()
    assert print_expr(part.traced.expr) == "s + table[head]"


def test_tensors_of_numpy_numbers_and_reflected_operators() -> None:
    numpy = pytest.importorskip("numpy")
    three, half = numpy.int64(3), numpy.float32(0.5)
    assert traced(lambda s, q: half * s + three * q) == "half * s + three * q"


def test_functions_of_numpy_are_those_of_torch() -> None:
    assert traced(lambda s, q: np.where(np.abs(s) > 1, np.clip(s, 0, 3), np.power(s, 2))) == (
        "where(abs(s) > 1.0, min(max(s, 0.0), 3.0), s ** 2.0)"
    )
    assert traced(lambda s, q: s + np.where(np.int64(2) < q, 1, np.float32(0.5))) == "s + where(2 < q, 1.0, 0.5)"


def test_masks_can_call_masks() -> None:
    @rg.mask
    def local(q: Any, kv: Any, size: Any) -> Any:
        return rg.causal(q, kv) & (q - kv < size)

    assert print_expr(local(size=3).traced.expr) == "q >= kv and q - kv < size"


def test_literal_results() -> None:
    assert print_expr(rg.mask(lambda: False)().traced.expr) == "false"
    assert print_expr(rg.score(lambda: 1)().traced.expr) == "1.0"


def test_every_node_knows_where_it_was_written() -> None:
    table = torch.zeros(4)

    @rg.mask
    def spread(q: Any, kv: Any) -> Any:
        near = q - kv < 4
        return near & (
            table[kv]
            > q % 3
        )  # fmt: skip

    part = spread()
    nodes = {
        x.op if isinstance(x, Binary) else "load": x for x in walk(part.traced.expr) if isinstance(x, Binary | Load)
    }
    first = nodes["sub"].loc.line  # type: ignore[union-attr]
    spelled = {}
    for name, x in nodes.items():
        assert x.loc is not None and x.loc.file == __file__
        spelled[name] = x.loc.line - first, x.loc.source_line()[x.loc.column : x.loc.end]
    assert spelled == {
        "sub": (0, "q - kv"),
        "lt": (0, "q - kv < 4"),
        "load": (2, "table[kv]"),
        "mod": (3, "q % 3"),
        "gt": (2, "table[kv]"),
        "and": (1, "near & ("),
    }


def test_labels_name_the_index_that_alone_reads_an_axis() -> None:
    table = torch.zeros(2, 3, 4)
    part = rg.score(lambda s, batch, q, kv, head: s + table[batch, head, q] + table[batch, 1, kv])()
    assert str(part.traced.parameters[0].type) == "f32[batch, _, _]"


@pytest.mark.parametrize(
    ("dtype", "element"),
    [
        (torch.bool, "bool"), (torch.int8, "i32"), (torch.uint8, "i32"), (torch.int32, "i32"), (torch.int64, "i64"),
        (torch.float16, "f32"), (torch.bfloat16, "f32"), (torch.float32, "f32"), (torch.float64, "f32"),
    ],
)  # fmt: skip
def test_element_types(dtype: torch.dtype, element: str) -> None:
    table = torch.zeros(4, dtype=dtype)
    part = rg.mask(lambda kv: table[kv] != 0)()
    assert str(loads(part.traced.expr)[0].type) == element


@pytest.mark.parametrize(
    "name", ["exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "floor", "abs"]
)
def test_functions_take_tensors_and_numbers_too(name: str) -> None:
    function = getattr(rg, name)
    x = torch.tensor([0.3, 2.7], dtype=torch.float64)
    expected = getattr(torch, name)(x)
    assert torch.equal(function(x), expected)
    assert torch.allclose(torch.tensor([function(float(y)) for y in x], dtype=torch.float64), expected, rtol=1e-14)


def test_functions_of_several_arguments_take_tensors_and_numbers_too() -> None:
    x = torch.tensor([-3, 5])
    assert rg.minimum(x, 2).tolist() == [-3, 2]
    assert rg.maximum(2, x).tolist() == [2, 5]
    assert rg.where(x > 0, x, 0).tolist() == [0, 5]
    assert rg.clamp(x, -1, 1).tolist() == [-1, 1]
    assert rg.to_int(x / 2).tolist() == [-1, 2]
    assert rg.to_float(x).dtype == torch.float32
    assert (rg.minimum(1, 2), rg.maximum(1, 2), rg.where(False, 1, 2), rg.clamp(9, 0, 5), rg.to_int(-1.5)) == (
        1,
        2,
        2,
        5,
        -1,
    )
