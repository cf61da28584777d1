"""A dictionary with room for so many entries, for what is kept only to save time."""

from __future__ import annotations

import threading
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """Entries are added by :meth:`put`, which makes room by dropping the oldest; reading takes no lock.

    >>> kept = Bounded[str, int](2)
    >>> for name, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
    ...     kept.put(name, value)
    >>> kept
    {'b': 2, 'c': 4}
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._lock = threading.Lock()

    def put(self, key: K, value: V) -> None:
        """Adds an entry or replaces its value."""
        with self._lock:
            if key not in self:
                while len(self) >= self.limit:
                    del self[next(iter(self))]
            self[key] = value

    def clear(self) -> None:
        """Drops all entries."""
        with self._lock:
            super().clear()
