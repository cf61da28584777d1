"""What surrounds the backward kernel: terms of rows before it, and the conversion of its float32 sums after it."""

from __future__ import annotations

ROWS = '''
@triton.jit(do_not_specialize=range(17))
def row_terms(
    terms, sums, out, out_batch: "i64", out_head: "i64", out_row: "i64",
    grad_out, grad_out_batch: "i64", grad_out_head: "i64", grad_out_row: "i64",
    lse, grad_lse, heads: "i32", q_len: "i32", padded: "i32", all_rows: "i64", value_dim: "i32",
    ROWS: tl.constexpr, HEAD_SIZE: tl.constexpr, COLUMNS: tl.constexpr, WITH_GRAD_LSE: tl.constexpr,
):
    """Log-sum-exp times log2(e), and grad_lse - rowsum(out * grad_out); zeros where gradients of queries are summed.

    Rows that attend to nothing and rows past the end get an infinite log-sum-exp: their probabilities are 0.
    """
    tiles = padded // ROWS
    entry = tl.program_id(0) // tiles
    batch, head = entry // heads, entry % heads
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)[None, :]
    inside = (rows[:, None] < q_len) & (columns < value_dim)
    place = rows[:, None] * out_row + columns
    o = tl.load(out + batch * out_batch + head * out_head + place, mask=inside, other=0.0).to(tl.float32)
    place = rows[:, None] * grad_out_row + columns
    do = tl.load(grad_out + batch * grad_out_batch + head * grad_out_head + place, mask=inside, other=0.0)
    delta = tl.sum(o * do.to(tl.float32), 1)
    sources = entry.to(tl.int64) * q_len + rows
    total = tl.load(lse + sources, mask=rows < q_len, other=float("-inf"))
    if WITH_GRAD_LSE:
        delta -= tl.load(grad_lse + sources, mask=rows < q_len, other=0.0)
    targets = entry.to(tl.int64) * padded + rows
    tl.store(terms + targets, tl.where(total == float("-inf"), float("inf"), total * LOG2E))
    tl.store(terms + all_rows + targets, -delta)
    columns = tl.arange(0, HEAD_SIZE)[None, :]
    zeros = tl.zeros([ROWS, HEAD_SIZE], tl.float32)
    tl.store(sums + sources[:, None] * HEAD_SIZE + columns, zeros, mask=rows[:, None] < q_len)


@triton.jit(do_not_specialize=range(4))
def convert_sums(grad_query, sums, scale: "fp32", size: "i64", BLOCK: tl.constexpr):
    """Gradients of queries in their own type."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(sums + places, mask=places < size, other=0.0) * scale
    tl.store(grad_query + places, values.to(grad_query.dtype.element_ty), mask=places < size)
'''
BEFORE = """
padded = triton.cdiv(q_len, {rows}) * {rows}
terms = torch.empty((2, batches * heads * padded), dtype=torch.float32, device=query.device)
sums = torch.empty(query.shape, dtype=torch.float32, device=query.device)
launch(
    row_terms, (padded // 32 * batches * heads,), terms, sums, out, *out.stride()[:3], grad_out,
    *grad_out.stride()[:3], lse, lse if grad_lse is None else grad_lse.contiguous(), heads, q_len, padded,
    terms.shape[1], {value}, ROWS=32, HEAD_SIZE={head}, COLUMNS={value}, WITH_GRAD_LSE=grad_lse is not None,
    num_warps=4,
)
"""
AFTER = """
launch(
    convert_sums, (triton.cdiv(sums.numel(), 4096),), grad_query, sums, scale, sums.numel(), BLOCK=4096,
    num_warps=4,
)
"""
