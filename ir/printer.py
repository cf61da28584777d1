"""Printing the text language, lowered IR and tile plans.

The surface form shows no conversion that :mod:`regard.ir.build` would insert by itself; the lowered form
shows every type. ``regard.ir.parser`` reads both back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from . import build
from .errors import RegardError
from .lowered import Lowered
from .nodes import (
    ZERO,
    Binary,
    BinaryOp,
    Cast,
    Const,
    Coordinate,
    Expr,
    Index,
    Load,
    Param,
    Reduction,
    Score,
    Select,
    Unary,
    Value,
)
from .tiles.plan import BoxAxis, BoxTerm, Interval, TilePlan
from .traverse import walk
from .types import BOOL, F32, I32, I64, ScalarType
from .variant import BufferParameter, Parameter, ScalarParameter, StaticParameter, Variant

# How tightly each operator binds, as in Python; `xor` stands between `or` and `and`.
OR, XOR, AND, NOT, COMPARE, BIT_OR, BIT_XOR, BIT_AND, SHIFT, SUM, PRODUCT, SIGN, POWER, ATOM = range(14)

OPERATORS: dict[BinaryOp, tuple[str, int]] = {
    "or": ("or", OR), "xor": ("xor", XOR), "and": ("and", AND),
    "eq": ("==", COMPARE), "ne": ("!=", COMPARE), "lt": ("<", COMPARE),
    "le": ("<=", COMPARE), "gt": (">", COMPARE), "ge": (">=", COMPARE),
    "bitor": ("|", BIT_OR), "bitxor": ("^", BIT_XOR), "bitand": ("&", BIT_AND),
    "shl": ("<<", SHIFT), "shr": (">>", SHIFT),
    "add": ("+", SUM), "sub": ("-", SUM),
    "mul": ("*", PRODUCT), "div": ("/", PRODUCT), "floordiv": ("//", PRODUCT), "mod": ("%", PRODUCT),
    "pow": ("**", POWER),
}  # fmt: skip
SURFACE_CASTS: dict[ScalarType, str] = {BOOL: "bool", I32: "i32", I64: "int", F32: "float"}
SCALAR_NAMES: dict[ScalarType, str] = {BOOL: "bool", I32: "int", I64: "i64", F32: "float"}


def print_literal(value: bool | int | float) -> str:
    """A number or truth value as the text language spells it.

    >>> print_literal(True), print_literal(-3), print_literal(1e-30), print_literal(float("-inf"))
    ('true', '-3', '1e-30', '-inf')
    """
    return str(value).lower() if isinstance(value, bool) else repr(value)


def print_expr(e: Expr) -> str:
    """``e`` in the text language, with as few parentheses and conversions as it needs.

    >>> q, kv = build.index("q"), build.index("kv")
    >>> print_expr(build.binary("lt", build.binary("sub", q, kv), build.const(4)))
    'q - kv < 4'
    """
    return _show(e, _written_operands, SURFACE_CASTS, {I32, I64})[0]


def _print_typed(e: Expr) -> str:
    """``e`` with every conversion shown; an integer literal without one is i32."""
    casts = {type: str(type) for type in ScalarType}
    return _show(e, lambda x: _operands(x), casts, {I32})[0]


def _operands(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Unary():
            return (e.x,)
        case Binary():
            return (e.a, e.b)
        case Select():
            return (e.condition, e.a, e.b)
        case _:
            return ()


def _written_operands(e: Expr) -> tuple[Expr, ...]:
    """The operands of ``e`` without the conversions that building it from the text inserts again."""
    operands = _operands(e)
    bare = tuple(x.x if isinstance(x, Cast) else x for x in operands)
    choices = [bare]
    if len(operands) > 1:
        choices += [(*bare[:-1], operands[-1]), (*bare[:-2], operands[-2], bare[-1])]
    for choice in choices:
        if _same_operands(e, choice):
            return choice
    return operands


def _same_operands(e: Expr, written: tuple[Expr, ...]) -> bool:
    try:
        again = build.rebuilt(_surface(e), written)
    except RegardError:
        return False
    made = _operands(again)
    return (
        type(again) is type(e)
        and again.type is e.type
        and len(made) == len(written)
        and all(
            a is b or (isinstance(a, Cast) and isinstance(b, Cast) and a.type is b.type and a.x is b.x)
            for a, b in zip(made, _operands(e), strict=True)
        )
    )


def _surface(e: Expr) -> Expr:
    """``e`` with the operator that the parser reads: `&`, `|` and `^` are one spelling for both kinds."""
    logic: dict[str, BinaryOp] = {"bitand": "and", "bitor": "or", "bitxor": "xor"}
    if isinstance(e, Binary) and e.op in logic:
        return Binary(logic[e.op], e.a, e.b, e.type)
    return e


def _show(
    e: Expr,
    operands: Callable[[Expr], tuple[Expr, ...]],
    casts: Mapping[ScalarType, str],
    plain: set[ScalarType],
) -> tuple[str, int]:
    """Text and binding strength of ``e``; integer literals of a type not in ``plain`` show it."""

    def show(x: Expr) -> tuple[str, int]:
        return _show(x, operands, casts, plain)

    def within(x: Expr, level: int) -> str:
        text, strength = show(x)
        return text if strength >= level else f"({text})"

    def commas(xs: Sequence[Expr]) -> str:
        return ", ".join(show(x)[0] for x in xs)

    match e:
        case Const(value, type):
            text = print_literal(value)
            if type.is_integer and type not in plain:
                return f"{casts[type]}({text})", ATOM
            return text, SIGN if text.startswith("-") else ATOM
        case Index(name) | Param(name) | Value(name):
            return name, ATOM
        case Score():
            return "s", ATOM
        case Load(buffer, indices):
            return f"{buffer}[{commas(indices)}]", ATOM
        case Cast(x, type):
            return f"{casts[type]}({show(x)[0]})", ATOM
        case Coordinate(x, axis, sizes):
            return f"coordinate({show(x)[0]}, {axis}, {', '.join(map(str, sizes))})", ATOM
        case Reduction(op, x, axis):
            return f"tile_{op}({show(x)[0]}, {'q, kv' if axis == 'both' else axis})", ATOM
        case Unary("not"):
            return f"not {within(operands(e)[0], NOT)}", NOT
        case Unary("neg"):
            return f"-{within(operands(e)[0], SIGN)}", SIGN
        case Unary(op):
            return f"{op}({commas(operands(e))})", ATOM
        case Binary(op) if op in OPERATORS:
            symbol, level = OPERATORS[op]
            a, b = operands(e)
            match level:
                case _ if level == POWER:  # binds to the right, and tighter than a sign on its left only
                    left, right = within(a, ATOM), within(b, SIGN)
                case _ if level == COMPARE:  # comparisons do not chain
                    left, right = within(a, level + 1), within(b, level + 1)
                case _:
                    left, right = within(a, level), within(b, level + 1)
            return f"{left} {symbol} {right}", level
        case Binary(op):
            return f"{op}({commas(operands(e))})", ATOM
        case Select():
            return f"where({commas(operands(e))})", ATOM
        case _:
            assert_never(e)


def _print_parameter(p: Parameter, values: Mapping[str, int | float]) -> str:
    match p:
        case ScalarParameter():
            value = f" = {print_literal(values[p.name])}" if p.name in values else ""
            return f"{p.name}: {SCALAR_NAMES[p.type]}{value}"
        case StaticParameter():
            return f"{p.name}: static {SCALAR_NAMES[p.type]} = {print_literal(p.value)}"
        case BufferParameter():
            return f"{p.name}: {p.type}"
        case _:
            assert_never(p)


def print_variant(v: Variant, values: Mapping[str, int | float] | None = None) -> str:
    """``v`` in the text language; ``values`` gives run-time scalars to print with it.

    >>> q, kv = build.index("q"), build.index("kv")
    >>> print(print_variant(Variant(mask=build.binary("ge", q, kv), align="end", name="causal")))
    attention causal() {
      keep      q >= kv
      normalize softmax
      align     end
    }
    """
    parameters = ", ".join(_print_parameter(p, values or {}) for p in v.parameters)
    clauses = [] if v.mask == Const(True, BOOL) else [("keep", print_expr(v.mask))]
    clauses += [("score", print_expr(e)) for e in v.scores]
    clauses.append(("normalize", "softmax"))
    if v.align != "start":
        clauses.append(("align", v.align))
    if v.scale is not None:
        clauses.append(("scale", print_literal(v.scale)))
    body = "\n".join(f"  {word:<9} {text}" for word, text in clauses)
    return f"attention {v.name}({parameters}) {{\n{body}\n}}"


def print_lowered(lowered: Lowered) -> str:
    """The steps of ``lowered``, one a line with its type, then what they yield.

    Parameters that the steps read are declared in order of first use.
    """
    expressions = [step.expr for step in lowered.steps] + [e for _, e in lowered.results]
    declared: dict[str, str] = {}
    for e in expressions:
        for x in walk(e):
            match x:
                case Param(name, type):
                    declared.setdefault(name, f"{name}: {type}")
                case Load(buffer, indices, type):
                    declared.setdefault(buffer, f"{buffer}: {type}[{', '.join('_' * len(indices))}]")
    lines = [f"  {step.name}: {step.expr.type} = {_print_typed(step.expr)}" for step in lowered.steps]
    lines += [f"  yield {name}: {e.type} = {_print_typed(e)}" for name, e in lowered.results]
    return f"lowered({', '.join(declared.values())}) {{\n" + "\n".join(lines) + "\n}"


def print_boxes(terms: Sequence[BoxTerm]) -> str:
    """What was proved about each axis of the token space, one paragraph a term.

    Ranges are those of ``x`` in :class:`BoxAxis`, for a run of queries of one class.
    """
    lines = []
    for term in terms:
        if len(terms) > 1:
            lines.append(f"where {print_expr(term.mask)}:")
        if (term.query_origin, term.key_origin) != (ZERO, ZERO):
            origins = f"query {print_expr(term.query_origin)} and key {print_expr(term.key_origin)}"
            lines.append(f"a grid that starts at {origins}")
        for number, axis in enumerate(term.axes):
            lines.append(f"axis {number}: {_axis(axis)}")
            lines.append(f"  may attend  {print_union(axis.keys.may)}")
            lines.append(f"  all attend  {print_union(axis.keys.must)}")
        lines += [f"of no axis alone: {print_expr(e)}" for e in term.remaining]
    return "\n".join(lines)


def _axis(axis: BoxAxis) -> str:
    """Size, distance and classes of an axis, in words."""
    facts = []
    for what, side in (("queries", axis.query), ("keys", axis.key)):
        facts.append(f"{print_expr(side.size)} {what}" + (f" {side.stride} positions apart" if side.stride > 1 else ""))
    if axis.block == 1:
        facts.append("the same coordinate")
    elif axis.block:
        short = "" if axis.offset == ZERO else f", the first {print_expr(axis.offset)} short"
        facts.append(f"the same block of {axis.block}{short}")
    if axis.residue > 1:
        shift = "" if axis.shift == ZERO else f", {print_expr(axis.shift)} more for keys"
        facts.append(f"the same residue modulo {axis.residue}{shift}")
    return ", ".join(facts)


def print_union(intervals: Sequence[Interval]) -> str:
    """Intervals as ``[start, stop) or …``."""
    return " or ".join(f"[{print_expr(i.start)}, {print_expr(i.stop)})" for i in intervals) or "nothing"


def print_plan(plan: TilePlan) -> str:
    """What was proved about the tiles of a variant, in words and formulas.

    Intervals are ``[start, stop)`` over ``tile_first`` and ``tile_last`` of the other axis.
    """

    lines = [f"tiles: {plan.method}"]
    for axis, ranges in (("keys of a query tile", plan.keys), ("queries of a key tile", plan.queries)):
        lines += [f"{axis}:", f"  may attend  {print_union(ranges.may)}", f"  all attend  {print_union(ranges.must)}"]
    if plan.classification is not None:
        lines += [
            "pair of tiles:",
            f"  may attend  {print_expr(plan.classification.may)}",
            f"  all attend  {print_expr(plan.classification.must)}",
        ]
    lines += [f"proved: {print_expr(p.atom)}: {p.verdict}; {p.reason}" for p in plan.proofs]
    if plan.boxes:
        lines += ["boxes:", *(f"  {line}" for line in print_boxes(plan.boxes).splitlines())]
    never = "no row is empty" if plan.rows_never_empty else "a row may be empty"
    return "\n".join([*lines, f"{never}: {plan.rows_reason}"])
