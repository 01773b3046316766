"""When the entries of `schedule:` are due, over suspend, steps and both changes of the clocks."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from prewarm.core.budget import Moment
from prewarm.planning.schedule import Timetable

BERLIN = "Europe/Berlin"


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("UTC")).timestamp()


@pytest.mark.parametrize(
    ("entry", "covered", "due"),
    [
        pytest.param("19:00", "2026-01-05T12:00", "2026-01-05T18:00", id="winter"),
        pytest.param("19:00", "2026-07-05T12:00", "2026-07-05T17:00", id="summer"),
        pytest.param("19:00", "2026-01-05T18:00", "2026-01-06T18:00", id="done today"),
        pytest.param("00:30", "2026-01-05T23:00", "2026-01-05T23:30", id="next day there"),
        pytest.param("02:30", "2026-03-28T12:00", "2026-03-29T01:00", id="skipped"),
        pytest.param("02:30", "2026-03-29T01:00", "2026-03-30T00:30", id="after skipped"),
        pytest.param("02:30", "2026-10-24T12:00", "2026-10-25T00:30", id="doubled"),
        pytest.param("02:30", "2026-10-25T00:30", "2026-10-26T01:30", id="doubled once"),
    ],
)
def test_seconds_left_to_a_time_of_day_is_by_its_zone(entry: str, covered: str, due: str) -> None:
    now = Moment(at(covered), "b", 0)
    left = Timetable([entry], BERLIN).seconds_left(now, now, at(covered))
    assert now.wall + left == at(due)


def test_seconds_left_to_a_missed_time_is_none() -> None:
    now = Moment(at("2026-01-08T09:00"), "b", 0)
    assert Timetable(["19:00"], BERLIN).seconds_left(now, now, at("2026-01-05T12:00")) <= 0


@pytest.mark.parametrize("entries", [(), ("every 6h",), ("every 9h", "every 6h")])
def test_seconds_left_of_every_counts_by_the_boot_clock(entries: tuple[str, ...]) -> None:
    last, now = Moment(1e9, "b", 100), Moment(1e9 - 5000, "b", 3700)
    assert Timetable(entries).seconds_left(now, last, 0) == 5 * 3600


def test_seconds_left_of_every_without_a_run_is_none() -> None:
    assert Timetable(()).seconds_left(Moment(1e9, "b", 0), None, 1e9) == 0
