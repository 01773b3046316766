"""The daemon: runs syncs by the timetable, again when pulls free, and again after a failure.

Effects are arguments, so that days pass in a test at once.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from prewarm.core.budget import Moment
from prewarm.core.errors import AlreadyRunningError, ConfigError, PrewarmError, Problem
from prewarm.core.records import Run
from prewarm.core.settings import Settings
from prewarm.core.text import printable, when
from prewarm.planning.plan import Defer
from prewarm.planning.schedule import Timetable
from prewarm.reports.report import Report, sentence
from prewarm.state.clock import Clock

log = logging.getLogger("prewarm")

SLICE: Final = 30.0
"""Seconds: the longest wait before the clocks are compared, as suspend and steps wake nobody."""
_LAP: Final = 2 * SLICE
"""Seconds that the loop may take to come round, where it runs no sync."""
_DAY: Final = 86400.0
"""Seconds that a sync may take beyond `limits.run_time`, in which its copies begin: for the scan
before them and the last of them, which `limits.image_size` lets take hours."""
_STEP_BACK: Final = 3600.0
"""A clock set back by more had been wrong: the times of day that it showed count no more."""
_ROUNDED: Final = 1e-3
"""Seconds: the timetable rounds to less, so a time may be due as much before it comes."""
_WAKE_LEAST: Final = 900.0
"""Seconds: pulls that free one by one are gathered, as each sync asks for every image."""
_ASK_AGAIN: Final = 3600.0
"""Seconds after which an upstream that gave no more is asked, by HEADs, whether it gives again: it
tells no time, as others spend its quota, too."""
_BUSY: Final = 60.0
"""Seconds after which a lock that another sync holds is tried again; that costs next to nothing."""
_RETRY_MOST: Final = 3600.0
_DOWN: Final = frozenset(
    {
        "unreachable",
        "timeout",
        "too-slow",
        "slow",
        "reset",
        "proxy",
        "server-error",
        "rate-limit",
        "error",
    }
)
"""Failures of a server that may be over soon, whichever server it is."""
_WINDOWED: Final = frozenset({"budget", "project-share"})
"""Codes of what is deferred until pulls leave the window."""
_UPSTREAM_SAID: Final = frozenset({"upstream-quota", "abuse-limit"})
"""Codes of what is deferred because an upstream gave no more."""


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
    _busy: bool = False
    """Another sync held a lock when it was tried last."""
    _fault: str = ""
    _told: str = field(default="", repr=False)

    def serve(self, started: float | None, *, unfinished: bool = False) -> None:
        """Run until it is stopped; `started`: when the last run did, seconds since the epoch.

        One that left something to be done (`unfinished`) is gone on with at once.
        """
        now = self.clock()
        self._last = _anchored(started, now)
        self._covered = now.wall if started is None else started
        self._timetable = self._times()
        if unfinished:
            self._again, self._again_after = now, 0.0
        while not self.stopping():
            self.alive(_LAP)
            if self.reload_asked():
                self._reload()
            now = self.clock()
            left = self._left(now)
            if left <= 0:
                self._run(now)
                continue
            self._say(f"next sync {when(round(now.wall + left))}")
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
        self._covered = max(self._covered, now.wall + _ROUNDED)
        self._say("syncing")
        self.alive(self.settings.limits.run_time + _DAY)
        try:
            report = self.run_sync(self.settings)
        except AlreadyRunningError as error:
            level = logging.DEBUG if self._busy else logging.WARNING
            log.log(level, "%s; the sync is tried again every minute", error.text)
            self._busy = True
            self._wake(_BUSY)
            return
        except PrewarmError as error:
            if not self.stopping():
                log.error("the sync failed: %s", printable(str(error)))
                self._retry()
            return
        except Exception:
            log.exception("a bug met the sync")
            self._retry()
            return
        self._busy = False
        self._tell(report)
        if report.ended is None:
            self._after(report)

    def _tell(self, report: Report) -> None:
        log.info("%s", sentence(report))
        for problem in report.problems:
            level = logging.ERROR if problem.severity == "error" else logging.WARNING
            log.log(level, "%s", printable(str(problem)))

    def _after(self, report: Report) -> None:
        """Wake before the timetable does, where that may help."""
        if report.exit_code == 3 or any(map(_may_pass, report.problems)):
            self._retry()
        else:
            # What a person must cure, such as a wrong pin, waits for the timetable.
            self._failures = 0
        deferred = [one.step for one in report.outcomes if isinstance(one.step, Defer)]
        untils = [step.until for step in deferred if step.code in _WINDOWED and step.until]
        if untils:
            self._wake(max(min(untils) - report.finished, _WAKE_LEAST))
        if any(step.code in _UPSTREAM_SAID for step in deferred):
            self._wake(_ASK_AGAIN)

    def _retry(self) -> None:
        after = min(60.0 * 2 ** min(self._failures, 10), _RETRY_MOST)
        self._failures += 1
        self._wake(after)
        log.info("trying again in %.0f min at the latest", after / 60)

    def _wake(self, after: float) -> None:
        """Run again after so many seconds, if nothing makes it run before."""
        if self._again is None or after < self._again_after:
            self._again, self._again_after = self.clock(), after

    def _reload(self) -> None:
        self.reloading(True)
        try:
            self.settings = self.load()
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", printable(problem.line))
            self._keep(error.problems[0].line)
        except PrewarmError as error:
            log.error("%s", printable(str(error)))
            self._keep(str(error))
        else:
            for problem in self.settings.problems:
                log.error("%s", printable(problem.line))
            self._fault = ""
            self._retime()
            log.info("read %s again", self.settings.path)
        self.reloading(False)

    def _keep(self, why: str) -> None:
        log.error("kept the old images.yml, as %s has errors", self.settings.path)
        self._fault = f"; kept the old images.yml: {why}"

    def _retime(self) -> None:
        """Go by the new timetable; a time of today that it names anew has not been missed."""
        now = self.clock()
        if self._left(now) > 0:
            self._covered = max(self._covered, now.wall)
        self._timetable = self._times()

    def _say(self, text: str) -> None:
        told = text + self._fault
        if told != self._told:
            self._told = told
            self.tell(told)
            log.info("%s", printable(text))


def last_run(runs: Iterable[Run]) -> tuple[float | None, bool]:
    """Return when the last run of all that is wanted began, and whether it left anything to do.

    `runs` are the newest first, and read as far as need be. A run of named images alone does not
    count, nor does one that was cut short, but that it is to be gone on with.
    """
    cut = False
    for run in runs:
        if not run.whole:
            continue
        document = json.loads(run.report or "{}")
        if run.exit_code is not None and run.exit_code < 128:
            deferred = document.get("summary", {}).get("deferred", 0)
            return run.started, cut or run.exit_code != 0 or deferred > 0
        cut = True
    return None, cut


def _may_pass(problem: Problem) -> bool:
    bare = re.sub(r"\A(mirror|gitlab|state)-", "", problem.code)
    return problem.severity == "error" and bare in _DOWN


def _anchored(started: float | None, now: Moment) -> Moment | None:
    """Return a time of the wall clock by the clock that no step moves."""
    if started is None:
        return None
    return Moment(started, now.boot_id, now.boot - max(0.0, now.wall - started))
