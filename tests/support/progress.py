"""A progress that nobody watches."""

from __future__ import annotations


class Quiet:
    """Watches a scan, and shows nothing."""

    def phase(self, name: str, total: int | None) -> None:
        pass

    def step(self) -> None:
        pass
