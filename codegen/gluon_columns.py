"""What depends only on the column of a tile of scores: captured tensors read by key, or by query when transposed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from .emitter import Emitter
from .triton_values import Guard, Values

# Positions of a tile that is a run of them.
RUN = ("start + lanes", "start + columns[None, :]")
_INDICES = {"key": "kv_index", "query": "q_index"}


def lanes(block: str) -> str:
    """Columns with one a thread, as text; :func:`emit_columns` needs them as ``lanes`` where columns are loaded by."""
    return f"tl.arange(0, {block}, tl.BlockedLayout([1], [32], [4], [0]))"


def emit_columns(
    out: Emitter, values: Values, level: Literal["key", "query"], wanted: Sequence[str], guard: Guard,
    done: frozenset[str], positions: tuple[str, str] = RUN,
) -> frozenset[str]:  # fmt: skip
    """Everything of ``level``, and the ``positions`` themselves: of one column a thread, and as a row.

    In the layout of scores each thread would load a quarter of the columns, and hold their addresses. So
    loads and what follows from them are done with one column a thread, then spread through shared memory.
    """
    index = _INDICES[level]
    steps = Emitter()
    done = values.emit(steps, level, wanted, guard, done)
    # Statements: a long load continues on indented lines and a closing parenthesis.
    statements = re.split(r"\n(?=\w)", steps.text().rstrip("\n")) if steps.text() else []
    loaded: dict[str, None] = {}
    for statement in statements:
        name, _, text = statement.partition(" = ")
        if "tl.load(" in text or any(re.search(rf"(?<!\w){re.escape(x)}(?!\w)", text) for x in loaded):
            loaded[name] = None
    if loaded:
        out.line(f"{index} = {positions[0]}")
        for statement in statements:
            out.lines(statement)
        for name in loaded:
            out.line(f"{name} = tl.convert_layout({name}, tl.SliceLayout(0, SCORES))[None, :]")
    out.line(f"{index} = {positions[1]}")
    for statement in statements:
        if statement.partition(" = ")[0] not in loaded:
            out.lines(statement)
    return done
