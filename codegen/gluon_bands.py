"""What of a mask is an interval of columns in each row of a tile: that costs a pair a subtraction and a comparison.

Bounds are found once for each row, or for each row of each tile, of which a thread has two, beside 32 or 64 pairs.
Where tiles divide what positions are divided by, quotients of columns are constant in a tile, and remainders are
columns less a constant. Of what is left, comparisons have what depends on the column alone on one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ir.bounds import interval
from ..ir.build import binary, cast, conjunction, const, index, select, unary
from ..ir.dependence import dependence
from ..ir.linear_form import Linear, to_expr
from ..ir.nodes import TILE_NAMES, TRUE, ZERO, Binary, BinaryOp, Const, Expr, Select, Unary
from ..ir.passes import narrow, simplified
from ..ir.symbolic import linear, simplify
from ..ir.tiles.overflow import is_exact
from ..ir.traverse import joined, loads, rewrite
from ..ir.types import I32
from .emitter import Emitter
from .triton_program import INDICES
from .triton_values import Guard, Values

Column = Literal["q", "kv"]
FIRST, STOP = "first", "stop"
# The first column of a tile is an index of its own, of which bounds may be functions.
_START = index(TILE_NAMES[0])
_LENGTHS = {"q": index("q_len"), "kv": index("kv_len")}
_ROWS = frozenset(("q", "kv", TILE_NAMES[0]))
_LEAST, _MOST = -(2**31), 2**31 - 1
_MIRRORED: dict[BinaryOp, BinaryOp] = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


@dataclass(frozen=True, slots=True)
class _Interval:
    """Columns from ``first`` to before ``stop``; None is no bound. Bounds may lie outside of all columns."""

    first: Expr | None = None
    stop: Expr | None = None


@dataclass(frozen=True, slots=True)
class Band:
    """The pairs that a mask keeps, of columns that exist: those from ``first`` on, if it is not None, and before
    ``stop``, where ``rest`` holds. Bounds depend on the row, and on ``tile_first``, the first column of the tile.
    """

    first: Expr | None
    stop: Expr
    rest: Expr
    column: Column

    @staticmethod
    def of(mask: Expr, column: Column, block: int | None) -> Band:
        """For tiles of ``block`` columns, which start at multiples of it; None where they may start anywhere.

        >>> from ..ir.parser import parse_expr
        >>> from ..ir.printer import print_expr
        >>> band = Band.of(parse_expr("q >= kv and kv // 256 == q // 256 and q % kv == 1", []), "kv", 128)
        >>> print_expr(band.stop)
        'min(min(kv_len, q + 1), where(tile_first // 256 == q // 256, kv_len, 0))'
        >>> print_expr(band.rest)
        'q % kv == 1'
        """
        found, rest = _Interval(stop=_LENGTHS[column]), []
        for term in joined(mask if block is None else _of_tiles(mask, column, block), "and"):
            if term == TRUE:
                continue
            more = _interval(term, column)
            if more is None:
                rest.append(rewrite(rewrite(term, lambda e: _apart(e, column)), lambda e: _joint(e, column)))
            else:
                found = _intersection(found, more)
        assert found.stop is not None
        first = found.first and _fitted(binary("max", found.first, ZERO), column)
        stop = _fitted(binary("max", found.stop, ZERO), column)
        return Band(first, stop, narrow(simplified(conjunction(rest))), column)

    @staticmethod
    def without_bounds(mask: Expr, column: Column) -> Band:
        """All of ``mask`` is asked pair by pair: its sides, taken apart, may need registers that are not there."""
        return Band(None, _LENGTHS[column], mask, column)

    @property
    def is_bounded(self) -> bool:
        """Whether rows see an interval of columns, and not all that exist where the rest holds."""
        return self.first is not None or self.stop != _LENGTHS[self.column]

    def results(self) -> dict[str, Expr]:
        """The bounds, and the rest as ``mask``, by name."""
        found = {} if self.first is None else {FIRST: self.first}
        return found | {STOP: self.stop} | ({} if self.rest == TRUE else {"mask": self.rest})

    @property
    def bounds(self) -> tuple[str, ...]:
        """Names of the results that are bounds."""
        return (STOP,) if self.first is None else (FIRST, STOP)

    def emit(
        self, out: Emitter, values: Values, done: frozenset[str], rows: str = "", end: str = ""
    ) -> frozenset[str]:
        """``allowed``: pairs that exist and that the mask keeps; ``rows``: those that may be looked up, as text.

        ``end``: another end of columns, in each row, as text.
        """
        done = values.emit(out, "pair", self.bounds, Guard(pair=rows), done)
        stop = f"tl.minimum({values.result(STOP)}, {end})" if end else values.result(STOP)
        if self.first is None:
            out.line(f"allowed = column_steps < {stop} - start - column_lane")
        else:
            first = values.result(FIRST)
            apart = f"(column_steps - ({first} - start - column_lane)).to(tl.uint32)"
            out.line(f"allowed = {apart} < tl.maximum({stop} - {first}, 0).to(tl.uint32)")
        if self.rest == TRUE:
            return done
        row, columns = ("kv" if self.column == "q" else "q"), {self.column, TILE_NAMES[0]}
        if any(row in dependence(x) and columns & dependence(x) for x in loads(self.rest)):
            out.line(f"allowed &= {rows}")
        done = values.emit(out, "pair", ("mask",), Guard(pair="allowed"), done)
        out.line(f"allowed &= {values.result('mask')}")
        return done


# Of bounds, and of what is left of a mask.
BAND_INDICES = {**INDICES, TILE_NAMES[0]: "start"}


def emit_steps(out: Emitter) -> None:
    """What :meth:`Band.emit` needs of ``columns``."""
    out.comment("A thread's columns are those of its place and multiples of 8, which are constants of instructions.")
    out.line("column_lane = (columns % 8)[None, :]")
    out.line("column_steps = (columns // 8 * 8)[None, :]")


def _fitted(bound: Expr, column: Column) -> Expr:
    """``bound``, which is not negative, in i32: beyond all columns it may be anything that is."""
    bound = narrow(simplify(bound))
    return bound if bound.type is I32 else cast(narrow(binary("min", bound, _LENGTHS[column])), I32)


def _of_tiles(mask: Expr, column: Column, block: int) -> Expr:
    """``mask`` with quotients and remainders of columns, and comparisons of them, from the start of their tile."""
    position = index(column)

    def rule(e: Expr) -> Expr:
        match e:
            case Binary("floordiv" | "mod" as op, a, Const(int() as size)) if size > 0 and size % block == 0:
                form = linear(a)
                if form.terms == (((position,), 1),) and form.constant % block == 0:
                    start = binary("add", _START, const(form.constant))
                    quotient = binary("floordiv", start, const(size))
                    return quotient if op == "floordiv" else binary("sub", a, binary("mul", quotient, const(size)))
            case Binary("lt" | "le" | "gt" | "ge" as op, a, b) if a.type.is_integer:
                form = linear(binary("sub", a, b))
                if form.terms in ((((position,), 1),), (((position,), -1),)):
                    sign = form.terms[0][1]
                    compared = op if sign > 0 else _MIRRORED[op]
                    limit = -form.constant * sign + (compared in ("le", "gt"))
                    if limit % block == 0:
                        return binary("lt" if compared in ("lt", "le") else "ge", _START, const(limit))
        return e

    return rewrite(mask, rule)


def _depends(e: Expr, column: Column) -> bool:
    return column in dependence(e)


def _varies(e: Expr, *names: str) -> bool:
    return not dependence(e).isdisjoint(names)


def _apart(e: Expr, column: Column) -> Expr:
    """A comparison of sums, with all that depends on the column on its right, if nothing depends on more besides."""
    match e:
        case Binary("lt" | "le" | "gt" | "ge" | "eq" | "ne" as op, a, b) if a.type.is_integer and is_exact(e):
            form = linear(binary("sub", a, b))
        case _:
            return e
    if not any(_varies(side, column) and _varies(side, *_ROWS - {column}) for side in (a, b)):
        return e  # it is so already
    mine = tuple(t for t in form.terms if any(_depends(x, column) for x in t[0]))
    others = tuple(t for t in form.terms if t not in mine)
    if not mine or any(_varies(x, *_ROWS - {column}) for t in mine for x in t[0]):
        return e
    factor = 1 if sum(n for _, n in mine) < 0 else -1
    row, of_column = to_expr(_times(Linear(form.constant, others), factor)), to_expr(_times(Linear(0, mine), -factor))
    return _short(op if factor > 0 else _MIRRORED[op], narrow(row), narrow(of_column))


def _joint(e: Expr, column: Column) -> Expr:
    """A condition of columns and one beside it as a single comparison, which columns that are not meant do not pass."""
    match e:
        case Binary("and", a, b) if _is_of(b, column) and not _varies(a, column):
            return binary("lt", select(a, ZERO, const(1)), select(b, const(1), ZERO))
        case Binary("and", Binary("lt" | "le" | "gt" | "ge" as op, row, of_column) as a, b) if (
            _is_of(b, column) and a.a.type.is_integer and _is_of(of_column, column) and not _varies(row, column)
        ):
            low, high = interval(row, {})
            if op in ("lt", "le") and low > _LEAST:
                return binary(op, row, select(b, of_column, const(_LEAST)))
            if op in ("gt", "ge") and high < _MOST:
                return binary(op, row, select(b, of_column, const(_MOST)))
        case Binary("and", a, b) if _is_of(a, column) and not _is_of(b, column):
            return _joint(binary("and", b, a), column)
    return e


def _is_of(e: Expr, column: Column) -> bool:
    """Whether ``e`` varies with the column alone."""
    return _varies(e, column) and not _varies(e, *_ROWS - {column})


def _short(op: BinaryOp, row: Expr, of_column: Expr) -> Expr:
    """``row op of_column``, in i32 if the right side is, and the left one unless it may leave that at both ends.

    What lies below or above all numbers of 32 bits compares as the first or last of them does.
    """
    if op in ("eq", "ne") or row.type is I32 or of_column.type is not I32:
        return binary(op, row, of_column)
    low, high = interval(row, {})
    next_one = binary("add" if op in ("lt", "ge") else "sub", row, const(1))
    rounded, strict = (next_one, row) if op in ("lt", "gt") else (row, next_one)
    if op in ("lt", "le") and high < _MOST:
        return binary("le", cast(binary("max", rounded, const(_LEAST)), I32), of_column)
    if op in ("lt", "le") and low > _LEAST:
        return binary("lt", cast(binary("min", strict, const(_MOST)), I32), of_column)
    if op in ("gt", "ge") and low > _LEAST:
        return binary("ge", cast(binary("min", rounded, const(_MOST)), I32), of_column)
    if op in ("gt", "ge") and high < _MOST:
        return binary("gt", cast(binary("max", strict, const(_LEAST)), I32), of_column)
    return binary(op, row, of_column)


def _interval(e: Expr, column: Column) -> _Interval | None:
    """The columns for which ``e`` holds, in each row; None where they are not known to be an interval."""
    if not _depends(e, column):
        return _Interval(stop=select(e, _LENGTHS[column], ZERO))
    match e:
        case Binary("or", condition, other) if not _depends(condition, column):
            return _chosen(condition, _Interval(), _interval(other, column), column)
        case Binary("or", other, condition) if not _depends(condition, column):
            return _chosen(condition, _Interval(), _interval(other, column), column)
        case Binary("and" | "or" as op, a, b):
            first, second = _interval(a, column), _interval(b, column)
            return first and second and (_intersection if op == "and" else _union)(first, second)
        case Select(condition, a, b) if not _depends(condition, column):
            return _chosen(condition, _interval(a, column), _interval(b, column), column)
        case Binary("lt" | "le" as op, Unary("abs", x), limit):
            return _interval(binary("and", binary(op, x, limit), binary(op, unary("neg", x), limit)), column)
        case Binary("gt" | "ge" as op, limit, Unary("abs", x)):
            return _interval(binary(_MIRRORED[op], unary("abs", x), limit), column)
        case Binary("lt" | "le" | "gt" | "ge" | "eq" as op, a, b) if a.type.is_integer and is_exact(e):
            return _compared(op, linear(binary("sub", a, b)), column)
        case _:
            return None


def _compared(op: BinaryOp, form: Linear, column: Column) -> _Interval | None:
    """The columns for which ``form`` compares to 0."""
    found = _single(form, column)
    if found is None:
        return None
    # x op bound, where x is a column, or a quotient of it and something else.
    x, factor, rest = found
    op = op if factor > 0 else _MIRRORED[op]
    bound = to_expr(_times(rest, -factor))
    after = binary("add", bound, const(1))
    inner = linear(x)
    if isinstance(x, Binary) and x.op == "floordiv" and isinstance(x.b, Const) and int(x.b.value) > 0:
        bound, after, inner = binary("mul", bound, x.b), binary("mul", after, x.b), linear(x.a)
    least = {"ge": bound, "gt": after, "eq": bound}.get(op)
    end = {"lt": bound, "le": after, "eq": after}.get(op)
    found = _single(inner, column)
    if found is None or found[0] != index(column) or not all(is_exact(e) for e in (bound, after)):
        return None
    _, factor, rest = found
    beside = to_expr(rest)
    if factor > 0:
        return _Interval(least and binary("sub", least, beside), end and binary("sub", end, beside))
    beside = binary("add", beside, const(1))
    return _Interval(end and binary("sub", beside, end), least and binary("sub", beside, least))


def _single(form: Linear, column: Column) -> tuple[Expr, int, Linear] | None:
    """What depends on the column, its factor, 1 or -1, and everything else; None where there is not exactly one."""
    mine = [(product, n) for product, n in form.terms if any(_depends(x, column) for x in product)]
    if len(mine) != 1 or len(mine[0][0]) != 1 or abs(mine[0][1]) != 1:
        return None
    (((x,), factor),) = mine
    return x, factor, Linear(form.constant, tuple(t for t in form.terms if t[0] != (x,)))


def _times(form: Linear, factor: int) -> Linear:
    return Linear(form.constant * factor, tuple((product, n * factor) for product, n in form.terms))


def _intersection(a: _Interval, b: _Interval) -> _Interval:
    return _Interval(_joined("max", a.first, b.first), _joined("min", a.stop, b.stop))


def _union(a: _Interval, b: _Interval) -> _Interval | None:
    """Of two that are bounded at the same end, and only there."""
    if a.first is None and b.first is None and a.stop is not None and b.stop is not None:
        return _Interval(stop=binary("max", a.stop, b.stop))
    if a.stop is None and b.stop is None and a.first is not None and b.first is not None:
        return _Interval(binary("min", a.first, b.first))
    return None


def _chosen(condition: Expr, a: _Interval | None, b: _Interval | None, column: Column) -> _Interval | None:
    """``a`` in rows where ``condition`` holds, and ``b`` in others."""
    if a is None or b is None:
        return None
    length = _LENGTHS[column]
    first = None if a.first is b.first is None else select(condition, a.first or ZERO, b.first or ZERO)
    stop = None if a.stop is b.stop is None else select(condition, a.stop or length, b.stop or length)
    return _Interval(first, stop)


def _joined(op: BinaryOp, a: Expr | None, b: Expr | None) -> Expr | None:
    return a if b is None else b if a is None else binary(op, a, b)
