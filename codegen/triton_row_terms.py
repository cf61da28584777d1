"""What every row of scores subtracts from dP, ``delta``: the mean of dP under the row's probabilities.

It equals rowsum(out * grad_out), which costs no product but carries the rounding of ``out`` and of the
log-sum-exp. That error is common to a row, so it adds up in gradients of captured tensors, and beside
float32 it shows everywhere; there a kernel walks the keys and computes it from dP itself.
"""

from __future__ import annotations

from .emitter import Emitter
from .schedule import Problem, Schedule
from .triton_module import ITEM_SIZES, Argument, emit_launch, kernel
from .triton_over_keys import OverKeys
from .triton_tiles import Masked

KERNEL = "row_terms"


class RowTerms(OverKeys):
    """Emits the kernel that walks the keys, and its launch."""

    def emit(self, out: Emitter, schedule: Schedule) -> None:
        """The kernel."""
        values = self.values()
        constants = (*self.constants, "WITH_GRAD_LSE")
        with kernel(out, KERNEL + self.suffix, self.arguments(), constants, self.problem.debug):
            out.line('"""delta = sum(P * dP) / sum(P) - grad_lse, and norm = 1 / sum(P), of one tile of queries."""')
            self.emit_start(out, schedule)
            loops = self.emit_key_tiles(out)
            out.line("delta_rows = tl.zeros([BLOCK_M], tl.float32)")
            out.line("total = tl.zeros([BLOCK_M], tl.float32)")
            self.emit_unit(out)

            def step(done: frozenset[str], masked: Masked) -> None:
                select = masked == "all"
                rows = self.rows_in_hull(loops) if select else ""
                wanted = self.wanted_for_probabilities(masked=select)
                self.emit_pairs(out, values, done, wanted, rows=rows, masked=masked, normed=False, select=select)
                out.line("total += tl.sum(p, 1)")
                terms = "tl.where(allowed, p * dp, 0.0)" if select else "p * dp"
                out.line(f"delta_rows += tl.sum({terms}, 1)")

            self.emit_loops(out, values, loops, self.wanted_for_probabilities(masked=True), step)
            out.line()
            self.emit_terms(out)

    def emit_terms(self, out: Emitter) -> None:
        """Stores what the loop has summed."""
        out.comment("One, but for the rounding of the log-sum-exp; nothing in a row that sees nothing.")
        out.line("norm_rows = 1.0 / tl.where(total == 0.0, 1.0, total)")
        out.line("delta_rows *= norm_rows")
        with out.block("if WITH_GRAD_LSE:"):
            out.line("delta_rows -= tl.load(grad_lse + row + rows, mask=inside, other=0.0)")
        for name in self.row_terms:
            out.line(f"tl.store({name} + row + rows, {name}_rows, mask=inside)")

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        return [
            *(Argument(x, "", x) for x in self.row_terms),
            *self.inputs(),
            Argument("grad_lse", "", "lse if grad_lse is None else grad_lse.contiguous()"),
            *self.table_and_sizes(),
        ]

    def emit_launch(self, out: Emitter) -> None:
        """The part of ``run`` that fills the terms."""
        for name in self.row_terms:
            out.line(f"{name} = torch.{self.fresh}_like(lse)")
        self.emit_launches(out)

    def emit_launches(self, out: Emitter) -> None:
        """The launch itself."""
        self.emit_programs(out)
        options = "WITH_GRAD_LSE=grad_lse is not None, **options"
        emit_launch(out, KERNEL + self.suffix, "(programs,)", self.arguments(), options)


def emit_from_outputs(out: Emitter, problem: Problem) -> None:
    """The kernel that reads the outputs."""
    out.section(_FROM_OUTPUTS.format(delta=delta_of_rows(problem), signature=ROW_ARGUMENTS))


def emit_launch_from_outputs(out: Emitter, problem: Problem) -> None:
    """Its launch."""
    out.line("delta = torch.empty_like(lse)")
    out.lines(_LAUNCH.format(rows=row_values(problem)))


def row_values(problem: Problem) -> str:
    """What ``run`` passes for :data:`ROW_ARGUMENTS`, as lines of a launch."""
    group = _group(problem)
    strides = "*(s // {1} for s in {0}.stride()[:3])," if group > 1 else "*{0}.stride()[:3],"
    return "\n    ".join(
        [
            "out, grad_out, lse, lse if grad_lse is None else grad_lse.contiguous(),",
            *(strides.format(x, group) for x in ("out", "grad_out")),
            "heads, q_len,",
        ]
    )


def _group(problem: Problem) -> int:
    """Strides are passed in groups of 16 bytes, so that the compiler sees that whole groups can be loaded."""
    return 16 // ITEM_SIZES[problem.dtype] if problem.aligned else 1


# Tensors come first: kernels may assume of them, but not of numbers, what their first call has.
ROW_ARGUMENTS = """
    out, grad_out, lse, grad_lse, out_batch: "i64", out_head: "i64", out_row: "i64",
    grad_out_batch: "i64", grad_out_head: "i64", grad_out_row: "i64", heads: "i32", q_len: "i32",
""".strip()


def delta_of_rows(problem: Problem) -> str:
    """Statements that find ``delta`` of ``rows``, indented as a kernel's."""
    columns = 1 << (problem.value_dim - 1).bit_length()
    group = _group(problem)
    unit = f" * {group}" if group > 1 else ""
    inside = "(rows[:, None] < q_len)"
    if columns > problem.value_dim:
        inside += f" & (columns < {problem.value_dim})"
    return _DELTA.format(columns=columns, unit=unit, inside=inside).strip("\n")


_DELTA = """
    batch, head = entry // heads, entry % heads
    columns = tl.arange(0, {columns})[None, :]
    inside = {inside}
    base = out + (batch * out_batch + head * out_head){unit}
    o = tl.load(base + rows[:, None] * (out_row{unit}) + columns, mask=inside, other=0.0).to(tl.float32)
    base = grad_out + (batch * grad_out_batch + head * grad_out_head){unit}
    do = tl.load(base + rows[:, None] * (grad_out_row{unit}) + columns, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(o * do, 1)
    places = entry.to(tl.int64) * q_len + rows
    if WITH_GRAD_LSE:
        delta -= tl.load(grad_lse + places, mask=rows < q_len, other=0.0)
"""

_FROM_OUTPUTS = '''
@triton.jit(do_not_specialize=range(5, 13))
def row_terms(
    delta_rows, {signature}
    ROWS: tl.constexpr, WITH_GRAD_LSE: tl.constexpr,
):
    """delta = rowsum(out * grad_out) - grad_lse: what every row subtracts from dP."""
    tiles = tl.cdiv(q_len, ROWS)
    entry = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
{delta}
    tl.store(delta_rows + places, delta, mask=rows < q_len)
'''

_LAUNCH = """
launch(
    row_terms, (triton.cdiv(q_len, 32) * batches * heads,), delta, {rows}
    ROWS=32, WITH_GRAD_LSE=grad_lse is not None, num_warps=4,
)
"""
