"""Front ends: Python functions traced into variants, and the stock library.

``__all__`` is what ``import regard as rg`` offers of this package.
"""

from .assemble import Part, assemble, softmax
from .binding import Binding
from .flex import mask_mod, score_mod
from .functions import (
    abs,
    clamp,
    cos,
    exp,
    exp2,
    floor,
    log,
    log2,
    maximum,
    minimum,
    rsqrt,
    sigmoid,
    sin,
    sqrt,
    tanh,
    to_float,
    to_int,
    where,
)
from .grid import Grid, grid
from .part import MaskFunction, MaskPart, ScoreFunction, ScorePart, mask, score
from .static import static
from .stock import (
    alibi,
    axial,
    block_causal,
    block_diagonal,
    causal,
    checkerboard,
    chunked_causal,
    decay,
    dilated,
    distance_decay,
    document,
    full,
    global_tokens,
    halo,
    key_bias,
    key_mask,
    log_n,
    neighborhood,
    padding,
    prefix_lm,
    random_blocks,
    relative_bias,
    sinks,
    sliding_tile,
    sliding_window,
    softcap,
    strided,
    t5_bias,
    temperature,
    tiles,
    token_decay,
    tree,
    windows,
)

__all__ = [
    "Binding", "Grid", "MaskFunction", "MaskPart", "Part", "ScoreFunction", "ScorePart", "abs", "alibi", "assemble",
    "axial", "block_causal", "block_diagonal", "causal", "checkerboard", "chunked_causal", "clamp", "cos", "decay",
    "dilated", "distance_decay", "document", "exp", "exp2", "floor", "full", "global_tokens", "grid", "halo",
    "key_bias", "key_mask", "log", "log2", "log_n", "mask", "mask_mod", "maximum", "minimum", "neighborhood",
    "padding", "prefix_lm", "random_blocks", "relative_bias", "rsqrt", "score", "score_mod", "sigmoid", "sin", "sinks",
    "sliding_tile", "sliding_window", "softcap", "softmax", "sqrt", "static", "strided", "t5_bias", "tanh",
    "temperature", "tiles", "to_float", "to_int", "token_decay", "tree", "where", "windows",
]  # fmt: skip
