"""Functions of the forward kernel's consumers: products, maxima and sums of rows, weights in half the registers."""

from __future__ import annotations

from .emitter import Emitter
from .schedule import DType


def emit_products(out: Emitter, dtype: DType, parts: int) -> None:
    """The functions, for elements of ``dtype`` and heads whose columns are in so many parts."""
    out.definition(_PRODUCTS + (_MORE_SCORES if parts > 1 else "") + _PACKING.replace("DTYPE", dtype))


_PRODUCTS = """
@gluon.jit
def start_scores(q_tile, k_tile):
    \"\"\"Starts Q K^T; the result may be read after a wait.\"\"\"
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, SCORES)
    k_tile = k_tile.reshape([BLOCK_N, k_tile.shape[-1]])
    return warpgroup_mma(q_tile, k_tile.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def start_outputs(weights, v_tile, acc):
    \"\"\"Starts acc + weights V; the result may be read after a wait.\"\"\"
    return warpgroup_mma(weights, v_tile.reshape([BLOCK_N, v_tile.shape[-1]]), acc, is_async=True)


@gluon.jit
def row_max(s):
    \"\"\"The largest number of each row; in one long chain, every comparison would wait for the one before.\"\"\"
    of_chunks = gl.max(gl.max(s.reshape([ROWS, BLOCK_N // 32, 4, 8]), 1), 1)
    return gl.convert_layout(gl.max(of_chunks, 1), gl.SliceLayout(1, SCORES))


@gluon.jit
def partial_sums(p):
    \"\"\"For each row eight sums, of every eighth key: threads exchange them only at the end.\"\"\"
    return gl.convert_layout(gl.sum(p.reshape([ROWS, BLOCK_N // 8, 8]), 1), SUMS)

"""
# Where columns of heads are in several parts.
_MORE_SCORES = """
@gluon.jit
def add_scores(q_tile, k_tile, s):
    \"\"\"Starts s + Q K^T for further columns of heads.\"\"\"
    return warpgroup_mma(q_tile, k_tile.reshape([BLOCK_N, k_tile.shape[3]]).permute((1, 0)), s, is_async=True)

"""
# A loop that carries single 16-bit numbers rearranges halves of registers, and one that carries weights as they are
# computed takes twice as many.
_PACKING = """
@gluon.jit
def packed(p):
    \"\"\"Weights rounded, two neighbours in an integer.\"\"\"
    low, high = gl.split(p.reshape([ROWS, BLOCK_N // 2, 2]))
    return gl.inline_asm_elementwise(
        "cvt.rn.DTYPEx2.f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def unpacked(pairs):
    \"\"\"The rounded weights.\"\"\"
    low = gl.cast(pairs.to(gl.int16), ELEMENT, bitcast=True)
    high = gl.cast((pairs >> 16).to(gl.int16), ELEMENT, bitcast=True)
    return gl.join(low, high).reshape([ROWS, BLOCK_N])

"""
