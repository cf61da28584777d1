"""Grids that no box divides, and masks on them, for tests of several kernels."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import regard as rg

IMAGE, WIDE, VIDEO = rg.grid(20, 27), rg.grid(32, 24), rg.grid(5, 8, 12)


@rg.mask
def early_keys(q, kv):
    """Some columns of the image are seen by nobody."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (abs(a - c) <= 2) & (d < 11) & (abs(b - d) <= 9)


@rg.mask
def far_above(q, kv):
    """The first rows of the image see nothing, the last ones are not seen."""
    (a, b), (c, d) = IMAGE(q), IMAGE(kv)
    return (c <= a - 3) & (abs(b - d) <= 3)
