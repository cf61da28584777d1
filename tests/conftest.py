"""What all tests share: the `gpu` marker, hypothesis profiles, and the switch that rewrites golden files."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# `--hypothesis-profile thorough` searches longer; the default keeps a full run short on two cores.
settings.register_profile("quick", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("quick"), max_examples=2000)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files from the current output")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in marked:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs go to a folder of this run, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_CACHE_DIR", str(tmp_path_factory.mktemp("cache", numbered=True)))
        yield


@pytest.fixture(autouse=True)
def new_engines() -> None:
    """No test finds what another one prepared for the same variant."""
    engines = sys.modules.get("regard.runtime.engines")
    if engines is not None:
        engines.__dict__["_kept"].clear()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True under ``--update-golden``: write the expected file instead of comparing with it."""
    return bool(request.config.getoption("--update-golden"))
