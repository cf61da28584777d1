"""Which expression of the user's source is being evaluated, and what surrounds it."""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from itertools import islice
from types import CodeType, FrameType

from ..ir.location import Location

Span = tuple[int, int, int, int]
_PACKAGE = __name__.split(".")[0]
_STOCK = f"{_PACKAGE}.dsl.stock."
# Places that were asked for, by code object (its identity) and instruction: those of a function that runs again.
_known: dict[tuple[int, int], tuple[CodeType, Location]] = {}
_KNOWN_LIMIT = 4096


def here() -> Location | None:
    """The expression of a mask or score that is being evaluated, in user code or the stock library."""
    frame = _user_frame()
    if frame is None:
        return None
    code, instruction = frame.f_code, frame.f_lasti
    found = _known.get((id(code), instruction))
    if found is None:
        if len(_known) >= _KNOWN_LIMIT:
            _known.clear()
        # The code object is kept, so that its identity is not used again.
        found = _known[id(code), instruction] = code, _location(code, _span(frame), frame.f_lineno)
    return found[1]


def caller() -> Location | None:
    """The call of Regard that is being made, seen from outside of Regard."""
    frame = _user_frame(stock=False)
    return None if frame is None else _location(frame.f_code, _span(frame), frame.f_lineno)


def definition(code: CodeType) -> Location:
    """The line on which a function starts, below its decorators."""
    line = code.co_firstlineno
    while linecache.getline(code.co_filename, line).lstrip().startswith("@"):
        line += 1
    return _location(code, None, line)


def decision() -> tuple[Location | None, str]:
    """The place where Python asks a symbol for its truth value, and what to write instead."""
    frame = _user_frame()
    if frame is None:
        return None, _BRANCH
    span = _span(frame)
    for node in _enclosing(frame.f_code.co_filename, span):
        advice = _advice(node)
        if advice:
            wider = _span_of(node) if isinstance(node, ast.BoolOp | ast.UnaryOp | ast.Compare | ast.Call) else span
            return _location(frame.f_code, wider, frame.f_lineno), advice
    has_source = bool(linecache.getline(frame.f_code.co_filename, frame.f_lineno))
    return _location(frame.f_code, span, frame.f_lineno), _BRANCH if has_source else _WITHOUT_SOURCE


def name_of(value: object) -> str | None:
    """What the innermost frame of the user calls ``value``: a variable, or the attribute that it indexes."""
    frame = _user_frame()
    if frame is None:
        return None
    variables = {**frame.f_globals, **frame.f_locals}
    for name, x in variables.items():
        if x is value:
            return name
    match _enclosing(frame.f_code.co_filename, _span(frame)):
        case [ast.Subscript(value=ast.Attribute(attr=name)), *_]:
            return name
        case _:
            return None


_BRANCH = "write rg.where(condition, a, b); for a choice made once, bind the value with rg.static(...)"

_WITHOUT_SOURCE = "write `&`, `|` and `~` for and, or and not, and rg.where(condition, a, b) for if"


def _advice(node: ast.AST) -> str:
    match node:
        case ast.Compare(ops=[_, _, *_], comparators=operands) if any(
            isinstance(x, ast.BinOp) and isinstance(x.op, ast.BitAnd | ast.BitOr) for x in operands
        ):
            return "`&` and `|` bind tighter than comparisons: write (q >= kv) & (q - kv < window)"
        case ast.Compare(ops=[_, _, *_]):
            return "comparisons do not chain here: write (a <= x) & (x < b)"
        case ast.Compare(ops=[ast.In() | ast.NotIn()]):
            return "write the comparisons out: (x == a) | (x == b)"
        case ast.BoolOp(op=ast.And()):
            return "write `&` between parenthesised comparisons: (q >= kv) & (q - kv < window)"
        case ast.BoolOp(op=ast.Or()):
            return "write `|` between parenthesised comparisons: (q >= kv) | (kv < n)"
        case ast.UnaryOp(op=ast.Not()):
            return "write `~` before a parenthesised comparison: ~(q >= kv)"
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            return f"write rg.{name}imum(a, b)"
        case ast.Call(func=ast.Name(id="any" | "all" as name)):
            return f"write `{'|' if name == 'any' else '&'}` between the conditions"
        case ast.If() | ast.IfExp() | ast.While() | ast.Assert() | ast.comprehension():
            return _BRANCH
        case _:
            return ""


def _user_frame(stock: bool = True) -> FrameType | None:
    """The innermost frame that is not of Regard, torch or numpy; ``stock``: the stock library counts as a user."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_user(frame.f_globals.get("__name__", ""), stock):
            return frame
        frame = frame.f_back
    return None


@functools.lru_cache(1024)
def _is_user(module: str, stock: bool) -> bool:
    return module.split(".")[0] not in (_PACKAGE, "torch", "numpy") or (stock and module.startswith(_STOCK))


def _span(frame: FrameType) -> Span | None:
    """Line, column, last line and end of the instruction that ``frame`` executes; columns are in bytes."""
    line, last, column, end = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    if line is None or last is None or column is None or end is None:
        return None  # Python ran with -X no_debug_ranges
    return line, column, last, end


def _span_of(node: ast.expr) -> Span:
    last, end = node.end_lineno, node.end_col_offset
    return node.lineno, node.col_offset, node.lineno if last is None else last, node.col_offset if end is None else end


def _location(code: CodeType, span: Span | None, fallback: int) -> Location:
    """``span`` in characters, cut at the end of its first line; the whole line where there is no span."""
    line = fallback if span is None else span[0]
    text = linecache.getline(code.co_filename, line).rstrip("\n")
    if span is None:
        return Location(code.co_filename, line, len(text) - len(text.lstrip()), len(text))
    if not text:  # typed at Python's prompt, or given to exec
        return Location(code.co_filename, line, span[1], max(span[3] if span[2] == line else 0, span[1] + 1))
    raw = text.encode()
    _, column, last, end = span
    stop = end if last == line else len(raw)
    start, stop = (len(raw[:n].decode(errors="replace")) for n in (column, stop))
    return Location(code.co_filename, line, start, max(stop, start + 1))


def _enclosing(file: str, span: Span | None) -> list[ast.AST]:
    """The syntax node that spans exactly ``span``, then its parents up to the next statement."""
    if span is None:
        return []
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # a notebook cell with magics, or a file that changed since it was imported
        return []
    chain: list[ast.AST] = []

    def visit(node: ast.AST, parents: list[ast.AST]) -> None:
        nonlocal chain
        path = [node, *parents]
        if isinstance(node, ast.expr) and _span_of(node) == span:
            chain = path
        for child in ast.iter_child_nodes(node):
            visit(child, [] if isinstance(node, ast.stmt) and isinstance(child, ast.stmt) else path)

    visit(tree, [])
    return chain[:3]
