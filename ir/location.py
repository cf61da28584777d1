"""Where in the user's source an expression was written."""

from __future__ import annotations

import linecache
from dataclasses import dataclass

_WIDEST = 160  # characters of a source line that are shown


@dataclass(frozen=True, slots=True)
class Location:
    """A span on one source line. Lines count from 1, columns from 0, ``end`` is exclusive.

    ``text`` is the source line itself where it cannot be read back from ``file`` (text-language
    input, generated code); it takes no part in equality.
    """

    file: str
    line: int
    column: int
    end: int
    text: str = ""

    def source_line(self) -> str:
        """The line the span lies on, or an empty string where the source is gone."""
        return self.text or linecache.getline(self.file, self.line).rstrip("\n")

    def render(self) -> str:
        """Two or three lines: ``file:line:column``, the source line, and carets under the span."""
        head = f"{self.file}:{self.line}:{self.column + 1}"
        line = self.source_line()
        if not line.strip():
            return head
        stripped = line.lstrip()
        indent = len(line) - len(stripped)
        start = max(self.column - indent, 0)
        width = max(min(self.end - indent, len(stripped)) - start, 1)
        if len(stripped) > _WIDEST:  # show the part around the span
            first = max(min(start - _WIDEST // 4, len(stripped) - _WIDEST), 0)
            stripped, start = stripped[first : first + _WIDEST], start - first
            width = min(width, _WIDEST - start)
        return f"{head}\n    {stripped}\n    {' ' * start}{'^' * width}"
