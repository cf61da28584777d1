"""No graph breaks, no surprises: attention inside ``torch.compile`` and ``torch.export``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor, nn

import regard as rg
from regard.runtime.engines import key_text


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """Projection, attention with a captured tensor and an open one, and the lse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(16, 3 * 16)
        self.slopes = nn.Parameter(torch.rand(2))
        self.attn = rg.attention(rg.sliding_window(9), rg.alibi(self.slopes), rg.document())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, dim=-1)
        out, aux = self.attn(query, key, value, aux=("lse",), ids=ids)
        total: Tensor = out * 2 + aux.lse.unsqueeze(-1)
        return total.sum(-1)


def inputs(length: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(length)
    return torch.randn(batch, 2, length, 16), (torch.arange(length) // 7).int().expand(batch, -1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_with_gradients(backend: str) -> None:
    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for length in (33, 40, 29):
        x, ids = inputs(length)
        expected = torch.autograd.grad(block(x, ids).square().sum(), [*block.parameters()])
        actual = torch.autograd.grad(compiled(x, ids).square().sum(), [*block.parameters()])
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_lengths_do_not_recompile_the_graph() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(Block(), fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        for length in (33, 40, 29, 57):
            compiled(*inputs(length))
    assert counter.frame_count == 1


def test_inference_mode() -> None:
    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, ids = inputs(21)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x, ids), block(x, ids))


def test_export_and_load(tmp_path: Any) -> None:
    block = Block()
    x, ids = inputs(33)
    exported = torch.export.export(block, (x, ids))
    stored = io.BytesIO()
    torch.export.save(exported, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    torch.testing.assert_close(loaded(x, ids), block(x, ids))


# What an exported graph needs in a process that never saw the Python function: the text that it carries.
ELSEWHERE = """
import sys, torch
import regard.runtime.ops
program, x, ids, expected = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(torch.export.load(program).module()(x, ids), expected)
"""


def test_an_exported_graph_in_another_process(tmp_path: Any, run_python: Any) -> None:
    block = Block()
    x, ids = inputs(33)
    path = tmp_path / "block.pt2"
    torch.export.save(torch.export.export(block, (x, ids)), path)
    torch.save((str(path), x, ids, block(x, ids).detach()), tmp_path / "all.pt")
    run_python(ELSEWHERE, str(tmp_path / "all.pt"))


def test_autocast_inside_a_graph() -> None:
    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x, ids = inputs(21)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x, ids), block(x, ids), rtol=2e-2, atol=5e-2)


def test_new_values_of_open_scalars_keep_the_graph() -> None:
    @rg.mask
    def near(q: Any, kv: Any, size: int) -> Any:
        return (q >= kv) & (q - kv < size)

    attn = rg.attention(near)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda x, size: attn(x, x, x, size=size), fullgraph=True, backend=counter)
    x, _ = inputs(30)
    for size in (3, 5, 8, 13, 21):
        torch.testing.assert_close(compiled(x, size), attn(x, x, x, size=size))
    assert counter.frame_count <= 2  # the first value as a constant, then any


def test_new_values_of_tensors_without_axes_keep_the_graph() -> None:
    """PyTorch takes an operator's floats for constants."""

    @rg.score
    def scaled(s: Any, by: Annotated[Tensor, "f32[]"]) -> Any:
        return s * by

    attn = rg.attention(scaled)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda x, by: attn(x, x, x, by=by), fullgraph=True, backend=counter)
    x, _ = inputs(30)
    for by in torch.tensor([0.5, 2.0, -1.0]):
        torch.testing.assert_close(compiled(x, by), attn(x, x, x, by=by))
    assert counter.frame_count == 1


def built_inside(x: Tensor, ids: Tensor) -> Tensor:
    out: Tensor = rg.attention(rg.causal & ~rg.sliding_window(3), rg.document(ids))(x * 2, x, x)
    return out.relu()


def test_an_attention_built_inside_ends_the_graph() -> None:
    x, ids = inputs(21)
    torch.testing.assert_close(torch.compile(built_inside, backend="eager")(x, ids), built_inside(x, ids))


def test_an_attention_built_inside_one_graph_is_refused() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="build the attention outside"):
        torch.compile(built_inside, fullgraph=True, backend="eager")(*inputs(21))


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "`size` has no value"), ({"sise": 3}, "no open parameter `sise`"), ({"size": 3.5}, "be an int, got 3.5")],
)
def test_mistakes_are_named_in_graphs_too(options: dict[str, Any], message: str) -> None:
    @rg.mask
    def near(q: Any, kv: Any, size: int) -> Any:
        return abs(q - kv) < size

    attn = rg.attention(near)
    x = torch.randn(1, 1, 9, 16)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        torch.compile(lambda x: attn(x, x, x, **options), fullgraph=True, backend="eager")(x)
    with pytest.raises(rg.RegardError, match=message):
        torch.compile(lambda x: attn(x, x, x, **options), backend="eager")(x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_inductor(dtype: torch.dtype) -> None:
    attn = rg.attention(rg.causal, rg.document())
    compiled = torch.compile(lambda x, ids: attn(x * 2, x, x, ids=ids).relu(), fullgraph=True)
    x, ids = inputs(21)
    torch.testing.assert_close(compiled(x, ids.to(dtype)), attn(x * 2, x, x, ids=ids).relu())


@pytest.mark.parametrize("mask", [rg.causal, rg.neighborhood(rg.grid(6, 10), 3), rg.document(torch.arange(60) // 7)])
def test_gradients_lie_in_memory_as_graphs_expect(mask: Any) -> None:
    """Inductor insists on it. Heads come after tokens, as a linear layer gives them."""
    attn = rg.attention(mask)
    query, key, value = torch.randn(2, 60, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind()
    out, aux = attn(query, key, value, aux=("lse",))
    captured, integers = ([attn.binding[p.name] for p in of] for of in (attn.variant.buffers, attn.variant.scalars))
    torch.library.opcheck(
        torch.ops.regard.attention_backward.default,
        (query, key, value, out, aux.lse, torch.randn_like(out), None, captured, integers, []),
        {
            "variant": key_text(attn.variant),
            "buffer_gradients": [False] * len(captured),
            "deterministic": False,
            "reuse_tables": False,
        },
        test_utils="test_faketensor",
    )
