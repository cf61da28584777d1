"""Gluon's names by version of Triton."""

from __future__ import annotations

import importlib

import pytest

from regard.codegen.gluon_names import installed_names, names_for


@pytest.mark.parametrize(
    ("version", "barrier", "load"),
    [
        ("3.6.0", "gl.thread_barrier", "tma.async_copy_global_to_shared"),
        ("3.7.1", "gl.barrier", "tma.async_copy_global_to_shared"),
        ("3.8.0+git", "gl.barrier", "tma.async_load"),
        ("3.9.0", "gl.barrier", "tma.async_load"),
        ("3.10.2", "gl.barrier", "tma.async_load"),
    ],
)
def test_by_version(version: str, barrier: str, load: str) -> None:
    names = names_for(version)
    assert (names.barrier, names.load) == (barrier, load)


def test_installed_triton_has_its_names() -> None:
    gl = importlib.import_module("triton.experimental.gluon.language")
    hopper = importlib.import_module("triton.experimental.gluon.language.nvidia.hopper")
    names = installed_names()
    modules = {"gl": gl, "tma": hopper.tma}
    for name in (names.barrier, names.load, names.store):
        module, function = name.split(".")
        assert hasattr(modules[module], function), name
