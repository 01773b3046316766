"""The daemon, driven for simulated days: the clock is a value, and waiting moves it."""

from __future__ import annotations

import itertools
import json
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.budget import Moment
from prewarm.core.errors import AlreadyRunningError, ConfigError, PrewarmError, Problem
from prewarm.core.records import Run
from prewarm.core.reference import parse
from prewarm.core.settings import Settings
from prewarm.daemon.loop import Daemon, last_run
from prewarm.planning.demand import Want
from prewarm.planning.outcome import Outcome
from prewarm.planning.plan import Defer, Seen
from prewarm.reports.report import Report

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
        self.allowed: list[float] = []
        """Within how many seconds the watchdog was told to expect the next word."""
        self.seen: list[float] = []
        """What the wall clock showed whenever time had passed."""
        self.walls: list[float] = []
        """What it showed when each sync began."""
        self.laps = 0
        self.lasts = 0.0
        """Seconds that a sync takes."""
        self.events: list[tuple[float, Callable[[], None]]] = []
        self.outcome: Callable[[int], Report] = lambda _: self.report()
        self.new: Settings | ConfigError | None = None
        self.asked = False
        self.settings = Settings(Path("/images.yml"), schedule=schedule, timezone="UTC")

    def clock(self) -> Moment:
        return Moment(START + self.elapsed + self.step, "boot", self.elapsed)

    def report(
        self, *problems: Problem, until: float | None = None, code: str = "budget"
    ) -> Report:
        """Return a report; with `until`, or another code, of an image that waits."""
        now = self.clock().wall
        outcomes: tuple[Outcome, ...] = ()
        if until is not None or code != "budget":
            want = Want(parse("redis:7"), (), ("pin",), "images.yml:3")
            outcomes = (Outcome(Defer(want, Seen(), None, code, "", until), None, (), 0, 0),)
        return Report("r", False, now, now, {}, outcomes, problems)

    def wait(self, seconds: float) -> None:
        assert 0 < seconds <= 30
        self.laps += 1
        self.pass_by(seconds)

    def pass_by(self, seconds: float) -> None:
        self.elapsed += max(seconds, 1e-3)  # some time always passes
        while self.events and self.events[0][0] * HOUR <= self.elapsed:
            self.events.pop(0)[1]()
        self.seen.append(self.clock().wall)

    def sync(self, settings: Settings) -> Report:
        self.runs.append(round(self.elapsed / HOUR, 2))
        self.walls.append(self.clock().wall)
        self.used.append(settings)
        if self.lasts:
            self.pass_by(self.lasts)
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

    def live(
        self, hours: float, started: float | None = START, *, unfinished: bool = False
    ) -> list[float]:
        Daemon(
            self.settings,
            self.sync,
            self.load,
            self.clock,
            self.wait,
            lambda: self.elapsed >= hours * HOUR,
            self.reload_asked,
            tell=self.told.append,
            alive=self.allowed.append,
        ).serve(started, unfinished=unfinished)
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


@pytest.mark.parametrize(("until", "second"), [(HOUR, 2), (-5, 1.25)])
def test_serve_wakes_when_pulls_free(until: float, second: float) -> None:
    world = World("01:00")
    world.outcome = lambda run: world.report(until=world.clock().wall + until if run == 1 else None)
    assert world.live(20) == [1, second]


def test_serve_wakes_when_a_project_has_its_share_again() -> None:
    world = World("every 1d")
    world.outcome = lambda run: (
        world.report(until=START + 30 * HOUR, code="project-share") if run == 1 else world.report()
    )
    assert world.live(40) == [24, 30]


def test_serve_of_a_failure_tries_again_later_and_later() -> None:
    world = World("00:30")

    def fail(run: int) -> Report:
        if run % 3 == 0:
            return world.report(DOWN)
        if run % 3 == 1:
            raise RuntimeError("a bug")
        raise PrewarmError("state", "the disk is full", "free some")

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
    assert "images.yml:7: skop: unknown, write skip" in caplog.messages
    assert "kept the old images.yml: images.yml:7" in world.told[-1]


def test_serve_of_a_reload_takes_a_time_that_was_not_in_the_old_for_tomorrows() -> None:
    world = World("19:00")
    world.after(10, lambda: world.hang_up(replace(world.settings, schedule=("09:00", "20:00"))))
    assert world.live(35) == [20, 33]


def test_serve_of_a_reload_keeps_what_was_missed_in_suspend() -> None:
    world = World("19:00")

    def wake() -> None:
        world.move(asleep=12)
        world.hang_up(replace(world.settings, schedule=("20:00",)))

    world.after(10, wake)
    assert world.live(23)[0] == 22


@pytest.mark.parametrize("code", ["upstream-quota", "abuse-limit"])
def test_serve_of_what_upstream_gave_no_more_asks_again_within_the_hour(code: str) -> None:
    world = World("01:00")
    world.outcome = lambda run: world.report(code=code) if run < 4 else world.report()
    assert world.live(20) == [1, 2, 3, 4]


def test_serve_of_what_no_window_ever_holds_waits_for_the_timetable() -> None:
    world = World("01:00")
    world.outcome = lambda _: world.report(code="run-time")
    assert world.live(20) == [1]


def test_serve_while_another_sync_runs_tries_every_minute_and_says_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World("01:00")

    def held(run: int) -> Report:
        if world.elapsed < 3 * HOUR:
            raise AlreadyRunningError("already-running", "it is held by process 7", "wait")
        return world.report()

    world.outcome = held
    with caplog.at_level(logging.INFO, "prewarm"):
        runs = world.live(20)
    assert runs[:2] == [1, 1.02]
    assert runs[-1] == 3
    assert max(b - a for a, b in itertools.pairwise(runs)) < 0.03
    assert caplog.text.count("it is held by process 7") == 1


def test_serve_of_an_unfinished_run_goes_on_at_once() -> None:
    assert World("19:00").live(20, unfinished=True) == [0, 19]


def test_serve_stopped_in_a_sync_ends_without_another() -> None:
    world = World("01:00")
    world.outcome = lambda _: replace(world.report(DOWN), ended=143)
    assert world.live(1) == []
    world.lasts = 2 * HOUR
    assert world.live(2) == [1]


def test_serve_lets_the_watchdog_wait_for_a_lap_or_for_a_sync() -> None:
    world = World("01:00")
    world.live(2)
    laps, syncs = [s for s in world.allowed if s <= 60], [s for s in world.allowed if s > 60]
    assert len(laps) > 200
    assert syncs == [world.settings.limits.run_time + 24 * HOUR]


@pytest.mark.parametrize(
    ("day", "entry", "runs"),
    [
        pytest.param("2026-03-28", "02:30", ["28 02:30", "29 03:00", "30 02:30"], id="skipped"),
        pytest.param("2026-10-24", "02:30", ["24 02:30", "25 02:30", "26 02:30"], id="doubled"),
        pytest.param("2026-03-28", "19:00", ["28 19:00", "29 19:00", "30 19:00"], id="day of 23 h"),
        pytest.param("2026-10-24", "19:00", ["24 19:00", "25 19:00", "26 19:00"], id="day of 25 h"),
    ],
)
def test_serve_over_a_change_of_the_clocks_runs_each_day_once(
    day: str, entry: str, runs: list[str]
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    world = World(entry)
    world.settings = replace(world.settings, timezone=zone.key)
    world.step = datetime.fromisoformat(day).replace(tzinfo=zone).timestamp() - START
    world.live(71, START + world.step)
    assert [f"{datetime.fromtimestamp(at, zone):%d %H:%M}" for at in world.walls] == runs


# -- simulated days -----------------------------------------------------------------------------

TIMES = st.lists(
    st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59)),
    min_size=1,
    max_size=4,
    unique=True,
)
NAPS = st.lists(st.tuples(st.floats(0.1, 60), st.floats(0.1, 40)), max_size=4)
"""When (hours) the machine sleeps, and how long."""
STEPS = st.lists(st.tuples(st.floats(0.1, 60), st.floats(-0.45, 30)), max_size=2)
"""When (hours) the wall clock is set, and by how much; together not an hour back."""
DAYS = 50.0
"""Hours."""
few = settings(max_examples=20, deadline=None)
"""Each of many thousand laps."""


def instants(times: Iterable[str], until: float) -> list[float]:
    """Return every moment after START at which one of the times of day is, in UTC."""
    found = []
    for text in times:
        hours, minutes = map(int, text.split(":"))
        at = START + hours * HOUR + minutes * 60
        while at <= until:
            found.append(at)
            at += 24 * HOUR
    return sorted(one for one in found if one > START)


def disturb(
    world: World, naps: Iterable[tuple[float, float]], steps: Iterable[tuple[float, float]]
) -> None:
    for at, asleep in naps:
        world.after(at, partial(world.move, asleep=asleep))
    for at, step in steps:
        world.after(at, partial(world.move, step=step))
    world.events.sort(key=lambda event: event[0])


def outcome_of(world: World, kind: str) -> Report:
    match kind:
        case "bug":
            raise RuntimeError("a bug")
        case "busy":
            raise AlreadyRunningError("already-running", "it is held", "wait")
        case "broken":
            raise PrewarmError("state", "the disk is full", "free some")
        case "down":
            return world.report(DOWN)
        case "wrong":
            return world.report(WRONG)
        case "quota":
            return world.report(code="upstream-quota")
        case "budget":
            return world.report(until=world.clock().wall + 40)
    return world.report()


@few
@given(TIMES, NAPS, STEPS, st.floats(0, 2 * HOUR))
def test_serve_for_days_runs_once_for_each_time_that_the_clock_passes(
    times: list[str],
    naps: list[tuple[float, float]],
    steps: list[tuple[float, float]],
    lasts: float,
) -> None:
    world = World(*times)
    world.lasts = lasts
    disturb(world, naps, steps)
    world.live(DAYS)
    due = instants(times, max(world.seen))
    expected, covered = [], START
    for wall in world.seen:
        if bisect_right(due, wall + 1e-3) > bisect_right(due, covered):
            expected.append(wall)
            covered = wall + 1e-3
    if expected and expected[-1] == world.seen[-1]:
        expected.pop()  # the end came first
    # A look within a millisecond of a time may be taken for it, or the next one is.
    assert world.walls == pytest.approx(expected, rel=0, abs=0.01)


@few
@given(st.integers(1, 30), NAPS, STEPS)
def test_serve_for_days_keeps_the_distance_of_every(
    hours: int, naps: list[tuple[float, float]], steps: list[tuple[float, float]]
) -> None:
    world = World(f"every {hours}h")
    disturb(world, naps, steps)
    runs = world.live(DAYS)
    longest = 0.01 + max((asleep for _, asleep in naps), default=0) * len(naps)
    for before, after in itertools.pairwise([0.0, *runs, world.elapsed / HOUR]):
        assert after - before <= hours + longest + 0.02
    for before, after in itertools.pairwise([0.0, *runs]):
        assert after - before >= hours - 0.02


KINDS = st.sampled_from(["good", "bug", "busy", "broken", "down", "wrong", "quota", "budget"])


@few
@given(TIMES, NAPS, STEPS, st.lists(KINDS, min_size=1, max_size=6))
def test_serve_for_days_of_trouble_misses_no_time_and_never_spins(
    times: list[str],
    naps: list[tuple[float, float]],
    steps: list[tuple[float, float]],
    kinds: list[str],
) -> None:
    world = World(*times)
    disturb(world, naps, steps)
    outcomes = itertools.cycle(kinds)
    world.outcome = lambda _: outcome_of(world, next(outcomes))
    runs = world.live(DAYS)
    last = world.seen[-1]
    for one in instants(times, max(world.seen)):
        # A sync began when the clock first showed it or more.
        first = next(wall for wall in world.seen if wall >= one)
        assert first == last or any(one - 1e-3 <= wall <= first for wall in world.walls)
    awake = min(world.elapsed, DAYS * HOUR)
    assert world.laps <= awake / 30 + len(runs) + len(naps) + 1
    scheduled = len(instants(times, max(world.seen)))
    assert len(runs) <= awake / 60 + scheduled
    if "busy" not in kinds:
        # Densest: a wake for pulls after 15 min, then retries after 1, 2 and 4.
        assert len(runs) <= awake / 300 + 6 * (1 + scheduled)


# -- the run before -----------------------------------------------------------------------------


def run(started: float, code: int | None, *, whole: bool = True, deferred: int = 0) -> Run:
    report = json.dumps({"summary": {"deferred": deferred}})
    return Run("r", started, None, code, None if code is None else report, whole)


@pytest.mark.parametrize(
    ("runs", "found"),
    [
        pytest.param([], (None, False), id="none"),
        pytest.param([run(9, 0)], (9, False), id="good"),
        pytest.param([run(9, 1)], (9, True), id="failed"),
        pytest.param([run(9, 0, deferred=2)], (9, True), id="deferred"),
        pytest.param([run(9, 0, whole=False), run(5, 0)], (5, False), id="of named images"),
        pytest.param([run(9, 1, whole=False), run(5, 0)], (5, False), id="of named images, failed"),
        pytest.param([run(9, None), run(5, 0)], (5, True), id="killed"),
        pytest.param([run(9, 143), run(5, 0)], (5, True), id="terminated"),
        pytest.param([run(9, 143, whole=False), run(5, 0)], (5, False), id="terminated by hand"),
        pytest.param([run(9, None)], (None, True), id="killed, and none before"),
    ],
)
def test_last_run_is_the_newest_of_all_that_is_wanted(
    runs: list[Run], found: tuple[float | None, bool]
) -> None:
    assert last_run(runs) == found


def test_serve_tells_when_the_next_sync_is_once() -> None:
    world = World("19:00")
    world.elapsed = 0.123456789
    world.live(18)
    assert world.told == ["next sync Mon 05 Jan 19:00 UTC"]
