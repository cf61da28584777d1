"""What generated Gluon modules share: imports, constants and the way from Triton's names to Gluon's.

The parts of a kernel that are scalar or elementwise are printed by the same functions as for Triton; Gluon
has the same functions under another prefix, so one rewriting of the text does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ..ir.tiles.cuts import Cuts
from ..ir.tiles.plan import TilePlan
from .emitter import Emitter
from .gluon_names import ADD_TILE, ADD_TILE_IMPORTS
from .print_triton import HELPERS, used_helpers
from .schedule import Problem, Source, Target
from .triton_classify import emit_classify
from .triton_cuts import CutClassify
from .triton_module import LAUNCH, final_names
from .triton_program import BROADCAST_STRIDE, uses_table

PRELUDE = '''
import functools

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
'''

DESCRIPTOR = '''
def descriptor(x, rows, layout, columns=None):
    """Tiles of rows of a (B, H, L, D) tensor, or of some of their columns, for the tensor memory accelerator."""
    block = [1, 1, rows.value, columns or x.shape[3]]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout.value)
'''

# Triton has it, Gluon does not.
SIGMOID = '''
@gluon.jit
def sigmoid(x):
    return 1.0 / (1.0 + gl.exp2(-LOG2E * x))
'''


_TANH = '''
@gluon.jit
def tanh(x):
    return gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )
'''

# Where the definition of a function or constant starts, or a comment; its name; documentation; words.
_DEFINITION = re.compile(r"\n(?=@|[A-Z_]+ = |# )")
_NAME = re.compile(r"(?:@.*\n)?(?:def )?(\w+)(?: = |\()")
_DOCUMENTATION = re.compile(r'""".*?"""', re.DOTALL)
_WORD = re.compile(r"\w+")


def in_gluon(text: str) -> str:
    """Triton source in Gluon's names.

    >>> in_gluon("@triton.jit: tl.where(x, tl.sigmoid(y), 0), triton.cdiv(a, b)")
    '@gluon.jit: gl.where(x, sigmoid(y), 0), triton.cdiv(a, b)'
    """
    return re.sub(r"\btl\.", "gl.", text.replace("@triton.jit", "@gluon.jit").replace("tl.sigmoid(", "sigmoid("))


def reason_against_target(problem: Problem, target: Target) -> str | None:
    """Why no Gluon kernel can run for the problem on the target, in one sentence; None where one can."""
    if target.backend != "cuda" or target.arch != 90:
        return f"{target} is not sm_90"
    if problem.dtype == "f32":
        return "float32 inputs do not multiply by wgmma"
    if not problem.aligned:
        return "bases or strides are not multiples of 16 bytes, which tensor descriptors need"
    return None


def emit_layouts(
    out: Emitter, registers: Sequence[tuple[str, int]], operands: Mapping[str, str],
    tiles: Sequence[tuple[str, int, int, str]], axes: int = 2,
) -> None:  # fmt: skip
    """Layouts of one consumer's registers, by columns; of left operands, by the sums they add to; of tiles, which
    have ``axes`` before that of the rows or, in boxes, among those of the rows.
    """
    for name, width in registers:
        out.line(f"{name} = tl.constexpr(tl.NVMMADistributedLayout([3, 0], [4, 1], [16, {width}, 16]))")
    for name, sums in operands.items():
        out.line(f"{name} = tl.constexpr(tl.DotOperandLayout(0, {sums}.value, 2))")
    out.comment("Layouts in shared memory.")
    for name, height, width, type_ in tiles:
        shape = f"[{'1, ' * axes}{height}, {width}]"
        out.line(f"{name} = tl.constexpr(tl.NVMMASharedLayout.get_default_for({shape}, {type_}))")


def emit_tables(
    plan: TilePlan, by_query: tuple[int, int], by_key: tuple[int, int] | None = None, *,
    listed: tuple[str, str] = ("", ""), cuts: Cuts | None = None,
) -> tuple[str, tuple[str, ...]]:  # fmt: skip
    """The kernels, in plain Triton, and functions that make tables of tiles, as text; and the kernels' names.

    ``listed``: as for :func:`.triton_classify.emit_classify`. ``cuts``: where tiles begin anew.
    """
    if not uses_table(plan):
        return "", ()
    out = Emitter()
    out.section(BROADCAST_STRIDE)
    if cuts is None:
        kernels = emit_classify(out, plan, by_query, by_key, listed=listed)
    else:
        made = CutClassify(plan, cuts)
        made.emit(out, by_query, by_key)
        kernels = made.kernels
    return out.text(), kernels


def apart(text: str, other: str, suffix: str) -> tuple[str, Callable[[str], str]]:
    """What ``text`` defines and ``other`` does not, and what renames: for different things of one name add a suffix.

    >>> own = "SIZE = 4\\nTYPE = 1\\n@jit\\ndef f(x):\\n    return x * SIZE"
    >>> code, renamed = apart(own, "TYPE = 1\\nSIZE = 8", "_2")
    >>> print(code)
    SIZE_2 = 4
    <BLANKLINE>
    <BLANKLINE>
    @jit
    def f(x):
        return x * SIZE_2
    >>> renamed("f(SIZE, TYPE)")
    'f(SIZE_2, TYPE)'
    """
    here, there = ({_defined(x): x.strip("\n") for x in _DEFINITION.split(y)} for y in (text, other))
    shared = {name for name, x in here.items() if there.get(name) == x}
    changed = set(here) & set(there) - shared
    # What is the same, but calls something that is not, is not the same.
    while more := {n for n in shared if changed & set(_WORD.findall(_DOCUMENTATION.sub("", here[n])))}:
        shared -= more
        changed |= more

    def renamed(text: str) -> str:
        return _WORD.sub(lambda m: m[0] + (suffix.upper() if m[0].isupper() else suffix) * (m[0] in changed), text)

    own = ("\n\n" * x.startswith("@") + x for name, x in here.items() if name not in shared)
    return renamed("\n".join(own)), renamed


def _defined(definition: str) -> str:
    """The name that it defines, or itself where it is a comment."""
    found = _NAME.match(definition)
    return found[1] if found else definition


def finish(
    out: Emitter, plan: TilePlan, kernels: Sequence[str], head: Emitter, triton_kernels: str = "",
    short_tanh: bool = False,
) -> Source:  # fmt: skip
    """Puts the parts together and gives the user's parameters names that nothing else has.

    ``triton_kernels`` are kernels in plain Triton that belong to the module. ``short_tanh``: the one instruction for
    tanh is exact enough, as its relative error of 2 ** -11 is at most that of a product rounded to 16 bits; in slopes
    1 - tanh(x) ** 2 to bfloat16 alone.
    """
    body = out.text()
    helpers = "".join(
        "\n" + (_TANH if short_tanh and "def tanh(" in source else source) for source in used_helpers(body)
    )
    if "tl.sigmoid(" in body:
        helpers += "\n" + SIGMOID
    prelude = PRELUDE
    if "math.gcd(" in body:
        prelude = prelude.replace("import functools\n", "import functools\nimport math\n")
    if triton_kernels:
        prelude = prelude.replace("import triton\n", "import triton\nimport triton.language as tl\n")
        own = "".join("\n" + source for source in used_helpers(triton_kernels)) + triton_kernels
        # Functions of a kernel in Triton cannot be those of one in Gluon.
        triton_kernels = re.sub(rf"\b({'|'.join(HELPERS)})\(", r"triton_\1(", own) + "\n"
    if "add_tile(" in body:
        prelude = prelude.replace("\nLOG2E", f"{ADD_TILE_IMPORTS}\nLOG2E", 1) + "\n" + ADD_TILE
    code = in_gluon(helpers + "\n" + LAUNCH + "\n\n" + body)
    return Source(final_names(head.text() + prelude + triton_kernels + code, plan), tuple(kernels))
