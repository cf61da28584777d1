"""Scores that fall with distance or with time."""

from __future__ import annotations

from typing import Any

import torch

from .. import functions as rg
from ..part import ScorePart, score
from .checks import number, tensor


def decay(rates: torch.Tensor | None = None) -> ScorePart:
    """Multiplies the weight of a key by ``exp(rates[head])`` for every token it lies before the query.

    Sun et al., Retentive Network, 2023, whose decay g per head is ``rates = log g``, used under a softmax. ``rates``
    are natural logarithms per token, ≤ 0, a float tensor of shape (H,), differentiable; without it the tensor is left
    open for the call: ``attn(q, k, v, rates=rates)``. The decay is added to the score, so it never under- or
    overflows. Combine it with ``rg.causal``: keys after the query would grow. Only differences of positions matter,
    which ``align`` shifts. Raises :class:`ParameterError` for other shapes and dtypes.

    >>> import regard as rg
    >>> print(rg.attention(rg.causal, rg.decay(torch.log(torch.tensor([0.9, 0.99])))))
    attention causal_decay(rates: f32[head]) {
      keep      q >= kv
      score     s + rates[head] * (q - kv)
      normalize softmax
    }
    """
    if rates is None:
        return _decay()
    return _decay(rates=tensor("rates", rates, "(H,)", ranks=(1,), kind="float"))


@score
def _decay(s: Any, q: Any, kv: Any, head: Any, rates: torch.Tensor) -> Any:
    return s + rates[head] * (q - kv)


def token_decay(total: torch.Tensor | None = None) -> ScorePart:
    """Multiplies the weight of a key by the gates of all tokens after it up to the query.

    Lin et al., Forgetting Transformer, 2025. ``total`` holds cumulative sums of the gates' natural logarithms,
    ``log_gates.cumsum(-1)``, a float tensor of shape (B, H, S), differentiable; without it the tensor is left open
    for the call: ``attn(q, k, v, total=total)``. Combine it with ``rg.causal``. Queries and keys count the same
    tokens: with fewer queries than keys use ``align="end"``. Raises :class:`ParameterError` for other shapes and
    dtypes.

    >>> import regard as rg
    >>> print(rg.attention(rg.causal, rg.token_decay()))
    attention causal_token_decay(total: f32[batch, head, _]) {
      keep      q >= kv
      score     s + total[batch, head, q] - total[batch, head, kv]
      normalize softmax
    }
    """
    if total is None:
        return _token_decay()
    return _token_decay(total=tensor("total", total, "(B, H, S)", ranks=(3,), kind="float"))


@score
def _token_decay(s: Any, q: Any, kv: Any, batch: Any, head: Any, total: torch.Tensor) -> Any:
    return s + total[batch, head, q] - total[batch, head, kv]


def distance_decay(rate: float, reach: float = 1.0) -> ScorePart:
    """Subtracts ``rate * log(1 + d / reach)`` at distance d (tokens): weights fall with a power of the distance.

    Chi et al., KERPLE, 2022 (the logarithmic kernel, with ``rate`` r1 and ``reach`` 1 / r2). Both are run-time
    scalars > 0, ``rate`` without unit, ``reach`` in tokens. Both directions count; only differences of
    positions matter, which ``align`` shifts. Raises :class:`ParameterError` for other values.

    >>> import regard as rg
    >>> print(rg.attention(rg.distance_decay(0.5, reach=16.0)))
    attention distance_decay(rate: float = 0.5, reach: float = 16.0) {
      score     s - rate * log(1.0 + abs(q - kv) / reach)
      normalize softmax
    }
    """
    return _distance_decay(rate=number("rate", rate, above=0), reach=number("reach", reach, above=0))


@score
def _distance_decay(s: Any, q: Any, kv: Any, rate: float, reach: float) -> Any:
    return s - rate * rg.log(1.0 + abs(q - kv) / reach)
