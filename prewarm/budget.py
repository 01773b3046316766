"""Budgets: how many pulls a rolling window still has, and when it has more (pure)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, by two clocks: within one boot the boot clock tells, across boots the wall.

    DESIGN.md, 1.7: the promise about the budget is about elapsed time, whatever is done to the
    wall clock.
    """

    wall: float
    """Seconds since the epoch."""
    boot_id: str
    boot: float
    """Seconds since this boot, suspend included (CLOCK_BOOTTIME)."""

    def since(self, earlier: Moment) -> float:
        """Return the seconds from `earlier` to here; never negative (the future is now)."""
        if self.boot_id == earlier.boot_id:
            return max(0.0, self.boot - earlier.boot)
        return max(0.0, self.wall - earlier.wall)


@dataclass(frozen=True, slots=True)
class Limit:
    """What an upstream reports about its quota on an answer (`ratelimit-limit: 100;w=21600`)."""

    limit: int | None
    window: int | None
    """Seconds, from `w=`; None where the header does not say."""
    remaining: int
    """May be negative."""
    source: str
    """`docker-ratelimit-source`: an address for anonymous pulls, an account's id, or empty."""
