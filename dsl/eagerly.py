"""What runs as plain Python even inside functions given to ``torch.compile``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which Dynamo does not look into: with ``fullgraph=True`` it says why, else the graph ends there.

    Tracing looks at frames and source files, which Dynamo cannot follow.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            from .uncompiled import call

            result: R = call(function, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return wrapper
