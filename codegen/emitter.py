"""Builds the text of a generated module: lines, indentation and names that do not collide."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Emitter:
    """Collects lines; ``block`` indents; ``fresh`` hands out each name once.

    >>> out = Emitter()
    >>> x = out.fresh("x")
    >>> with out.block(f"def f({x}):"):
    ...     out.line(f"{out.fresh('x')} = {x} + 1")
    >>> print(out.text(), end="")
    def f(x):
        x_1 = x + 1
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._lines: list[str] = []
        self._depth = 0
        self._taken: set[str] = set(reserved)

    def line(self, text: str = "") -> None:
        """One line at the current depth; an empty one carries no spaces."""
        self._lines.append("    " * self._depth + text if text else "")

    def lines(self, text: str) -> None:
        """Every line of ``text``, which has its own indentation, at the current depth."""
        for line in text.strip("\n").split("\n"):
            self.line(line)

    def section(self, text: str = "") -> None:
        """Two empty lines, as before a function, and then the lines of ``text`` if there are any."""
        self.line()
        self.line()
        if text:
            self.lines(text)

    def comment(self, text: str) -> None:
        """``text`` as comment lines."""
        for line in text.split("\n"):
            self.line(f"# {line}".rstrip())

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """``head`` (with its colon), and what is written meanwhile indented below it."""
        self.line(head)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def define(self, signature: str) -> Iterator[None]:
        """A function at the top level; what is written meanwhile is its body."""
        self.line()
        self.line()
        with self.block(f"def {signature}:"):
            yield

    def definition(self, text: str) -> None:
        """Whole functions at the top level, from their source."""
        self.line()
        self.line()
        self.lines(text)

    def fresh(self, name: str) -> str:
        """``name``, or ``name_1``, ``name_2`` … where it is taken or a keyword; taken from now on."""
        candidate, count = name, 0
        while candidate in self._taken or keyword.iskeyword(candidate):
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def text(self) -> str:
        """All lines so far, ending in one newline."""
        return "\n".join(self._lines) + "\n"
