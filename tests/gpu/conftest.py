"""What tests on a GPU share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    """Oracles take gigabytes, and several processes share the GPU."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
