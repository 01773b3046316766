"""The daemon: runs syncs by the timetable, again when pulls free, and again after a failure.

Effects are arguments, so that days pass in a test at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from prewarm.budget import Moment
from prewarm.clock import Clock
from prewarm.errors import ConfigError, PrewarmError, Problem
from prewarm.plan import Defer
from prewarm.report import Report, sentence, when
from prewarm.settings import Settings
from prewarm.timetable import Timetable

log = logging.getLogger("prewarm")

SLICE: Final = 30.0
"""Seconds: the longest wait before the clocks are compared, as suspend and steps wake nobody."""
SLACK: Final = 900.0
"""Seconds that a run may take beyond `limits.run_time`, or the loop beyond a slice."""
_STEP_BACK: Final = 3600.0
"""A clock set back by more had been wrong: the times of day that it showed count no more."""
_WAKE_LEAST: Final = 60.0
_RETRY_MOST: Final = 3600.0
_DOWN: Final = frozenset(
    {"unreachable", "timeout", "reset", "proxy", "server-error", "rate-limit", "error"}
)
"""Failures of a server that may be over soon, whichever server it is."""


@dataclass
class Daemon:
    """The loop of `prewarm run`."""

    settings: Settings
    run_sync: Callable[[Settings], Report]
    load: Callable[[], Settings]
    """Reads images.yml again; ConfigError where it is invalid."""
    clock: Clock
    wait: Callable[[float], None]
    """Waits so many seconds, less where a signal comes."""
    stopping: Callable[[], bool]
    reload_asked: Callable[[], bool]
    """Whether SIGHUP came since it was asked last."""
    tell: Callable[[str], None] = lambda _: None
    """Tells the supervisor its status."""
    alive: Callable[[float], None] = lambda _: None
    """Progress was made; the next comes within so many seconds."""
    reloading: Callable[[bool], None] = lambda _: None
    """Tells the supervisor that a reload begins (true) or is over."""
    _failures: int = 0
    _again: Moment | None = None
    _again_after: float = 0.0
    _fault: str = ""
    _told: str = field(default="", repr=False)

    def serve(self, started: float | None) -> None:
        """Run until it is stopped; `started`: when the last run did, seconds since the epoch."""
        now = self.clock()
        self._last = _anchored(started, now)
        self._covered = now.wall if started is None else started
        self._timetable = self._times()
        while not self.stopping():
            if self.reload_asked():
                self._reload()
            now = self.clock()
            left = self._left(now)
            if left <= 0:
                self._run(now)
                continue
            self._say(f"next sync {when(now.wall + left)}")
            self.alive(SLICE + SLACK)
            self.wait(min(left, SLICE))

    def _times(self) -> Timetable:
        return Timetable(self.settings.schedule, self.settings.timezone)

    def _left(self, now: Moment) -> float:
        if self._covered - now.wall > _STEP_BACK:
            self._covered = now.wall
        left = self._timetable.seconds_left(now, self._last, self._covered)
        if self._again is not None:
            left = min(left, self._again_after - now.since(self._again))
        return left

    def _run(self, now: Moment) -> None:
        self._last, self._again = now, None
        self._covered = max(self._covered, now.wall)
        self._say("syncing")
        self.alive(self.settings.limits.run_time + SLACK)
        try:
            report = self.run_sync(self.settings)
        except PrewarmError as error:
            if not self.stopping():
                log.error("the sync failed: %s", error)
                self._retry()
            return
        except Exception:
            log.exception("a bug met the sync")
            self._retry()
            return
        log.info("%s", sentence(report))
        for problem in report.problems:
            log.log(
                logging.ERROR if problem.severity == "error" else logging.WARNING, "%s", problem
            )
        if report.exit_code == 3 or any(map(_may_pass, report.problems)):
            self._retry()
        else:
            # What a person must cure, such as a wrong pin, waits for the timetable.
            self._failures = 0
        self._wake_for_pulls(report)

    def _retry(self) -> None:
        after = min(60.0 * 2 ** min(self._failures, 10), _RETRY_MOST)
        self._failures += 1
        self._again, self._again_after = self.clock(), after
        log.info("trying again in %.0f min at the latest", after / 60)

    def _wake_for_pulls(self, report: Report) -> None:
        """Wake when the window has room again, for the first that waits for it."""
        untils = [
            outcome.step.until
            for outcome in report.outcomes
            if isinstance(outcome.step, Defer)
            and outcome.step.code == "budget"
            and outcome.step.until is not None
        ]
        if untils:
            after = max(min(untils) - report.finished, _WAKE_LEAST)
            if self._again is None or after < self._again_after:
                self._again, self._again_after = self.clock(), after

    def _reload(self) -> None:
        self.reloading(True)
        try:
            self.settings = self.load()
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", _line(problem))
            self._fault = f"; kept the old images.yml: {_line(error.problems[0])}"
        except PrewarmError as error:
            log.error("%s", error)
            self._fault = f"; kept the old images.yml: {error}"
        else:
            for problem in self.settings.problems:
                log.error("%s", _line(problem))
            self._fault = ""
            self._timetable = self._times()
            log.info("read %s again", self.settings.path)
        self.reloading(False)

    def _say(self, text: str) -> None:
        told = text + self._fault
        if told != self._told:
            self._told = told
            self.tell(told)


def _line(problem: Problem) -> str:
    return ", ".join(filter(None, (f"{problem.where}: {problem.problem}", problem.cure)))


def _may_pass(problem: Problem) -> bool:
    bare = problem.code.removeprefix("mirror-").removeprefix("gitlab-")
    return problem.severity == "error" and bare in _DOWN


def _anchored(started: float | None, now: Moment) -> Moment | None:
    """Return a time of the wall clock by the clock that no step moves."""
    if started is None:
        return None
    return Moment(started, now.boot_id, now.boot - max(0.0, now.wall - started))
