"""The same mask, written otherwise: functions for ``regard.ir.traverse.rewrite``."""

from __future__ import annotations

from collections.abc import Callable

from regard.ir import build
from regard.ir.nodes import COMPARISONS, Binary, BinaryOp, Expr, Load, Param
from regard.ir.types import BOOL

MIRRORED: dict[str, BinaryOp] = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}


def sides_swapped(e: Expr) -> Expr:
    match e:
        case Binary(op=op, a=a, b=b) if op in MIRRORED:
            return build.binary(MIRRORED[op], b, a)
        case Binary(op=("and" | "or" | "add") as op, a=a, b=b):
            return build.binary(op, b, a)
        case _:
            return e


def de_morgan(e: Expr) -> Expr:
    match e:
        case Binary(op=("and" | "or") as op, a=a, b=b) if e.type is BOOL:
            inner = build.binary("or" if op == "and" else "and", build.unary("not", a), build.unary("not", b))
            return build.unary("not", inner)
        case _:
            return e


def zeros_added(e: Expr) -> Expr:
    match e:
        case Binary(op=op, a=a, b=b) if op in COMPARISONS and a.type.is_integer:
            q, kv = build.index("q"), build.index("kv")
            nothing, as_little = build.binary("sub", q, q), build.binary("mul", build.const(0), kv)
            return build.binary(op, build.binary("add", a, nothing), build.binary("sub", b, as_little))
        case _:
            return e


def renamed(e: Expr) -> Expr:
    match e:
        case Param(name=name, type=type):
            return Param(f"my_{name}", type)
        case Load(buffer=name, indices=indices, type=type):
            return Load(f"my_{name}", indices, type)
        case _:
            return e


def shifted(e: Expr) -> Expr:
    """Both sides of a comparison moved by the same amount."""
    match e:
        case Binary(op=op, a=a, b=b) if op in COMPARISONS and a.type.is_integer:
            amount = build.binary("sub", build.index("kv"), build.index("q"))
            return build.binary(op, build.binary("add", a, amount), build.binary("add", amount, b))
        case _:
            return e


SPELLINGS: tuple[Callable[[Expr], Expr], ...] = (sides_swapped, de_morgan, zeros_added, renamed, shifted)
