"""Scores made smaller, larger or bounded."""

from __future__ import annotations

from typing import Any

from .. import functions as rg
from ..part import ScorePart, score
from .checks import number


def softcap(cap: float) -> ScorePart:
    """Bounds scores to ±``cap``, smoothly: ``cap * tanh(s / cap)``.

    Bello et al., 2016; Gemma 2, 2024 (cap 50). ``cap`` is in units of the scaled score and a run-time scalar.
    Raises :class:`ParameterError` unless it is a number > 0.

    >>> import regard as rg
    >>> print(rg.attention(rg.softcap(30.0)))
    attention softcap(cap: float = 30.0) {
      score     cap * tanh(s / cap)
      normalize softmax
    }
    """
    return _softcap(cap=number("cap", cap, above=0))


@score
def _softcap(s: Any, cap: float) -> Any:
    return cap * rg.tanh(s / cap)


def temperature(t: float) -> ScorePart:
    """Divides scores by ``t``: above 1 rows become flatter, below 1 sharper.

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015. ``t`` has no unit and is a run-time scalar.
    Raises :class:`ParameterError` unless it is a number > 0.

    >>> import regard as rg
    >>> print(rg.attention(rg.temperature(2.0)))
    attention temperature(t: float = 2.0) {
      score     s / t
      normalize softmax
    }
    """
    return _temperature(t=number("t", t, above=0))


@score
def _temperature(s: Any, t: float) -> Any:
    return s / t


def log_n(length: int) -> ScorePart:
    """Multiplies scores by log(n) / log(``length``), n keys into the sequence, once n exceeds ``length``.

    Su, Entropy Invariance of Attention, 2021, in the form of Qwen (2023): ``length`` (tokens) is the length that
    the model was trained at and n = q + 1; up to it nothing changes. It is a run-time scalar. Positions are
    aligned as ``rg.attention(align=)`` says: decoding with a cache needs ``align="end"``. Raises
    :class:`ParameterError` unless ``length`` is a number > 1.

    >>> import regard as rg
    >>> print(rg.attention(rg.causal, rg.log_n(2048)))
    attention causal_log_n(length: float = 2048.0) {
      keep      q >= kv
      score     s * max(log(max(q + 1, 1)) / log(length), 1.0)
      normalize softmax
    }
    """
    return _log_n(length=number("length", length, above=1))


@score
def _log_n(s: Any, q: Any, length: float) -> Any:
    # Positions are negative where queries are aligned with the end of fewer keys.
    return s * rg.maximum(rg.log(rg.maximum(q + 1, 1)) / rg.log(length), 1.0)
