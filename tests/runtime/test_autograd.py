"""Gradients on the CPU, and how attention behaves as an operator of PyTorch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import regard as rg
from oracle import gradients, oracle
from regard import UnsupportedError


@rg.score
def slanted(s: Any, q: Any, kv: Any, head: Any, slopes: Any) -> Any:
    return s + slopes[head] * (kv - q)


def inputs(q_len: int = 37, kv_len: int = 45, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query = torch.randn(2, heads, q_len, 24)
    key, value = torch.randn(2, kv_heads, kv_len, 24), torch.randn(2, kv_heads, kv_len, 40)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def parts(slopes: Tensor) -> tuple[Any, ...]:
    return rg.sliding_window(11, 3), slanted(slopes=slopes)


@pytest.mark.parametrize("with_lse", [False, True], ids=["out", "out and lse"])
def test_gradients_of_inputs_and_captured_tensors(with_lse: bool) -> None:
    x = inputs()
    slopes = torch.rand(4, requires_grad=True)
    out, aux = rg.attention(*parts(slopes))(*x, aux=("lse",))
    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(aux.lse)
    results = ([out, aux.lse], [grad_out, grad_lse]) if with_lse else ([out], [grad_out])
    actual = torch.autograd.grad(results[0], (*x, slopes), results[1])
    expected = gradients(oracle, parts(slopes), x, grad_out, grad_lse if with_lse else None, [slopes])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


def test_gradient_of_lse_alone() -> None:
    x = inputs()
    attn = rg.attention(rg.causal())
    lse = attn(*x, aux=("lse",))[1].lse
    grad_query, grad_value = torch.autograd.grad(lse.sum(), (x[0], x[2]))
    exact = oracle([rg.causal()], *x)[1]
    assert torch.allclose(grad_query, torch.autograd.grad(exact.sum(), x[0])[0], atol=1e-5)
    assert not grad_value.any()


def test_expanded_and_strided_gradients() -> None:
    x = inputs()
    attn = rg.attention(rg.causal())
    (by_sum,) = torch.autograd.grad(attn(*x).sum(), x[0])  # its gradient has no stride but 0
    (by_ones,) = torch.autograd.grad(attn(*x), x[0], torch.ones(2, 4, 37, 40))
    (by_view,) = torch.autograd.grad(attn(*x).transpose(1, 2).flatten(2), x[0], torch.ones(2, 37, 160))
    assert torch.equal(by_sum, by_ones) and torch.equal(by_view, by_ones)


def test_only_what_requires_grad_gets_one() -> None:
    query, key, value = (x.detach() for x in inputs())
    out = rg.attention(rg.causal())(query, key.requires_grad_(), value)
    out.sum().backward()
    assert key.grad is not None and query.grad is None
    with torch.no_grad():
        assert not rg.attention(rg.causal())(query, key, value).requires_grad


def test_a_tensor_of_a_mask_has_no_gradient() -> None:
    limits = torch.tensor([3.0, 5.0, 9.0, 40.0], requires_grad=True)

    @rg.mask
    def near(q: Any, kv: Any, head: Any) -> Any:
        return abs(q - kv) < limits[head]

    x = inputs()
    out = rg.attention(near)(*x)
    assert torch.autograd.grad(out.sum(), (x[0], limits), allow_unused=True)[1] is None


def test_second_derivatives_are_refused() -> None:
    x = inputs()
    (grad,) = torch.autograd.grad(rg.attention(rg.causal())(*x).square().sum(), x[0], create_graph=True)
    with pytest.raises(UnsupportedError, match="once, not twice"):
        grad.sum().backward()


class Seen(TorchDispatchMode):
    """Notes Regard's operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "regard":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("watched", ["forward", "backward"])
def test_modes_see_the_operators(watched: str) -> None:
    x, slopes = inputs(), torch.rand(4, requires_grad=True)
    attn = rg.attention(*parts(slopes))
    expected = torch.autograd.grad(attn(*x).sum(), (*x, slopes))
    forward, backward = Seen(), Seen()
    with forward if watched == "forward" else nullcontext():
        out = attn(*x)
    with backward if watched == "backward" else nullcontext():
        actual = torch.autograd.grad(out.sum(), (*x, slopes))
    assert [*forward.names, *backward.names] == ["attention" if watched == "forward" else "attention_backward"]
    assert all(map(torch.equal, actual, expected))


def test_subclasses_see_the_operators() -> None:
    x = inputs()
    attn = rg.attention(rg.causal())
    out = attn(*x)
    expected = out, *torch.autograd.grad(out.sum(), x)
    pairs: list[Any] = [TwoTensor(t.detach(), 2 * t.detach()).requires_grad_() for t in x]
    both = attn(*pairs)
    for a, b in zip((both, *torch.autograd.grad(both.sum(), pairs)), expected, strict=True):
        assert isinstance(a, TwoTensor) and torch.equal(a.a, b)
    for t in x:
        assert t.grad is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("differentiating", [False, True])
def test_traces_see_the_operators(differentiating: bool) -> None:
    attn = rg.attention(rg.causal())
    x, y = ([t.detach().requires_grad_(differentiating) for t in inputs(*lengths)] for lengths in ((37, 45), (21, 60)))
    traced = torch.jit.trace(lambda *tensors: attn(*tensors), tuple(x), check_trace=False)
    assert "regard::attention" in {node.kind() for node in traced.graph.nodes()}
    assert torch.equal(traced(*y), attn(*y))


def test_meta_tensors_have_shapes_alone() -> None:
    x = [t.detach().to("meta").requires_grad_() for t in inputs()]
    out, aux = rg.attention(rg.causal())(*x, aux=("lse",))
    assert out.is_meta and out.shape == (2, 4, 37, 40) and aux.lse.shape == (2, 4, 37)
    assert [g.shape for g in torch.autograd.grad(out.sum(), x)] == [t.shape for t in x]
    with torch.no_grad():
        assert rg.attention(rg.causal())(*x).is_meta


def test_hooks() -> None:
    x = inputs()
    attn, seen = rg.attention(rg.causal()), list[int]()
    expected = torch.autograd.grad(attn(*x), x, torch.full((2, 4, 37, 40), 2.0))
    out = attn(*x)
    out.register_hook(lambda g: g * 2)
    assert out.grad_fn is not None
    out.grad_fn.register_hook(lambda of_inputs, of_outputs: seen.append(len(of_inputs)))
    assert all(map(torch.equal, torch.autograd.grad(out.sum(), x), expected))
    assert len(seen) == 1


def test_saved_tensors_are_packed() -> None:
    x, packed = inputs(), list[Tensor]()
    attn = rg.attention(rg.causal())
    expected = torch.autograd.grad(attn(*x).sum(), x)

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.detach().flip(0)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.flip(0)):
        out = attn(*x)
    assert [t.shape for t in packed] == [*(t.shape for t in x), out.shape, out.shape[:3]]
    assert all(map(torch.equal, torch.autograd.grad(out.sum(), x), expected))


def test_what_is_changed_before_its_backward_pass() -> None:
    x = inputs()
    out = rg.attention(rg.causal())(*x)
    with torch.no_grad():
        x[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_graph_is_differentiated_again_only_if_it_is_kept() -> None:
    x = inputs()
    out = rg.attention(rg.causal())(*x).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(out, x)))
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    x = inputs()
    attn = rg.attention(rg.causal(), rg.softcap(5.0))
    expected = torch.autograd.grad(attn(*x).square().sum(), x)
    checkpoint(attn, *x, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip(x, expected, strict=True):
        assert a.grad is not None and torch.equal(a.grad, b)


def test_autocast_casts_as_sdpa_does() -> None:
    x = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out, aux = rg.attention(rg.causal())(*x, aux=("lse",))
    assert out.dtype is torch.bfloat16 and aux.lse.dtype is torch.float32
    out.sum().backward()
    assert x[0].grad is not None and x[0].grad.dtype is torch.float32


def test_autocast_stays_outside() -> None:
    """Scores and sums keep their precision, forward and backward, recorded or not."""
    attn = rg.attention(rg.causal())
    x = [t.detach().bfloat16().requires_grad_() for t in inputs()]
    out = attn(*x)
    gradients = torch.autograd.grad(out.sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attn(*x), out)
        assert all(map(torch.equal, torch.autograd.grad(attn(*x).sum(), x), gradients))
        with torch.no_grad():
            assert torch.equal(attn(*x), out)


@pytest.mark.parametrize("empty", ["batch", "queries", "keys"])
def test_nothing_to_attend(empty: str) -> None:
    batch, q_len, kv_len = (0 if empty == name else n for name, n in (("batch", 2), ("queries", 5), ("keys", 7)))
    query, key, value = (
        torch.randn(batch, 2, n, 16, requires_grad=True) for n in (q_len, kv_len, kv_len)
    )
    out, aux = rg.attention(rg.causal())(query, key, value, aux=("lse",))
    assert out.shape == (batch, 2, q_len, 16) and not out.any()
    assert aux.lse.isneginf().all()
    for x, grad in zip((query, key, value), torch.autograd.grad(out.sum(), (query, key, value)), strict=True):
        assert grad.shape == x.shape and not grad.any()


def test_the_operators_keep_their_promises() -> None:
    """PyTorch's own checks of schema, fake kernels and autograd registration."""
    x = inputs()
    slopes = torch.rand(4, requires_grad=True)
    attn = rg.attention(*parts(slopes))
    options = {"variant": attn._text, "deterministic": False, "reuse_tables": False}
    torch.library.opcheck(torch.ops.regard.attention.default, (*x, [slopes], [11, 3], []), options)
