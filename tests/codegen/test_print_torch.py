"""Expressions as PyTorch: few parentheses, the language's meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.codegen.emitter import Emitter
from regard.codegen.print_torch import Printed, as_tensor, helper_functions, print_torch
from regard.codegen.torch_definitions import module_scope
from regard.ir import build
from regard.ir.interpret import evaluate
from regard.ir.nodes import BinaryOp, Expr, Load, Param, Score, Select, Unary
from regard.ir.parser import parse_expr
from regard.ir.types import F32, I32, I64, BufferType
from regard.ir.variant import BufferParameter, Parameter, ScalarParameter, Variant

PARAMETERS: tuple[Parameter, ...] = (
    ScalarParameter("window", I32),
    ScalarParameter("strength", F32),
    BufferParameter("slopes", BufferType(F32, ("head",))),
    BufferParameter("ids", BufferType(I32, ("_",))),
)


def shown(e: Expr) -> Printed:
    return print_torch(e, module_scope(Variant(parameters=PARAMETERS), Emitter()))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("q >= kv and q - kv < window", "(q >= kv) & (q - kv < window)"),
        ("q - (kv - 1)", "q - (kv - 1)"),
        ("q - kv - 1", "q - kv - 1"),
        ("not (q < kv or kv == 0)", "~((q < kv) | (kv == 0))"),
        ("(q + 1) * 2 // 3", "(q + 1) * 2 // 3"),
        ("q // window % 2 == 0", "q // divisor(window) % 2 == 0"),
        ("min(q, kv) + max(window, 3)", "torch.minimum(q, kv) + max(window, 3)"),
        ("min(q, window) - max(4, kv)", "q.clamp(max=window) - kv.clamp(min=4)"),
        ("slopes[head] * (q - kv)", "load(slopes, head) * (q - kv).float()"),
        ("where(q < kv, 1.0, 2.0)", "torch.where(q < kv, 1.0, 2.0).float()"),
        ("where(window > 0, q, 3)", "q if window > 0 else scalar(3, torch.int64)"),
        ("-(q + kv) * -2", "-(q + kv) * -2"),
        ("exp(-abs(strength))", "torch.exp(-abs(strength))"),
        ("not (window > 1) and kv > 1", "(not window > 1) & (kv > 1)"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert shown(parse_expr(text, PARAMETERS)).text == expected


INTEGERS: tuple[BinaryOp, ...] = ("add", "sub", "mul", "floordiv", "mod", "min", "max", "bitand", "bitor", "bitxor")
COMPARE: tuple[BinaryOp, ...] = ("lt", "le", "gt", "ge", "eq", "ne")


def integers() -> st.SearchStrategy[Expr]:
    leaves = st.one_of(
        st.integers(-5, 5).map(build.const),
        st.sampled_from([build.index(name) for name in ("q", "kv", "head", "q_len")]),
        st.just(Param("window", I32)),
        st.sampled_from([build.index("q"), build.index("kv")]).map(lambda i: Load("ids", (i,), I32)),
    )

    def grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        return st.one_of(
            st.builds(arithmetic, st.sampled_from(INTEGERS), inner, inner),
            inner.map(lambda x: build.unary("neg", x)),
            inner.map(lambda x: build.unary("abs", x)),
            st.builds(choose, st.sampled_from(COMPARE), inner, inner),
        )

    return st.recursive(leaves, grow, max_leaves=12)


def arithmetic(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    # Nothing is promised for a divisor of zero.
    if op in ("floordiv", "mod"):
        b = build.binary("add", build.unary("abs", b), build.const(1))
    return build.binary(op, a, b)


def choose(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    return build.select(build.binary(op, a, b), build.unary("neg", a), b)


GRID: dict[str, Any] = {
    "q": np.arange(7)[:, None], "kv": np.arange(9)[None, :], "head": np.arange(3)[:, None, None],
    "q_len": 7, "window": 4, "ids": np.array([3, -1, 4, 1, -5, 9, 2, 6, 5], dtype=np.int32),
}  # fmt: skip


@given(integers())
def test_value(e: Expr) -> None:
    """The printed text computes what the interpreter does."""
    printed = shown(e)
    names: dict[str, Any] = {"torch": torch}
    names.update((name, torch.as_tensor(x) if isinstance(x, np.ndarray) else x) for name, x in GRID.items())
    exec(helper_functions(printed.text + as_tensor(printed, e)), names)
    found = torch.as_tensor(eval(printed.text, names))
    expected = evaluate(build.cast(e, I64), GRID)
    shape = np.broadcast_shapes(found.shape, expected.shape)
    np.testing.assert_array_equal(np.broadcast_to(found.numpy(), shape), np.broadcast_to(expected, shape))


def test_floats_are_single_precision() -> None:
    e = build.binary("div", build.const(1.0), build.const(3.0))
    names: dict[str, Any] = {"torch": torch}
    text = shown(Unary("exp", e, F32)).text
    exec(helper_functions(text), names)
    assert eval(text, names).dtype == torch.float32


def test_a_score_of_constants_has_single_precision_too() -> None:
    chosen = build.select(build.binary("gt", Score(), build.const(0.0)), build.const(1.0), build.const(2.0))
    assert isinstance(chosen, Select)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert eval(shown(chosen).text, {"torch": torch, "s": torch.ones(2)}).dtype == torch.float32
    finally:
        torch.set_default_dtype(previous)
