"""Keeps the making of attentions out of graphs. Importing this imports Dynamo, which takes seconds: only
:mod:`.eagerly` does, once Dynamo is at work anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def _call(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return function(*args, **kwargs)


call = torch.compiler.disable(
    _call,
    reason="masks, scores and attentions cannot be built inside a compiled graph: build the attention outside (in "
    "__init__, or at module level) and call it inside. A tensor that changes from call to call is an open parameter: "
    "attn = rg.attention(rg.document()) outside, attn(q, k, v, ids=ids) inside",
)
