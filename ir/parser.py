"""Reading the text language and lowered IR back. Nothing in a text is ever evaluated as Python.

A text may come from anyone: its length, nesting and literals are bounded, and every fault is a
:class:`TextError` or :class:`TypeMismatchError` that shows the line.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import build
from .errors import TextError, TypeMismatchError
from .grids import check_grids
from .location import Location
from .lowered import Lowered, Step
from .nodes import TRUE, Expr, Score
from .parse_expression import CONSTANTS, Reader, number, suggestion
from .traverse import walk
from .types import BOOL, F32, I32, I64, BufferType, ScalarType
from .variant import Align, BufferParameter, Parameter, ScalarParameter, StaticParameter, Variant
from .verify import RESERVED

if TYPE_CHECKING:
    from lark import Lark, UnexpectedInput

Parsed = Any  # a lark Tree or Token; which one a child is, the grammar says

MAX_LENGTH = 100_000  # characters of a text

_SCALAR_TYPES: dict[str, ScalarType] = {"int": I32, "float": F32, "bool": BOOL, "i64": I64}
_ELEMENT_TYPES: dict[str, ScalarType] = {str(type): type for type in ScalarType}
_WORDS = {
    "NAME": "a name", "NUMBER": "a number", "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`",
    "LBRACE": "`{`", "RBRACE": "`}`", "COMMA": "`,`", "COLON": "`:`", "EQUAL": "`=`", "MINUS": "`-`",
    "NOT": "`not`", "STATIC": "`static`", "ATTENTION": "`attention`", "LOWERED": "`lowered`", "KEEP": "`keep`",
    "SCORE": "`score`", "NORMALIZE": "`normalize`", "ALIGN": "`align`", "SCALE": "`scale`", "YIELD": "`yield`",
    "$END": "the end of the text",
}  # fmt: skip
_HINTS = {
    "=": "write `==` to compare",
    "!": "write `not`, or `!=` to compare",
    "&": "write `a and b`",
    "|": "write `a or b`",
    "~": "write `not`",
    "?": "write where(condition, a, b)",
}


def parse_variant(text: str) -> tuple[Variant, dict[str, int | float]]:
    """The variant that ``text`` describes, and the values it gives for run-time scalars.

    Raises :class:`TextError`, :class:`TypeMismatchError`, or :class:`ParameterError` for grids that disagree.

    >>> v, values = parse_variant("attention local(window: int = 8) { keep abs(q - kv) < window }")
    >>> v.name, v.scalars[0].name, values
    ('local', 'window', {'window': 8})
    """
    reader = Reader(text)
    name, parameters, *clauses = _parse(reader, "variant").children
    declared, values = _declare(reader, parameters)
    masks: list[Expr] = []
    scores: list[Expr] = []
    align: Align = "start"
    scale: float | None = None
    seen: set[str] = set()
    for clause in clauses:
        word, content = clause.children
        if word in seen:
            raise TextError(f"`{word}` is given twice", location=reader.at(word))
        if word not in ("keep", "score"):
            seen.add(str(word))
        match clause.data:
            case "keep":
                masks.append(_mask(reader, content))
            case "score":
                scores.append(_score(reader, content))
            case "normalize":
                _choice(reader, content, ("softmax",), "normaliser")
            case "align":
                align = "end" if _choice(reader, content, ("start", "end"), "alignment") == "end" else "start"
            case _:
                scale = float(_typed_literal(reader, content, F32))
    mask = build.conjunction(masks) if masks else TRUE
    variant = Variant(mask, tuple(scores), declared, align=align, scale=scale, name=str(name))
    check_grids(variant)
    return variant, values


def parse_expr(text: str, parameters: Iterable[Parameter] = ()) -> Expr:
    """One expression over the indices, ``s`` and ``parameters``, in the surface form.

    >>> from .printer import print_expr
    >>> print_expr(parse_expr("(q >= kv) & ((q - kv) < 4)"))
    'q >= kv and q - kv < 4'
    """
    reader = Reader(text)
    for p in parameters:
        if isinstance(p, BufferParameter):
            reader.buffers[p.name] = p.type
        else:
            reader.scalars[p.name] = p.type
    (tree,) = _parse(reader, "expression").children
    return reader.expression(tree)


def parse_lowered(text: str) -> Lowered:
    """The lowered IR that :func:`regard.ir.printer.print_lowered` printed as ``text``."""
    reader = Reader(text, typed=True)
    parameters, *lines = _parse(reader, "lowered").children
    for p in _parameter_trees(parameters):
        name, _, kind, axes, value = p.children
        type = _type(reader, kind, _ELEMENT_TYPES)
        if value is not None:
            raise TextError("lowered IR has no values", location=reader.at(value))
        if axes is None:
            reader.scalars[str(name)] = type
        else:
            reader.buffers[str(name)] = BufferType(type, tuple(map(str, _present(axes.children))))
    steps: list[Step] = []
    results: list[tuple[str, Expr]] = []
    for line in lines:
        *_, name, kind, content = line.children
        e = reader.expression(content)
        if e.type is not _type(reader, kind, _ELEMENT_TYPES):
            raise TypeMismatchError(f"`{name}` is declared {kind} but is {e.type}", location=reader.at(kind))
        if line.data == "step":
            steps.append(Step(str(name), e))
            reader.steps[str(name)] = e.type
        else:
            results.append((str(name), e))
    return Lowered(tuple(steps), tuple(results))


@functools.cache
def _grammar() -> Lark:
    from lark import Lark

    return Lark.open(
        "grammar.lark",
        rel_to=__file__,
        parser="lalr",
        start=["variant", "expression", "lowered"],
        propagate_positions=True,
        maybe_placeholders=True,
    )


def _parse(reader: Reader, start: str) -> Parsed:
    from lark import UnexpectedInput

    text = reader.text
    if len(text) > MAX_LENGTH:
        raise TextError(f"the text is longer than {MAX_LENGTH} characters")
    try:
        return _grammar().parse(text, start=start)
    except UnexpectedInput as error:
        raise _syntax_error(text, error) from None


def _syntax_error(text: str, error: UnexpectedInput) -> TextError:
    from lark import UnexpectedToken

    lines = text.split("\n")
    ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
    if ended or error.line < 1:
        row = max(i for i, line in enumerate(lines) if line.strip() or i == 0)
        column = len(lines[row].rstrip())
    else:
        row, column = error.line - 1, error.column - 1
    found = str(error.token) if isinstance(error, UnexpectedToken) else lines[row][column : column + 1]
    place = Location("<text>", row + 1, column, column + max(len(found), 1), lines[row] + " " * ended)
    accepted = error.accepts if isinstance(error, UnexpectedToken) else set()
    what = "the text ends" if ended else f"unexpected `{found}`"
    expected = f"; expected {_expected(accepted)}" if accepted else ", which the language does not have"
    return TextError(what + expected, location=place, hint=_hint(found, accepted))


def _expected(terminals: Iterable[str]) -> str:
    """What may stand here, in words: operators are one."""
    words = sorted({_WORDS.get(t, "an operator") for t in terminals})
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _hint(found: str, accepted: Iterable[str]) -> str:
    if found in ("<", "<=", ">", ">=", "==", "!=") and "NAME" not in accepted:
        return "comparisons do not chain: write `a < b and b < c`"
    return _HINTS.get(found, "")


def _present(children: Iterable[Parsed]) -> list[str]:
    return [c for c in children if isinstance(c, str)]


def _parameter_trees(parameters: Parsed) -> list[Parsed]:
    return [] if parameters is None else [p for p in parameters.children if p is not None]


def _type(reader: Reader, kind: Parsed, known: dict[str, ScalarType]) -> ScalarType:
    if kind not in known:
        raise TextError(f"unknown type `{kind}`", location=reader.at(kind), hint=suggestion(kind, known))
    return known[kind]


def _declare(reader: Reader, parameters: Parsed) -> tuple[tuple[Parameter, ...], dict[str, int | float]]:
    declared: dict[str, Parameter] = {}
    values: dict[str, int | float] = {}
    for tree in _parameter_trees(parameters):
        name, static, kind, axes, value = tree.children
        place = reader.at(name)
        if name in RESERVED:
            raise TextError(f"`{name}` has a meaning of its own: a parameter needs another name", location=place)
        if name in declared:
            raise TextError(f"two parameters are called `{name}`", location=place)
        if axes is not None:
            if static is not None or value is not None:
                raise TextError("a tensor is neither static nor given in the text", location=reader.at(tree))
            labels = tuple(map(str, _present(axes.children)))
            reader.buffers[str(name)] = buffer = BufferType(_type(reader, kind, _ELEMENT_TYPES), labels)
            declared[str(name)] = BufferParameter(str(name), buffer, place)
            continue
        type = _type(reader, kind, _SCALAR_TYPES)
        reader.scalars[str(name)] = type
        if static is not None:
            if value is None:
                raise TextError(f"the static parameter `{name}` needs a value", location=reader.at(tree))
            declared[str(name)] = StaticParameter(str(name), type, _typed_literal(reader, value, type), place)
            continue
        if type not in (I32, F32):
            raise TextError(f"a {kind} is static", location=reader.at(kind), hint=f"write {name}: static {kind} = …")
        declared[str(name)] = ScalarParameter(str(name), type, place)
        if value is not None:
            values[str(name)] = _typed_literal(reader, value, type)
    return tuple(declared.values()), values


def _literal(reader: Reader, tree: Parsed) -> bool | int | float:
    sign, token = tree.children
    place = reader.at(tree)
    if token.type == "NUMBER":
        value: bool | int | float = number(token, place)
    elif token in CONSTANTS:
        value = CONSTANTS[token]
    else:
        raise TextError(f"expected a number, got `{token}`", location=place)
    if sign is None:
        return value
    if isinstance(value, bool):
        raise TextError(f"`-{token}` is no number", location=place)
    return -value


def _typed_literal(reader: Reader, tree: Parsed, type: ScalarType) -> bool | int | float:
    value = _literal(reader, tree)
    integer = isinstance(value, int) and not isinstance(value, bool)
    match type:
        case ScalarType.BOOL if isinstance(value, bool):
            return value
        case ScalarType.F32 if not isinstance(value, bool):
            return float(value)
        case ScalarType.I64 if integer:
            return value
        case ScalarType.I32 if integer and -(2**31) <= value < 2**31:
            return value
    raise TypeMismatchError(f"the value is no {type}", location=reader.at(tree))


def _choice(reader: Reader, word: Parsed, choices: tuple[str, ...], what: str) -> str:
    if word not in choices:
        raise TextError(f"unknown {what} `{word}`", location=reader.at(word), hint=suggestion(word, choices))
    return str(word)


def _mask(reader: Reader, tree: Parsed) -> Expr:
    e = reader.expression(tree)
    for x in walk(e):
        if isinstance(x, Score):
            raise TextError("a mask cannot read the score", location=x.loc or reader.at(tree))
    if e.type is not BOOL:
        raise TypeMismatchError(
            f"`keep` needs a boolean, got {e.type}", location=reader.at(tree), hint="compare first, e.g. x != 0"
        )
    return e


def _score(reader: Reader, tree: Parsed) -> Expr:
    e = reader.expression(tree)
    if e.type is not F32:
        raise TypeMismatchError(f"`score` needs a float, got {e.type}", location=reader.at(tree), hint="write float(…)")
    return e
