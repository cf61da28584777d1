"""From a variant to a loaded program: verify → passes → plan → emit → load.

A program found in the disk cache skips all but the last step; neither sympy nor the analysis is imported then.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, assert_never

import torch
from torch import Tensor

from ..codegen.schedule import Problem, Schedule, Source, Target
from ..ir.errors import UnsupportedError
from ..ir.printer import print_plan, print_variant
from ..ir.tiles.plan import TilePlan
from ..ir.variant import Variant
from . import cache, config, modules, toolchain
from .storage import as_stored

if TYPE_CHECKING:
    from .launch import Launcher

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Request:
    """What one program is made for. Variants that differ in name only share it."""

    variant: Variant
    problem: Problem
    target: Target
    direction: Direction
    schedule: Schedule | None = None  # None: the default

    @property
    def key(self) -> str:
        """The name of the program in memory and on disk."""
        text = print_variant(replace(self.variant, name="attention"))
        facts = (text, repr(self.problem), str(self.target), self.direction, repr(self.schedule))
        return cache.key_of("program", *facts, toolchain.versions())


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded module: ``run`` and ``classify`` are as in docs/internals.md, "Generated modules"."""

    key: str
    source: str
    path: str
    run: Callable[..., tuple[Tensor, ...]]
    classify: Callable[..., Any] | None
    launcher: Launcher | None = None  # None where no kernel is launched


_SOURCE = "source.py"

_programs: dict[str, Program] = {}
_lock = threading.RLock()


def program(request: Request) -> Program:
    """The program for ``request``: from memory, from disk, or generated. One thread generates at a time."""
    key = request.key
    with _lock:
        if key not in _programs:
            _programs[key] = load(key, *_source(key, request), request.target)
        return _programs[key]


def generate(request: Request) -> tuple[Source, Schedule]:
    """The source of a program and the schedule it follows, without touching the cache."""
    # The analysis is imported here: a warm cache must not pay for it.
    from ..codegen.defaults import default_schedule
    from ..ir.passes import stages
    from ..ir.tiles.analysis import make_plan
    from ..ir.verify import verify

    variant = as_stored(request.variant, request.problem.buffers)
    verify(variant)
    by_pass = stages(variant, check=bool(config.debug_topics()))
    *_, lowered = by_pass.values()
    plan = make_plan(lowered)
    schedule = request.schedule or default_schedule(plan, request.problem, request.target, request.direction)
    source = _emitter(request.target, request.direction)(plan, request.problem, schedule)
    config.debug("ir", variant.name, print_variant(variant))
    for name, after in by_pass.items():
        config.debug("passes", name, print_variant(after))
    config.debug("plan", variant.name, print_plan(plan))
    return source, schedule


def target_of(device: torch.device) -> Target:
    """What code for tensors on ``device`` is compiled for."""
    match device.type:
        case "cpu":
            # Triton's interpreter runs on the CPU whatever the kernel was written for.
            return Target("cuda", 80) if config.interpret() else Target("cpu")
        case "cuda" if torch.version.hip:
            return Target("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
        case "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            return Target("cuda", 10 * major + minor)
        case other:
            raise UnsupportedError(f"tensors are on a device of type {other}; supported are cpu and cuda (or ROCm)")


def _source(key: str, request: Request) -> tuple[str, str]:
    """Text of the generated module, and where it lies (or would lie)."""
    entry = cache.load(key)
    if entry is None:
        source, schedule = generate(request)
        facts = {
            "variant": print_variant(request.variant),
            "problem": asdict(request.problem),
            "target": str(request.target),
            "direction": request.direction,
            "schedule": asdict(schedule),
            "toolchain": toolchain.versions(),
            "kernels": source.kernels,
        }
        files = {_SOURCE: source.text.encode(), "metadata.json": json.dumps(facts, indent=2).encode()}
        entry = cache.store(key, files)
        if entry is None:
            return source.text, f"<regard {key}>"
    text = entry.files[_SOURCE].decode()
    config.debug("source", f"{request.variant.name}, {request.direction}, {request.target}", text)
    return text, str(entry.path / _SOURCE)


def load(key: str, text: str, path: str, target: Target) -> Program:
    """Executes a generated (or edited) module and joins it to the runtime."""
    module = modules.load_module(f"regard_generated_{key[:16]}", text, path)
    launcher = None
    if target.backend != "cpu" and not config.interpret():
        from .launch import Launcher  # it imports triton

        launcher = module.__dict__["launch"] = Launcher(key)
    return Program(key, text, path, module.run, getattr(module, "classify", None), launcher)


def _emitter(target: Target, direction: Direction) -> Callable[[TilePlan, Problem, Schedule], Source]:
    # Each emitter is imported by the one case that needs it.
    match target.backend, direction:
        case "cpu", "forward":
            from ..codegen import torch_program

            return torch_program.emit_forward
        case "cpu", "backward":
            from ..codegen import torch_backward

            return torch_backward.emit_backward
        case _, "forward":
            from ..codegen import triton_forward

            return functools.partial(triton_forward.emit_forward, target=target)
        case _, "backward":
            from ..codegen import triton_backward

            return functools.partial(triton_backward.emit_backward, target=target)
        case _:
            assert_never(direction)
