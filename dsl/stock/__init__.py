"""The stock library of masks and scores, written in the public language only."""

from .alibi import alibi
from .anchors import global_tokens, sinks
from .blocks import block_causal, block_diagonal, checkerboard, chunked_causal
from .causal import causal, full
from .decay import decay, distance_decay, token_decay
from .document import document
from .grids import axial, windows
from .key_bias import key_bias
from .neighborhood import halo, neighborhood, sliding_tile
from .padding import key_mask, padding
from .prefix import prefix_lm
from .random_blocks import random_blocks
from .relative import relative_bias, t5_bias
from .scaling import log_n, softcap, temperature
from .strides import dilated, strided
from .tiles import tiles
from .tree import tree
from .window import sliding_window

__all__ = [
    "alibi", "axial", "block_causal", "block_diagonal", "causal", "checkerboard", "chunked_causal", "decay", "dilated",
    "distance_decay", "document", "full", "global_tokens", "halo", "key_bias", "key_mask", "log_n", "neighborhood",
    "padding", "prefix_lm", "random_blocks", "relative_bias", "sinks", "sliding_tile", "sliding_window", "softcap",
    "strided", "t5_bias", "temperature", "tiles", "token_decay", "tree", "windows",
]  # fmt: skip
