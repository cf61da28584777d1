"""Printing and parsing: every text reads back as what was printed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.ir import build
from regard.ir.errors import RegardError, TextError, TypeMismatchError
from regard.ir.lowered import inlined, lower
from regard.ir.nodes import Const, Expr, Param
from regard.ir.parser import MAX_LENGTH, parse_expr, parse_lowered, parse_variant
from regard.ir.passes import stages
from regard.ir.printer import print_expr, print_lowered, print_variant
from regard.ir.types import F32
from regard.ir.variant import Variant
from strategies import PARAMETERS, expressions, sample_values, variants


@given(expressions())
def test_every_expression_reads_back(e: Expr) -> None:
    assert parse_expr(print_expr(e), PARAMETERS) == e


@given(variants(), st.integers(0, 99))
def test_every_variant_reads_back_with_its_values(v: Variant, seed: int) -> None:
    sampled = sample_values(v, seed, batch=2, heads=2, q_len=5, kv_len=7)
    values = {p.name: sampled[p.name] for p in v.scalars}
    again, read = parse_variant(print_variant(v, values))
    assert (again, again.name, read) == (v, v.name, values)


@given(variants())
def test_every_stage_reads_back_in_lowered_form(v: Variant) -> None:
    for stage in stages(v, check=True).values():
        whole = {"mask": stage.mask, **{f"score_{i}": e for i, e in enumerate(stage.scores)}}
        lowered = lower(whole)
        assert inlined(lowered) == whole
        assert parse_lowered(print_lowered(lowered)) == lowered


@given(expressions())
def test_lowering_any_expression_loses_nothing(e: Expr) -> None:
    lowered = lower({"result": e})
    assert inlined(lowered) == {"result": e}
    assert parse_lowered(print_lowered(lowered)) == lowered


@pytest.mark.parametrize("value", [0.1, -0.0, 1e-30, 1e30, 5e-324, math.inf, -math.inf, math.nan, 3.0])
def test_floats_are_exact(value: float) -> None:
    literal = Const(value, F32)
    assert parse_expr(print_expr(literal)) == literal


@pytest.mark.parametrize(
    "text",
    [
        "q - kv < 4",
        "(q < kv) == (q < 3)",
        "not q < kv",
        "(not q < kv) == true",
        "-q ** 2.0",
        "(-q) ** 2.0",
        "q - (kv - head)",
        "q - kv - head",
        "(q + kv) * head",
        "q & 3 | kv << 2",
        "where(q < kv, 1, 2)",
        "q < kv or q < 1 xor kv < 2 and head < 3",
        "2.0 ** -s ** 3.0",
        "--s",
        "int(q) < 3 * int(s)",
        "min(q, kv) // 3 % 5",
    ],
)
def test_texts_without_spare_parentheses_print_as_they_were_written(text: str) -> None:
    assert print_expr(parse_expr(text)) == text.replace("int(q) < 3", "q < 3")


def test_comments_newlines_and_trailing_commas_are_free() -> None:
    v, values = parse_variant(
        """
        attention local(  # what it is called
            window: int = 7, slopes: f32[head],
        ) {
            keep q >= kv  # causal
            keep q - kv < window
            score s + slopes[
                head]
        }
        """
    )
    assert print_expr(v.mask) == "q >= kv and q - kv < window"
    assert values == {"window": 7}


def test_a_parameter_may_be_called_like_a_word_of_the_language() -> None:
    v, _ = parse_variant("attention keep(score: int, static: f32[head]) { keep q < score score s + static[head] }")
    assert v.name == "keep"
    assert parse_variant(print_variant(v))[0] == v
    assert print_expr(v.mask) == "q < score"


@pytest.mark.parametrize(
    ("body", "error", "expected"),
    [
        ("keep q >= kvv", TextError, ["unknown name `kvv`", "       ^^^\n", "did you mean `kv`?"]),
        ("keep flor(s) > 1.0", TextError, ["unknown function `flor`", "did you mean `floor`?"]),
        ("keep q = kv", TextError, ["unexpected `=`", "write `==`"]),
        ("keep q >= kv && true", TextError, ["write `a and b`"]),
        ("keep 0 <= q < kv", TextError, ["comparisons do not chain"]),
        ("keep (q >= kv", TextError, ["unexpected `}`; expected `)` or an operator"]),
        ("keep q @ kv", TextError, ["unexpected `@`, which the language does not have"]),
        ("keep q >= kv keep", TextError, ["unexpected `}`; expected `(`, `-`, `not`, a name or a number"]),
        ("keep q - kv", TypeMismatchError, ["`keep` needs a boolean, got i64", "^^^^^^"]),
        ("keep q and kv", TypeMismatchError, ["`and` needs two booleans", "write `&` for bits"]),
        ("keep s > 0.0", TextError, ["a mask cannot read the score"]),
        ("keep q % 0 == 1", TypeMismatchError, ["division by zero"]),
        ("keep min(q) == 1", TextError, ["`min` takes 2 arguments, got 1"]),
        ("keep bias == 1", TextError, ["`bias` is a tensor", "write bias[head, _]"]),
        ("keep bias[q] > 1.0", TypeMismatchError, ["`bias` has 2 axes, got 1 indices"]),
        ("keep bias[q, s] > 1.0", TypeMismatchError, ["index 1 of `bias` must be an integer"]),
        ("keep bais[q, kv] > 1.0", TextError, ["there is no tensor `bais`", "did you mean `bias`?"]),
        ("score q - kv", TypeMismatchError, ["`score` needs a float, got i64"]),
        ("align middle", TextError, ["unknown alignment `middle`", "start, end"]),
        ("normalize sotfmax", TextError, ["unknown normaliser", "did you mean `softmax`?"]),
        ("scale 1.0 scale 2.0", TextError, ["`scale` is given twice"]),
        ("scale true", TypeMismatchError, ["the value is no f32"]),
        ("keep q == 9223372036854775808", TextError, ["does not fit 64 bits"]),
        ("keep q == ٣", TextError, ["digits 0 to 9"]),
        ("keep " + "not " * 500 + "true", TextError, ["levels deep"]),
        ("keep " + "q < 1 and " * 500 + "true", TextError, ["levels deep"]),
        ("keep " + "(" * 50_000 + "true", TextError, ["unexpected `}`"]),
        ("keep " + " " * MAX_LENGTH + "true", TextError, ["longer than"]),
    ],
)
def test_faults_are_located_and_explained(body: str, error: type[RegardError], expected: list[str]) -> None:
    with pytest.raises(error) as caught:
        parse_variant(f"attention a(bias: f32[head, _]) {{\n  {body}\n}}")
    for part in expected:
        assert part in str(caught.value)


def test_a_missing_brace_is_shown_after_the_last_word() -> None:
    with pytest.raises(TextError) as caught:
        parse_variant("attention a() {\n  keep q >= kv  \n\n")
    assert "the text ends; expected `align`, `keep`" in str(caught.value)
    assert str(caught.value).endswith("keep q >= kv   \n" + " " * 18 + "^")
    assert caught.value.location is not None and caught.value.location.line == 2


def test_of_a_long_line_the_part_with_the_fault_is_shown() -> None:
    with pytest.raises(TextError) as caught:
        parse_variant("attention a() { keep " + "q < 1 and " * 90 + "qq < kv" + " and q < 2" * 40 + " }")
    _, _, shown, carets, hint = str(caught.value).split("\n")
    assert len(shown) < 200 and "hint" in hint
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "qq"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("window: ints", "did you mean `int`?"),
        ("window: int = 3.5", "the value is no i32"),
        ("window: int = 2147483648", "the value is no i32"),
        ("window: int, window: int", "two parameters are called `window`"),
        ("kv: int", "`kv` has a meaning of its own"),
        ("inf: float", "`inf` has a meaning of its own"),
        ("d: static int", "needs a value"),
        ("b: bool", "write b: static bool"),
        ("t: static f32[head]", "neither static nor given"),
        ("t: f64[head]", "unknown type `f64`"),
    ],
)
def test_faults_in_parameters(parameters: str, expected: str) -> None:
    with pytest.raises(RegardError) as caught:
        parse_variant(f"attention a({parameters}) {{}}")
    assert expected in str(caught.value)
    assert caught.value.location is not None


@given(st.text(alphabet="qkvs01.()[]{},:=<>+-*/%&|^~ \n#\t" + "not and where attention keep", max_size=80))
def test_no_text_raises_anything_else(text: str) -> None:
    for whole in (text, f"attention a() {{ keep {text} }}"):
        try:
            parse_variant(whole)
        except RegardError as error:
            assert error.message


def test_lowered_text_is_checked() -> None:
    with pytest.raises(TypeMismatchError, match="expected i64, got i32"):
        parse_lowered("lowered() { t0: i64 = i64(q) + kv yield x: i64 = t0 }")
    with pytest.raises(TypeMismatchError, match="declared i32 but is bool"):
        parse_lowered("lowered() { t0: i32 = q < kv yield x: i32 = t0 }")


def test_steps_are_named_once_and_apart_from_parameters() -> None:
    far = build.binary("sub", build.index("q"), build.index("kv"))
    used = build.binary("mul", far, build.binary("add", far, Param("t0", F32)))
    text = print_lowered(lower({"x": used}))
    assert "t0: f32" in text.splitlines()[0]
    assert "  t0:" not in text
