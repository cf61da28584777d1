"""How consumers give buffers back to the producer, and take turns: by named barriers of the hardware.

Before an arrival on an mbarrier Gluon lets all warps of a group meet, in each step of the loop. On a named barrier
every warp arrives by itself, once its products are done, and goes on. A buffer is never released twice before the
producer took it, because it must be filled in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .emitter import Emitter

# Triton uses the first ones for groups of warps; there are 16.
_FIRST = 8
MOST_STAGES = 4


def emit_releases(out: Emitter, consumers: int) -> None:
    """``release`` and ``released`` for consumers, ``acquire`` for the producer, a single warp; functions of turns."""
    out.definition(_RELEASES.format(first=_FIRST, threads=consumers * 128 + 32))
    if _takes_turns(consumers):
        out.definition(_TURNS.format(first=_FIRST - consumers))


def emit_first_turn(out: Emitter, consumers: int) -> None:
    """The last consumer lets the first one begin."""
    if _takes_turns(consumers):
        with out.block("if GROUP == CONSUMERS - 1:"):
            out.line("pass_turn(GROUP)")


@contextmanager
def in_turn(out: Emitter, consumers: int) -> Iterator[None]:
    """What is written meanwhile starts products: those of one consumer run beside the softmax of others."""
    if _takes_turns(consumers):
        out.line("take_turn(GROUP)")
    yield
    if _takes_turns(consumers):
        out.line("pass_turn(GROUP)")


def _takes_turns(consumers: int) -> bool:
    """Measured faster with three consumers, not with two."""
    return consumers > 2


_TURNS = '''
@gluon.jit
def take_turn(GROUP: gl.constexpr):
    """Waits for this consumer's turn to start products."""
    gl.inline_asm_elementwise(
        "bar.sync $1, 256; mov.b32 $0, $1;", "=r,r", [gl.to_tensor({first} + GROUP)],
        dtype=gl.int32, is_pure=False, pack=1,
    )


@gluon.jit
def pass_turn(GROUP: gl.constexpr):
    """It is the next consumer's turn."""
    gl.inline_asm_elementwise(
        "bar.arrive $1, 256; mov.b32 $0, $1;", "=r,r", [gl.to_tensor({first} + (GROUP + 1) % CONSUMERS)],
        dtype=gl.int32, is_pure=False, pack=1,
    )

'''
_RELEASES = '''
@gluon.jit
def release(buffer):
    """Says that this consumer is done with a buffer: keys are numbered from 0, values from STAGES."""
    gl.inline_asm_elementwise(
        "bar.arrive $1, {threads}; mov.b32 $0, $1;", "=r,r", [buffer + {first}], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def released(x, keys, values):
    """``x``, of which a thread has two numbers, after both buffers were released: what reads it comes later."""
    return gl.inline_asm_elementwise(
        "bar.arrive $4, {threads}; bar.arrive $6, {threads}; mov.b32 $0, $2; mov.b32 $1, $3;", "=r,=r,r,r,r,r,r,r",
        [x, keys + {first}, values + {first}], dtype=gl.float32, is_pure=False, pack=2,
    )


@gluon.jit
def acquire(buffer):
    """Waits until all consumers have released a buffer."""
    gl.inline_asm_elementwise(
        "bar.sync $1, {threads}; mov.b32 $0, $1;", "=r,r", [buffer + {first}], dtype=gl.int32, is_pure=False, pack=1
    )

'''
