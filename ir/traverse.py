"""Walking and rewriting expressions without visitor classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import assert_never

from .nodes import Binary, Cast, Const, Coordinate, Expr, Index, Load, Param, Reduction, Score, Select, Unary, Value


def children(e: Expr) -> tuple[Expr, ...]:
    """The direct operands of ``e``."""
    match e:
        case Binary():  # most are
            return (e.a, e.b)
        case Const() | Index() | Score() | Param() | Value():
            return ()
        case Load():
            return e.indices
        case Unary() | Cast() | Coordinate() | Reduction():
            return (e.x,)
        case Select():
            return (e.condition, e.a, e.b)
        case _:
            assert_never(e)


def with_children(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """``e`` with other operands, same type and location."""
    match e:
        case Const() | Index() | Score() | Param() | Value():
            return e
        case Load():
            return replace(e, indices=new)
        case Unary() | Cast() | Coordinate() | Reduction():
            return replace(e, x=new[0])
        case Binary():
            return replace(e, a=new[0], b=new[1])
        case Select():
            return replace(e, condition=new[0], a=new[1], b=new[2])
        case _:
            assert_never(e)


def rewrite(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """Applies ``f`` to every node, operands first. Shared sub-expressions are visited once."""
    memo: dict[int, Expr] = {}

    def go(x: Expr) -> Expr:
        done = memo.get(id(x))
        if done is None:
            old = children(x)
            new = tuple(go(c) for c in old)
            done = f(x if all(a is b for a, b in zip(old, new, strict=True)) else with_children(x, new))
            memo[id(x)] = done
        return done

    return go(e)


def substitute(e: Expr, table: Mapping[Expr, Expr]) -> Expr:
    """Replaces whole sub-expressions (compared by structure) by what ``table`` gives for them."""
    return rewrite(e, lambda x: table.get(x, x))


def share(*expressions: Expr) -> tuple[Expr, ...]:
    """The same expressions with equal sub-expressions merged into one object each."""
    first: dict[Expr, Expr] = {}
    number: dict[int, str] = {}

    def merge(x: Expr) -> Expr:
        # Operands are merged already: standing for each by its number keeps hashing linear in the size.
        key = with_children(x, tuple(Value(number[id(c)], c.type) for c in children(x)))
        merged = first.setdefault(key, x)
        number.setdefault(id(merged), f"#{len(number)}")
        return merged

    return tuple(rewrite(e, merge) for e in expressions)


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct node of ``e`` (by identity), operands before users."""
    done: dict[int, Expr] = {}

    def go(x: Expr) -> None:
        for c in children(x):
            if id(c) not in done:
                go(c)
        done[id(x)] = x

    go(e)
    return iter(done.values())


def index_names(e: Expr) -> frozenset[str]:
    """Names of all positions, identities and lengths that ``e`` depends on."""
    try:
        return e.known_indices
    except AttributeError:
        own = frozenset((e.name,)) if isinstance(e, Index) else frozenset[str]()
        found = own.union(*map(index_names, children(e)))
        object.__setattr__(e, "known_indices", found)
        return found


def loads(e: Expr) -> tuple[Load, ...]:
    """The distinct loads in ``e``, in order of first occurrence."""
    return tuple(dict.fromkeys(x for x in walk(e) if isinstance(x, Load)))


def parameter_names(e: Expr) -> frozenset[str]:
    """Names of all scalar parameters and buffers that ``e`` reads."""
    return frozenset(x.name if isinstance(x, Param) else x.buffer for x in walk(e) if isinstance(x, Param | Load))
