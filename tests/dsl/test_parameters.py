"""Parameters: how values enter a variant, what they are called, and when they are read."""

from __future__ import annotations

from typing import Annotated, Any

import numpy
import pytest
import torch

import regard as rg
from regard.ir.variant import ScalarParameter, StaticParameter

WIDTH = 7
SLOPES = torch.ones(4)


def declared(*parts: Any, **options: Any) -> str:
    """The parameter list of the printed attention."""
    return str(rg.attention(*parts, **options)).split("(", 1)[1].split(") {")[0]


@rg.mask
def window(q: Any, kv: Any, size: Any) -> Any:
    return q - kv < size


@rg.mask
def dilated(q: Any, kv: Any, d: Any) -> Any:
    return (q - kv) % d == 0


def test_numbers_are_run_time_scalars() -> None:
    assert declared(window(size=4)) == "size: int = 4"
    assert declared(window(size=4.5)) == "size: float = 4.5"
    assert rg.assemble(window(size=4))[0] == rg.assemble(window(size=5))[0]


def test_numbers_of_numpy_are_as_those_of_python() -> None:
    width, half, flag = numpy.int64(5), numpy.float32(0.5), numpy.bool_(True)

    @rg.mask
    def bound(q: Any, kv: Any, w: Any) -> Any:
        return q - kv < w

    @rg.mask
    def captured(q: Any, kv: Any) -> Any:
        return (width > q - kv) & flag

    @rg.score
    def scaled(s: Any) -> Any:
        return half * s

    for given, expected in ((width, 5), (half, 0.5), (flag, True)):
        assert rg.attention(bound(w=given)) == rg.attention(bound(w=expected))
    assert "width: int = 5" in str(rg.attention(captured)) and "half: float = 0.5" in str(rg.attention(scaled))
    x = torch.randn(3, 1, 1, 9, 16).unbind()
    assert torch.equal(rg.attention(bound)(*x, w=width), rg.attention(captured)(*x))  # type: ignore[arg-type]


def test_static_values_are_part_of_the_structure() -> None:
    assert declared(window(size=rg.static(4))) == "size: static int = 4"
    assert declared(window(size=rg.static(0.5))) == "size: static float = 0.5"
    assert rg.assemble(window(size=rg.static(4)))[0] != rg.assemble(window(size=rg.static(5)))[0]
    with pytest.raises(rg.ParameterError, match="takes a number, got str"):
        rg.static("4")  # type: ignore[arg-type]


def test_divisors_become_static() -> None:
    assert declared(dilated(d=3)) == "d: static int = 3"
    blocks = rg.mask(lambda q, kv, n, w: q // n == (kv + w) // (2 * n))
    assert declared(blocks(n=4, w=1)) == "n: static int = 4, w: int = 1"
    assert "keep      q // n == (kv + w) // 8" in str(rg.attention(blocks(n=4, w=1)))
    assert declared(rg.mask(lambda q, kv: torch.remainder(q, WIDTH) == 0)) == "WIDTH: static int = 7"


def test_counts_of_python_loops_become_static() -> None:
    @rg.mask
    def powers(q: Any, kv: Any, count: Any) -> Any:
        allowed = q == kv
        for step in range(count):
            allowed = allowed | (q - kv == 2**step)
        return allowed

    attn = rg.attention(powers(count=2))
    assert "keep      q == kv or q - kv == 1 or q - kv == 2" in str(attn)


def test_flags_steer_python_and_are_not_printed() -> None:
    @rg.mask
    def near(q: Any, kv: Any, both: bool, size: int = 3) -> Any:
        return abs(q - kv) < size if both else q - kv < size

    assert "abs(q - kv) < size" in str(rg.attention(near(both=True)))
    assert "keep      q - kv < size" in str(rg.attention(near(both=False)))
    assert declared(near(both=True)) == "size: int = 3"


def test_none_is_an_absent_value() -> None:
    @rg.score
    def biased(s: Any, kv: Any, bias: Any = None) -> Any:
        return s if bias is None else s + bias[kv]

    assert declared(biased) == ""
    assert declared(biased(bias=SLOPES)) == "bias: f32[kv]"


def test_annotated_floats_are_floats() -> None:
    @rg.score
    def scaled(s: Any, factor: float) -> Any:
        return s * factor

    assert declared(scaled(factor=2)) == "factor: float = 2.0"
    assert declared(scaled(factor=rg.static(2))) == "factor: static float = 2.0"


def test_functions_without_needs_are_parts_themselves() -> None:
    @rg.mask
    def near(q: Any, kv: Any, size: int = 3) -> Any:
        return q - kv < size

    assert str(rg.attention(near)) == str(rg.attention(near()))
    assert str(rg.attention(near & window)) == str(rg.attention(near() & window()))
    assert declared(near & window) == "size_1: int = 3, size: int"


def test_open_parameters_take_their_type_from_use_and_annotation() -> None:
    @rg.mask
    def several(
        q: Any,
        kv: Any,
        batch: Any,
        number: Any,
        real: float,
        ids: Any,
        table: torch.Tensor,
        flags: Annotated[torch.Tensor, "bool[batch, kv]"],
    ) -> Any:
        return (
            (q < number)
            & (kv < real)
            & (ids[batch, q] == ids[batch, kv])
            & (table[ids[batch, kv]] > 0)
            & flags[batch, kv]
        )

    assert declared(several) == ("number: int, real: float, ids: i32[batch, _], table: i32[_], flags: bool[batch, kv]")


def test_open_tensors_of_scores_are_floats_unless_they_index() -> None:
    @rg.score
    def looked_up(s: Any, q: Any, head: Any, table: Any, row: Any) -> Any:
        return s + table[row[q], head]

    assert declared(looked_up) == "table: f32[_, head], row: i32[q]"


def test_string_annotations_in_the_text_language() -> None:
    namespace: dict[str, Any] = {}
    exec('def m(q, batch, ids: "i64[batch, q]"): return ids[batch, q] > 0', namespace)
    assert declared(rg.mask(namespace["m"])) == "ids: i64[batch, q]"


def test_bound_parameters_are_private_and_numbered() -> None:
    two = window(size=4) & ~window(size=9)
    assert declared(two) == "size: int = 4, size_1: int = 9"
    assert declared(two, two) == "size: int = 4, size_1: int = 9, size_2: int = 4, size_3: int = 9"
    assert declared(window, window(size=9)) == "size: int, size_1: int = 9"
    assert declared(window(size=9), window) == "size_1: int = 9, size: int"


def test_open_parameters_of_one_name_are_one() -> None:
    ids = rg.mask(lambda q, kv, batch, ids: ids[batch, q] == ids[batch, kv])
    positive = rg.mask(lambda kv, batch, ids: ids[batch, kv] >= 0)
    assert declared(positive, ids, window) == "ids: i32[batch, _], size: int"


def test_one_tensor_under_one_name_is_one_buffer() -> None:
    ids = torch.zeros(2, 8, dtype=torch.int32)
    same = rg.document(ids) | ~rg.document(ids)
    assert declared(same) == "ids: i32[batch, _]"
    assert declared(rg.document(ids) | rg.document(ids.clone())) == "ids: i32[batch, _], ids_1: i32[batch, _]"


def test_names_with_a_meaning_are_numbered() -> None:
    head = 3
    assert declared(rg.mask(lambda q: q < head)) == "head_1: int = 3"
    assert rg.parse(str(rg.attention(rg.mask(lambda q: q < head)))) == rg.attention(rg.mask(lambda q: q < head))


def test_closure_cells_and_globals_are_snapshotted_when_the_part_is_built() -> None:
    size = 4
    gain = torch.tensor(2.0)

    @rg.score
    def near(s: Any, q: Any, kv: Any, head: Any) -> Any:
        return rg.where(q - kv < size + WIDTH, gain * s, SLOPES[head] + 1)

    first = near()
    size, gain = 5, torch.tensor(3.0)
    _, early = rg.assemble(first)
    _, late = rg.assemble(near)
    assert (early["size"], late["size"]) == (4, 5)
    assert (float(early["gain"]), float(late["gain"])) == (2.0, 3.0)
    assert early["SLOPES"] is SLOPES
    assert declared(near) == "WIDTH: int = 7, SLOPES: f32[head], gain: f32[], size: int = 5"


def test_captured_numbers_do_not_change_the_structure() -> None:
    def built(size: int) -> Any:
        return rg.assemble(rg.mask(lambda q, kv: q - kv < size))

    (one, values), (two, others) = built(4), built(5)
    assert one == two
    assert (values.scalars, others.scalars) == ({"size": 4}, {"size": 5})


def test_captured_flags_and_static_numbers_are_constants() -> None:
    both, size = True, rg.static(4)
    part = rg.mask(lambda q, kv: (abs(q - kv) if both else q - kv) < size)
    assert "keep      abs(q - kv) < size" in str(rg.attention(part))
    assert declared(part) == "size: static int = 4"


def test_kinds_of_parameters_in_the_variant() -> None:
    variant, binding = rg.assemble(window(size=4), dilated(d=2), rg.alibi(SLOPES), rg.padding())
    assert [(type(p), p.name) for p in variant.parameters[:2]] == [(ScalarParameter, "size"), (StaticParameter, "d")]
    assert [p.name for p in variant.buffers] == ["slopes", "lengths"]
    assert binding.scalars == {"size": 4} and binding.tensors == {"slopes": SLOPES}
    assert "lengths" not in binding and "d" not in binding


def test_parts_are_assembled_in_order() -> None:
    variant, _ = rg.assemble(rg.softcap(3.0), rg.causal, rg.temperature(2.0), window(size=4), rg.softmax(), scale=2)
    assert str(rg.attention(rg.softcap(3.0), rg.causal, rg.temperature(2.0), window(size=4), scale=2)) == (
        "attention softcap_causal_temperature_window(cap: float = 3.0, t: float = 2.0, size: int = 4) {\n"
        "  keep      q >= kv and q - kv < size\n"
        "  score     cap * tanh(s / cap)\n"
        "  score     s / t\n"
        "  normalize softmax\n"
        "  scale     2.0\n"
        "}"
    )
    assert variant.scale == 2.0 and isinstance(variant.scale, float)


def test_names_of_variants() -> None:
    assert rg.assemble()[0].name == "attention"
    assert rg.assemble(rg.causal & ~rg.sinks(2), rg.softcap(1.0))[0].name == "causal_and_not_sinks_softcap"
    assert rg.assemble(rg.mask(lambda q: q > 1))[0].name == "mask"
    assert rg.assemble(rg.causal, name="mine")[0].name == "mine"


def test_bindings_are_immutable_and_compare_by_identity() -> None:
    _, binding = rg.assemble(window(size=4), rg.alibi(SLOPES))
    assert binding == binding and binding != rg.Binding(binding)
    assert repr(binding) == "Binding(slopes=tensor(4,), size=4)"
    with pytest.raises(TypeError):
        binding["size"] = 5  # type: ignore[index]


def test_an_open_tensor_that_a_mask_takes_for_a_condition_is_boolean() -> None:
    for keep in (
        lambda q, kv, seen: seen[kv],
        lambda q, kv, seen: seen[kv] & (q >= kv),
        lambda q, kv, seen: (q >= kv) | ~seen[kv],
    ):
        assert "(seen: bool[kv])" in str(rg.attention(rg.mask(keep)))
