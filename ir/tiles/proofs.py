"""What the analysis says about each atom of the mask, in words."""

from __future__ import annotations

from .. import printer
from ..nodes import Binary, Cast, Const, Expr, Load
from ..traverse import walk
from .classify import decides, positions
from .formula import Atom
from .overflow import is_exact, with_bounded_loads
from .plan import Interval, Proof
from .ranges import is_solved, tile_ranges
from .steps import steps

# Interval arithmetic decides most pairs of tiles where the mask repeats no faster than this.
COARSE = 16


def prove(atom: Expr) -> Proof:
    """The verdict on one atom, with a reason that names the user's own expressions."""
    if is_solved(Atom(atom)):
        return Proof(atom, "closed form", _closed_form(atom), atom.loc)
    pair, blocks = _loads(atom, "both"), steps(atom)
    if pair and blocks:
        sizes = f"{blocks[0]} queries and {blocks[1]} keys"
        return Proof(atom, "interval", f"reads {pair} by blocks of {sizes}: decided per tile pair, exactly", atom.loc)
    if pair:
        return Proof(atom, "partial", f"reads {pair} by query and key together: evaluated for every pair", atom.loc)
    by_query, by_key = _loads(atom, "q"), _loads(atom, "kv")
    if by_query or by_key:
        reads = " and ".join(f"{names} by {axis}" for names, axis in ((by_query, "query"), (by_key, "key")) if names)
        if by_query == by_key:
            reads = f"{by_query} by query and by key"
        if not decides(atom):
            return Proof(atom, "partial", f"reads {reads}: {_undecided(atom)}", atom.loc)
        return Proof(atom, "interval", f"reads {reads}: decided per tile pair from minima and maxima", atom.loc)
    if is_coarse(atom):
        return Proof(
            atom, "interval", f"repeats every {COARSE} positions or more: decided per tile pair by intervals", atom.loc
        )
    return Proof(atom, "partial", _unsolved(atom), atom.loc)


def is_coarse(atom: Expr) -> bool:
    """Whether ``atom`` divides positions by a constant so large that intervals decide most pairs of tiles."""
    return any(
        isinstance(x, Binary)
        and x.op in ("floordiv", "mod")
        and isinstance(x.b, Const)
        and x.b.value >= COARSE
        and positions(x.a) != "none"
        for x in walk(atom)
    )


def _loads(atom: Expr, axis: str) -> str:
    found = (x for x in walk(atom) if isinstance(x, Load) and positions(x) == axis)
    return ", ".join(dict.fromkeys(x.buffer for x in found))


def _closed_form(atom: Expr) -> str:
    where = positions(atom)
    if where == "none":
        return "the same for every pair of one batch and head"
    if where == "q":
        ranges, name = tile_ranges(Atom(atom), "kv", "q"), "query"
    else:
        ranges, name = tile_ranges(Atom(atom), "q", "kv"), "key"
    if where != "both":
        return f"{name} range {_union(ranges.must)}"
    return f"{name} range {_union(ranges.may)}, full in {_union(ranges.must)}"


def _union(intervals: tuple[Interval, ...]) -> str:
    texts = [f"[{printer.print_expr(i.start)}, {printer.print_expr(i.stop)})" for i in intervals]
    return " and ".join(texts) if texts else "nothing"


def _undecided(atom: Expr) -> str:
    """Why minima and maxima of data say nothing."""
    if not is_exact(atom, compared=True):
        return _WRAPS
    return "products and functions of floats of both positions are not bounded: evaluated for every pair"


_WRAPS = "sums of 64-bit integers may wrap, so intervals cannot decide it; tensors of int32 cannot wrap"


def _unsolved(atom: Expr) -> str:
    if any(isinstance(x, Load) for x in walk(atom)) and not is_exact(with_bounded_loads(atom)):
        return _WRAPS
    for x in walk(atom):
        if isinstance(x, Binary) and x.op == "mod" and positions(x) == "both":
            why = "" if isinstance(x.b, Const) else "the modulus is no constant, which classes need; "
            return f"residue {printer.print_expr(x)}: {why}every tile may hold allowed pairs"
    if any(isinstance(x, Cast) and x.type.value == "f32" and positions(x) != "none" for x in walk(atom)):
        return "compares floats that depend on positions: evaluated inside every tile"
    if any(isinstance(x, Binary) and x.op == "mod" for x in walk(atom)):
        return "repeats within a tile: every tile may hold allowed pairs"
    return "has no closed form for both positions: evaluated inside every tile it may touch"
