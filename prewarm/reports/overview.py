"""The overview: what `prewarm report` shows of a state.

What `status --json` tells, too, is taken from there, so that the two cannot differ. The rest is
what the last syncs said of each image, and the pulls that the ledger holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from prewarm.core.budget import Moment, Spend, Window, loads
from prewarm.core.records import Run
from prewarm.core.reference import parse
from prewarm.core.settings import Mirror, Settings
from prewarm.core.usage import DAY, UsedImage
from prewarm.reports.coverage import uses_of
from prewarm.reports.status import Status, status_of, window_of
from prewarm.state.ledger import Ledger
from prewarm.state.location import StatePlace

SPENT_DAYS: Final = 7
"""So many whole days of pulls are shown, and today; more where windows are long."""
_RUNS: Final = 10


@dataclass(frozen=True, slots=True)
class SpentDay:
    """The pulls of one day (UTC)."""

    at: float
    """When it began, in epoch seconds."""
    pulls: int
    most: int
    """In any window that ended on that day."""


@dataclass(frozen=True, slots=True)
class Spending:
    """How one budget was used of late."""

    registry: str
    start: float
    """Of the first day (UTC), in epoch seconds."""
    steps: tuple[tuple[float, int], ...]
    """What the window held that ended then, until the next step; the last is now."""
    days: tuple[SpentDay, ...]
    """The oldest first, today last."""

    @property
    def most(self) -> int:
        """In any window of that time."""
        return max(pulls for _, pulls in self.steps)


@dataclass(frozen=True, slots=True)
class Shown:
    """An image that is wanted."""

    image: str
    """Fully qualified."""
    states: tuple[str | None, ...]
    """On each target mirror; None where the mirror is not for its registry."""
    used: UsedImage | None
    """None where no use is known."""
    told: Mapping[str, Any]
    """What the last sync that met it said of it, as in its report; empty where none did."""


@dataclass(frozen=True, slots=True)
class Overview:
    """All that the page shows. Times are epoch seconds; texts are anybody's."""

    now: float
    status: Status
    """Without sizes: to know them takes longer than all else."""
    history: int | None
    """Seconds of CI's history that count; None where no GitLab is named."""
    scanned: float | None
    """When the last scan of GitLab ended; None where none has."""
    spending: tuple[Spending, ...]
    """One for each budget of the status, in its order."""
    images: tuple[Shown, ...]
    """Those whose uses the coverage counts, the most used first; where no use is known, all that
    is wanted, in the order of the plan."""
    waiting: tuple[Mapping[str, Any], ...]
    """What was deferred, in the order of the plan, as in the report."""
    problems: tuple[Mapping[str, Any], ...]
    """Of the last sync of all that is wanted and of what came after it; errors first."""
    runs: tuple[Mapping[str, Any], ...]
    """As in the status, with the summary of the report and `problems`, their number."""


def overview_of(settings: Settings, ledger: Ledger, now: Moment, state: StatePlace) -> Overview:
    """Return what is to be seen at `now`; empty but whole where nothing has run yet."""
    status = status_of(settings, ledger, now, state, sizes=False)
    scan = ledger.last_scan()
    runs = ledger.runs(_RUNS)
    reports = {run.id: json.loads(run.report or "{}") for run in runs}
    latest = [reports[run.id] for run in _since_whole(ledger, runs)]
    told = {entry["image"]: entry for report in latest for entry in report.get("images", ())}
    return Overview(
        now.wall,
        status,
        settings.gitlab.history if settings.gitlab else None,
        scan.finished if scan is not None else None,
        tuple(
            _spending(ledger, registry, budget, window_of(settings, registry, budget), now)
            for registry, budget in status.document["budgets"].items()
        ),
        _images(settings, status, told),
        tuple(entry for entry in told.values() if entry["action"] == "defer"),
        _problems(latest),
        tuple(_run(one, reports.get(one["run"], {})) for one in status.document["runs"]),
    )


def _since_whole(ledger: Ledger, runs: tuple[Run, ...]) -> list[Run]:
    """The last run of all that is wanted, and those of named images after it, the oldest first."""
    whole = ledger.last_whole_run()
    if whole is None:
        return list(reversed(runs))
    later = [run for run in runs if (run.started, run.id) > (whole.started, whole.id)]
    return [whole, *reversed(later)]


def _run(one: Mapping[str, Any], report: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**one, **report.get("summary", {}), "problems": len(report.get("problems", ()))}


def _problems(reports: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    found = {
        (one["code"], one["where"], one["problem"]): one
        for report in reports
        for one in report.get("problems", ())
    }
    return tuple(sorted(found.values(), key=lambda one: str(one["severity"])))


def _images(
    settings: Settings, status: Status, told: Mapping[str, Mapping[str, Any]]
) -> tuple[Shown, ...]:
    targets = [mirror for mirror in settings.mirrors if mirror.role == "target"]
    states = {(one.image, one.mirror): one.state for one in status.known}
    uses = uses_of(settings, status.used)
    if uses:
        names = sorted(uses, key=lambda image: (-uses[image], image))
    else:
        names = list(dict.fromkeys((*told, *(one.image for one in status.known))))
    used = {one.reference: one for one in status.used if one.via is None and one.jobs}
    return tuple(
        Shown(
            name,
            _states(states, name, targets),
            used.get(name),
            told.get(name, {}),
        )
        for name in names
    )


def _states(
    states: Mapping[tuple[str, str], str], image: str, targets: Iterable[Mirror]
) -> tuple[str | None, ...]:
    registry = parse(image).registry
    return tuple(
        states.get((image, mirror.url), "missing") if mirror.serves(registry) else None
        for mirror in targets
    )


def _spending(
    ledger: Ledger, registry: str, budget: Mapping[str, Any], window: Window, now: Moment
) -> Spending:
    days = max(SPENT_DAYS, math.ceil(4 * window.seconds / DAY))
    start = (now.wall // DAY - days) * DAY
    span = now.wall - start
    counted = window.counted_account(budget["account"])
    spends = ledger.spends(registry, counted, now, math.ceil(span) + window.seconds)
    steps = tuple((now.wall - ago, pulls) for ago, pulls in loads(spends, window, span))
    return Spending(registry, start, steps, _days(spends, steps, now.wall))


def _days(
    spends: Iterable[Spend], steps: Sequence[tuple[float, int]], now: float
) -> tuple[SpentDay, ...]:
    days = range(int(steps[0][0] // DAY), int(now // DAY) + 1)
    pulls, most = dict.fromkeys(days, 0), dict.fromkeys(days, 0)
    for spend in spends:
        day = int((now - (0.0 if spend.in_flight else spend.age)) // DAY)
        if day in pulls:
            pulls[day] += spend.pulls
    for (since, held), (until, _) in pairwise([*steps, (now, 0)]):
        first = int(since // DAY)
        for day in range(first, max(first + 1, math.ceil(until / DAY))):
            most[day] = max(most[day], held)
    return tuple(SpentDay(day * DAY, pulls[day], most[day]) for day in days)
