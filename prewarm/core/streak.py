"""Counts failures in a row about different repositories, for many threads."""

from __future__ import annotations

import threading


class Streak:
    """The repositories about which a registry has only failed since it last answered well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: set[str] = set()
        self.times = 0
        """Failures in a row, whatever they were about."""

    @property
    def repositories(self) -> int:
        """How many repositories the failures in a row were about."""
        with self._lock:
            return len(self._failed)

    def failed(self, repository: str) -> int:
        """Note a failure; return the number of repositories in a row, 0 for one that was noted."""
        with self._lock:
            self.times += 1
            if repository in self._failed:
                return 0
            self._failed.add(repository)
            return len(self._failed)

    def ended(self) -> None:
        """Note an answer that was none of these failures: the count begins again."""
        with self._lock:
            self._failed.clear()
            self.times = 0
