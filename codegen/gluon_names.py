"""Names of Gluon's operations, which differ between versions of Triton."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, slots=True)
class Names:
    """What generated modules call: a barrier of one group of warps, copies and additions by tensor descriptor."""

    barrier: str
    load: str
    store: str
    add: str


# The first version with each set of names, newest first.
_VERSIONS: tuple[tuple[tuple[int, int], Names], ...] = (
    ((3, 8), Names("gl.barrier", "tma.async_load", "tma.async_store", "tma.async_atomic_add")),
    ((3, 7), Names("gl.barrier", "tma.async_copy_global_to_shared", "tma.async_copy_shared_to_global", "add_tile")),
    (
        (3, 6),
        Names("gl.thread_barrier", "tma.async_copy_global_to_shared", "tma.async_copy_shared_to_global", "add_tile"),
    ),
)

# Before 3.8 Gluon can build the instruction but has no name for it.
ADD_TILE = '''
@builtin
def add_tile(descriptor, where, tile, _semantic=None):
    """Adds a tile in shared memory to global memory, by the tensor memory accelerator."""
    where = _semantic._convert_to_ir_values(where, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, descriptor.handle, where, tile.handle)
'''
ADD_TILE_IMPORTS = """from triton._C.libtriton import ir
from triton.experimental.gluon.language._core import builtin
"""


def names_for(version: str) -> Names:
    """The names in a version of Triton, such as "3.7.1"; those of the oldest known for an older one.

    >>> names_for("3.6.0").barrier, names_for("3.10.0").load
    ('gl.thread_barrier', 'tma.async_load')
    """
    major, minor = version.split(".")[:2]
    number = int(major), int(minor)
    return next((names for first, names in _VERSIONS if number >= first), _VERSIONS[-1][1])


def installed_names() -> Names:
    """The names in the installed Triton."""
    return names_for(metadata.version("triton"))
