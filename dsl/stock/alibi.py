"""Attention with linear biases."""

from __future__ import annotations

from typing import Any

import torch

from ...ir.errors import ParameterError
from .. import functions as rg
from ..callsite import caller
from ..part import ScorePart, score
from .checks import tensor, whole


def alibi(slopes: torch.Tensor | None = None, *, heads: int | None = None) -> ScorePart:
    """Subtracts from a score the distance of query and key (tokens), times a slope for the head.

    Press et al., Train Short, Test Long: Attention with Linear Biases, 2021. Give either ``slopes``, a float tensor of
    shape (H,), learnable if it requires a gradient, or ``heads``, the number of query heads, which yields the paper's
    slopes: the powers 2**(-8 i / n) for the largest power of two n ≤ ``heads``, then every second one of 2 n. With
    neither the slopes are left open for the call: ``attn(q, k, v, slopes=slopes)``. Keys after the query count by their
    distance too; combine it with ``rg.causal`` for the paper's form. Only differences of positions matter, which
    ``align`` shifts. Raises :class:`ParameterError` if both are given.

    >>> import regard as rg
    >>> print(rg.attention(rg.causal, rg.alibi(torch.tensor([0.5, 0.25]))))
    attention causal_alibi(slopes: f32[head]) {
      keep      q >= kv
      score     s - slopes[head] * abs(q - kv)
      normalize softmax
    }
    """
    if slopes is not None and heads is not None:
        raise ParameterError(
            "alibi takes either `slopes` or `heads`", location=caller(), hint="write rg.alibi(heads=8)"
        )
    if slopes is not None:
        return _alibi(slopes=tensor("slopes", slopes, "(H,)", ranks=(1,), kind="float"))
    if heads is None:
        return _alibi()
    power = 2 ** (whole("heads", heads, 1).bit_length() - 1)
    return _alibi_heads(power=power)


@score
def _alibi(s: Any, q: Any, kv: Any, head: Any, slopes: torch.Tensor) -> Any:
    return s - slopes[head] * abs(q - kv)


@score
def _alibi_heads(s: Any, q: Any, kv: Any, head: Any, power: int) -> Any:
    steps = rg.where(head < power, 2 * (head + 1), 2 * (head - power) + 1)
    first = rg.where(head < power, 8.0, 4.0) / power
    return s - rg.exp2(-first * steps / rg.where(head < power, 2, 1)) * abs(q - kv)
