"""Status: what the state tells without a network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prewarm.core.budget import Limit, Moment, Window, written_window
from prewarm.core.manifest import required_of
from prewarm.core.records import Covered, Known, Run
from prewarm.core.settings import Allowance, Mirror, Settings
from prewarm.core.text import iso
from prewarm.core.usage import DAY, UsedImage
from prewarm.planning.plan import Quota
from prewarm.planning.pull_through import standing
from prewarm.reports.coverage import (
    ALL_MIRRORS,
    answering,
    coverages,
    series_of,
    used_of_late,
    uses_of,
    worst_states,
)
from prewarm.reports.report import budget_json
from prewarm.state.ledger import Ledger
from prewarm.state.location import StatePlace

_WEEK: Final = 7 * DAY


@dataclass(frozen=True, slots=True)
class Status:
    """What `prewarm status` tells."""

    document: dict[str, Any]
    """As in the JSON (CONTRACT, 3)."""
    earlier: tuple[int, float] | None = None
    """Days, and the coverage so long ago: a week, or as far as the series goes back; None where it
    goes back less than a day."""
    used: tuple[UsedImage, ...] = ()
    """What CI used within the history window, of any registry."""
    known: tuple[Known, ...] = ()
    """The last known state of each image on each mirror."""


def status_of(
    settings: Settings, ledger: Ledger, now: Moment, state: StatePlace, *, sizes: bool = True
) -> Status:
    """Return the status at `now`; empty but whole where nothing has run yet.

    Without `sizes` the bytes of the mirrors are null: they take nearly all of the time.
    """
    runs = ledger.runs(10)
    finished = [run for run in runs if run.report is not None]
    last = json.loads(finished[0].report or "{}") if finished else {}
    known = standing(settings, ledger.states(), ledger, now.wall)
    used = used_of_late(settings, ledger, now.wall)
    uses = uses_of(settings, used)
    failing = {problem["where"] for problem in last.get("problems", [])}
    covered = coverages(settings, known, uses, failing, now.wall)
    series = {mirror: series_of(settings, ledger, now.wall, mirror) for mirror in covered}
    return Status(
        {
            "version": 1,
            "config": str(settings.path) if settings.path else None,
            "state": str(state),
            "budgets": _budgets(settings, last.get("budgets", {}), ledger, now),
            "images": _counts(answering(known, failing)),
            "coverage": covered[ALL_MIRRORS].ratio,
            "coverage_series": _points(series[ALL_MIRRORS]),
            "uses_unresolved": _unresolved(settings, ledger, now, uses),
            "pull_failures_per_day": _pull_failures(settings, ledger, now),
            "last_sync": _last_sync(finished[0], last) if finished else None,
            "mirrors": [
                _mirror(
                    mirror,
                    covered[mirror.url],
                    series[mirror.url],
                    bytes_on(ledger, mirror.url) if sizes else None,
                    last,
                )
                for mirror in settings.mirrors
                if mirror.role == "target"
            ],
            "runs": [_run(run) for run in runs],
        },
        _earlier(series[ALL_MIRRORS], now.wall),
        used,
        known,
    )


def _points(series: tuple[Covered, ...]) -> list[dict[str, Any]]:
    return [{"at": iso(one.at), "coverage": one.ratio} for one in series]


def _earlier(series: tuple[Covered, ...], now: float) -> tuple[int, float] | None:
    """What was so a week ago is what was noted last before then."""
    week_old = [one for one in series if one.at <= now - _WEEK]
    one = next(iter([*week_old[-1:], *series]), None)
    if one is None or one.ratio is None or now - one.at < DAY:
        return None
    return (7 if week_old else int((now - one.at) // DAY)), one.ratio


def _pull_failures(settings: Settings, ledger: Ledger, now: Moment) -> list[int]:
    """How many jobs failed on a pull on each day (UTC) of the history window, today last.

    Whatever image it was, a known one or not. The days are those that `jobs` are counted in: of the
    first the window holds a part. Empty where no GitLab tells of jobs.
    """
    if settings.gitlab is None:
        return []
    since = now.wall - settings.gitlab.history
    failures = ledger.pull_failures(since)
    return [failures.get(day, 0) for day in range(int(since // DAY), int(now.wall // DAY) + 1)]


def _unresolved(settings: Settings, ledger: Ledger, now: Moment, uses: Mapping[str, int]) -> float:
    """Return the share of the uses of which nobody knows the image."""
    if settings.gitlab is None:
        return 0.0
    since = now.wall - settings.gitlab.history
    jobs = sum(one.jobs for one in ledger.unresolved_images(since))
    return round(jobs / (jobs + sum(uses.values())), 4) if jobs else 0.0


def bytes_on(ledger: Ledger, mirror: str) -> int:
    """Return the bytes of all blobs that prewarm wrote to a mirror, shared ones once.

    Of what is no longer remembered in full, the size that was noted when it was written.
    """
    blobs: dict[str, int] = {}
    others = 0
    for written in ledger.written(mirror=mirror):
        content = ledger.manifest(written.digest)
        digests = required_of(content, content.descriptor) if content else ()
        manifests = [ledger.manifest(digest) for digest in digests]
        if not manifests or None in manifests:
            others += written.bytes
        for manifest in manifests:
            blobs.update({b.digest: b.size for b in manifest.blobs} if manifest else {})
    return sum(blobs.values()) + others


def _counts(known: tuple[Known, ...]) -> dict[str, int]:
    counted = Counter(worst_states(known).values())
    return {
        "tracked": sum(counted.values()),
        "fresh": counted["fresh"],
        "stale": counted["stale"],
        "missing": counted["missing"] + counted["unknown"],
    }


def _budgets(
    settings: Settings, last: dict[str, Any], ledger: Ledger, now: Moment
) -> dict[str, Any]:
    """The budgets of the last report, with what the ledger holds now."""
    budgets = {}
    for name, told in last.items():
        window = window_of(settings, name, told)
        counted = window.counted_account(told["account"])
        spends = ledger.spends(name, counted, now, window.seconds)
        remaining = told["reported_remaining"]
        limit = None
        if remaining is not None:
            limit = Limit(told["reported_limit"], None, remaining, "")
        quota = Quota(told["account"], window, told["source"], spends, limit)
        budgets[name] = budget_json(quota, now.wall)
    return budgets


def window_of(settings: Settings, name: str, reported: Mapping[str, Any]) -> Window:
    """Return the window of a registry: as images.yml gives it, else as the last report has it."""
    written = next((one.budget for one in settings.registries if one.name == name), None)
    if isinstance(written, Allowance):
        return written_window(written)
    return Window(reported["pulls"], reported["window_seconds"], reported["reserve"])


def _last_sync(run: Run, report: dict[str, Any]) -> dict[str, Any]:
    return {
        **report.get("summary", {}),
        "run": run.id,
        "started": iso(run.started),
        "finished": iso(run.finished),
        "exit": run.exit_code,
        "problems": report.get("problems", []),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "run": run.id,
        "started": iso(run.started),
        "finished": iso(run.finished),
        "exit": run.exit_code,
    }


def _mirror(
    mirror: Mirror,
    covered: Covered,
    series: tuple[Covered, ...],
    size: int | None,
    last: dict[str, Any],
) -> dict[str, Any]:
    failed = [p["code"] for p in last.get("problems", []) if p["where"] == mirror.url]
    return {
        "url": mirror.url,
        "mode": mirror.mode,
        "coverage": covered.ratio,
        "coverage_series": _points(series),
        "bytes": size,
        "state": failed[0] if failed else "ok" if last else "unknown",
    }
