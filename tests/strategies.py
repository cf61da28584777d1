"""Random expressions and variants over the whole language, for every property test.

``masks()``, ``scores()`` and ``variants()`` make meaningful programs: loads stay inside their buffers, divisors are
not zero, floats stay finite. ``expressions()`` makes anything that ``ir.build`` can. ``sample_values`` gives the
parameters of a variant random values for given sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from regard.ir import build
from regard.ir.nodes import BITWISE, INDEX_NAMES, LOGIC, TRUE, Const, Expr, Param, Score
from regard.ir.traverse import parameter_names
from regard.ir.types import BOOL, F32, I32, I64, BufferType, ScalarType
from regard.ir.variant import BufferParameter, Parameter, ScalarParameter, StaticParameter, Variant

TABLE = 8  # elements of the buffer that is read at arbitrary, wrapped positions

PARAMETERS: tuple[Parameter, ...] = (
    ScalarParameter("window", I32),
    ScalarParameter("offset", I32),
    ScalarParameter("gain", F32),
    StaticParameter("step", I32, 3),
    StaticParameter("sharp", F32, 0.75),
    StaticParameter("flag", BOOL, True),
    BufferParameter("widths", BufferType(I32, ("head",))),
    BufferParameter("lengths", BufferType(I32, ("batch",))),
    BufferParameter("ids", BufferType(I32, ("batch", "kv"))),
    BufferParameter("keep_key", BufferType(BOOL, ("kv",))),
    BufferParameter("wide", BufferType(I64, ("q",))),
    BufferParameter("slopes", BufferType(F32, ("head",))),
    BufferParameter("key_bias", BufferType(F32, ("batch", "kv"))),
    BufferParameter("row_bias", BufferType(F32, ("q",))),
    BufferParameter("table", BufferType(F32, ("head", "_"))),
    BufferParameter("single", BufferType(F32, ())),
)
BUFFERS = {p.name: p.type for p in PARAMETERS if isinstance(p, BufferParameter)}


@dataclass(frozen=True)
class Knobs:
    """What may occur: captured tensors, ``//`` and ``%``, scalars and statics, several heads and batches."""

    loads: bool = True
    division: bool = True
    parameters: bool = True
    heads: bool = True


def masks(depth: int = 3, knobs: Knobs = Knobs()) -> SearchStrategy[Expr]:
    """Boolean expressions over positions; ``depth`` bounds how connectives nest."""
    return _masks(depth, knobs)


def scores(depth: int = 3, knobs: Knobs = Knobs()) -> SearchStrategy[Expr]:
    """Float expressions over the score, smooth in it almost everywhere, and finite."""
    return _scores(depth, knobs)


@st.composite
def variants(draw: DrawFn, depth: int = 3, max_scores: int = 2, knobs: Knobs = Knobs()) -> Variant:
    """Whole variants; they declare exactly the parameters that they read, in a random order."""
    mask = draw(st.one_of(st.just(TRUE), masks(depth, knobs), masks(depth, knobs)))
    modifiers = tuple(draw(st.lists(scores(depth - 1, knobs), max_size=max_scores)))
    used = frozenset[str]().union(*(parameter_names(e) for e in (mask, *modifiers)))
    declared = draw(st.permutations([p for p in PARAMETERS if p.name in used]))
    return Variant(
        mask,
        modifiers,
        tuple(declared),
        align=draw(st.sampled_from(("start", "end"))),
        scale=draw(st.sampled_from((None, 0.125, 1.0, 1e-30))),
        name=draw(st.sampled_from(("attention", "local", "straße", "keep"))),
    )


def sample_values(
    v: Variant, seed: int, *, batch: int, heads: int, q_len: int, kv_len: int, kv_heads: int = 1
) -> dict[str, Any]:
    """Values of the run-time scalars and buffers of ``v``, as Python numbers and numpy arrays."""
    rng = np.random.default_rng(seed)
    longest = max(q_len, kv_len)
    sizes = {"batch": batch, "head": heads, "kv_head": kv_heads, "q": longest, "kv": longest, "_": TABLE}
    values: dict[str, Any] = {}
    for p in v.parameters:
        match p:
            case BufferParameter():
                values[p.name] = _array(rng, p, tuple(sizes[a] for a in p.type.axes), kv_len)
            case ScalarParameter() if p.type is I32:
                values[p.name] = int(rng.integers(-3, longest + 3))
            case ScalarParameter():
                values[p.name] = float(np.float32(rng.normal()))
    return values


def _array(
    rng: np.random.Generator, p: BufferParameter, shape: tuple[int, ...], kv_len: int
) -> npt.NDArray[np.generic]:
    match p.type.element:
        case ScalarType.BOOL:
            return np.asarray(rng.random(shape) < 0.7)
        case ScalarType.F32:
            return np.asarray(rng.normal(size=shape), dtype=np.float32)
        case element:
            high = 4 if p.name == "ids" else kv_len + 2
            values = rng.integers(0, high, size=shape, dtype=np.int32 if element is I32 else np.int64)
            return np.sort(values, axis=-1) if p.name == "ids" else values


def grid(v: Variant, values: Mapping[str, Any], *, batch: int, heads: int, q_len: int, kv_len: int) -> dict[str, Any]:
    """Everything that ``interpret.evaluate`` needs to evaluate a mask of ``v`` on all pairs; one kv head.

    ``q`` is the row index: as a variant sees it before ``align_positions`` only where ``align`` is "start".
    """
    return {
        **values,
        **{p.name: p.value for p in v.statics},
        "q": np.arange(q_len)[:, None],
        "kv": np.arange(kv_len),
        "head": np.arange(heads)[:, None, None],
        "kv_head": np.zeros((1, 1, 1), np.int32),
        "batch": np.arange(batch)[:, None, None, None],
        "q_len": q_len,
        "kv_len": kv_len,
    }


def _index(name: str) -> Expr:
    return build.index(name)


def _param(name: str) -> Expr:
    (p,) = (p for p in PARAMETERS if p.name == name and not isinstance(p, BufferParameter))
    return Param(p.name, p.type)


def _load(name: str, *indices: Expr) -> Expr:
    return build.load(name, BUFFERS[name], indices)


def _distance() -> Expr:
    return build.binary("sub", _index("q"), _index("kv"))


@st.composite
def _bounds(draw: DrawFn, knobs: Knobs) -> Expr:
    """An integer that varies with neither q nor kv."""
    choices = ["const", "const"]
    choices += ["window", "offset", "step"] * knobs.parameters
    choices += ["widths"] * (knobs.loads and knobs.heads) + ["lengths"] * knobs.loads
    choices += ["head"] * knobs.heads + ["q_len", "kv_len"]
    match draw(st.sampled_from(choices)):
        case "const":
            return build.const(draw(st.integers(-4, 24)))
        case "widths":
            return _load("widths", _index("head"))
        case "lengths":
            return _load("lengths", _index("batch"))
        case "head" | "q_len" | "kv_len" as name:
            return _index(name)
        case name:
            return _param(name)


@st.composite
def _integers(draw: DrawFn, depth: int, knobs: Knobs) -> Expr:
    if depth <= 0 or draw(st.integers(0, 3)) == 0:
        leaves = [_index("q"), _index("kv"), _distance()]
        if knobs.loads:
            leaves += [_load("ids", _index("batch"), _index("kv")), _load("wide", _index("q"))]
        return draw(st.one_of(st.sampled_from(leaves), _bounds(knobs)))
    ops = ["add", "sub", "mul", "min", "max", "abs", "neg", "where", "bitand", "bitxor", "shl", "shr", "trunc"]
    op: Any = draw(st.sampled_from(ops + ["floordiv", "mod", "coordinate"] * 3 * knobs.division))
    x = draw(_integers(depth - 1, knobs))
    match op:
        case "add" | "sub" | "min" | "max" | "bitand" | "bitxor":
            return build.binary(op, x, draw(_integers(depth - 1, knobs)))
        case "mul":
            return build.binary("mul", build.const(draw(st.integers(-3, 3))), x)
        case "floordiv" | "mod":
            divisor = build.const(draw(st.sampled_from((1, 2, 3, 4, 7, 16, -3))))
            return build.binary(op, x, _param("step") if knobs.parameters and draw(st.booleans()) else divisor)
        case "shl" | "shr":
            return build.binary(op, x, build.const(draw(st.integers(0, 3))))
        case "coordinate":
            sizes = draw(st.sampled_from(((8,), (3, 5), (2, 3, 4))))
            return build.coordinate(x, draw(st.integers(0, len(sizes) - 1)), sizes)
        case "where":
            return build.select(draw(_masks(depth - 1, knobs)), x, draw(_integers(depth - 1, knobs)))
        case "trunc":
            return build.cast(build.binary("mul", build.const(draw(st.floats(-2, 2))), x), I64)
        case _:
            return build.unary(op, x)


@st.composite
def _atoms(draw: DrawFn, depth: int, knobs: Knobs) -> Expr:
    kinds = ["band", "order", "compare", "float"] + ["class", "block"] * knobs.division
    kinds += ["same", "prefix", "flag"] * knobs.loads
    compare: Any = draw(st.sampled_from(("lt", "le", "gt", "ge", "eq", "ne")))
    match draw(st.sampled_from(kinds)):
        case "band":
            return build.binary(compare, _distance(), draw(_bounds(knobs)))
        case "order":
            side = _index(draw(st.sampled_from(("q", "kv"))))
            return build.binary(compare, side, draw(st.one_of(_bounds(knobs), _integers(0, knobs))))
        case "class":
            period = build.const(draw(st.integers(1, 5)))
            apart = _distance()
            if knobs.heads and draw(st.booleans()):  # heads have residues of their own
                shifts = (_index("head"), *((_load("widths", _index("head")),) * knobs.loads))
                apart = build.binary("add", apart, draw(st.sampled_from(shifts)))
            return build.binary("eq", build.binary("mod", apart, period), build.const(0))
        case "block":
            size = build.const(draw(st.integers(1, 9)))
            by = draw(_bounds(knobs))
            blocks = [build.binary("floordiv", build.binary("add", _index(x), by), size) for x in ("q", "kv")]
            return build.binary(compare, blocks[0], blocks[1])
        case "same":
            left, right = (_load("ids", _index("batch"), _index(x)) for x in ("q", "kv"))
            return build.binary("eq", left, right)
        case "prefix":
            return build.binary("lt", _index("kv"), _load("lengths", _index("batch")))
        case "flag":
            return _load("keep_key", _index("kv"))
        case "float":
            x = build.binary("mul", draw(_integers(depth - 1, knobs)), build.const(draw(st.floats(-2, 2))))
            return build.binary(compare, x, build.const(draw(st.floats(-8, 8))))
        case _:
            return build.binary(compare, draw(_integers(depth - 1, knobs)), draw(_integers(depth - 1, knobs)))


@st.composite
def _masks(draw: DrawFn, depth: int, knobs: Knobs) -> Expr:
    if depth <= 0 or draw(st.integers(0, 2)) == 0:
        return draw(_atoms(depth, knobs))
    op: Any = draw(st.sampled_from(("and", "and", "or", "or", "not", "xor", "eq", "where")))
    x = draw(_masks(depth - 1, knobs))
    match op:
        case "not":
            return build.unary("not", x)
        case "where":
            return build.select(x, draw(_masks(depth - 1, knobs)), draw(_masks(depth - 1, knobs)))
        case _:
            return build.binary(op, x, draw(_masks(depth - 1, knobs)))


@st.composite
def _offsets(draw: DrawFn, depth: int, knobs: Knobs) -> Expr:
    """A float that does not read the score."""
    leaves = [build.const(draw(st.floats(-4, 4, width=32))), build.cast(_distance(), F32)]
    leaves += [_param("gain"), _param("sharp")] * knobs.parameters
    if knobs.loads:
        place = build.binary("mod", _distance(), build.const(TABLE))
        leaves += [
            _load("slopes", _index("head")),
            _load("key_bias", _index("batch"), _index("kv")),
            _load("row_bias", _index("q")),
            _load("table", _index("head"), place),
            _load("single"),
        ]
    leaf = draw(st.sampled_from(leaves))
    if depth <= 0:
        return leaf
    scaled = build.binary("mul", leaf, draw(_offsets(depth - 1, knobs)))
    return draw(st.sampled_from((scaled, build.cast(draw(_integers(depth - 1, knobs)), F32))))


@st.composite
def _scores(draw: DrawFn, depth: int, knobs: Knobs) -> Expr:
    if depth <= 0:
        return Score()
    x = draw(_scores(depth - 1, knobs))
    kinds = ("add", "sub", "mul", "div", "min", "max", "tanh", "sigmoid", "sin", "cos", "exp", "log", "root", "abs",
             "power", "exp2", "mod", "where", "floor")  # fmt: skip
    bounded = build.unary("tanh", x)
    shifted = build.binary("add", build.binary("mul", x, x), build.const(0.5))
    kind: Any = draw(st.sampled_from(kinds))
    match kind:
        case "add" | "sub" | "min" | "max":
            return build.binary(kind, x, draw(_offsets(depth - 1, knobs)))
        case "mul":
            return build.binary("mul", draw(_offsets(0, knobs)), bounded)
        case "div":
            return build.binary("div", x, shifted)
        case "tanh" | "sigmoid" | "sin" | "cos" | "abs":
            return build.unary(kind, x)
        case "exp" | "exp2":
            return build.unary(kind, bounded)
        case "log":
            return build.unary(draw(st.sampled_from(("log", "log2"))), shifted)
        case "root":
            return build.unary(draw(st.sampled_from(("sqrt", "rsqrt"))), shifted)
        case "power":
            return build.binary("pow", shifted, draw(st.sampled_from((build.const(2), build.const(-0.5), bounded))))
        case "mod":
            return build.binary("mod", x, build.const(2.5))
        case "floor":
            return build.binary("sub", x, build.unary("floor", build.binary("mul", x, build.const(0.1))))
        case _:
            return build.select(draw(_masks(1, knobs)), x, draw(_scores(depth - 1, knobs)))


_LITERALS = st.one_of(
    st.booleans(),
    st.integers(-9, 9),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(),
    st.sampled_from((-0.0, 1e-30, float("inf"), float("-inf"), float("nan"))),
)
_FLOAT_FUNCTIONS = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "floor")
_OPERATORS = (
    "add", "sub", "mul", "div", "floordiv", "mod", "pow", "min", "max", "and", "or", "xor",
    "eq", "ne", "lt", "le", "gt", "ge", "bitand", "bitor", "bitxor", "shl", "shr",
)  # fmt: skip


@st.composite
def expressions(draw: DrawFn, depth: int = 4) -> Expr:
    """Anything that ``ir.build`` makes, sensible or not, of any type: operands of wrong types are converted."""
    if depth <= 0:
        leaves = [_index(name) for name in INDEX_NAMES] + [Score(), _load("slopes", _index("head")), _load("single")]
        leaves += [Param(p.name, p.type) for p in PARAMETERS if not isinstance(p, BufferParameter)]
        return draw(st.one_of(st.sampled_from(leaves), st.builds(build.const, _LITERALS)))
    x, y = draw(expressions(depth - 1)), draw(expressions(depth - draw(st.integers(1, depth))))
    op: Any
    kind = draw(st.sampled_from(("unary", "function", "binary", "binary", "binary", "where", "cast", "load", "grid")))
    match kind:
        case "unary":
            op = draw(st.sampled_from(("neg", "abs", "not")))
            return build.unary(op, build.cast(x, BOOL) if op == "not" else x)
        case "function":
            return build.unary(draw(st.sampled_from(_FLOAT_FUNCTIONS)), x)
        case "cast":
            return build.cast(x, draw(st.sampled_from((BOOL, I64, F32))))
        case "where":
            return build.select(build.cast(x, BOOL), y, draw(expressions(depth - 1)))
        case "grid":
            sizes = draw(st.sampled_from(((1,), (16, 32), (4, 1, 7))))
            position = x if x.type.is_integer else build.cast(x, I64)
            return build.coordinate(position, draw(st.integers(0, len(sizes) - 1)), sizes)
        case "load":
            return _load("table", _index("head"), x if x.type.is_integer else build.cast(x, I64))
        case _:
            op = draw(st.sampled_from(_OPERATORS))
            if op in LOGIC:
                x, y = build.cast(x, BOOL), build.cast(y, BOOL)
            if op in BITWISE:
                x, y = build.cast(x, I64), build.cast(y, I64)
            if op in ("floordiv", "mod") and isinstance(y, Const) and y.value == 0:
                y = build.const(-2)
            return build.binary(op, x, y)
