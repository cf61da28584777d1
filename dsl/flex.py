"""Functions written for PyTorch's FlexAttention, taken as they are."""

from __future__ import annotations

from collections.abc import Callable

from .part import MaskFunction, ScoreFunction

_PAIR = ("batch", "head", "q", "kv")


def mask_mod(function: Callable[..., object]) -> MaskFunction:
    """Makes a mask of a FlexAttention ``mask_mod``: ``function(b, h, q_idx, kv_idx)``, by any names.

    The result is one of :func:`mask`: it combines with others by ``&``, ``|`` and ``~``, numbers and tensors in its
    closure are parameters, and arguments after the fourth are bound by keyword. A ``BlockMask`` is not needed: pass its
    ``mask_mod``. What ``and_masks`` and ``or_masks`` return can be passed, too, but numbers of the functions inside are
    constants then. Raises the errors of :func:`mask`, and :class:`ParameterError` for fewer than four arguments.
    Source: Dong et al., 2024, https://arxiv.org/abs/2412.05496.

    >>> def causal(b, h, q_idx, kv_idx):
    ...     return q_idx >= kv_idx
    >>> mask_mod(causal)().traced.expr == mask_mod(lambda b, h, i, j: i >= j)().traced.expr
    True
    """
    return MaskFunction(function, _PAIR)


def score_mod(function: Callable[..., object]) -> ScoreFunction:
    """Makes a score of a FlexAttention ``score_mod``: ``function(score, b, h, q_idx, kv_idx)``.

    As there, the score is scaled before. The rest is as in :func:`mask_mod`; raises the errors of :func:`score`.

    >>> def relative(score, b, h, q_idx, kv_idx):
    ...     return score + (q_idx - kv_idx)
    >>> score_mod(relative)().traced.values
    {}
    """
    return ScoreFunction(function, ("s", *_PAIR))
