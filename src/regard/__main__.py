"""The command line: looks at a variant written in the text language, without running it and without a GPU,

    regard explain variant.txt --lengths 4096
    regard source variant.txt --target sm_90 --direction backward
    regard plot variant.txt --lengths 4096 --out tiles.png

and, on a GPU, searches its fastest kernels, on random inputs:

    regard tune variant.txt --lengths 4096 --backward

``-`` reads the variant from standard input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .ir.errors import RegardError

if TYPE_CHECKING:
    from .runtime.attention import Attention


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it succeeded, 2 if the input was wrong (the reason is on standard error)."""
    options = _parser().parse_args(arguments)
    try:
        print(_run(options))
    except (RegardError, OSError) as error:
        print(f"regard: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> str:
    from .runtime.attention import parse

    text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text()
    attn = parse(text)
    if options.command in ("explain", "plot", "tune"):
        if options.lengths and len(options.lengths) > 2:
            options.refuse("argument --lengths: expected one or two numbers")
        q_len, kv_len = (*options.lengths, *options.lengths)[:2] if options.lengths else (None, None)
        kv_heads = options.kv_heads or options.heads
        shapes = (
            (options.batch, options.heads, q_len, options.head_dim),
            (options.batch, kv_heads, kv_len, options.head_dim),
            (options.batch, kv_heads, kv_len, options.value_dim or options.head_dim),
        )
        if options.command == "explain":
            inputs = shapes if options.lengths else ()
            return str(attn.explain(*inputs, dtype=options.dtype, target=options.target, exact=options.exact))
        if options.command == "tune":
            return _tune(attn, shapes, options)
        attn.plot(*shapes, path=options.out, tile=options.tile)
        return f"wrote {options.out}"
    if options.command == "ir":
        return str(attn.ir(options.stage))
    show = {"source": attn.source, "ptx": attn.ptx, "sass": attn.sass}[options.command]
    return str(
        show(
            direction=options.direction,
            target=options.target,
            dtype=options.dtype,
            head_dim=options.head_dim,
            value_dim=options.value_dim,
        )
    )


def _tune(attn: Attention, shapes: tuple[tuple[int, ...], ...], options: argparse.Namespace) -> str:
    import torch

    from .ir.errors import UnsupportedError

    if not torch.cuda.is_available():
        raise UnsupportedError("there is no GPU to tune for", hint="run it on the machine that will run the kernels")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[options.dtype]
    query, key, value = (torch.randn(shape, device="cuda", dtype=dtype) for shape in shapes)
    return str(attn.tune(query, key, value, backward=options.backward, seconds=options.seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("file", help="a file in the text language, or -")
        return sub

    explain = command("explain", "what is proved about the tiles; with --lengths also exact counts")
    plot = command("plot", "a picture of the tiles")
    source = command("source", "the generated module")
    ptx = command("ptx", "the PTX of its kernels")
    sass = command("sass", "the machine code of its kernels")
    tune = command("tune", "times the schedules that could run on this GPU, and keeps the fastest for later calls")
    command("ir", "the variant after a stage of compilation").add_argument(
        "--stage", default="lowered", help="traced, the name of a pass, lowered (default) or plan"
    )

    for sub in (explain, plot, tune):
        sub.set_defaults(refuse=sub.error)
        sub.add_argument("--batch", type=int, default=1)
        sub.add_argument("--heads", type=int, default=8)
        sub.add_argument("--kv-heads", type=int, help="default: as many as heads")
        sub.add_argument(
            "--lengths",
            type=int,
            nargs="+",
            required=sub is not explain,
            metavar="L",
            help="queries, keys; or one for both",
        )
    for sub in (explain, source, ptx, sass):
        sub.add_argument("--target", help="cpu, sm_80, sm_90, sm_100, gfx942; default: this machine's")
    for sub in (explain, source, ptx, sass, tune):
        sub.add_argument("--dtype", default="bf16", choices=("f16", "bf16", "f32"))
    for sub in (explain, plot, source, ptx, sass, tune):
        sub.add_argument("--head-dim", type=int, default=64)
        sub.add_argument("--value-dim", type=int, help="default: as --head-dim")
    for sub in (source, ptx, sass):
        sub.add_argument("--direction", default="forward", choices=("forward", "backward"))
    tune.add_argument("--backward", action="store_true", help="the kernels of the backward pass too")
    tune.add_argument("--seconds", type=float, default=60.0, help="for each direction (default: 60)")
    explain.add_argument("--exact", action="store_true", help="count pairs exactly even if that takes evaluating all")
    plot.add_argument("--tile", type=int, help="tile size; default: so that the picture stays readable")
    plot.add_argument("--out", default="tiles.png", help="a .png or .svg file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
