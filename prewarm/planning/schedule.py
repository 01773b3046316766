"""The schedule: when the entries of `schedule:` are due.

The entries are jobs of a Scheduler of the `schedule` package. Their times are set here: the package
reads the machine's clock itself, and knows time zones only with pytz.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import schedule

from prewarm.core.budget import Moment
from prewarm.core.text import parse_duration

DEFAULT: Final = ("every 6h",)
"""Where nothing is written: once per window of Docker Hub."""
_EVERY: Final = "every "


class Timetable:
    """The entries of `schedule:`, as `settings` holds them; `zone` None is the machine's."""

    def __init__(self, entries: Iterable[str], zone: str | None = None) -> None:
        self._zone = ZoneInfo(zone) if zone is not None else None
        self._scheduler = schedule.Scheduler()
        for entry in tuple(entries) or DEFAULT:
            self._add(entry)

    def _add(self, entry: str) -> None:
        if entry.startswith(_EVERY):
            job = self._scheduler.every(parse_duration(entry.removeprefix(_EVERY))).seconds
        else:
            job = self._scheduler.every().day.at(entry)
        job.do(str).tag(entry)

    def seconds_left(self, now: Moment, last: Moment | None, covered: float) -> float:
        """Return the seconds until the next entry is due; 0 or less: it is due.

        `last` is the start of the last run, from which `every` counts by the clock that no step
        moves; `covered` is the time of day (seconds since the epoch) up to which every daily time
        has had its run.
        """
        for job in self._scheduler.jobs:
            if job.at_time is None:
                left = 0.0 if last is None else job.interval - now.since(last)
            else:
                left = self._next(job.at_time, covered) - now.wall
            job.next_run = _naive(now.wall + left)
        due = self._scheduler.next_run
        assert due is not None, "there is an entry"
        wait: timedelta = due - _naive(now.wall)
        return wait.total_seconds()

    def _next(self, at: time, after: float) -> float:
        """Return the first moment after `after` that is this time of day."""
        day = datetime.fromtimestamp(after, self._zone).replace(tzinfo=None, fold=0)
        for days in (-1, 0, 1, 2):
            moment = self._moment(datetime.combine(day.date() + timedelta(days), at))
            if moment > after:
                return moment
        raise AssertionError("one of four days comes after the second")

    def _moment(self, local: datetime) -> float:
        """Return when the clocks on the wall show this: a doubled time is its first.

        A time that is skipped comes when they have skipped it.
        """
        first = local.replace(tzinfo=self._zone, fold=0).timestamp()
        second = local.replace(tzinfo=self._zone, fold=1).timestamp()
        if second >= first:
            return first
        low, high = round(second), round(first)  # the skip lies between the two readings
        before = self._offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._offset(middle) == before else (low, middle)
        return float(high)

    def _offset(self, at: float) -> timedelta | None:
        return datetime.fromtimestamp(at, UTC).astimezone(self._zone).utcoffset()


def _naive(at: float) -> datetime:
    """Return a moment as the `schedule` package holds it, but in UTC: without a zone."""
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
