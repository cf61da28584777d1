"""Random masks against brute force: the analysis is never wrong, and rarely vague.

A plan is made once, from structure alone; then lengths, tile sizes, scalars and captured data are drawn, some
of them twice, and every claim of the plan is compared with the mask evaluated on all pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from regard.ir import build
from regard.ir.interpret import evaluate
from regard.ir.nodes import BinaryOp, Expr, Load, Param, Reduction
from regard.ir.passes import run_pipeline
from regard.ir.tiles import Interval, Ranges, TilePlan, make_plan
from regard.ir.tiles.count import pair_count
from regard.ir.tiles.numeric import Sizes
from regard.ir.traverse import loads, walk
from regard.ir.types import BOOL, F32, I32, BufferType
from regard.ir.variant import BufferParameter, Parameter, ScalarParameter, Variant

Array = npt.NDArray[Any]
Axis = Literal["q", "kv"]
SHARPNESS = Path(__file__).with_name("sharpness.json")

q, kv, head, batch = (build.index(name) for name in ("q", "kv", "head", "batch"))
BUFFERS = {
    "ids": BufferType(I32, ("batch", "_")),
    "keep": BufferType(BOOL, ("batch", "_")),
    "ends": BufferType(I32, ("_",)),
    "weights": BufferType(F32, ("_",)),
    "windows": BufferType(I32, ("head",)),
    "lengths": BufferType(I32, ("batch",)),
    "pairs": BufferType(BOOL, ("_", "_")),
}
PARAMETERS: tuple[Parameter, ...] = (
    ScalarParameter("n", I32),
    ScalarParameter("m", I32),
    *(BufferParameter(name, type) for name, type in BUFFERS.items()),
)
LONGEST = 45
lengths = st.sampled_from((16, 23, 31, 32, 37, 40, 45, 9, 1))


def binary(op: BinaryOp, a: Expr | int, b: Expr | int) -> Expr:
    left, right = (build.const(x) if isinstance(x, int) else x for x in (a, b))
    return build.binary(op, left, right)


def read(buffer: str, *indices: Expr) -> Load:
    return build.load(buffer, BUFFERS[buffer], indices)


# --- masks ---------------------------------------------------------------------------------------------------

small = st.integers(-3, 12)
divisors = st.sampled_from((2, 3, 5, 7, 16, 20))
comparisons: st.SearchStrategy[BinaryOp] = st.sampled_from(("lt", "le", "gt", "ge", "eq", "ne"))
differences: st.SearchStrategy[BinaryOp] = st.sampled_from(("xor", "eq", "ne"))
orders: st.SearchStrategy[BinaryOp] = st.sampled_from(("lt", "le", "gt", "ge"))
leaves: tuple[Expr, ...] = (Param("n", I32), Param("m", I32), read("windows", head), read("lengths", batch))
floats = (build.const(0.0), build.const(0.5), build.const(-1.0), build.cast(Param("n", I32), F32))
free: st.SearchStrategy[Expr] = st.one_of(small.map(build.const), st.sampled_from(leaves))


@st.composite
def positions(draw: st.DrawFn, of: tuple[Expr, ...] = (q, kv)) -> Expr:
    """An integer expression of ``q``, ``kv`` or both."""
    shapes: dict[str, Callable[[], Expr]] = {
        "position": lambda: draw(st.sampled_from(of)),
        "difference": lambda: binary("sub", q, kv) if len(of) > 1 else binary("add", of[0], draw(free)),
        "multiple": lambda: binary("mul", draw(st.sampled_from((-1, 2, 3))), draw(positions(of))),
        "scaled": lambda: binary("mul", draw(free), of[0]),
        "shifted": lambda: binary("add", draw(positions(of)), draw(free)),
        "abs": lambda: build.unary("abs", draw(positions(of))),
        "floordiv": lambda: binary("floordiv", draw(positions(of)), draw(divisors)),
        "remainder": lambda: binary("mod", draw(st.sampled_from(of)), draw(divisors)),
        "mod": lambda: binary("mod", draw(positions(of)), draw(divisors)),
        "minimum": lambda: binary(draw(st.sampled_from(("min", "max"))), draw(positions(of)), draw(free)),
        "choice": lambda: build.select(binary("gt", draw(free), 3), draw(positions(of)), draw(free)),
    }
    return shapes[draw(st.sampled_from(("position", "difference", *shapes)))]()


@st.composite
def atoms(draw: st.DrawFn, classes_of_heads: bool = False) -> Expr:
    shapes: dict[str, Callable[[], Expr]] = {
        "order": lambda: binary(draw(orders), q, binary("add", kv, draw(free))),
        "distance": lambda: binary(draw(orders), binary("sub", q, kv), draw(free)),
        "window": lambda: binary(draw(orders), binary("sub", q, kv), read("windows", head)),
        "near": lambda: binary("le", build.unary("abs", binary("sub", q, kv)), draw(free)),
        "any": lambda: binary(draw(comparisons), draw(positions()), draw(st.one_of(free, positions()))),
        "key": lambda: binary(draw(orders), kv, draw(st.one_of(free, positions((q,))))),
        "side": lambda: binary(draw(orders), draw(positions((draw(st.sampled_from((q, kv))),))), draw(free)),
        "block": lambda: (lambda w: binary("eq", binary("floordiv", q, w), binary("floordiv", kv, w)))(draw(divisors)),
        "residue": lambda: binary("eq", binary("mod", binary("sub", q, kv), draw(divisors)), draw(st.integers(0, 2))),
        "same": lambda: binary("eq", read("ids", batch, q), read("ids", batch, kv)),
        "kept": lambda: read("keep", batch, kv),
        "until": lambda: binary("lt", kv, read("ends", q)),
        "weight": lambda: binary(draw(orders), read("weights", q), read("weights", kv)),
        "apart": lambda: (lambda gap: binary(draw(orders), build.unary("abs", gap), draw(st.sampled_from(floats))))(
            binary(draw(st.sampled_from(("add", "sub", "min", "max"))), read("weights", q), read("weights", kv))
        ),
        "pair": lambda: read("pairs", q, kv),
    }
    if classes_of_heads:
        d, by = draw(divisors), draw(free)
        shapes["residues"] = lambda: binary(
            "and", *(binary("eq", binary("mod", x, d), binary("mod", by, d)) for x in (q, kv))
        )
        shapes["blocks"] = lambda: binary("eq", *(binary("floordiv", binary("add", x, by), d) for x in (q, kv)))
    often = ("order", "distance", "window", "window", "residue", "block", "block", "any")
    return shapes[draw(st.sampled_from((*often, *shapes)))]()


def compound(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        pair.map(lambda p: binary("and", *p)),
        pair.map(lambda p: binary("or", *p)),
        inner.map(lambda x: build.unary("not", x)),
        st.tuples(differences, inner, inner).map(lambda p: binary(*p)),
        st.tuples(inner, inner, inner).map(lambda p: build.select(*p)),
    )


masks = st.recursive(atoms(), compound, max_leaves=5)
# Residues and blocks of heads repeat within tiles of positions, which decide them as boxes alone.
masks_of_heads = st.recursive(atoms(classes_of_heads=True), compound, max_leaves=5)


# --- calls ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Lengths, tile sizes and values that a plan knows nothing about."""

    q_len: int
    kv_len: int
    blocks: dict[Axis, int]
    scalars: dict[str, int]
    sorted_ids: bool
    seed: int
    values: dict[str, Any] = field(repr=False)

    @property
    def env(self) -> dict[str, Any]:
        heads = np.arange(2).reshape(1, -1, 1, 1)
        identities = {"head": heads, "kv_head": heads // 2, "batch": np.arange(2).reshape(-1, 1, 1, 1)}
        return {**self.values, **identities, "q_len": self.q_len, "kv_len": self.kv_len}

    def length(self, axis: Axis) -> int:
        return self.q_len if axis == "q" else self.kv_len

    def tiles(self, axis: Axis) -> list[slice]:
        length, block = self.length(axis), self.blocks[axis]
        return [slice(start, min(start + block, length)) for start in range(0, length, block)]

    def allowed(self, mask: Expr) -> Array:
        """The mask on all pairs, (batch, head, q_len, kv_len)."""
        keep = evaluate(mask, {**self.env, "q": np.arange(self.q_len)[:, None], "kv": np.arange(self.kv_len)})
        return np.broadcast_to(keep, (2, 2, self.q_len, self.kv_len))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    seed, sorted_ids = draw(st.integers(0, 1000)), draw(st.booleans())
    scalars = {name: draw(st.sampled_from((3, 8, 12, 21, 30, 0, -4))) for name in ("n", "m")}
    random = np.random.default_rng(seed)
    ids = random.integers(0, random.choice((1, 3, 6)), (2, LONGEST))
    values = {
        **scalars,
        "ids": np.sort(ids, axis=1) if sorted_ids else ids,
        "keep": random.random((2, LONGEST)) < random.choice((0.0, 0.1, 0.9, 1.0)),
        "ends": random.integers(-3, LONGEST + 3, LONGEST),
        "weights": random.choice(np.array([0, 0.5, 1, np.inf, np.nan], np.float32), LONGEST),
        "windows": random.integers(-2, 20, 2),
        "lengths": random.integers(0, LONGEST, 2),
        "pairs": random.random((LONGEST, LONGEST)) < 0.5,
    }
    blocks: dict[Axis, int] = {"q": draw(st.sampled_from((7, 16, 4, 1))), "kv": draw(st.sampled_from((9, 16, 4)))}
    q_len, kv_len = draw(lengths), draw(lengths)
    return Call(q_len, kv_len, blocks, scalars, sorted_ids, seed, values)


def holds(union: tuple[Interval, ...], tile: slice, length: int, env: dict[str, Any]) -> Array:
    """The positions of ``union`` for one tile, (batch or 1, head or 1, 1, length)."""
    env = {**env, "tile_first": tile.start, "tile_last": tile.stop - 1}
    position = np.arange(length)
    inside = np.zeros((1, 1, 1, length), bool)
    for interval in union:
        inside = inside | ((evaluate(interval.start, env) <= position) & (position < evaluate(interval.stop, env)))
    return inside


def check_ranges(plan: TilePlan, call: Call, keep: Array) -> None:
    """No allowed pair outside ``may``, no forbidden pair inside ``must``, for tiles of queries and of keys."""
    sides: tuple[tuple[Axis, Ranges, Array], ...] = (
        ("q", plan.keys, keep),
        ("kv", plan.queries, np.swapaxes(keep, -1, -2)),
    )
    for axis, ranges, across in sides:
        for tile in call.tiles(axis):
            rows = across[..., tile, :]
            may, must = (holds(union, tile, rows.shape[-1], call.env) for union in (ranges.may, ranges.must))
            assert not (rows & ~may).any(), f"{axis} tile {tile}: an allowed pair outside may"
            assert not (must & ~rows).any(), f"{axis} tile {tile}: a forbidden pair inside must"


def classes(plan: TilePlan, call: Call) -> Array:
    """What the plan says about each pair of tiles: 0 empty, 1 partial, 2 full, (batch, head, rows, columns)."""
    rows, columns = call.tiles("q"), call.tiles("kv")
    result = np.zeros((2, 2, len(rows), len(columns)), np.int8)
    for i, queries in enumerate(rows):
        within, inside = (holds(u, queries, call.kv_len, call.env) for u in (plan.keys.may, plan.keys.must))
        for j, keys in enumerate(columns):
            possible, certain = within[..., keys].any((-1, -2)), inside[..., keys].all((-1, -2))
            if plan.classification is not None:
                env = {**call.env, "q": np.arange(call.q_len)[queries, None], "kv": np.arange(call.kv_len)[keys]}
                may, must = (evaluate(e, env) for e in (plan.classification.may, plan.classification.must))
                possible = possible & np.broadcast_to(may, (2, 2, 1, 1))[..., 0, 0]
                certain = certain | np.broadcast_to(must, (2, 2, 1, 1))[..., 0, 0]
            result[:, :, i, j] = np.where(certain, 2, possible)
    return result


def truth(keep: Array, call: Call) -> Array:
    rows = [
        np.stack([keep[..., a, b].any((-1, -2)) * 1 + keep[..., a, b].all((-1, -2)) for b in call.tiles("kv")], -1)
        for a in call.tiles("q")
    ]
    return np.stack(rows, -2)


def plan_of(mask: Expr) -> TilePlan:
    return make_plan(run_pipeline(Variant(mask=mask, parameters=PARAMETERS)))


@given(masks | masks_of_heads, calls(), calls())
def test_every_claim_holds_for_any_lengths_and_values(mask: Expr, first: Call, second: Call) -> None:
    plan = plan_of(mask)
    for call in (first, second):
        keep = call.allowed(mask)
        check_ranges(plan, call, keep)
        claimed, true = classes(plan, call), truth(keep, call)
        assert not ((claimed == 0) & (true != 0)).any(), "a tile with an allowed pair was called empty"
        assert not ((claimed == 2) & (true != 2)).any(), "a tile with a forbidden pair was called full"
        if plan.rows_never_empty:
            assert keep.any(-1).all()
        counted = pair_count(plan, Sizes(2, 2, 1, call.q_len, call.kv_len), call.values)
        assert counted.pairs == keep.sum() if counted.exact else counted.pairs >= keep.sum()


def features(mask: Expr) -> set[str]:
    """What makes a mask hard, for the statistics."""
    nodes = [*walk(mask)]
    ops = [getattr(x, "op", "") for x in nodes]
    logic = [x for x in nodes if x.type is BOOL and getattr(x, "op", "") in ("and", "or", "xor", "not", "eq", "ne", "")]
    found = {op for op in ("floordiv", "mod") if op in ops}
    buffers = {x.buffer for x in loads(mask)}
    found |= {"per head"} if "windows" in buffers else set()
    found |= {"captured data"} if buffers & {"ids", "keep", "ends", "weights", "pairs"} else set()
    return found | ({"nesting"} if len(logic) > 3 else set())


def test_generated_masks_are_varied_and_sharply_classified() -> None:
    """The generator is no pushover, and the share of tiles classified as they truly are stays where it was."""
    kinds: Counter[str] = Counter()
    shares: list[float] = []

    @settings(max_examples=150, derandomize=True, database=None, phases=[Phase.generate])
    @given(masks, calls())
    def collect(mask: Expr, call: Call) -> None:
        keep, plan = call.allowed(mask), plan_of(mask)
        kinds.update(
            features(mask) | {"all", "neither empty nor full" if keep.any() and not keep.all() else "constant"}
        )
        shares.append(float((classes(plan, call) == truth(keep, call)).mean()))

    collect()
    assert kinds["neither empty nor full"] >= kinds["all"] / 2, kinds
    for feature in ("nesting", "floordiv", "mod", "captured data", "per head"):
        assert kinds[feature] >= kinds["all"] / 10, kinds
    share = float(np.mean(shares))
    print(f"{share:.1%} of the tiles of {kinds['all']} random masks are classified sharply: {dict(kinds)}")
    assert share >= json.loads(SHARPNESS.read_text())["random masks"], "the analysis lost precision"


def test_classification_has_reductions_of_one_position_only() -> None:
    plan = plan_of(binary("and", binary("ge", q, kv), binary("eq", read("ids", batch, q), read("ids", batch, kv))))
    assert plan.classification is not None
    found = [x for x in walk(plan.classification.may) if isinstance(x, Reduction)]
    assert {x.axis for x in found} == {"q", "kv"}
