"""The clock: the only place where the time is read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from prewarm.core.budget import Moment

Clock = Callable[[], Moment]


def now() -> Moment:
    """Return this moment by the wall clock and by the clock that runs on through suspend."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Moment(time.time(), boot_id, time.clock_gettime(time.CLOCK_BOOTTIME))
