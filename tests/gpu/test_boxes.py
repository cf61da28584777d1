"""Boxes of token spaces on a GPU against the float64 oracle, forward and backward, by the oracle's rule for errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import regard as rg
from box_masks import IMAGE, VIDEO, WIDE
from oracle import assert_close_to_oracle, eager, gradients, oracle

pytestmark = pytest.mark.gpu

AFTER_TEXT, FRAMES = rg.grid(20, 25), rg.grid(8, 128)
Parts = Callable[[], tuple[Any, ...]]


@rg.mask
def circle_beside_text(q: Any, kv: Any, text: Any) -> Any:
    """Text before an image sees everything and is seen by all."""
    (a, b), (c, d) = AFTER_TEXT(q - text), AFTER_TEXT(kv - text)
    return (q < text) | (kv < text) | ((a - c) ** 2 + (b - d) ** 2 <= 36)


@rg.mask
def circle(q: Any, kv: Any, radius: Any) -> Any:
    """Boxes along the columns narrow by where they lie along the rows."""
    (a, b), (c, d) = WIDE(q), WIDE(kv)
    return (a - c) ** 2 + (b - d) ** 2 < radius**2


@rg.mask
def radial(q: Any, kv: Any) -> Any:
    """A window in space that narrows with the distance of frames."""
    (t, a, b), (s, c, d) = VIDEO(q), VIDEO(kv)
    reach = rg.where(abs(t - s) >= 2, 1, rg.where(abs(t - s) >= 1, 3, 12))
    return (abs(a - c) < reach) & (abs(b - d) < reach)


@rg.mask
def same_place_or_first_frame(q: Any, kv: Any) -> Any:
    (_, a, b), (t, c, d) = VIDEO(q), VIDEO(kv)
    return ((abs(a - c) <= 1) & (abs(b - d) <= 2)) | (t == 0)


@rg.mask
def near_places_or_first_frames(q: Any, kv: Any, first: Any) -> Any:
    """Boxes of keys in all frames are among the first as runs of positions: gradients run by tiles."""
    return (abs(FRAMES(q)[1] - FRAMES(kv)[1]) <= 20) | (kv < first)


@rg.mask
def local_and_dilated(q: Any, kv: Any) -> Any:
    return (abs(q - kv) <= 20) | (((q - kv) % 8 == 0) & (abs(q - kv) <= 200))


@rg.mask
def summaries(q: Any, kv: Any) -> Any:
    return (q >= kv) & ((q // 64 == kv // 64) | (kv % 64 >= 56))


@rg.mask
def text_after_an_image(q: Any, kv: Any) -> Any:
    return (q >= 500) | (kv >= 500)


@rg.mask
def image_between_texts(q: Any, kv: Any, first: Any) -> Any:
    (a, b), (c, d) = AFTER_TEXT(q - first), AFTER_TEXT(kv - first)
    text = (q < first) | (kv < first) | (q >= first + 500) | (kv >= first + 500)
    return text | ((a - c) ** 2 + (b - d) ** 2 <= 36)


@rg.mask
def by_division(q: Any, kv: Any) -> Any:
    """A window on rows of 27 that no grid declares: lengths say how many there are, and whether all are whole."""
    return (abs(q // 27 - kv // 27) <= 2) & (abs(q % 27 - kv % 27) <= 3)


@rg.mask
def radial_by_division(q: Any, kv: Any) -> Any:
    apart = abs(q // 96 - kv // 96)
    reach = rg.where(apart >= 2, 3, rg.where(apart >= 1, 12, 48))
    return (abs(q % 96 - kv % 96) <= reach) | (kv < 96)


@rg.mask
def residue_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    return (q >= kv) & ((q - kv + head) % 4 == 0)


@rg.mask
def segments_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    return (q % 4 == head % 4) & (kv % 4 == head % 4) & (q // 256 == kv // 256)


@rg.mask
def shards_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    return (q >= kv) & ((q // 32 - kv // 32 < 2) | ((q // 32 - kv // 32 - head) % 3 == 0))


@rg.mask
def windows_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    (a, b), (c, d) = WIDE(q), WIDE(kv)
    by = rg.where(head < 2, 0, 4)
    return ((a + by) // 8 == (c + by) // 8) & ((b + by) // 8 == (d + by) // 8)


VARIANTS: dict[str, tuple[int, Parts]] = {
    "dilated": (520, lambda: (rg.causal(), rg.dilated(4))),
    "dilated, cut short": (517, lambda: (rg.dilated(4), rg.sliding_window(100, 50))),
    "neighbourhood": (540, lambda: (rg.neighborhood(IMAGE, (5, 7)),)),
    "wide neighbourhood": (768, lambda: (rg.neighborhood(WIDE, 13),)),
    "dilated neighbourhood": (768, lambda: (rg.neighborhood(WIDE, (5, 3), dilation=(1, 4)),)),
    "strided neighbourhood": (540, lambda: (rg.neighborhood(IMAGE, 6, stride=(1, 4)),)),
    "causal neighbourhood": (540, lambda: (rg.neighborhood(IMAGE, 5, causal=(True, False)),)),
    "three axes": (480, lambda: (rg.neighborhood(VIDEO, (3, 5, 5)),)),
    "halo": (540, lambda: (rg.halo(IMAGE, (4, 5), (2, 3)),)),
    "windows": (768, lambda: (rg.windows(WIDE, 8),)),
    "shifted windows": (540, lambda: (rg.windows(IMAGE, 7, shift=3),)),
    "columns": (540, lambda: (rg.axial(IMAGE, axis=0, causal=True),)),
    "padding": (520, lambda: (rg.dilated(4), rg.padding(torch.tensor([100, 520], device="cuda", dtype=torch.int32)))),
    "softcap": (540, lambda: (rg.neighborhood(IMAGE, 5), rg.softcap(2.0))),
    "circle": (768, lambda: (circle(radius=9),)),
    "radial": (480, lambda: (radial(), rg.softcap(3.0))),
    "first frame": (480, lambda: (same_place_or_first_frame(),)),
    "bias": (768, lambda: (rg.windows(WIDE, 8), rg.alibi(heads=4))),
    "residue of a head": (520, lambda: (residue_of_a_head(),)),
    "segments of a head": (600, lambda: (segments_of_a_head(),)),
    "windows of a head": (768, lambda: (windows_of_a_head(),)),
    "divisions": (540, lambda: (by_division(),)),
    "divisions, cut short": (531, lambda: (by_division(),)),
    "radial divisions": (480, lambda: (radial_by_division(),)),
    "radial divisions, cut short": (500, lambda: (radial_by_division(),)),
    "sliding tiles": (864, lambda: (rg.sliding_tile(rg.grid(6, 12, 12), 3, (2, 4, 4)),)),
}
# Masks that are several terms: up to seven kernels, each of which takes seconds to compile.
TERMS: dict[str, tuple[int, Parts]] = {
    "text beside an image": (540, lambda: (circle_beside_text(text=40),)),
    "uneven image": (531, lambda: (circle_beside_text(text=40), rg.softcap(3.0))),
    "text after an image": (540, lambda: (rg.neighborhood(AFTER_TEXT, 7) | text_after_an_image(),)),
    "image between texts": (560, lambda: (image_between_texts(first=40),)),
    "shards of a head": (517, lambda: (shards_of_a_head(), rg.alibi(heads=4))),
    "local and dilated": (517, lambda: (local_and_dilated(),)),
    "summaries": (517, lambda: (summaries(), rg.alibi(heads=4))),
    "rows and columns": (540, lambda: (rg.axial(IMAGE, 0) | rg.axial(IMAGE, 1),)),
}


def tensors(
    dtype: torch.dtype, length: int, dim: int, value_dim: int, *, strided: bool, heads: tuple[int, int] = (4, 2)
) -> tuple[Tensor, ...]:
    """Query, key and value, four heads on two; ``strided``: as a projection leaves them."""
    torch.manual_seed(0)
    made = []
    for heads_here, size in ((heads[0], dim), (heads[1], dim), (heads[1], value_dim)):
        shape = (2, length, heads_here, size) if strided else (2, heads_here, length, size)
        x = torch.randn(*shape, device="cuda", dtype=dtype)
        made.append((x.transpose(1, 2) if strided else x).requires_grad_())
    return tuple(made)


def check(
    parts: tuple[Any, ...], inputs: tuple[Tensor, ...], skeleton: str = "triton", *, backward: bool = True,
    align: Literal["start", "end"] = "start",
) -> None:  # fmt: skip
    """Three calls, because the later ones are replayed; ``backward``: their gradients too."""
    attn = rg.attention(*parts, align=align)
    assert attn.explain(*inputs).kernels[0].skeleton == f"{skeleton}_forward"
    grad_out = torch.randn(*inputs[0].shape[:3], inputs[2].shape[3], device="cuda", dtype=inputs[0].dtype)
    (exact, exact_lse), (usual, usual_lse) = (f(parts, *inputs, align=align) for f in (oracle, eager))
    exact_grads, usual_grads = (
        gradients(f, parts, inputs, grad_out, align=align) if backward else () for f in (oracle, eager)
    )
    for _ in range(3):
        out, aux = attn(*inputs, aux=("lse",))
        assert_close_to_oracle(out, exact, usual)
        assert_close_to_oracle(aux.lse, exact_lse, usual_lse, "lse")
        found = torch.autograd.grad(out, inputs, grad_out) if backward else ()
        for name, a, b, c in zip("qkv"[: len(found)], found, exact_grads, usual_grads, strict=True):
            assert_close_to_oracle(a, b, c, f"gradient of {name}")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dim", [64, 128])
def test_variants(name: str, dim: int) -> None:
    length, make = VARIANTS[name]
    check(make(), tensors(torch.bfloat16, length, dim, dim, strided=False))


@pytest.mark.parametrize("q_len", [192, 200])
def test_queries_are_the_last_tokens_of_a_grid(q_len: int) -> None:
    """Frames behind a cache, whole ones and not."""
    query, key, value = tensors(torch.bfloat16, 480, 64, 64, strided=False)
    last = query[:, :, -q_len:].detach().requires_grad_()
    check((rg.neighborhood(VIDEO, (3, 5, 5)),), (last, key, value), align="end")


@pytest.mark.parametrize(
    ("name", "dim", "backward"),
    [
        *((name, 64, False) for name in TERMS),
        ("local and dilated", 64, True),
        ("text beside an image", 64, True),
        ("rows and columns", 128, False),
    ],
)
def test_several_terms(name: str, dim: int, backward: bool) -> None:
    length, make = TERMS[name]
    check(make(), tensors(torch.bfloat16, length, dim, dim, strided=False), backward=backward)


@pytest.mark.parametrize(("dim", "skeleton"), [(128, "gluon"), (64, "triton")])
def test_gradients_by_tiles_beside_a_forward_pass_over_boxes(dim: int, skeleton: str) -> None:
    parts = (near_places_or_first_frames(first=100),)
    inputs = tensors(torch.bfloat16, 1024, dim, dim, strided=True, heads=(16, 8))
    kernels = rg.attention(*parts).explain(*inputs).kernels
    assert [k.skeleton for k in kernels] == ["triton_forward", f"{skeleton}_backward"]
    check(parts, inputs)


WARP_SPECIALISED: dict[str, tuple[int, Parts]] = {
    **{name: VARIANTS[name] for name in ("dilated", "dilated, cut short", "neighbourhood", "wide neighbourhood")},
    **{name: VARIANTS[name] for name in ("strided neighbourhood", "causal neighbourhood", "three axes")},
    "divisions": VARIANTS["divisions"],
    "shifted windows": (2400, lambda: (rg.windows(rg.grid(40, 60), 12, shift=5),)),
    "bias": (768, lambda: (rg.neighborhood(WIDE, 13), rg.alibi(torch.rand(32, device="cuda")))),
}


@pytest.mark.parametrize("name", WARP_SPECIALISED)
@pytest.mark.parametrize("sizes", [(128, 128), (128, 64), (64, 128)])
def test_calls_that_fill_the_gpu(name: str, sizes: tuple[int, int]) -> None:
    length, make = WARP_SPECIALISED[name]
    inputs = tensors(torch.bfloat16, length, *sizes, strided=True, heads=(32, 8))
    check(make(), inputs, "gluon")


@rg.mask
def early_keys(q: Any, kv: Any) -> Any:
    """Some columns of the image are seen by nobody."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 2) & (d < 11) & (abs(b - d) <= 9)


@rg.score
def key_bias(s: Any, head: Any, kv: Any, bias: Any) -> Any:
    return s + bias[head, kv]


@rg.score
def gate(s: Any, head: Any, q: Any, gates: Any) -> Any:
    return s * (1.0 + gates[head, q])


@pytest.mark.parametrize("name", WARP_SPECIALISED)
def test_gradients_of_large_calls_repeat(name: str) -> None:
    length, make = WARP_SPECIALISED[name]
    inputs = tensors(torch.bfloat16, length, 128, 128, strided=True, heads=(32, 8))
    attn = rg.attention(*make())
    assert attn.explain(*inputs).kernels[1].skeleton == "gluon_backward"
    out = attn(*inputs)
    grad_out = torch.randn_like(out)
    first, *others = (torch.autograd.grad(out, inputs, grad_out, retain_graph=True) for _ in range(8))
    assert all(torch.equal(a, b) for again in others for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["dilated, cut short", "wide neighbourhood", "three axes"])
def test_gradients_of_large_calls_at_head_size_64(name: str) -> None:
    length, make = WARP_SPECIALISED[name]
    inputs = tensors(torch.bfloat16, length, 64, 64, strided=True, heads=(32, 8))
    parts = make()
    assert rg.attention(*parts).explain(*inputs).kernels[1].skeleton == "gluon_backward"
    check(parts, inputs, "gluon")


def test_gradients_of_captured_tensors_over_boxes() -> None:
    inputs = tensors(torch.bfloat16, 540, 128, 128, strided=False, heads=(32, 8))
    bias, gates = (torch.randn(32, 540, device="cuda").requires_grad_() for _ in range(2))
    parts = (rg.neighborhood(IMAGE, (5, 7)), key_bias(bias=bias), gate(gates=gates))
    attn = rg.attention(*parts)
    assert attn.explain(*inputs).kernels[1].skeleton == "gluon_backward"
    out = attn(*inputs)
    grad_out = torch.randn_like(out)
    found = torch.autograd.grad(out, (*inputs, bias, gates), grad_out)
    exact, usual = (gradients(f, parts, inputs, grad_out, None, (bias, gates)) for f in (oracle, eager))
    for what, a, b, c in zip(("query", "key", "value", "bias", "gates"), found, exact, usual, strict=True):
        assert_close_to_oracle(a, b, c.to(a.dtype), what)


def test_gradients_of_large_calls_do_not_see_unseen_keys() -> None:
    attn = rg.attention(early_keys())
    query, key, value = tensors(torch.bfloat16, 540, 128, 128, strided=False, heads=(32, 8))
    assert attn.explain(query, key, value).kernels[1].skeleton == "gluon_backward"
    grad_out = torch.randn_like(query)
    unseen = torch.arange(540, device="cuda") % 27 >= 11
    results = []
    for dirty in (False, True):
        k, v = key.detach().clone(), value.detach().clone()
        if dirty:
            k[:, :, unseen], v[:, :, unseen] = torch.nan, torch.inf
        leaves = query, k.requires_grad_(), v.requires_grad_()
        results.append(torch.autograd.grad(attn(*leaves), leaves, grad_out))
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)
    assert not any(x[:, :, unseen].any() for x in results[0][1:])


@pytest.mark.parametrize("name", ["dilated", "dilated, cut short", "neighbourhood", "three axes", "shifted windows"])
def test_strides_and_head_sizes(name: str) -> None:
    length, make = VARIANTS[name]
    check(make(), tensors(torch.float16, length, 80, 40, strided=True))


@pytest.mark.parametrize(("name", "backward"), [("dilated", True), ("neighbourhood", True), ("summaries", False)])
def test_single_precision(name: str, backward: bool) -> None:
    length, make = (VARIANTS | TERMS)[name]
    check(make(), tensors(torch.float32, length, 64, 32, strided=True), backward=backward)


@pytest.mark.parametrize("name", ["neighbourhood", "shifted windows", "dilated"])
def test_keys_that_nobody_sees_may_be_anything(name: str) -> None:
    length, make = VARIANTS[name]
    seen = torch.tensor([200, 333], device="cuda", dtype=torch.int32)
    attn = rg.attention(*make(), rg.padding(seen))
    query, key, value = tensors(torch.bfloat16, length, 64, 64, strided=False)
    results = []
    for dirty in (False, True):
        k, v = key.detach().clone(), value.detach().clone()
        for batch, stop in enumerate(seen.tolist()):
            k[batch, :, stop:] = torch.inf if dirty else 0.0
            v[batch, :, stop:] = torch.nan if dirty else 0.0
        inputs = (query, k.requires_grad_(), v.requires_grad_())
        out = attn(*inputs)
        results.append((out, *torch.autograd.grad(out, inputs, torch.ones_like(out))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
