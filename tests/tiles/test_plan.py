"""What a plan says, word for word: mask, ranges of a tile of queries and of keys, method, proofs."""

from __future__ import annotations

import numpy as np
import pytest

from regard.ir import build
from regard.ir.interpret import Array, evaluate
from regard.ir.nodes import Expr, Param
from regard.ir.parser import parse_variant
from regard.ir.passes import run_pipeline
from regard.ir.printer import print_expr
from regard.ir.tiles import Interval, TilePlan, make_plan, spans
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.traverse import walk
from regard.ir.types import F32, I32, BufferType
from regard.ir.variant import BufferParameter, Variant

# mask | keys that a tile of queries may attend to, and must | queries that a tile of keys may, and must, be seen by
RANGES = """
true
    [0, kv_len) | [0, kv_len)
    [0, q_len) | [0, q_len)
q >= kv
    [0, tile_last + 1) | [0, tile_first + 1)
    [tile_first, q_len) | [tile_last, q_len)
not (q < kv)
    [0, tile_last + 1) | [0, tile_first + 1)
    [tile_first, q_len) | [tile_last, q_len)
q >= kv and q - kv < n
    [tile_first - n + 1, where(n >= 1, tile_last + 1, 0)) | [tile_last - n + 1, tile_first + 1)
    [tile_first, where(n >= 1, tile_last + n, 0)) | [tile_last, tile_first + n)
q >= kv and q - kv < 128
    [tile_first - 127, tile_last + 1) | [tile_last - 127, tile_first + 1)
    [tile_first, tile_last + 128) | [tile_last, tile_first + 128)
q >= kv or kv < n
    [0, max(n, tile_last + 1)) | [0, max(n, tile_first + 1))
    [tile_first, q_len), [0, where(tile_first < n, q_len, 0)) | [tile_last, q_len), [0, where(tile_last < n, q_len, 0))
q + kv_len - q_len >= kv
    [0, tile_last + kv_len - q_len + 1) | [0, tile_first + kv_len - q_len + 1)
    [tile_first + q_len - kv_len, q_len) | [tile_last + q_len - kv_len, q_len)
q // 64 == kv // 64
    [64 * (tile_first // 64), 64 * (tile_last // 64) + 64) | [64 * (tile_last // 64), 64 * (tile_first // 64) + 64)
    [64 * (tile_first // 64), 64 * (tile_last // 64) + 64) | [64 * (tile_last // 64), 64 * (tile_first // 64) + 64)
(q - kv) // 16 <= 3
    [tile_first - 63, kv_len) | [tile_last - 63, kv_len)
    [0, tile_last + 64) | [0, tile_first + 64)
2 * q - 3 * kv > 5
    [0, 2 * tile_last // 3 - 1) | [0, 2 * tile_first // 3 - 1)
    [(3 * tile_first + 1) // 2 + 3, q_len) | [(3 * tile_last + 1) // 2 + 3, q_len)
min(kv, q + 3) <= q - 2
    [0, tile_last - 1) | [0, tile_first - 1)
    [tile_first + 2, q_len) | [tile_last + 2, q_len)
kv < where(n > 3, n, 5)
    [0, where(n >= 4, n, 5)) | [0, where(n >= 4, n, 5))
    [0, where(tile_first < where(n >= 4, n, 5), q_len, 0)) | [0, where(tile_last < where(n >= 4, n, 5), q_len, 0))
q - kv >= 0 and (q - kv) % 4 == 0 and q - kv < 64
    [tile_first - 60, tile_last + 1) | nothing
    [tile_first, tile_last + 61) | nothing
q > kv and q <= kv
    nothing | nothing
    nothing | nothing
"""


def cases() -> list[tuple[str, str, str]]:
    lines = RANGES.strip().splitlines()
    return [(lines[i], lines[i + 1].strip(), lines[i + 2].strip()) for i in range(0, len(lines), 3)]


def plan_of(keep: str, parameters: str = "n: int") -> TilePlan:
    variant, _ = parse_variant(f"attention mask({parameters}) {{ keep {keep} normalize softmax }}")
    return make_plan(run_pipeline(variant))


def text(union: tuple[Interval, ...]) -> str:
    return ", ".join(f"[{print_expr(i.start)}, {print_expr(i.stop)})" for i in union) or "nothing"


@pytest.mark.parametrize(("keep", "keys", "queries"), cases())
def test_ranges(keep: str, keys: str, queries: str) -> None:
    plan = plan_of(keep)
    assert f"{text(plan.keys.may)} | {text(plan.keys.must)}" == keys
    assert f"{text(plan.queries.may)} | {text(plan.queries.must)}" == queries


@pytest.mark.parametrize(
    ("keep", "parameters", "method", "verdict", "reason"),
    [
        ("q - kv < n", "n: int", "closed", "closed form", "key range [tile_first - n + 1, kv_len), full in"),
        ("q < n", "n: int", "closed", "closed form", "query range [0, n)"),
        ("n > 3", "n: int", "closed", "closed form", "the same for every pair of one batch and head"),
        ("(q - kv) % 4 == 0", "", "closed", "partial", "residue (q - kv) % 4: every tile may hold allowed pairs"),
        ("d[batch, q] == d[batch, kv]", "d: i32[batch, _]", "classified", "interval", "reads d by query and by key"),
        ("k[kv]", "k: bool[kv]", "classified", "interval", "reads k by key"),
        ("kv < e[q]", "e: i32[q]", "classified", "interval", "reads e by query"),
        ("(q // 64 + kv // 64) % 2 == 0", "", "classified", "interval", "repeats every 16 positions or more"),
        ("t[q, kv]", "t: bool[_, _]", "exact", "partial", "reads t by query and key together"),
        ("t[d[q], d[kv]] > 0", "t: i32[_, _], d: i32[_]", "exact", "partial", "reads t by query and key together"),
        ("float(q) * 0.5 < float(kv)", "", "closed", "partial", "compares floats that depend on positions"),
        ("q * kv < 9", "", "closed", "partial", "has no closed form for both positions"),
    ],
)
def test_each_atom_is_accounted_for(keep: str, parameters: str, method: str, verdict: str, reason: str) -> None:
    plan = plan_of(keep, parameters)
    (proof,) = plan.proofs
    assert plan.method == method
    assert proof.verdict == verdict
    assert proof.reason.startswith(reason)
    assert (plan.classification is not None) == (method == "classified")


@pytest.mark.parametrize(
    ("keep", "never"),
    [
        ("true", True),
        ("q >= kv", True),
        ("q >= kv or kv < n", True),
        ("q >= kv and q - kv < n", False),
        ("kv < n", False),
    ],
)
def test_rows_that_are_never_empty(keep: str, never: bool) -> None:
    plan = plan_of(keep)
    assert plan.rows_never_empty is never
    assert plan.rows_reason


def test_document_ids_are_compared_by_overlap() -> None:
    plan = plan_of("d[q] == d[kv]", "d: i32[_]")
    assert plan.classification is not None
    least_q, most_q, least_kv, most_kv = (f"tile_{r}(d[{p}], {p})" for p in ("q", "kv") for r in ("min", "max"))
    assert print_expr(plan.classification.may) == f"{most_q} >= {least_kv} and {most_kv} >= {least_q}"
    assert print_expr(plan.classification.must) == f"{most_q} <= {least_kv} and {most_kv} <= {least_q}"


def test_products_that_may_wrap_prove_nothing() -> None:
    """With parameters near 2**30, n * n * n wraps around in 64 bits: no bound may rest on it."""
    n = Param("n", I32)
    cube = build.binary("mul", n, build.binary("mul", n, n))
    plan = make_plan(Variant(mask=build.binary("lt", build.index("kv"), cube)))
    assert text(plan.keys.may) == "[0, kv_len)"
    assert text(plan.keys.must) == "nothing"


def test_bounds_do_not_wrap_at_the_limits_of_lengths_and_parameters() -> None:
    """Every bound agrees with Python's unbounded integers at the corners of what a call admits."""
    plan = plan_of("q * 3 - kv * 2 < n * 7 and abs(q - kv) <= n")
    corner = {"tile_first": 2**28 - 128, "tile_last": 2**28 - 1, "q_len": 2**28, "kv_len": 2**28}
    for n in (-(2**30), 2**30):
        for interval in (*plan.keys.may, *plan.keys.must, *plan.queries.may, *plan.queries.must):
            for bound in (interval.start, interval.stop):
                exact = evaluate(bound, {**corner, "n": n})
                widened = evaluate_in_python(bound, {**corner, "n": n})
                assert int(exact) == widened


def evaluate_in_python(e: Expr, env: dict[str, int]) -> int:
    source = print_expr(e).replace("where", "choose")
    names = {**env, "choose": lambda c, a, b: a if c else b, "min": min, "max": max, "abs": abs}
    return int(eval(source, {"__builtins__": {}}, names))


def test_nested_exclusive_or_stays_small() -> None:
    """Written out, forty nested exclusive ors would have 2**40 terms."""
    mask = build.binary("ge", build.index("q"), build.index("kv"))
    for shift in range(40):
        other = build.binary("lt", build.index("kv"), build.const(shift))
        mask = build.binary("xor", mask, other)
    plan = make_plan(Variant(mask=mask))
    assert len(plan.keys.may) <= 3
    assert sum(1 for interval in plan.keys.may for _ in walk(interval.stop)) < 100


def test_comparisons_with_nan_are_not_turned_around() -> None:
    """`not (w[q] < w[kv])` holds for NaN; `w[q] >= w[kv]` does not."""
    kind = BufferType(F32, ("_",))
    w = [build.load("w", kind, (build.index(name),)) for name in ("q", "kv")]
    mask = build.unary("not", build.binary("lt", w[0], w[1]))
    plan = make_plan(run_pipeline(Variant(mask=mask, parameters=(BufferParameter("w", kind),))))
    assert plan.classification is not None
    env: dict[str, Array] = {
        "w": np.array([np.nan, 1.0, 2.0], np.float32),
        "q": np.arange(3)[:, None],
        "kv": np.arange(3),
    }
    assert evaluate(plan.classification.may, env).all()
    assert not evaluate(plan.classification.must, env).any()


def test_of_hundreds_of_alternatives_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing all with each other would take minutes."""
    merges = [0, 0]
    merge = spans._merge

    def counted(a: spans.Span, b: spans.Span) -> spans.Span | None:
        merges[-1] += 1
        return merge(a, b)

    monkeypatch.setattr(spans, "_merge", counted)
    for count in (40, 80):
        merges.append(0)
        text = " or ".join(f"q - kv == {3 * i}" for i in range(count))
        plan = make_plan(run_pipeline(parse_variant(f"attention a() {{ keep {text} }}")[0]))
        assert len(plan.keys.may) <= 3
    assert merges[-1] < 2.5 * merges[-2]


def test_parts_of_a_remainder_that_cancel() -> None:
    plan = make_plan(run_pipeline(parse_variant("attention a() { keep kv % 6 // 6 > q % 6 // 6 + 3 }")[0]))
    assert pair_count(plan, Sizes(1, 1, 1, 36, 54), {}).pairs == 0
