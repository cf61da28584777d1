"""What surrounds the backward kernels: terms of rows before them, and the conversion of float32 sums after them."""

from __future__ import annotations

from .emitter import Emitter
from .schedule import Problem
from .triton_row_terms import ROW_ARGUMENTS, delta_of_rows, row_values

# How many copies of terms tiles need that may start anywhere, each of which starts a row later: the tensor memory
# accelerator loads vectors from multiples of 16 bytes only (elsewhere it is an illegal instruction).
SHIFTS = 4


def row_kernels(problem: Problem, folded: bool, *, sums: bool, exact: bool = False, shifted: bool = False) -> str:
    """The kernels, in plain Triton.

    ``folded``: the log-sum-exp is where the sum of products starts; else it is subtracted, times log2(e). ``sums``:
    gradients of queries are summed in float32, and a second kernel converts them. ``exact``: what outputs would say is
    left to a kernel that walks the keys. ``shifted``: terms have SHIFTS copies.
    """
    first, term = ("-lse / scale", "-total / scale") if folded else ("Log-sum-exp times log2(e)", "total * LOG2E")
    second, delta = "grad_lse - rowsum(out * grad_out)", delta_of_rows(problem)
    if exact:
        second, delta = "grad_lse", _NO_DELTA.strip("\n")
    facts = {"signature": ROW_ARGUMENTS, "delta": delta, "first": first, "second": second}
    facts["stores"] = (_SHIFTED if shifted else _STORES).format(term=term, shifts=SHIFTS)
    if not sums:
        return _ROW_TERMS.format(**facts, numbers="5, 16", sums="", what="", zeros="")
    zeros = _ZEROS.format(head=problem.head_dim)
    what = "; zeros where gradients of queries are summed"
    return _ROW_TERMS.format(**facts, numbers="6, 17", sums="sums, ", what=what, zeros=zeros) + _CONVERT_SUMS


def emit_before(out: Emitter, problem: Problem, rows: int, sums: bool, *, shifted: bool = False) -> None:
    """The part of ``run`` that fills ``terms``, padded to tiles of ``rows``, and if there are ``sums`` zeroes those.

    ``shifted``: as for :func:`row_kernels`.
    """
    if sums:
        out.line("sums = torch.empty(query.shape, dtype=torch.float32, device=query.device)")
    copies = 2 * SHIFTS if shifted else 2
    out.lines(_BEFORE.format(block=rows, rows=row_values(problem), sums="sums, " if sums else "", copies=copies))


def emit_after(out: Emitter) -> None:
    """The part of ``run`` that fills ``grad_query`` from ``sums``."""
    out.lines(_AFTER)


_ROW_TERMS = '''
@triton.jit(do_not_specialize=range({numbers}))
def row_terms(
    terms, {sums}{signature}
    padded: "i32", all_rows: "i64", scale: "fp32",
    ROWS: tl.constexpr, WITH_GRAD_LSE: tl.constexpr,
):
    """{first}, and {second}{what}.

    Rows that attend to nothing and rows past the end get an infinite log-sum-exp: their probabilities are 0.
    """
    tiles = padded // ROWS
    entry = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
{delta}
    total = tl.load(lse + places, mask=rows < q_len, other=float("-inf"))
    targets = entry.to(tl.int64) * padded + rows
    total = tl.where(total == float("-inf"), float("inf"), total)
{stores}{zeros}'''
_STORES = """\
    tl.store(terms + targets, {term})
    tl.store(terms + all_rows + targets, -delta)
"""
_SHIFTED = """\
    # Copies that start later: tiles may start at any row, loads only at every fourth.
    for shift in tl.static_range({shifts}):
        tl.store(terms + shift * all_rows + targets - shift, {term}, mask=rows >= shift)
        tl.store(terms + ({shifts} + shift) * all_rows + targets - shift, -delta, mask=rows >= shift)
"""
_NO_DELTA = """
    places = entry.to(tl.int64) * q_len + rows
    delta = tl.zeros([ROWS], tl.float32)
    if WITH_GRAD_LSE:
        delta -= tl.load(grad_lse + places, mask=rows < q_len, other=0.0)
"""
_ZEROS = '''\
    columns = tl.arange(0, {head})[None, :]
    zeros = tl.zeros([ROWS, {head}], tl.float32)
    tl.store(sums + places[:, None] * {head} + columns, zeros, mask=rows[:, None] < q_len)
'''
_CONVERT_SUMS = '''

@triton.jit(do_not_specialize=range(2, 4))
def convert_sums(grad_query, sums, scale: "fp32", size: "i64", BLOCK: tl.constexpr):
    """Gradients of queries in their own type."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # Whole rows, of a multiple of 16 numbers.
    inside = (places // 16 * 16) < size
    values = tl.load(sums + places, mask=inside, other=0.0) * scale
    tl.store(grad_query + places, values.to(grad_query.dtype.element_ty), mask=inside)
'''
_BEFORE = """
padded = triton.cdiv(q_len, {block}) * {block}
terms = torch.empty(({copies}, batches * heads * padded), dtype=torch.float32, device=query.device)
launch(
    row_terms, (padded // 32 * batches * heads,), terms, {sums}{rows}
    padded, terms.shape[1], scale, ROWS=32, WITH_GRAD_LSE=grad_lse is not None, num_warps=4,
)
"""
_AFTER = """
launch(
    convert_sums, (triton.cdiv(sums.numel(), 4096),), grad_query, sums, scale, sums.numel(), BLOCK=4096,
    num_warps=4,
)
"""
