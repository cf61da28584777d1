"""Walking and rewriting expressions without visitor classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import is_
from typing import assert_never

from .nodes import (
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


def children(e: Expr) -> tuple[Expr, ...]:
    """The direct operands of ``e``."""
    return e.operands


def joined(e: Expr, op: BinaryOp) -> list[Expr]:
    """What ``e`` joins by the associative operation ``op``, from left to right: ``e`` alone if it is another one."""
    match e:
        case Binary(found, a, b) if found == op:
            return [*joined(a, op), *joined(b, op)]
        case _:
            return [e]


def with_children(e: Expr, new: tuple[Expr, ...]) -> Expr:
    """``e`` with other operands, same type and location."""
    match e:
        case Binary():
            return Binary(e.op, new[0], new[1], e.type, e.loc)
        case Const() | Index() | Score() | Param() | Value():
            return e
        case Load():
            return Load(e.buffer, new, e.type, e.loc)
        case Unary():
            return Unary(e.op, new[0], e.type, e.loc)
        case Cast():
            return Cast(new[0], e.type, e.loc)
        case Coordinate():
            return Coordinate(new[0], e.axis, e.sizes, e.type, e.loc)
        case Reduction():
            return Reduction(e.op, new[0], e.axis, e.type, e.loc)
        case Select():
            return Select(new[0], new[1], new[2], e.type, e.loc)
        case _:
            assert_never(e)


def rewrite(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """Applies ``f`` to every node, operands first. Shared sub-expressions are visited once."""
    memo: dict[int, Expr] = {}

    def go(x: Expr) -> Expr:
        done = memo.get(id(x))
        if done is None:
            old = x.operands
            if old:
                new = tuple([go(c) for c in old])
                done = f(x if all(map(is_, old, new)) else with_children(x, new))
            else:
                done = f(x)
            memo[id(x)] = done
        return done

    return go(e)


def substitute(e: Expr, table: Mapping[Expr, Expr]) -> Expr:
    """Replaces whole sub-expressions (compared by structure) by what ``table`` gives for them."""
    names = frozenset(x.name for x in table if isinstance(x, Index))
    if len(names) < len(table):
        return rewrite(e, lambda x: table.get(x, x))
    memo: dict[int, Expr] = {}

    # Only indices are replaced: nothing else is compared, and what depends on none of them stays as it is.
    def go(x: Expr) -> Expr:
        if names.isdisjoint(index_names(x)):
            return x
        done = memo.get(id(x))
        if done is None:
            done = table.get(x, x) if isinstance(x, Index) else with_children(x, tuple([go(c) for c in x.operands]))
            memo[id(x)] = done
        return done

    return go(e)


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


def taken_apart(
    expressions: Sequence[Expr], groups: Mapping[str, frozenset[str]], names: Callable[[Expr], frozenset[str]]
) -> tuple[list[Expr], dict[str, dict[Expr, Value]]]:
    """``expressions`` with names for their largest parts that read one group alone, and these parts, by group.

    ``names``: what an expression reads of what is in groups. What reads nothing of that is no part.
    """
    parts: dict[str, dict[Expr, Value]] = {name: {} for name in groups}
    done: dict[int, Expr] = {}

    def go(x: Expr) -> Expr:
        if id(x) not in done:
            done[id(x)] = part(x)
        return done[id(x)]

    def part(x: Expr) -> Expr:
        read = names(x)
        for name, group in groups.items() if read else ():
            if read <= group:
                return parts[name].setdefault(x, Value(f"{name} {len(parts[name])}", x.type))
        return with_children(x, tuple(go(c) for c in children(x))) if read else x

    return [go(e) for e in expressions], parts


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct node of ``e`` (by identity), operands before users. However deep: without recursion."""
    done: dict[int, Expr] = {}
    waiting = [e]
    while waiting:
        x = waiting.pop()
        if id(x) in done:
            continue
        missing = [c for c in x.operands if id(c) not in done]
        if missing:
            waiting += (x, *reversed(missing))
        else:
            done[id(x)] = x
    return iter(done.values())


def index_names(e: Expr) -> frozenset[str]:
    """Names of all positions, identities and lengths that ``e`` depends on."""
    found: frozenset[str] | None = getattr(e, "known_indices", None)
    if found is None:
        found = frozenset((e.name,)) if isinstance(e, Index) else _joined(map(index_names, e.operands))
        object.__setattr__(e, "known_indices", found)
    return found


def value_names(e: Expr) -> frozenset[str]:
    """Names of the values that ``e`` reads."""
    found: frozenset[str] | None = getattr(e, "known_values", None)
    if found is None:
        found = frozenset((e.name,)) if isinstance(e, Value) else _joined(map(value_names, e.operands))
        object.__setattr__(e, "known_values", found)
    return found


def _joined(names: Iterable[frozenset[str]]) -> frozenset[str]:
    """All of ``names``; mostly one set has all of them, and is shared."""
    found = frozenset[str]()
    for x in names:
        found = found if x <= found else x if found <= x else found | x
    return found


def loads(e: Expr) -> tuple[Load, ...]:
    """The distinct loads in ``e``, in order of first occurrence."""
    found: tuple[Load, ...] | None = getattr(e, "known_loads", None)
    if found is None:
        found = tuple(dict.fromkeys(load for x in e.operands for load in loads(x)))
        found = (*found, e) if isinstance(e, Load) else found
        object.__setattr__(e, "known_loads", found)
    return found


def parameter_names(e: Expr) -> frozenset[str]:
    """Names of all scalar parameters and buffers that ``e`` reads."""
    found: frozenset[str] | None = getattr(e, "known_parameters", None)
    if found is None:
        own = e.name if isinstance(e, Param) else e.buffer if isinstance(e, Load) else None
        found = _joined([*map(parameter_names, e.operands), *([frozenset((own,))] if own is not None else [])])
        object.__setattr__(e, "known_parameters", found)
    return found
