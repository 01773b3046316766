"""Backs off from a server that answers 429, all threads together and for a bounded time."""

from __future__ import annotations

import threading
import time


class RateLimit:
    """How long a server that answers `429 Too Many Requests` is waited for.

    The limit is the server's for all our requests, so they wait together. After `in_a_row` refusals
    without a good answer between them, or after `total` seconds of waiting, it is given up.
    """

    def __init__(self, *, in_a_row: int, longest: float, total: float) -> None:
        self._in_a_row = in_a_row
        self._longest = longest
        self._total = total
        self._lock = threading.Lock()
        self._refused = 0
        self._waited = 0.0
        self._since = 0.0
        self._until = 0.0
        self.given_up = False
        """Whether nothing is to be asked of the server any more."""

    @property
    def left(self) -> float:
        """Seconds until the server may be asked again."""
        with self._lock:
            return max(0.0, self._until - time.monotonic())

    def refused(self, sent: float, wait: float) -> bool:
        """Note a 429 that asks to wait so many seconds; return whether it is worth waiting.

        `sent` is when the request was sent: those that were on their way together count once.
        """
        with self._lock:
            if self.given_up or sent < self._since:
                return not self.given_up
            now = time.monotonic()
            self._refused += 1
            self._waited += wait
            if self._refused > self._in_a_row or wait > self._longest or self._waited > self._total:
                self.given_up = True
                return False
            self._since, self._until = now, now + wait
            return True

    def answered(self) -> None:
        """Note an answer that is no 429."""
        with self._lock:
            self._refused = 0
