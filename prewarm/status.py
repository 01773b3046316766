"""Status: what the state tells without a network (pure but for the ledger it reads)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prewarm.budget import Limit, Moment, Window
from prewarm.ledger import Known, Ledger, Run
from prewarm.observe import required_of
from prewarm.plan import SERVED, Quota
from prewarm.reference import parse
from prewarm.report import budget_json, iso
from prewarm.settings import Allowance, Settings


@dataclass(frozen=True, slots=True)
class Status:
    """What `prewarm status` tells."""

    document: dict[str, Any]
    """As in the JSON (CONTRACT, 3)."""


def status_of(settings: Settings, ledger: Ledger, now: Moment, state: Path) -> Status:
    """Return the status at `now`; empty but whole where nothing has run yet."""
    runs = ledger.runs(10)
    finished = [run for run in runs if run.report is not None]
    last = json.loads(finished[0].report or "{}") if finished else {}
    known = ledger.states()
    uses = uses_of(settings, ledger, now)
    failing = {problem["where"] for problem in last.get("problems", [])}
    # A mirror that did not answer has its own line; it says nothing about the others.
    answering = tuple(one for one in known if one.mirror not in failing) or known
    served, tracked = coverage(answering, uses)
    return Status(
        {
            "version": 1,
            "config": str(settings.path) if settings.path else None,
            "state": str(state),
            "budgets": _budgets(settings, last.get("budgets", {}), ledger, now),
            "images": _counts(answering),
            "coverage": round(served / tracked, 4) if tracked else None,
            "uses_unresolved": _unresolved(settings, ledger, now, uses),
            "pull_failures_per_day": [],
            "last_sync": _last_sync(finished[0], last) if finished else None,
            "mirrors": [
                _mirror(settings, url, known, ledger, last, uses) for url in _urls(settings)
            ],
            "runs": [_run(run) for run in runs],
        }
    )


def uses_of(settings: Settings, ledger: Ledger, now: Moment) -> dict[str, int]:
    """Return how many jobs of the history window used each image of the listed registries."""
    if settings.gitlab is None:
        return {}
    listed = {upstream.name for upstream in settings.registries}
    return {
        use.reference: use.jobs
        for use in ledger.used_images(now.wall - settings.gitlab.history)
        if use.via is None and use.jobs and parse(use.reference).registry in listed
    }


def coverage(known: tuple[Known, ...], uses: Mapping[str, int]) -> tuple[int, int]:
    """Return how many of CI's uses the mirrors would serve, and how many there are.

    Where no use is known every tracked image weighs the same. An image counts as served when every
    mirror that should hold it does; a stale tag is served, too.
    """
    worst = _worst(known)
    weights = uses or dict.fromkeys(worst, 1)
    served = sum(jobs for image, jobs in weights.items() if worst.get(image) in SERVED)
    return served, sum(weights.values())


def _unresolved(settings: Settings, ledger: Ledger, now: Moment, uses: Mapping[str, int]) -> float:
    """Return the share of the uses of which nobody knows the image."""
    if settings.gitlab is None:
        return 0.0
    since = now.wall - settings.gitlab.history
    jobs = sum(one.jobs for one in ledger.unresolved_images(since))
    return round(jobs / (jobs + sum(uses.values())), 4) if jobs else 0.0


def _worst(known: tuple[Known, ...]) -> dict[str, str]:
    order = {"fresh": 0, "stale": 1, "unknown": 2, "missing": 3}
    worst: dict[str, str] = {}
    for one in known:
        before = worst.get(one.image, "fresh")
        worst[one.image] = max(before, one.state, key=lambda state: order.get(state, 3))
    return worst


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
    counted = Counter(_worst(known).values())
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
        pulls, seconds, reserve = told["pulls"], told["window_seconds"], told["reserve"]
        window = Window(pulls, seconds, reserve)
        written = next((u.budget for u in settings.registries if u.name == name), None)
        if isinstance(written, Allowance):
            window = Window(written.pulls, written.window, written.reserve)
        spends = ledger.spends(name, told["account"], now, window.seconds)
        remaining = told["reported_remaining"]
        limit = None
        if remaining is not None:
            limit = Limit(told["reported_limit"], None, remaining, "")
        quota = Quota(told["account"], window, told["source"], spends, limit)
        budgets[name] = budget_json(quota, now.wall)
    return budgets


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


def _urls(settings: Settings) -> list[str]:
    return [mirror.url for mirror in settings.mirrors if mirror.role == "target"]


def _mirror(
    settings: Settings,
    url: str,
    known: tuple[Known, ...],
    ledger: Ledger,
    last: dict[str, Any],
    uses: Mapping[str, int],
) -> dict[str, Any]:
    served, tracked = coverage(tuple(one for one in known if one.mirror == url), uses)
    failed = [p["code"] for p in last.get("problems", []) if p["where"] == url]
    return {
        "url": url,
        "mode": next(mirror.mode for mirror in settings.mirrors if mirror.url == url),
        "coverage": round(served / tracked, 4) if tracked else None,
        "bytes": bytes_on(ledger, url),
        "state": failed[0] if failed else "ok" if last else "unknown",
    }
