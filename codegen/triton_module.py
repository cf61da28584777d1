"""What all generated Triton modules share: arguments of kernels, tiles of tensors, header and final text."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill, indent, wrap

from ..ir.printer import print_expr, print_variant
from ..ir.tiles.plan import TilePlan
from ..ir.traverse import loads
from ..ir.types import I32
from ..ir.variant import Variant
from .emitter import Emitter
from .print_triton import used_helpers
from .schedule import DType, Problem, Schedule, Source, Target
from .triton_values import MARK, is_checked, user_name

ITEM_SIZES: dict[DType, int] = {"f16": 2, "bf16": 2, "f32": 4}
_GLOBAL = re.compile(r"^(?:def )?(\w+)", re.MULTILINE)
# A function with its comment and decorator, and the empty lines before, which become two.
_DEFINITION = re.compile(r"\n+((?:#.*\n)*(?:@.*\n)?def )")
_WORD = re.compile(rf"[A-Za-z_{MARK}][A-Za-z_0-9{MARK}]*")


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a kernel: its name there, its type annotation, and what ``run`` passes.

    ``aligned``: a tensor whose base is a multiple of 16 bytes, as the kernel may assume.
    """

    name: str
    annotation: str
    value: str
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Columns ``first .. first + width`` of a head, ``valid`` of which exist; ``suffix`` tells parts apart."""

    first: int
    width: int
    valid: int
    suffix: str

    @property
    def padded(self) -> bool:
        return self.valid < self.width


def head_parts(size: int) -> tuple[Part, ...]:
    """A head split into powers of two of at least 16; only the last part may be padded.

    >>> [(p.width, p.valid) for p in head_parts(192)], [(p.width, p.valid) for p in head_parts(40)]
    ([(128, 128), (64, 64)], [(32, 32), (16, 8)])
    """
    cuts: list[tuple[int, int, int]] = []
    first = 0
    while first < size:
        rest = size - first
        width = max(16, 1 << (rest.bit_length() - 1))
        cuts.append((first, width, min(width, rest)))
        first += width
    return tuple(Part(*cut, "" if len(cuts) == 1 else f"_{i}") for i, cut in enumerate(cuts))


def buffer_arguments(plan: TilePlan) -> list[Argument]:
    """Captured tensors with all strides, and the sizes of axes whose indices are not checked by the caller."""
    arguments: list[Argument] = []
    unchecked = {
        (load.buffer, axis)
        for e in (plan.variant.mask, *plan.variant.scores)
        for load in loads(e)
        for axis, x in enumerate(load.indices)
        if not is_checked(x)
    }
    for interval in (*plan.keys.may, *plan.keys.must, *plan.queries.may, *plan.queries.must):
        for load in (*loads(interval.start), *loads(interval.stop)):
            unchecked |= {(load.buffer, axis) for axis, x in enumerate(load.indices) if not is_checked(x)}
    for p in plan.variant.buffers:
        name = user_name(p.name)
        arguments.append(Argument(name, "", name))
        for axis in range(p.type.rank):
            arguments.append(Argument(f"{name}_stride_{axis}", "i64", f"{name}.stride({axis})"))
            if (p.name, axis) in unchecked:
                arguments.append(Argument(f"{name}_size_{axis}", "i32", f"{name}.shape[{axis}]"))
    return arguments


def scalar_arguments(plan: TilePlan) -> list[Argument]:
    """Scalar parameters of the variant."""
    return [
        Argument(user_name(p.name), "i32" if p.type is I32 else "fp32", user_name(p.name))
        for p in plan.variant.scalars
    ]


@contextmanager
def kernel(
    out: Emitter, name: str, arguments: Sequence[Argument], constants: Sequence[str], debug: bool = False
) -> Iterator[None]:
    """Decorator and signature, and what is written meanwhile as the body; with ``debug`` its assertions count."""
    out.comment("Not specialised on the value of any argument: one binary serves all sizes.")
    aligned = [i for i, a in enumerate(arguments) if a.aligned]
    general = f"range({len(arguments)})"
    if aligned:
        general = f"[i for i in {general} if i not in {tuple(aligned)}]"
    out.line(f"@triton.jit({'debug=True, ' if debug else ''}do_not_specialize={general})")
    out.line(f"def {name}(")
    line = "   "
    for a in arguments:
        text = f" {a.name}: \"{a.annotation}\"," if a.annotation else f" {a.name},"
        # A tensor starts a line; its strides follow on the same one.
        if line.strip() and (not a.annotation or len(line) + len(text) > 110):
            out.line(line)
            line = "   "
        line += text
    out.line(line)
    if constants:
        out.lines(indent(fill(" ".join(f"{c}:\0tl.constexpr," for c in constants), 106), "    ").replace("\0", " "))
    with out.block("):"):
        yield


def emit_launch(out: Emitter, kernel: str, grid: str, arguments: Sequence[Argument], options: str) -> None:
    """A call of the module's ``launch``."""
    with_breaks = [a.value for a in arguments]
    out.line("launch(")
    line = f"    {kernel}, {grid},"
    for value in with_breaks:
        if len(line) + len(value) > 108:
            out.line(line)
            line = "   "
        line += f" {value},"
    out.line(line)
    out.line(f"    {options},")
    out.line(")")


def user_names(v: Variant) -> list[str]:
    """Captured tensors and scalars, in the order in which ``run`` takes them."""
    return [user_name(p.name) for p in v.buffers] + [user_name(p.name) for p in v.scalars]


def emit_header(
    out: Emitter, title: str, plan: TilePlan, problem: Problem, schedule: Schedule, target: Target,
    notes: Sequence[str] = (), tiles: str = "",
) -> None:  # fmt: skip
    """The comment that a generated module starts with; ``tiles`` says what they are if not runs of positions."""
    v = plan.variant
    out.comment(f"{title}, generated by Regard.")
    out.comment("")
    out.comment(print_variant(v).rstrip())
    places = [x.loc for x in (v.mask, *v.scores) if x.loc is not None]
    for place in dict.fromkeys(f"{os.path.basename(p.file)}:{p.line}" for p in places):
        out.comment(f"  from {place}")
    out.comment("")
    aligned = "16-byte aligned" if problem.aligned else "any alignment"
    sizes = f"head size {problem.head_dim}, value size {problem.value_dim}"
    out.comment(f"Problem: {problem.dtype}, {sizes}, {aligned}, {target}.")
    out.comment(f"Schedule: {describe(schedule)}.")
    if schedule.grad_query:
        out.comment(f"  for the gradient of queries: {describe(schedule.grad_query)}.")
    out.comment(tiles or f"Tiles: {plan.method}.")
    for proof in plan.proofs:
        text = f"{print_expr(proof.atom)}: {proof.verdict}, {proof.reason}"
        for line in wrap(text, 110, initial_indent="  ", subsequent_indent="    "):
            out.comment(line)
    if plan.rows_reason:
        out.comment(f"  rows: {plan.rows_reason}")
    for note in notes:
        out.comment(note)


def emit_options(out: Emitter, name: str, schedule: Schedule) -> None:
    """A schedule as the options of launches: the numbers to change when trying others."""
    s = schedule
    options = f"BLOCK_M={s.block_m}, BLOCK_N={s.block_n}, num_warps={s.num_warps}, num_stages={s.num_stages}"
    out.line(f"{name} = dict({options})")


def describe(schedule: Schedule) -> str:
    """A schedule in words."""
    stages = f"{schedule.num_stages} stage" + "s" * (schedule.num_stages > 1)
    text = f"{schedule.block_m} queries by {schedule.block_n} keys, {schedule.num_warps} warps, {stages}"
    if schedule.reverse:
        text += ", heaviest tiles first"
    if schedule.listed:
        text += ", heaviest tiles first by a list"
    if schedule.cut:
        text += ", tiles begin anew where data changes"
    if schedule.split_keys:
        text += ", long rows of tiles split" if schedule.listed else ", keys split where query tiles are few"
    return text


PRELUDE = '''
import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
'''

LAUNCH = '''
def launch(kernel, grid, *args, enable_fp_fusion=True, **options):
    """Starts a kernel on the device of its first argument, a tensor or a descriptor; a caller may replace this."""
    with torch.cuda.device_of(getattr(args[0], "base", args[0])):
        kernel[grid](*args, enable_fp_fusion=enable_fp_fusion, **options)


@functools.cache
def device_limits(device):
    """Multiprocessors and bytes of L2 cache; those of an H100 where there is no GPU."""
    if device.type != "cuda":
        return 132, 50 << 20
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size


@functools.cache
def even_sections(limit, entries):
    """The largest divisor of ``entries`` up to ``limit``, unless it is below half of it.

    A short last section would end with heavy tiles and idle multiprocessors.
    """
    limit = max(min(limit, entries), 1)
    return next((n for n in range(limit, limit // 2, -1) if entries % n == 0), limit)


def section_size(key, value, heads):
    """How many heads of queries share keys and values that fit in a third of the L2 cache.

    Their tiles run together, so that keys and values are read from memory once.
    """
    _, cache = device_limits(key.device)
    kv_bytes = max(key.shape[2] * (key.shape[3] + value.shape[3]) * key.element_size(), 1)
    limit = max(cache // 3 // kv_bytes, 1) * max(heads // max(key.shape[1], 1), 1)
    return even_sections(limit, key.shape[0] * heads)
'''


def finish(out: Emitter, plan: TilePlan, kernels: Sequence[str], head: Emitter) -> Source:
    """Puts the parts of a module together."""
    body = out.text()
    prelude = PRELUDE.replace("\nimport torch\n", "import math\n\nimport torch\n") if "math.gcd(" in body else PRELUDE
    text = "".join([head.text(), prelude, *used_helpers(body), LAUNCH, "\n\n", body])
    return Source(final_names(_DEFINITION.sub(r"\n\n\n\1", text), plan), tuple(kernels))


def final_names(text: str, plan: TilePlan) -> str:
    """A module with the user's parameters in names that mean nothing else where they stand."""
    code = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    words = set(_WORD.findall(code))
    # Names of the module, and all names in functions that use a parameter.
    taken = {*keyword.kwlist, *_GLOBAL.findall(code)}
    for chunk in re.split(r"\n(?=\S)", code):
        if MARK in chunk or not chunk.startswith(("def ", "):", "    ")):
            taken |= {w for w in _WORD.findall(chunk) if MARK not in w}
    for p in plan.variant.parameters:
        mark = user_name(p.name)
        marked = [w for w in words if mark in w]
        name = p.name
        while any(w.replace(mark, name) in taken for w in (mark, *marked)):
            name += "_"
        taken |= {w.replace(mark, name) for w in (mark, *marked)}
        text = text.replace(mark, name)
    return text

