"""The daemon, driven for simulated days: the clock is a value, and waiting moves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from prewarm.budget import Moment
from prewarm.copying import Outcome
from prewarm.daemon import Daemon
from prewarm.demand import Want
from prewarm.errors import AlreadyRunningError, ConfigError, Problem
from prewarm.plan import Defer, Seen
from prewarm.reference import parse
from prewarm.report import Report
from prewarm.settings import Settings

START = 1_767_571_200.0
"""2026-01-05 00:00 UTC."""
HOUR = 3600.0
DOWN = Problem("error", "mirror-unreachable", "http://m", "no connection", "start it")
WRONG = Problem("error", "not-found", "images.yml:3", "no such image", "correct it")


class World:
    """A machine with a clock that tests move; `events` happen at hours of elapsed time."""

    def __init__(self, *schedule: str) -> None:
        self.elapsed, self.step = 0.0, 0.0
        self.runs: list[float] = []
        """The elapsed hours at which a sync began."""
        self.used: list[Settings] = []
        self.told: list[str] = []
        self.events: list[tuple[float, Callable[[], None]]] = []
        self.outcome: Callable[[int], Report] = lambda _: self.report()
        self.new: Settings | ConfigError | None = None
        self.asked = False
        self.settings = Settings(Path("/images.yml"), schedule=schedule, timezone="UTC")

    def clock(self) -> Moment:
        return Moment(START + self.elapsed + self.step, "boot", self.elapsed)

    def report(self, *problems: Problem, until: float | None = None) -> Report:
        now = self.clock().wall
        outcomes: tuple[Outcome, ...] = ()
        if until is not None:
            want = Want(parse("redis:7"), (), ("pin",), "images.yml:3")
            outcomes = (Outcome(Defer(want, Seen(), None, "budget", "", until), None, (), 0, 0),)
        return Report("r", False, now, now, {}, outcomes, problems)

    def wait(self, seconds: float) -> None:
        assert 0 < seconds <= 30
        self.elapsed += seconds
        while self.events and self.events[0][0] * HOUR <= self.elapsed:
            self.events.pop(0)[1]()

    def sync(self, settings: Settings) -> Report:
        self.runs.append(round(self.elapsed / HOUR, 2))
        self.used.append(settings)
        return self.outcome(len(self.runs))

    def load(self) -> Settings:
        if isinstance(self.new, ConfigError):
            raise self.new
        assert self.new is not None
        return self.new

    def reload_asked(self) -> bool:
        was, self.asked = self.asked, False
        return was

    def after(self, hours: float, event: Callable[[], None]) -> None:
        self.events.append((hours, event))

    def hang_up(self, new: Settings | ConfigError) -> None:
        self.new, self.asked = new, True

    def move(self, *, step: float = 0.0, asleep: float = 0.0) -> None:
        self.step += step * HOUR
        self.elapsed += asleep * HOUR

    def live(self, hours: float, started: float | None = START) -> list[float]:
        Daemon(
            self.settings,
            self.sync,
            self.load,
            self.clock,
            self.wait,
            lambda: self.elapsed >= hours * HOUR,
            self.reload_asked,
            tell=self.told.append,
        ).serve(started)
        return self.runs


def test_serve_of_nothing_written_runs_every_six_hours() -> None:
    assert World().live(20) == [6, 12, 18]


@pytest.mark.parametrize(
    ("started", "first"), [(None, 0), (START - 7 * HOUR, 0), (START - 2 * HOUR, 4)]
)
def test_serve_of_every_counts_from_the_last_run(started: float | None, first: float) -> None:
    assert World("every 6h").live(5, started) == [first]


def test_serve_of_times_of_day_runs_each_once_a_day() -> None:
    assert World("19:00", "01:05").live(49) == [1.08, 19, 25.08, 43]


@pytest.mark.parametrize(
    ("started", "runs"), [(None, []), (START - 1 * HOUR, []), (START - 6 * HOUR, [0])]
)
def test_serve_started_after_a_time_that_was_missed_runs_once(
    started: float | None, runs: list[float]
) -> None:
    assert World("19:00").live(3, started) == runs


def test_serve_suspended_over_times_runs_once_on_waking() -> None:
    world = World("09:00", "10:00")
    world.after(8, lambda: world.move(asleep=50))
    assert world.live(70) == [58]


def test_serve_with_the_clock_set_back_by_minutes_runs_an_entry_once() -> None:
    world = World("01:00", "every 6h")
    world.after(1.1, lambda: world.move(step=-0.5))
    assert world.live(8) == [1, 7]


def test_serve_with_the_clock_set_back_by_days_sleeps_no_longer() -> None:
    world = World("19:00")
    world.after(1, lambda: world.move(step=24 * 30))
    world.after(2, lambda: world.move(step=-24 * 30))
    assert world.live(44) == [1, 19, 43]


def test_serve_with_the_clock_set_forward_keeps_the_distance_of_every() -> None:
    world = World("every 6h")
    world.after(1, lambda: world.move(step=100))
    assert world.live(13) == [6, 12]


@pytest.mark.parametrize(("until", "second"), [(HOUR, 2), (-5, 1.02)])
def test_serve_wakes_when_pulls_free(until: float, second: float) -> None:
    world = World("01:00")
    world.outcome = lambda run: world.report(until=world.clock().wall + until if run == 1 else None)
    assert world.live(20) == [1, second]


def test_serve_of_a_failure_tries_again_later_and_later() -> None:
    world = World("00:30")

    def fail(run: int) -> Report:
        if run % 3 == 0:
            return world.report(DOWN)
        if run % 3 == 1:
            raise RuntimeError("a bug")
        raise AlreadyRunningError("already-running", "it is held", "wait")

    world.outcome = fail
    minutes = [round(60 * (b - a)) for a, b in zip(world.live(6), world.runs[1:], strict=False)]
    assert minutes[:4] == [1, 2, 4, 8]
    assert max(minutes) == 60


def test_serve_of_a_wrong_pin_waits_for_the_timetable() -> None:
    world = World("every 6h")
    world.outcome = lambda _: world.report(WRONG)
    assert world.live(13) == [6, 12]


def test_serve_of_a_reload_uses_the_new_timetable_at_once() -> None:
    world = World("every 6h")
    new = replace(world.settings, schedule=("every 2h",))
    world.after(1, lambda: world.hang_up(new))
    assert world.live(5) == [2, 4]
    assert world.used == [new, new]


def test_serve_of_a_bad_reload_keeps_the_old_and_tells_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World("every 6h")
    bad = ConfigError((Problem("error", "config", "images.yml:7", "skop: unknown", "write skip"),))
    world.after(1, lambda: world.hang_up(bad))
    assert world.live(7) == [6]
    assert world.used == [world.settings]
    assert "images.yml:7: skop: unknown, write skip" in caplog.text
    assert "kept the old images.yml: images.yml:7" in world.told[-1]
