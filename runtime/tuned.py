"""Schedules that tuning found: kept in the disk cache, and in memory for this process."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import torch

from ..codegen.schedule import Schedule
from ..codegen.skeletons import Pinned
from . import cache
from .compile import Request, target_of

_FILE = "schedule.json"

_found: dict[str, Pinned | None] = {}


def tuned(request: Request, device: torch.device) -> Request:
    """``request`` for the fastest program that was found for it on a GPU like ``device``, if one was looked for."""
    pinned = lookup(request, device)
    return request if pinned is None else on_pinned(request, pinned)


def on_pinned(request: Request, pinned: Pinned) -> Request:
    """``request`` for a program that is not chosen by rule."""
    # What serves large calls was timed on large ones; pinned programs do not differ by it.
    return replace(request, schedule=pinned.schedule, skeleton=pinned.skeleton, fills_gpu=False, long=False)


def lookup(request: Request, device: torch.device) -> Pinned | None:
    """The skeleton and schedule that tuning found for ``request``."""
    if device.type != "cuda" or request.schedule is not None:
        return None
    key = _key(request, device)
    if key not in _found:
        entry = cache.load(key)
        _found[key] = None if entry is None else _parsed(entry.files[_FILE])
    return _found[key]


def tuned_here(request: Request) -> Pinned | None:
    """What calls on this machine's current GPU run, if ``request`` is for such a GPU and was tuned."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    return lookup(request, device) if target_of(device) == request.target else None


def remember(request: Request, device: torch.device, pinned: Pinned) -> None:
    """From now on, also in later processes, :func:`tuned` answers ``request`` with ``pinned``."""
    key = _key(request, device)
    _found[key] = pinned
    cache.discard(key)
    cache.store(key, {_FILE: json.dumps(asdict(pinned), indent=1).encode()})


def _key(request: Request, device: torch.device) -> str:
    return cache.key_of("tuned", request.key, torch.cuda.get_device_name(device))


def _parsed(text: bytes) -> Pinned:
    facts = json.loads(text)
    return Pinned(facts["skeleton"], _schedule(facts["schedule"]))


def _schedule(facts: dict[str, object]) -> Schedule:
    inner = {name: _schedule(x) for name, x in facts.items() if isinstance(x, dict)}
    return Schedule(**(facts | inner))  # type: ignore[arg-type]
