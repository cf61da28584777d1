"""Generated kernels over boxes under Triton's interpreter, against the oracle.

Collected by name only: ``test_triton_boxes.py`` runs this file in a process of its own, because Triton decides when
it is imported whether it compiles or interprets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import regard as rg
from generated_boxes import generated
from generated_triton import load
from oracle import Part, gradients, oracle
from regard.codegen.box_sides import box_shapes
from regard.ir.tiles.box_count import count_boxes
from regard.ir.tiles.numeric import Sizes

F16, F32 = torch.float16, torch.float32
IMAGE, VIDEO = rg.grid(9, 11), rg.grid(3, 4, 5)


@rg.mask
def columns_of_a_head(q: Any, kv: Any, head: Any, widths: Any) -> Any:
    return abs(IMAGE(q)[1] - IMAGE(kv)[1]) <= widths[head]


@rg.mask
def borders(q: Any, kv: Any) -> Any:
    """Two intervals along an axis."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 2) & ((d < 3) | (d > 7)) & (abs(b - d) <= 9)


@rg.mask
def even_rows(q: Any, kv: Any) -> Any:
    """Every other row of the image sees nothing."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (a % 2 == 0) & (b % 3 == d % 3) & (c <= a)


@rg.mask
def told_from_divisions(q: Any, kv: Any) -> Any:
    return (abs(q // 8 - kv // 8) <= 1) & (abs(q % 8 - kv % 8) <= 2)


@rg.mask
def one_further(q: Any, kv: Any) -> Any:
    return ((q - kv) % 4 == 1) & (q - kv < 40)


@rg.mask
def circle(q: Any, kv: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 3) & (abs(b - d) <= 3) & ((a - c) ** 2 + (b - d) ** 2 <= 9)


@rg.mask
def sphere(q: Any, kv: Any, radius: Any) -> Any:
    (t, a, b), (s, c, d) = VIDEO(q), VIDEO(kv)
    return (t - s) ** 2 + (a - c) ** 2 + (b - d) ** 2 < radius**2


@rg.mask
def radial(q: Any, kv: Any) -> Any:
    """A window that narrows with the distance of rows, which ends somewhere."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    apart = abs(a - c)
    reach = rg.where(apart >= 4, 1, rg.where(apart >= 2, 2, rg.where(apart >= 1, 4, 11)))
    return (abs(b - d) < reach) & (apart < 7)


@rg.mask
def leaning(q: Any, kv: Any) -> Any:
    """Some rows that a box could see hold nothing for it."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(3 * (a - c) - (b - d)) <= 2) | (b == d - 10)


@rg.mask
def circle_of_columns(q: Any, kv: Any) -> Any:
    """A circle inside of classes: every third column, blocks of rows."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (b % 3 == d % 3) & (a // 5 == c // 5) & ((a - c) ** 2 + (b - d) ** 2 <= 20)


@rg.mask
def circle_beside_text(q: Any, kv: Any, text: Any) -> Any:
    """Text before an image sees everything and is seen by all."""
    (a, b), (c, d) = IMAGE(q - text), IMAGE(kv - text)
    return (q < text) | (kv < text) | ((a - c) ** 2 + (b - d) ** 2 <= 9)


SMALL = rg.grid(5, 11)


@rg.mask
def image_between_texts(q: Any, kv: Any, first: Any) -> Any:
    (a, b), (c, d) = SMALL(q - first), SMALL(kv - first)
    text = (q < first) | (kv < first) | (q >= first + 55) | (kv >= first + 55)
    return text | (abs(a - c) <= 1) & (abs(b - d) <= 2)


@rg.mask
def text_after_an_image(q: Any, kv: Any) -> Any:
    (a, b), (c, d) = SMALL(q), SMALL(kv)
    return (q >= 55) | (kv >= 55) | (abs(a - c) <= 1) & (abs(b - d) <= 2)


@rg.mask
def image_before_text_alone(q: Any, kv: Any) -> Any:
    """What comes after the image sees nothing: its rows are in no box."""
    (a, b), (c, d) = SMALL(q), SMALL(kv)
    return (q < 55) & (kv < 55) & (b % 2 == d % 2) & (a >= c)


@rg.mask
def same_column_or_first_row(q: Any, kv: Any) -> Any:
    (_, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(b - d) <= 1) | (c == 0)


@rg.mask
def local_or_dilated(q: Any, kv: Any) -> Any:
    return (abs(q - kv) <= 3) | (((q - kv) % 4 == 0) & (q >= kv))


@rg.mask
def image_after_text_alone(q: Any, kv: Any, text: Any) -> Any:
    """Text sees nothing: its rows are in no box."""
    (a, b), (c, d) = IMAGE(q - text), IMAGE(kv - text)
    return (q >= text) & (kv >= text) & (abs(a - c) <= 1) & (abs(b - d) <= 2)


@rg.mask
def residue_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    return (q >= kv) & ((q - kv + 3 * head) % 4 == 0)


@rg.mask
def segments_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    """LongNet, arXiv:2307.02486: every head its own offset."""
    return (q % 3 == head % 3) & (kv % 3 == head % 3) & (q // 30 == kv // 30)


@rg.mask
def dilated_blocks_of_a_head(q: Any, kv: Any, head: Any, shifts: Any) -> Any:
    by = shifts[head]
    return ((q + by) // 30 == (kv + by) // 30) & (q % 3 == kv % 3)


@rg.mask
def shards_of_a_head(q: Any, kv: Any, head: Any) -> Any:
    """S2-Attention: local blocks, and every third block from another one on."""
    return (q >= kv) & ((q // 8 - kv // 8 < 2) | ((q // 8 - kv // 8 - head) % 3 == 0))


@rg.mask
def windows_of_a_head(q: Any, kv: Any, head: Any, shifts: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    by = shifts[head]
    return ((a + by) // 4 == (c + by) // 4) & ((b + by) // 4 == (d + by) // 4)


@rg.score
def per_key(s: Any, batch: Any, kv: Any, bias: Any) -> Any:
    return s + bias[batch, kv]


@rg.score
def relative(s: Any, head: Any, q: Any, kv: Any, table: Any) -> Any:
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return s + table[head, c - a + 8, d - b + 10]


def captured(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


CASES: dict[str, Callable[[], list[Part]]] = {
    "dilated": lambda: [rg.causal(), rg.dilated(4)],
    "dilated window": lambda: [rg.sliding_window(30, 5), rg.dilated(3)],
    "residues of keys are others": lambda: [one_further()],
    "neighbourhood": lambda: [rg.neighborhood(IMAGE, (3, 5))],
    "even window": lambda: [rg.neighborhood(IMAGE, (4, 6))],
    "dilated neighbourhood": lambda: [rg.neighborhood(IMAGE, (3, 5), dilation=(3, 2))],
    "strided neighbourhood": lambda: [rg.neighborhood(IMAGE, 5, stride=3)],
    "causal neighbourhood": lambda: [rg.neighborhood(IMAGE, (3, 5), causal=(True, False))],
    "shifted windows": lambda: [rg.windows(IMAGE, 4, shift=(1, 3))],
    "columns": lambda: [rg.axial(IMAGE, axis=0, causal=True)],
    "columns of a head": lambda: [columns_of_a_head(widths=torch.tensor([0, 2]))],
    "residue of a head": lambda: [residue_of_a_head(), rg.alibi(slopes=captured(2))],
    "segments of a head": lambda: [segments_of_a_head()],
    "dilated blocks of a head": lambda: [dilated_blocks_of_a_head(shifts=torch.tensor([0, 14], dtype=torch.int32))],
    "windows of a head": lambda: [windows_of_a_head(shifts=torch.tensor([0, 2], dtype=torch.int32))],
    "two intervals": lambda: [borders()],
    "rows without keys": lambda: [even_rows()],
    "told from divisions": lambda: [told_from_divisions()],
    "circle": lambda: [circle()],
    "radial": lambda: [radial()],
    "leaning": lambda: [leaning()],
    "circle of columns": lambda: [circle_of_columns()],
    "padding": lambda: [rg.dilated(3) & rg.padding(torch.tensor([0, 50]))],
    "softcap": lambda: [rg.neighborhood(IMAGE, 3), rg.softcap(2.0)],
    "per head": lambda: [rg.windows(IMAGE, 4), rg.alibi(slopes=captured(2))],
    "per key": lambda: [rg.dilated(3), per_key(bias=captured(2, 99))],
    "per pair": lambda: [rg.windows(IMAGE, 4), relative(table=captured(2, 17, 21))],
}


# Masks of several terms, or of boxes that begin later; the length, and whether kernels add to what others found.
SEVERAL: dict[str, tuple[int, bool, Callable[[], list[Part]]]] = {
    "text beside an image": (104, False, lambda: [circle_beside_text(text=5)]),
    "text beside an image that is cut short": (97, False, lambda: [circle_beside_text(text=5)]),
    "no text": (99, False, lambda: [circle_beside_text(text=0)]),
    "image after text": (104, False, lambda: [image_after_text_alone(text=5)]),
    "text after an image": (70, False, lambda: [text_after_an_image(), rg.alibi(slopes=captured(2))]),
    "no text after an image": (55, False, lambda: [text_after_an_image()]),
    "image that is cut short": (40, False, lambda: [text_after_an_image()]),
    "image between texts": (70, False, lambda: [image_between_texts(first=6)]),
    "image between texts that is cut short": (50, False, lambda: [image_between_texts(first=6)]),
    "image before text alone": (70, False, lambda: [image_before_text_alone()]),
    "first row": (99, False, lambda: [same_column_or_first_row(), rg.softcap(2.0)]),
    "local or dilated": (75, True, lambda: [local_or_dilated(), per_key(bias=captured(2, 75))]),
    "shards of a head": (75, True, lambda: [shards_of_a_head()]),
    "rows or columns": (99, True, lambda: [rg.axial(IMAGE, 0) | rg.axial(IMAGE, 1), rg.alibi(slopes=captured(2))]),
}


def inputs(dtype: torch.dtype, q_len: int = 99, kv_len: int = 99, size: int = 16, value_size: int = 16) -> list[Tensor]:
    """Query, key, value with other strides than contiguous ones, two heads of queries on one of keys."""
    make = torch.Generator().manual_seed(0)
    shapes = ((2, q_len, size), (1, kv_len, size), (1, kv_len, value_size))
    return [torch.randn(2, n, h, d, generator=make).to(dtype).transpose(1, 2) for h, n, d in shapes]


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype is F32 else 4e-3
    assert not found.isnan().any()
    finite = expected.isfinite()
    assert torch.equal(found.isfinite(), finite)
    scale = expected[finite].abs().max().clamp(min=1.0) if finite.any() else torch.tensor(1.0)
    assert (found.double() - expected)[finite].abs().max() <= tolerance * scale


def check(
    parts: list[Part], tensors: list[Tensor], dtype: torch.dtype, align: Literal["start", "end"] = "start",
    **options: Any,
) -> None:  # fmt: skip
    sizes = (tensors[0].shape[3], tensors[2].shape[3])
    module = generated(parts, sizes=sizes, dtype=dtype, align=align, **options)
    out, lse = module.forward(*tensors)
    expected, expected_lse = oracle(parts, *tensors, align=align)
    assert_close(out, expected, dtype)
    assert_close(lse, expected_lse, dtype)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    grad_lse = torch.where(lse.isneginf(), 0.0, torch.ones_like(lse))
    found = module.backward(*tensors, out, lse, grad_out, grad_lse=grad_lse)
    wanted = gradients(oracle, parts, tensors, grad_out, grad_lse, module.captured, align=align)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, dtype)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_gradients(name: str) -> None:
    check(CASES[name](), inputs(F32), F32, blocks=(64, 32), descriptors=False)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_terms(name: str) -> None:
    length, adds, make = SEVERAL[name]
    parts = make()
    options: dict[str, Any] = {"blocks": (32, 64)}
    assert ("carried" in generated(parts, sizes=(16, 16), dtype=F16, **options).sources[0]) == adds
    check(parts, inputs(F16, length, length), F16, **options)


@pytest.mark.parametrize("name", ["text beside an image", "local or dilated"])
def test_several_terms_in_single_precision_by_pointers(name: str) -> None:
    length, _, make = SEVERAL[name]
    check(make(), inputs(F32, length, length), F32, blocks=(64, 64), descriptors=False)


@pytest.mark.parametrize("name", ["text beside an image that is cut short", "image between texts"])
def test_rows_outside_of_a_grid_in_shares(name: str) -> None:
    """Few rows of positions: each is shared between several programs, what they find is added up."""
    length, _, make = SEVERAL[name]
    options: dict[str, Any] = {"blocks": (16, 16)}
    shares = load(generated(make(), sizes=(16, 16), dtype=F16, **options).sources[1]).share_count
    assert shares(4, -(-length // 16), torch.device("cpu")) > 1
    check(make(), inputs(F16, length, length), F16, **options)


DESCRIBED = (
    "dilated", "residues of keys are others", "strided neighbourhood", "shifted windows", "dilated blocks of a head",
)  # fmt: skip


@pytest.mark.parametrize("name", DESCRIBED)
def test_tensor_descriptors(name: str) -> None:
    check(CASES[name](), inputs(F16, value_size=32), F16, blocks=(32, 64))


def test_classes_of_equal_size_come_by_descriptors_of_classes() -> None:
    parts: list[Part] = [rg.neighborhood(rg.grid(6, 16), (3, 4), dilation=(1, 4))]
    module = generated(parts, sizes=(16, 16), dtype=F16)
    assert "tl.load(key" not in module.sources[0] and "key_boxes.load(" in module.sources[0]
    check(parts, inputs(F16, 96, 96), F16, blocks=(16, 16))


def test_classes_cut_short_come_by_pointers() -> None:
    parts: list[Part] = [rg.causal(), rg.dilated(4)]
    for q_len, kv_len in ((96, 96), (96, 97), (33, 50), (1, 3)):
        check(parts, inputs(F16, q_len, kv_len), F16, blocks=(16, 32))


def test_three_axes() -> None:
    parts: list[Part] = [rg.neighborhood(VIDEO, 3), rg.causal()]
    check(parts, inputs(F16, 60, 60, 24, 40), F16, blocks=(16, 32))


@pytest.mark.parametrize("radius", [3, 1])
def test_three_axes_that_depend_on_each_other(radius: int) -> None:
    check([sphere(radius=radius)], inputs(F16, 60, 60, 24, 40), F16, blocks=(16, 16))


@pytest.mark.parametrize("name", ["circle", "radial", "circle of columns"])
@pytest.mark.parametrize("blocks", [(16, 64), (64, 16)])
def test_axes_that_depend_on_each_other(name: str, blocks: tuple[int, int]) -> None:
    check([*CASES[name](), rg.softcap(3.0)], inputs(F16), F16, blocks=blocks)


@pytest.mark.parametrize("name", ["circle", "radial", "circle of columns"])
def test_what_is_counted_is_visited(name: str) -> None:
    """The number of turns of the loop, over all programs of one head."""
    source = generated(CASES[name](), sizes=(16, 16), dtype=F16, blocks=(16, 16), descriptors=False)
    loop = "    for t in range(0, count):"
    assert source.sources[0].count(loop) == 1
    text = source.sources[0].replace(loop, f"    tl.atomic_add(visits, count)\n{loop}")
    text = text.replace("    lse,\n", "    lse, visits,\n", 1).replace("[i for i in range(", "[i for i in range(1 + ")
    text = text.replace("target_lse, query,", "target_lse, visits, query,").replace("def run(", "def run(visits, ")
    visits = torch.zeros(1, dtype=torch.int32)
    load(text).run(visits, *inputs(F16))
    term = source.plan.boxes[0]
    sides = box_shapes(term.axes, "q", 16, 16)[0]
    found, _ = count_boxes(term, sides.queries, sides.keys, Sizes(1, 1, 1, 99, 99), {})
    assert visits.item() == found * 2 * 2


@pytest.mark.parametrize("q_len", [33, 25, 99])
def test_queries_are_the_last_tokens_of_a_grid(q_len: int) -> None:
    """Frames that come after those of a cache; whole ones come by descriptors."""
    for part in (rg.neighborhood(IMAGE, (5, 3)), rg.axial(IMAGE, axis=0, causal=True)):
        check([part], inputs(F16, q_len, 99), F16, align="end", blocks=(16, 32))


def test_batch_and_heads_in_any_order() -> None:
    parts = CASES["neighbourhood"]()
    query, key, value = inputs(F16)
    contiguous = [x.contiguous() for x in (query, key, value)]
    one_of_many = [torch.stack([x, x + 1], 2)[:, :, 0] for x in contiguous]
    for tensors in (contiguous, one_of_many, [query, key[:1].expand(2, -1, -1, -1), value]):
        check(parts, tensors, F16, blocks=(64, 64))


@pytest.mark.parametrize("name", ["shifted windows", "rows without keys"])
@pytest.mark.parametrize("descriptors", [False, True])
def test_keys_that_nobody_sees_may_be_anything(name: str, descriptors: bool) -> None:
    parts = [*CASES[name](), rg.padding(torch.tensor([40, 70]))]
    query, key, value = inputs(F16)
    module = generated(parts, sizes=(16, 16), dtype=F16, blocks=(32, 64), descriptors=descriptors)
    clean = module.forward(query, key, value)
    expected = module.backward(query, key, value, *clean, torch.ones_like(clean[0]))
    for batch, length in enumerate((40, 70)):
        key[batch, :, length:], value[batch, :, length:] = torch.inf, torch.nan
    dirty = module.forward(query, key, value)
    assert all(torch.equal(a, b) for a, b in zip(dirty, clean, strict=True))
    found = module.backward(query, key, value, *dirty, torch.ones_like(dirty[0]))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_to_attend_to() -> None:
    module = generated([rg.dilated(3)], sizes=(16, 16), dtype=F32, blocks=(16, 16))
    query, key, value = inputs(F32, 5, 0)
    out, lse = module.forward(query, key, value)
    assert not out.any() and lse.isneginf().all()
    assert not any(x.any() for x in module.backward(query, key, value, out, lse, out))
