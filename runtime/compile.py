"""From a variant to a loaded program: verify → passes → plan → emit → load.

A program found in the disk cache skips all but the last step; the analysis is not imported then.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..codegen.defaults import Direction
from ..codegen.schedule import Problem, Schedule, Source, Target
from ..codegen.skeletons import Choice, Skeleton
from ..ir.errors import UnsupportedError
from ..ir.limits import finite_stack
from ..ir.printer import print_plan, print_variant
from ..ir.variant import Variant
from . import cache, config, modules, toolchain
from .storage import as_stored

if TYPE_CHECKING:
    from ..ir.tiles.plan import Fit, TilePlan
    from .launch import Launcher


@dataclass(frozen=True, slots=True)
class Request:
    """What one program is made for. Variants that differ in name only share it."""

    variant: Variant
    problem: Problem
    target: Target
    direction: Direction
    schedule: Schedule | None = None  # None: the default
    # Whether calls have a tile of 128 queries for every multiprocessor.
    fills_gpu: bool = False
    # Whether lengths are such that rows of tables are long.
    long: bool = False
    # The skeleton that runs ``schedule``; None: the one that is chosen by rule.
    skeleton: Skeleton | None = None

    @property
    def key(self) -> str:
        """The name of the program in memory and on disk."""
        text = print_variant(replace(self.variant, name="attention"))
        facts = (self.problem, self.direction, self.schedule, self.fills_gpu, self.long, self.skeleton)
        return cache.key_of("program", text, str(self.target), *map(repr, facts), toolchain.versions())


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded module: ``run`` and ``classify`` are as in docs/internals.md, "Generated modules"."""

    key: str
    source: str
    path: str
    run: Callable[..., tuple[Tensor, ...]]
    classify: Callable[..., Any] | None
    launcher: Launcher | None = None  # None where no kernel is launched


_SOURCE, _FACTS = "source.py", "metadata.json"
# Why a program has a skeleton that its request names.
TUNED = "the fastest when it was tuned on this kind of GPU"

_programs: dict[str, Program] = {}
_lock = threading.RLock()


def program(request: Request) -> Program:
    """The program for ``request``: from memory, from disk, or generated. One thread generates at a time."""
    with finite_stack(request.variant):
        key = request.key
    with _lock:
        if key not in _programs:
            found = _source(key, request)
            # A program for large calls that is no other than that for small ones is not loaded twice.
            _programs[key] = program(found) if isinstance(found, Request) else load(key, *found, request.target)
        return _programs[key]


class Generated(NamedTuple):
    """A generated module, the schedule it follows, which skeleton it is made of, what it takes lengths for, and whether
    it is another one for shorter calls.
    """

    source: Source
    schedule: Schedule
    choice: Choice
    fit: Fit
    differs: bool


def generate(request: Request) -> Generated:
    """The program for ``request``, without touching the cache."""
    with finite_stack(request.variant):
        return _generated(request)


def _generated(request: Request) -> Generated:
    from ..codegen.skeletons import choose, emit, schedule_for

    plan = plan_for(request)
    problem, target, direction = request.problem, request.target, request.direction

    def chosen(long: bool) -> tuple[Choice, Schedule]:
        choice = choose(plan, problem, target, direction, request.fills_gpu, long)
        return choice, schedule_for(choice, plan, problem, target, direction, long)

    if request.skeleton is None:
        choice, schedule = chosen(request.long)
        shorter, schedule_of_shorter = chosen(False)
        differs = not request.long or (shorter.skeleton, schedule_of_shorter) != (choice.skeleton, schedule)
        schedule = request.schedule or schedule
    else:
        choice = Choice(request.skeleton, TUNED)
        schedule = request.schedule or schedule_for(choice, plan, problem, target, direction)
        differs = not request.long
    return Generated(emit(choice, plan, problem, schedule, target, direction), schedule, choice, plan.fit, differs)


def plan_for(request: Request) -> TilePlan:
    """What is proved about the tiles of ``request``'s variant, its tensors stored as the problem says."""
    # The analysis is imported here: a warm cache must not pay for it.
    from ..ir.passes import stages
    from ..ir.tiles.analysis import make_plan
    from ..ir.verify import verify

    variant = as_stored(request.variant, request.problem.buffers)
    verify(variant)
    by_pass = stages(variant, check=bool(config.debug_topics()))
    *_, lowered = by_pass.values()
    plan = make_plan(lowered, request.problem.fit)
    config.debug("ir", variant.name, print_variant(variant))
    for name, after in by_pass.items():
        config.debug("passes", name, print_variant(after))
    config.debug("plan", variant.name, print_plan(plan))
    return plan


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


def _source(key: str, request: Request) -> tuple[str, str] | Request:
    """Text of the generated module, and where it lies (or would lie), or the request that has the same one.

    That is the one for small calls, or for lengths of which nothing is known.
    """
    entry = cache.load(key)
    if entry is not None and config.debug_topics() & {"ir", "passes", "plan"}:
        plan_for(request)  # prints what was asked for, which a hit would leave unsaid
    if entry is None:
        source, schedule, choice, fit, differs = generate(request)
        facts = {
            "variant": print_variant(request.variant),
            "problem": asdict(request.problem),
            "target": str(request.target),
            "direction": request.direction,
            "skeleton": asdict(choice),
            "schedule": asdict(schedule),
            "fit": fit,
            "differs": differs,
            "toolchain": toolchain.versions(),
            "kernels": source.kernels,
        }
        files = {_FACTS: json.dumps(facts, indent=2).encode()}
        own = fit == request.problem.fit and differs and (not request.fills_gpu or choice.skeleton == "gluon")
        if own:
            files[_SOURCE] = source.text.encode()
        entry = cache.store(key, files)
        if entry is None:
            return (source.text, f"<regard {key}>") if own else _same_as(request, fit, differs)
    if _SOURCE not in entry.files:
        facts = json.loads(entry.files[_FACTS])
        return _same_as(request, facts["fit"], facts["differs"])
    text = entry.files[_SOURCE].decode()
    config.debug("source", f"{request.variant.name}, {request.direction}, {request.target}", text)
    return text, str(entry.path / _SOURCE)


def _same_as(request: Request, fit: Fit, differs: bool) -> Request:
    if fit != request.problem.fit:
        return replace(request, problem=replace(request.problem, fit=fit))
    return replace(request, fills_gpu=False) if differs else replace(request, long=False)


def load(key: str, text: str, path: str, target: Target) -> Program:
    """Executes a generated (or edited) module and joins it to the runtime."""
    module = modules.load_module(f"regard_generated_{key[:16]}", text, path)
    if not hasattr(module, "run"):
        raise UnsupportedError(f"{path} defines no `run`", hint="edit what attn.source(...) gives")
    launcher = None
    if target.backend != "cpu" and not config.interpret():
        from .launch import Launcher  # it imports triton

        launcher = module.__dict__["launch"] = Launcher(key)
    return Program(key, text, path, module.run, getattr(module, "classify", None), launcher)

