"""Equivalence classes that a condition puts positions into: equal residues, the same block, equal coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import assert_never

from ..build import binary, const
from ..linear_form import Linear, to_expr
from ..nodes import ZERO, Binary, Const, Expr
from ..symbolic import linear, simplify
from ..traverse import index_names, loads
from .digits import digit


@dataclass(frozen=True, slots=True)
class SameResidue:
    """``kv % modulus == (q + shift) % modulus``; the shift does not depend on positions."""

    modulus: int
    shift: Expr

    def __str__(self) -> str:
        which = "the same residue" if self.shift == ZERO else "one residue"
        return f"{which} modulo {self.modulus}"


@dataclass(frozen=True, slots=True)
class SameBlock:
    """``(kv + offset) // size == (q + offset) // size``. Blocks of size 1 are equal coordinates.

    The offset is at least 0 and less than the size, and does not depend on positions.
    """

    size: int
    offset: Expr = ZERO

    def __str__(self) -> str:
        return "the same coordinate" if self.size == 1 else f"the same block of {self.size}"


Relation = SameResidue | SameBlock


def relation(condition: Expr, q: str, kv: str) -> Relation | None:
    """The relation that ``condition`` says, in whatever way, about the coordinates ``q`` and ``kv`` (their names).

    ``condition`` is an exact comparison of integers. None where it says anything else.

    >>> from ..parser import parse_expr
    >>> relation(parse_expr("0 == (kv - q) % 4"), "q", "kv").modulus
    4
    >>> relation(parse_expr("q // 7 == kv // 7"), "q", "kv")
    SameBlock(size=7, offset=Const(value=0, type=I64))
    """
    if not isinstance(condition, Binary):
        return None
    form = linear(binary("sub", condition.a, condition.b))
    if condition.op == "eq":
        return _equality(form, q, kv)
    # A remainder is at least 0 and less than its divisor: `x % 4 <= 0` and `x % 4 > 2` are equalities too.
    match form.terms:
        case ((((Binary("mod", _, Const(value=w)) as remainder,), 1 | -1 as sign)),):
            low, high = _limits(condition.op, form.constant, sign)
            if (low is not None and low == w - 1) or high == 0:
                return _equality(Linear(0 if high == 0 else 1 - int(w), (((remainder,), 1),)), q, kv)
    return None


def _limits(op: str, constant: int, sign: int) -> tuple[int | None, int | None]:
    """The least, or the greatest ``x`` with ``sign * x + constant op 0``."""
    strict = 1 if op in ("lt", "gt") else 0
    if (op in ("lt", "le")) == (sign > 0) and op != "ne":  # x <= …
        return None, (-constant if sign > 0 else constant) - strict
    return ((-constant if sign > 0 else constant) + strict, None) if op != "ne" else (None, None)


def _equality(form: Linear, q: str, kv: str) -> Relation | None:
    """The relation that ``form == 0`` says."""
    match form.terms:
        case (((Binary("floordiv", a, Const(value=w)),), 1), ((Binary("floordiv", b, Const(value=v)),), -1)) if w == v:
            a, b = (a, b) if linear(a).depends_on(q) else (b, a)
            return _same_block(linear(a), linear(b), form.constant, int(w), q, kv)
    difference = _congruent(form)
    if difference is not None:
        rest, modulus = difference
        shift = _shift(rest, q, kv, modulus)
        return None if shift is None else SameResidue(modulus, simplify(binary("mod", shift, const(modulus))))
    shift = _shift(form, q, kv)
    return SameBlock(1) if shift == ZERO else None


def _congruent(form: Linear) -> tuple[Linear, int] | None:
    """``x`` and ``d`` where ``form == 0`` means that ``d`` divides ``x``."""
    wrapped = [(m[0], c) for m, c in form.terms if len(m) == 1 and isinstance(m[0], Binary)]
    remainders = [(x, c) for x, c in wrapped if isinstance(x, Binary) and x.op == "mod" and isinstance(x.b, Const)]
    match remainders:
        case [(Binary(a=a, b=Const(value=d)), 1 | -1 as sign)] if d > 0:  # a % d == r
            rest = [t for t in form.terms if t[0] != (remainders[0][0],)]
            if rest or not 0 <= -sign * form.constant < d:
                return None
            return linear(binary("add", a, const(sign * form.constant))), int(d)
        case [(Binary(a=a, b=Const(value=d)), 1), (Binary(a=b, b=Const(value=e)), -1)] if d == e > 0:
            alone = len(form.terms) == 2 and form.constant == 0  # a % d == b % d
            return (linear(binary("sub", a, b)), int(d)) if alone else None
    for x, c in wrapped:  # d * (a // d) == a - r
        match x:
            case Binary("floordiv", a, Const(value=d)) if d > 1 and abs(c) == d:
                sign = -1 if c > 0 else 1
                rest_form = Linear(form.constant, tuple(t for t in form.terms if t[0] != (x,)))
                remainder = linear(binary("sub", a, binary("mul", const(sign), to_expr(rest_form))))
                # form == 0 says a - d * (a // d) == remainder.
                if not remainder.terms and 0 <= remainder.constant < d:
                    return linear(binary("sub", a, const(remainder.constant))), int(d)
    return None


def _shift(form: Linear, q: str, kv: str, modulus: int = 0) -> Expr | None:
    """``s`` where ``form`` is ``±(q + s - kv)``, give or take multiples of ``modulus``; free of positions."""
    terms = dict(form.terms)
    of_q, of_kv = terms.pop((digit(q),), 0), terms.pop((digit(kv),), 0)
    if modulus > 1 and (of_q + of_kv) % modulus == 0:  # modulo 2 a sum is a difference
        of_q = next((c for c in (1, -1) if (of_q - c) % modulus == 0), of_q)
        of_kv = -of_q
    if abs(of_q) != 1 or of_q + of_kv != 0:
        return None
    rest = Linear(of_q * form.constant, tuple((m, of_q * c) for m, c in terms.items()))
    expression = to_expr(rest)
    return simplify(expression) if is_settled(expression) else None


def _same_block(a: Linear, b: Linear, constant: int, size: int, q: str, kv: str) -> SameBlock | None:
    offset = _beside(a, q)
    if constant or offset is None or offset != _beside(b, kv):
        return None
    return SameBlock(size, simplify(binary("mod", offset, const(size))))


def _beside(form: Linear, name: str) -> Expr | None:
    """What is added to the coordinate ``name`` in ``form``, if that does not depend on positions."""
    terms = dict(form.terms)
    of_name = terms.pop((digit(name),), 0)
    rest = to_expr(Linear(form.constant, tuple(terms.items())))
    return rest if of_name == 1 and is_settled(rest) else None


def remainder_of(condition: Expr, name: str) -> tuple[int, Expr] | None:
    """``d`` and ``r`` where ``condition`` says that the coordinate ``name`` is ``r`` modulo ``d``.

    >>> from ..parser import parse_expr
    >>> remainder_of(parse_expr("q % 4 == head % 4"), "q")[0]
    4
    """
    if not isinstance(condition, Binary) or condition.op != "eq":
        return None
    whole = linear(binary("sub", condition.a, condition.b))
    found = _congruent(whole)
    if found is None:
        return _one_remainder(whole, name)
    form, modulus = found
    terms = dict(form.terms)
    of_name = terms.pop((digit(name),), 0)
    rest = to_expr(Linear(-of_name * form.constant, tuple((m, -of_name * c) for m, c in terms.items())))
    if abs(of_name) != 1 or not is_settled(rest):
        return None
    return modulus, simplify(binary("mod", rest, const(modulus)))


def _one_remainder(form: Linear, name: str) -> tuple[int, Expr] | None:
    """The same where ``form == 0`` says ``name % d == r`` for an ``r`` that may be no remainder at all."""
    for monomial, c in form.terms:
        match monomial:
            case (Binary("mod", x, Const(value=d)),) if d > 0 and abs(c) == 1 and linear(x) == linear(digit(name)):
                rest = tuple((m, -c * other) for m, other in form.terms if m != monomial)
                remainder = to_expr(Linear(-c * form.constant, rest))
                return (int(d), simplify(binary("mod", remainder, const(d)))) if is_settled(remainder) else None
    return None


def is_uniform(e: Expr) -> bool:
    """Whether ``e`` is the same for all pairs, heads and batch items: a number known before any tile is visited."""
    return not index_names(e) - {"q_len", "kv_len"} and not loads(e)


def is_settled(e: Expr) -> bool:
    """Whether ``e`` is the same for all pairs of a head and batch item."""
    return not index_names(e) - {"q_len", "kv_len", "batch", "head", "kv_head"}


@dataclass(frozen=True, slots=True)
class Classes:
    """How one axis is cut: see :class:`~.plan.BoxAxis`. ``residue`` 1 and ``block`` 0 are no classes."""

    residue: int = 1
    shift: Expr = ZERO
    block: int = 0
    offset: Expr = ZERO

    def implies(self, r: Relation) -> bool:
        """Whether ``r`` holds for every query and key whose classes correspond."""
        match r:
            case SameResidue(modulus, shift):
                if self.block == 1:
                    return shift == ZERO
                same = shift == self.shift and modulus == self.residue
                return same or (self.residue % modulus == 0 and shift == self.shift == ZERO)
            case SameBlock(size, offset):
                apart = simplify(binary("mod", binary("sub", offset, self.offset), const(max(self.block, 1))))
                return self.block > 0 and size % self.block == 0 and apart == ZERO
            case _:
                assert_never(r)


def joined(relations: list[Relation]) -> Classes:
    """The classes that follow from all ``relations``; those that do not fit the others are left out."""
    residue = 1
    shift: Expr = ZERO
    for r in relations:
        match r:
            case SameResidue(modulus, by) if residue == 1:
                residue, shift = modulus, by
            case SameResidue(modulus, by) if by == shift == ZERO:
                residue = residue * modulus // gcd(residue, modulus)
    blocks = [r for r in relations if isinstance(r, SameBlock)]
    if not blocks:
        return Classes(residue, shift)
    smallest = min(blocks, key=lambda b: b.size)
    if smallest.size == 1:
        return Classes(block=1)
    if smallest.size % residue or shift != ZERO:
        return Classes(residue, shift)
    return Classes(residue, shift, smallest.size, smallest.offset)
