"""What it costs to prepare a mask: time and memory, against create_block_mask."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

import regard as rg
from regard.runtime.compile import program
from regard.runtime.engine import Engine

from .cases import document_ids
from .timing import interleaved, wait

LENGTHS = (4096, 32768, 65536, 131072, 1 << 20)
# Uncompiled, the peer holds every pair of tokens several times.
UNCOMPILED_LENGTH = 1 << 15


def compiled_create_block_mask() -> Any:
    return torch.compile(create_block_mask)


def setup_cost(name: str, length: int, device: str) -> dict[str, Any]:
    """Time and memory to prepare a mask: what Regard's call on new mask data pays, against create_block_mask.

    ``table``: of that, the tile table alone, where the mask needs one, and without the host's share.
    """
    ids = document_ids(length, device=device)
    # The kernel itself is kept small: one head of the smallest size.
    x = torch.randn(1, 1, length, 16, device=device, dtype=torch.bfloat16)
    # Nothing of a closed form depends on how many queries there are.
    query = x if name == "document" else x[:, :, :128]
    kept = rg.attention(regard_mask(name, ids))
    fresh = partial(_call_with_new_mask, name, ids, query, x)
    again = partial(kept, query, x, x)
    row: dict[str, Any] = {
        "mask": name,
        "length": length,
        "regard_ms": 1e3 * max(0.0, _seconds(fresh) - _seconds(again)),
        "regard_bytes": _peak_bytes(fresh) - _peak_bytes(again),
    }
    table = _table(kept, x)
    if table is not None:
        row |= {"table_ms": 1e3 * _seconds(table), "table_bytes": _peak_bytes(table)}
        if x.is_cuda:
            row["table_ms_on_gpu"] = interleaved({"table": _captured(table)})["table"].median
    torch._dynamo.reset()
    peers: dict[str, Callable[..., object]] = {"flex_compiled": compiled_create_block_mask()}
    if length <= UNCOMPILED_LENGTH:
        peers["flex"] = create_block_mask
    for title, peer in peers.items():
        call = partial(peer, flex_mask(name, ids), None, None, length, length, device=device)
        try:
            row |= {f"{title}_ms": 1e3 * _seconds(call), f"{title}_bytes": _peak_bytes(call)}
        except Exception as error:  # the peer's failure is a result
            row[f"{title}_error"] = f"{type(error).__name__}: {error}"[:200]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return row


def _table(attn: rg.Attention, x: torch.Tensor) -> Callable[[], object] | None:
    """What makes the tile table of a call, or None where tiles are closed forms."""
    assert attn._bound is not None
    buffers, scalars = attn._bound
    request, sizes = Engine(attn.variant).request("forward", (x, x, x), buffers, scalars)
    assert request is not None
    classify = program(request).classify
    return None if classify is None else partial(classify, *buffers, *scalars, *sizes[:5], x.device)


def regard_mask(name: str, ids: torch.Tensor) -> Any:
    return rg.causal() if name == "causal" else rg.causal() & rg.document(ids)


def flex_mask(name: str, ids: torch.Tensor) -> Callable[..., torch.Tensor]:
    if name == "causal":
        return lambda b, h, q, k: q >= k
    return lambda b, h, q, k: (q >= k) & (ids[q] == ids[k])


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _call_with_new_mask(name: str, ids: torch.Tensor, query: torch.Tensor, x: torch.Tensor) -> None:
    rg.attention(regard_mask(name, ids.clone()))(query, x, x)


def _seconds(call: Callable[[], object]) -> float:
    """Median of five calls after a first one; of fewer where they take long."""
    call()
    samples: list[float] = []
    while len(samples) < 5 and sum(samples) < 2.0:
        wait()
        start = time.perf_counter()
        call()
        wait()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _peak_bytes(call: Callable[[], object]) -> int:
    """What a call allocates at once on a GPU beyond what there was; it ran before."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
