"""Functions written for PyTorch's FlexAttention, taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

from ..ir.errors import ParameterError
from .callsite import caller
from .part import MaskFunction, ScoreFunction

_PAIR = ("batch", "head", "q", "kv")


def mask_mod(function: Callable[..., object]) -> MaskFunction:
    """Makes a mask of a FlexAttention ``mask_mod``: ``function(b, h, q_idx, kv_idx)``, by any names.

    The result is one of :func:`mask`: it combines with others by ``&``, ``|`` and ``~``, numbers and tensors in its
    closure are parameters, and arguments after the fourth are bound by keyword. A ``BlockMask`` is not needed: pass its
    ``mask_mod``. What ``and_masks`` and ``or_masks`` return can be passed, too, as can methods, objects that are called
    and ``functools.partial``, but numbers of the functions inside are constants then. Raises the errors of
    :func:`mask`, and :class:`ParameterError` for fewer than four arguments.
    Source: Dong et al., 2024, https://arxiv.org/abs/2412.05496.

    >>> def causal(b, h, q_idx, kv_idx):
    ...     return q_idx >= kv_idx
    >>> mask_mod(causal)().traced.expr == mask_mod(lambda b, h, i, j: i >= j)().traced.expr
    True
    """
    if _is_function(function):
        return MaskFunction(function, _PAIR)
    return MaskFunction(_named(lambda b, h, q_idx, kv_idx: function(b, h, q_idx, kv_idx), function), _PAIR)


def score_mod(function: Callable[..., object]) -> ScoreFunction:
    """Makes a score of a FlexAttention ``score_mod``: ``function(score, b, h, q_idx, kv_idx)``.

    As there, the score is scaled before. The rest is as in :func:`mask_mod`; raises the errors of :func:`score`.

    >>> def relative(score, b, h, q_idx, kv_idx):
    ...     return score + (q_idx - kv_idx)
    >>> score_mod(relative)().traced.values
    {}
    """
    positions = ("s", *_PAIR)
    if _is_function(function):
        return ScoreFunction(function, positions)
    called = _named(lambda score, b, h, q_idx, kv_idx: function(score, b, h, q_idx, kv_idx), function)
    return ScoreFunction(called, positions)


def _is_function(function: object) -> bool:
    """Whether it is a plain function or, which :func:`mask` refuses, none that could be called with positions."""
    if hasattr(function, "mask_mod"):
        raise ParameterError(
            "a block mask is neither needed nor taken", location=caller(), hint="pass its function: mask.mask_mod"
        )
    return isinstance(function, FunctionType | type | MaskFunction | ScoreFunction) or not callable(function)


def _named(wrapper: Callable[..., object], function: Callable[..., object]) -> Callable[..., object]:
    wrapper.__name__ = getattr(function, "__name__", type(function).__name__)
    return wrapper
