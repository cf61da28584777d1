"""Functions of the forward kernel's consumers: products, and maxima and sums of rows."""

from __future__ import annotations

PRODUCTS = """
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
MORE_SCORES = """
@gluon.jit
def add_scores(q_tile, k_tile, s):
    \"\"\"Starts s + Q K^T for further columns of heads.\"\"\"
    return warpgroup_mma(q_tile, k_tile.reshape([BLOCK_N, k_tile.shape[3]]).permute((1, 0)), s, is_async=True)

"""
