"""Pieces that the kernels share: which tile a program owns, loads and stores of tiles, products over parts."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .schedule import Problem
from .triton_module import ITEM_SIZES, Argument, Part

# Names of positions and identities inside the kernels.
INDICES = {
    "q": "q_index", "kv": "kv_index", "head": "head", "kv_head": "kv_head", "batch": "batch",
    "q_len": "q_len", "kv_len": "kv_len", "tile_first": "tile_first", "tile_last": "tile_last",
}  # fmt: skip

SIZES = [
    Argument("heads", "i32", "heads"),
    Argument("kv_heads", "i32", "kv_heads"),
    Argument("q_len", "i32", "q_len"),
    Argument("kv_len", "i32", "kv_len"),
    Argument("all_heads", "i32", "batches * heads"),
    Argument("section", "i32", "section_size(key, value, heads)"),
]


def emit_place(out: Emitter, *, length: str, block: str, reverse: bool) -> None:
    """From ``program`` to the head and the tile of it that the program owns."""
    out.comment("Heads run in sections whose keys and values fit in the L2 cache, tile by tile.")
    out.line(f"tiles = tl.cdiv({length}, {block})")
    emit_entry(out, reverse=reverse)


def emit_entry(out: Emitter, *, reverse: bool) -> None:
    """From ``program`` and the number of ``tiles`` of a head to ``entry``, the head, and its ``tile``."""
    out.line("first_head = program // (tiles * section) * section")
    out.line("section_heads = tl.minimum(section, all_heads - first_head)")
    out.line("place = program % (tiles * section)")
    out.line("entry = first_head + place % section_heads")
    if reverse:
        out.line("tile = tiles - 1 - place // section_heads  # the heaviest first")
    else:
        out.line("tile = place // section_heads")


def emit_columns(out: Emitter, name: str, parts: Sequence[Part]) -> None:
    """Column numbers of each part as a row vector."""
    for p in parts:
        first = f"{p.first} + " if p.first else ""
        out.line(f"{name}{p.suffix} = {first}tl.arange(0, {p.width})[None, :]")


class Tiles:
    """Loads and stores of (rows, head size) tiles, part by part: by tensor descriptors (TMA) or by pointers."""

    def __init__(self, problem: Problem, descriptors: bool) -> None:
        self._descriptors = descriptors
        # Strides are passed in groups of 16 bytes, which lets the compiler see that whole groups can be loaded.
        self._group = 16 // ITEM_SIZES[problem.dtype] if problem.aligned else 1

    def inputs(self, name: str, parts: Sequence[Part], block: str) -> list[Argument]:
        """Arguments for a tensor of which tiles of ``block`` rows are loaded."""
        if not self._descriptors:
            return self.pointers(name)
        return [
            Argument(f"{name}{p.suffix}", "", f'descriptor({name}, options["{block}"], {p.width})') for p in parts
        ]

    def pointers(self, name: str, value: str = "") -> list[Argument]:
        """Arguments for a tensor that is addressed by pointers: itself and its strides; columns are contiguous."""
        value = value or name
        unit = f" // {self._group}" if self._group > 1 else ""
        return [
            Argument(name, "", value, aligned=self._group > 1),
            Argument(f"{name}_batch", "i64", f"{value}.stride(0){unit}"),
            Argument(f"{name}_head", "i64", f"{value}.stride(1){unit}"),
            Argument(f"{name}_row", "i32", f"{value}.stride(2){unit}"),
        ]

    def open_input(self, out: Emitter, name: str, head: str, rows: str, columns: str, parts: Sequence[Part]) -> None:
        """What :meth:`load` needs, before the loops."""
        if not self._descriptors:
            self.open(out, name, head, rows, columns, parts)

    def open(self, out: Emitter, name: str, head: str, rows: str, columns: str, parts: Sequence[Part]) -> None:
        """``name_base``: the tensor at this batch and head; ``name_offsets``: of a tile, relative to its first row."""
        unit = f" * {self._group}" if self._group > 1 else ""
        out.line(f"{name}_base = {name} + (batch * {name}_batch + {head} * {name}_head){unit}")
        for p in parts:
            out.line(f"{name}_offsets{p.suffix} = {rows}[:, None] * ({name}_row{unit}) + {columns}{p.suffix}")
        out.line(f"{name}_stride = {name}_row.to(tl.int64){unit}")

    def load(
        self, out: Emitter, name: str, tensor: str, head: str, start: str, block: str, columns: str,
        parts: Sequence[Part], inside: str = "",
    ) -> None:  # fmt: skip
        """``name`` = the tile of ``tensor`` from row ``start`` on.

        Rows for which ``inside`` (by pointers; a descriptor knows the length) does not hold and absent columns
        are zero.
        """
        if self._descriptors:
            for p in parts:
                where = f"[batch, {head}, {start}, {p.first}]"
                out.line(f"{name}{p.suffix} = {tensor}{p.suffix}.load({where}).reshape({block}, {p.width})")
            return
        for p in parts:
            conditions = [inside] if inside else []
            if p.padded:
                conditions.append(f"({columns}{p.suffix} < {p.first + p.valid})")
            place = f"{tensor}_base + {start} * {tensor}_stride + {tensor}_offsets{p.suffix}"
            mask = [f"mask={' & '.join(conditions)}", "other=0.0"] if conditions else []
            emit_call(out, f"{name}{p.suffix} = tl.load", place, *mask)

    def store(
        self, out: Emitter, name: str, tensor: str, start: str, columns: str, parts: Sequence[Part], inside: str,
        value: str = "{}",
    ) -> None:  # fmt: skip
        """Writes ``name``, converted to the tensor's type, after :meth:`open`; ``value`` may wrap it."""
        for p in parts:
            mask = f"{inside} & ({columns}{p.suffix} < {p.first + p.valid})" if p.padded else inside
            text = value.format(f"{name}{p.suffix}")
            place = f"{tensor}_base + {start} * {tensor}_stride + {tensor}_offsets{p.suffix}"
            emit_call(out, "tl.store", place, f"{text}.to({tensor}.dtype.element_ty)", f"mask={mask}")


def emit_call(out: Emitter, function: str, *arguments: str) -> None:
    """A call on one line if that is short, else with one argument a line."""
    text = f"{function}({', '.join(arguments)})"
    if len(text) <= 104:
        out.line(text)
        return
    out.line(f"{function}(")
    for argument in arguments:
        out.line(f"    {argument},")
    out.line(")")


def precision(problem: Problem) -> str:
    """How float32 inputs multiply, as an argument of ``tl.dot``."""
    if problem.dtype != "f32":
        return ""
    return f', input_precision="{"tf32" if problem.tf32 else "ieee"}"'


def emit_product(out: Emitter, name: str, left: str, right: str, parts: Sequence[Part], precision: str) -> None:
    """``name = left @ right.T`` summed over the parts of the head."""
    for i, p in enumerate(parts):
        accumulator = f", {name}" if i else ""
        out.line(f"{name} = tl.dot({left}{p.suffix}, {right}{p.suffix}.T{accumulator}{precision})")


def emit_accumulate(out: Emitter, name: str, left: str, right: str, parts: Sequence[Part], precision: str) -> None:
    """``name += left @ right`` for each part of the columns of ``right``."""
    for p in parts:
        operand, total = f"{right}{p.suffix}", f"{name}{p.suffix}"
        out.line(f"{total} = tl.dot({left}.to({operand}.dtype), {operand}, {total}{precision})")


def table_arguments(kind: str) -> list[Argument]:
    """A table of tiles and its strides; ``kind`` names the tuple in ``run``."""
    return [
        Argument("tile_indices", "", f"{kind}[0]"),
        Argument("tile_indices_batch", "i64", f"broadcast_stride({kind}[0], 0)"),
        Argument("tile_indices_head", "i64", f"broadcast_stride({kind}[0], 1)"),
        Argument("tile_indices_row", "i64", f"{kind}[0].stride(2)"),
        Argument("tile_counts", "", f"{kind}[1]"),
        Argument("tile_counts_batch", "i64", f"broadcast_stride({kind}[1], 0)"),
        Argument("tile_counts_head", "i64", f"broadcast_stride({kind}[1], 1)"),
        Argument("tile_counts_row", "i64", f"{kind}[1].stride(2)"),
    ]


BROADCAST_STRIDE = '''
def broadcast_stride(x, axis):
    """The stride of an axis, 0 where one entry serves all."""
    return x.stride(axis) if x.shape[axis] > 1 else 0
'''


def uses_table(plan: TilePlan) -> bool:
    """Whether tiles come from a table that ``classify`` fills."""
    return plan.method != "closed"


def emit_sizes(out: Emitter, plan: TilePlan, problem: Problem) -> None:
    """The first lines of ``run``: sizes, checks of what would otherwise read out of bounds, the scale."""
    scale = plan.variant.scale if plan.variant.scale is not None else problem.head_dim**-0.5
    out.line("batches, heads, q_len, _ = query.shape")
    out.line("kv_heads, kv_len = key.shape[1], key.shape[2]")
    emit_shape_check(out, problem)
    out.line(f"scale = {scale!r} if scale is None else scale")


def emit_shape_check(out: Emitter, problem: Problem) -> None:
    """What would otherwise read out of bounds."""
    out.line(f"assert query.shape[3] == key.shape[3] == {problem.head_dim} and value.shape[3] == {problem.value_dim}")
    out.line("assert value.shape[:3] == key.shape[:3] and heads % kv_heads == 0 and key.shape[0] == batches")
    out.line("assert query.stride(3) == key.stride(3) == value.stride(3) == 1")


def emit_classify_call(out: Emitter, parameters: Sequence[str]) -> None:
    """Fills ``tiles`` where the caller has not."""
    with out.block("if tiles is None:"):
        arguments = "".join(f"{x}, " for x in parameters)
        out.line(f"tiles = classify({arguments}batches, heads, kv_heads, q_len, kv_len, query.device)")


DESCRIPTOR = """
def descriptor(x, rows, columns):
    \"\"\"Tiles of (rows, columns) of a (B, H, L, D) tensor, loaded by the tensor memory accelerator.\"\"\"
    return TensorDescriptor(x, x.shape, x.stride(), [1, 1, rows, columns])
"""
