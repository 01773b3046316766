"""How Docker Hub counts pulls: a rolling window for each account or address."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Quota:
    """`limit` pulls in any `window_seconds`.

    `count` says what a pull is, which Docker does not document fully: every manifest GET (`gets`),
    or an index GET together with one GET of a child of it (`pulls`), so k children are k pulls.
    """

    limit: int
    window_seconds: int = 21600
    count: Literal["pulls", "gets"] = "pulls"


class Spending:
    """What each source, an account or an address, has spent."""

    def __init__(self) -> None:
        self._spent: dict[str, deque[float]] = {}
        self._paid_children: dict[str, Counter[frozenset[str]]] = {}
        self._lock = threading.Lock()

    def spend(self, source: str, pulls: int) -> None:
        """Count pulls of others, even over the limit: what remains may become negative."""
        with self._lock:
            self._spent.setdefault(source, deque()).extend([time.monotonic()] * pulls)

    def remaining(self, source: str, quota: Quota) -> int:
        """Return the pulls left now."""
        with self._lock:
            return self._remaining(source, quota)

    def get(self, source: str, quota: Quota, digest: str, children: Iterable[str]) -> bool:
        """Count the GET of a manifest, or of an index of `children`; False: over the quota."""
        with self._lock:
            paid_for = self._paid_children.setdefault(source, Counter())
            paid = next((entries for entries in paid_for if digest in entries), None)
            if quota.count == "pulls" and paid is not None:
                paid_for.subtract([paid])
                if not paid_for[paid]:
                    del paid_for[paid]
                return True
            if self._remaining(source, quota) <= 0:
                return False
            self._spent.setdefault(source, deque()).append(time.monotonic())
            if entries := frozenset(children):
                paid_for[entries] += 1
            return True

    def _remaining(self, source: str, quota: Quota) -> int:
        spent = self._spent.setdefault(source, deque())
        oldest = time.monotonic() - quota.window_seconds
        while spent and spent[0] <= oldest:
            spent.popleft()
        return quota.limit - len(spent)
