"""Rows before a grid, or after one, in shares: few programs would visit far more for them than others do.

Each program visits a share of what the row of boxes that it owns sees. What shares find is float32, and is added up
in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

from .emitter import Emitter
from .triton_box_options import in_python
from .triton_box_space import LENGTHS, BoxSpace
from .triton_module import Argument

# Tensors that are written begin with the first row that is shared.
FIRST = Argument("first_shared", "i32", "first_shared if shares > 1 else 0")


def emit_share_count(out: Emitter, space: BoxSpace, programs: str) -> None:
    """``shares`` of what each of so many ``programs`` visits; ``first_shared`` and ``rows_shared`` of a head."""
    own, other = space.own, space.other
    (axis,) = space.axes
    block = "BLOCK_N" if own == "q" else "BLOCK_M"
    out.line(f'shares = share_count({programs}, triton.cdiv({LENGTHS[other]}, options["{block}"]), query.device)')
    first = f"min({in_python(space.origin(own))}, {LENGTHS[own]})" if space.is_offset(own) else "0"
    out.line(f"first_shared, rows_shared = {first}, max({in_python(space.size(axis, own))}, 0)")


def share_arguments(tensors: Sequence[str]) -> list[Argument]:
    """What kernels need to find the place of their share in each of ``tensors``."""
    strides = [Argument(f"{x}_share", "i64", f"{x}_share") for x in tensors]
    return [Argument("shares", "i32", "shares"), *strides, FIRST]


def emit_room(out: Emitter, tensors: Sequence[str], targets: Sequence[str]) -> None:
    """Room for what each share finds instead of ``targets``, which are called ``tensors`` in the kernel."""
    for tensor, target in zip(tensors, targets, strict=True):
        out.line(f"whole_{tensor}, {tensor}_share = {target}, 0")
    with out.block("if shares > 1:"):
        for tensor, target in zip(tensors, targets, strict=True):
            shape = f"(shares, *{target}.shape[:2], rows_shared, {target}.shape[3])"
            out.line(f"shared_{tensor} = torch.empty({shape}, dtype=torch.float32, device=query.device)")
            out.line(f"{target}, {tensor}_share = shared_{tensor}[0], shared_{tensor}.stride(0)")


def emit_added_up(out: Emitter, tensors: Sequence[str], targets: Sequence[str]) -> None:
    """Adds up what shares have found, after the launch."""
    with out.block("if shares > 1:"):
        for tensor in tensors:
            rows = f"whole_{tensor}.narrow(2, first_shared, rows_shared)"
            out.line(f"{rows}.copy_(shared_{tensor}.sum(0))")
    for tensor, target in zip(tensors, targets, strict=True):
        out.line(f"{target} = whole_{tensor}")
