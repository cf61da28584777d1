"""What notebooks show."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import Attention


def html(attn: Attention) -> str:
    """The text form of ``attn``; what is proved about its tiles is folded below it."""
    from .explain import explain

    proof = escape(explain(attn).text(with_variant=False))
    return f"<pre>{escape(str(attn))}</pre><details><summary>tiles and kernel</summary><pre>{proof}</pre></details>"
