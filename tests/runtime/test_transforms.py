"""Attention under ``torch.func`` against the same calls one by one, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import regard as rg
from regard import UnsupportedError

DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 3, 3]])


@rg.mask
def later_by_batch(q: Any, kv: Any, batch: Any) -> Any:
    return q >= kv + 2 * batch


@rg.score
def slanted(s: Any, q: Any, kv: Any, head: Any, slopes: Any) -> Any:
    return s + slopes[head] * (kv - q)


# Where entries of a batch are alike, a mapped call is one call; elsewhere one for each.
ATTENTIONS: dict[str, rg.Attention] = {
    "entries alike": rg.attention(rg.causal, rg.sliding_window(3), slanted(slopes=torch.tensor([0.1, 0.5]))),
    "data of each entry": rg.attention(rg.document(DOCUMENTS)),
    "entries apart": rg.attention(later_by_batch),
}


def inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, 2, 2, 7, 16), torch.randn(count, 2, 1, 9, 16), torch.randn(count, 2, 1, 9, 24)


def weighted(attn: rg.Attention) -> Callable[..., Tensor]:
    """A scalar whose gradient depends on output and log-sum-exp."""
    torch.manual_seed(1)
    of_out, of_lse = torch.randn(2, 2, 7, 24), torch.rand(2, 2, 7)

    def loss(*tensors: Tensor) -> Tensor:
        out, aux = attn(*tensors, aux=("lse",))
        total: Tensor = (out * of_out).sum() + (aux.lse.clamp(min=-5) * of_lse).sum()
        return total

    return loss


def gradients(loss: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(loss(*leaves), leaves)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 1), (3, 0, None)], ids=str)
@pytest.mark.parametrize("attn", ATTENTIONS.values(), ids=ATTENTIONS)
def test_vmap(attn: rg.Attention, in_dims: tuple[int | None, ...]) -> None:
    x = inputs(3)
    given = [t[1] if d is None else t.movedim(0, d) for t, d in zip(x, in_dims, strict=True)]
    each = [[t[1] if d is None else t[i] for t, d in zip(x, in_dims, strict=True)] for i in range(3)]
    out, aux = vmap(lambda *tensors: attn(*tensors, aux=("lse",)), in_dims=in_dims)(*given)
    assert_close(out, torch.stack([attn(*tensors) for tensors in each]))
    assert_close(aux.lse, torch.stack([attn(*tensors, aux=("lse",))[1].lse for tensors in each]))

    by_call = vmap(grad(weighted(attn), argnums=(0, 1, 2)), in_dims=in_dims)(*given)
    expected = [gradients(weighted(attn), *tensors) for tensors in each]
    for actual, one_by_one in zip(by_call, zip(*expected, strict=True), strict=True):
        assert_close(actual, torch.stack(one_by_one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attn", ATTENTIONS.values(), ids=ATTENTIONS)
def test_gradients_through_vmap(attn: rg.Attention) -> None:
    query, key, value = inputs(3)

    def mapped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return vmap(weighted(attn), in_dims=(0, None, None))(query, key, value).sum()

    def one_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.stack([weighted(attn)(x, key, value) for x in query]).sum()

    x = query, key[0], value[0]
    expected = gradients(one_by_one, *x)
    for actual in (grad(mapped, argnums=(0, 1, 2))(*x), gradients(mapped, *x)):
        assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_captured_tensors() -> None:
    query, key, value = inputs(3)
    slopes = torch.rand(3, 2)
    attn = rg.attention(slanted)

    def loss(slopes: Tensor, query: Tensor) -> Tensor:
        out: Tensor = attn(query, key[0], value[0], slopes=slopes)
        return out.square().sum()

    expected = [gradients(loss, s, x) for s, x in zip(slopes, query, strict=True)]
    for in_dims in ((0, 0), (None, 0), (0, None)):
        given = [t if d == 0 else t[0] for t, d in zip((slopes, query), in_dims, strict=True)]
        actual = vmap(grad(loss), in_dims=in_dims)(*given)
        assert_close(actual[0], expected[0][0], rtol=1e-4, atol=1e-4)
    both = vmap(grad(loss))(slopes, query)
    assert_close(both, torch.stack([of_slopes for of_slopes, _ in expected]), rtol=1e-4, atol=1e-4)


def test_gradients_of_samples() -> None:
    """The use that ``vmap(grad(...))`` is known for."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(16, 16)
            self.attn = rg.attention(rg.causal)

        def forward(self, x: Tensor) -> Any:
            return self.attn(self.project(x), x, x)

    layer, samples = Layer(), torch.randn(4, 2, 9, 16)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, (sample[None],)).square().sum()  # type: ignore[no-any-return]

    per_sample = vmap(grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), samples)
    for sample, actual in zip(samples, per_sample["project.weight"], strict=True):
        (expected,) = torch.autograd.grad(layer(sample[None]).square().sum(), layer.project.weight)
        assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_jacobians() -> None:
    attn = ATTENTIONS["entries alike"]
    query, key, value = (x[0] for x in inputs(1))
    expected = torch.autograd.functional.jacobian(lambda x: attn(x, key, value)[0, 0, :2, 0], query)
    assert_close(jacrev(lambda x: attn(x, key, value)[0, 0, :2, 0])(query), expected)
    out, pull = vjp(attn, query, key, value)[:2]
    assert_close(pull(out), gradients(lambda *x: attn(*x).square().sum() / 2, query, key, value))


def test_compiled_vmap() -> None:
    x = inputs(2)
    attn = ATTENTIONS["entries alike"]
    compiled = torch.compile(vmap(attn), fullgraph=True, backend="eager")
    assert_close(compiled(*x), vmap(attn)(*x))


# What would need derivatives in another direction or of another order, as functions of the query.
REFUSED: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], object]] = {
    "jvp": lambda f, x: jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "jvp of a gradient": lambda f, x: jvp(grad(f), (x,), (x,)),
    "vmap of jvp": lambda f, x: vmap(lambda y: jvp(f, (y,), (y,)))(x[None]),
    "gradient of a gradient": lambda f, x: grad(lambda y: grad(f)(y).sum())(x),
}


@pytest.mark.parametrize("transform", REFUSED.values(), ids=REFUSED)
def test_derivatives_that_are_refused(transform: Callable[..., object]) -> None:
    query, key, value = (x[0] for x in inputs(1))
    with pytest.raises(UnsupportedError, match=r"forward-mode|differentiated once"):
        transform(lambda x: ATTENTIONS["entries alike"](x, key, value).sum(), query)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_tangents_are_refused(requires_grad: bool) -> None:
    query, key, value = (x[0] for x in inputs(1))
    attn = ATTENTIONS["entries alike"]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query.requires_grad_(requires_grad), torch.ones_like(query))
        with pytest.raises(UnsupportedError, match="forward-mode"):
            attn(dual, key, value)
        with FlopCounterMode(display=False), pytest.raises(UnsupportedError, match="forward-mode"):
            attn(dual, key, value)
        assert torch.equal(attn(query, key, value), attn(query, key, value))


def test_batches_of_gradients_are_refused() -> None:
    query, key, value = (x[0] for x in inputs(1))
    out = ATTENTIONS["entries alike"](query.requires_grad_(), key, value)
    with pytest.raises(UnsupportedError, match="is_grads_batched"):
        torch.autograd.grad(out, query, torch.ones(3, *out.shape), is_grads_batched=True)
