"""The metrics (CONTRACT, 3): what a state tells a Prometheus, as samples.

Pure but for the ledger it reads. Counters are sums that the ledger keeps, so they survive restarts
and what is forgotten.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from prewarm.core.budget import Moment
from prewarm.core.errors import Problem
from prewarm.core.records import Run
from prewarm.core.settings import Settings
from prewarm.reports.status import status_of
from prewarm.state.ledger import Ledger
from prewarm.state.location import StatePlace


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name, its kind and the names of its labels."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A value of a metric, with the values of its labels in their order."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


BUDGET_PULLS: Final = Metric(
    "prewarm_budget_pulls",
    "gauge",
    "Pulls of a window, the reserve among them; absent without a limit.",
    ("registry", "account"),
)
BUDGET_USED: Final = Metric(
    "prewarm_budget_used",
    "gauge",
    "Pulls that prewarm has spent in the window up to now.",
    ("registry", "account"),
)
REPORTED_REMAINING: Final = Metric(
    "prewarm_reported_remaining",
    "gauge",
    "What the registry said remains of the account's pulls, when it was asked last.",
    ("registry", "account"),
)
COVERAGE: Final = Metric(
    "prewarm_coverage_ratio",
    "gauge",
    "Share of the uses of the history window that the mirror would serve now, 0 to 1.",
    ("mirror",),
)
IMAGES: Final = Metric(
    "prewarm_images",
    "gauge",
    "Wanted images by their state on the mirror where it is worst.",
    ("state",),
)
ACTIONS: Final = Metric(
    "prewarm_actions_total",
    "counter",
    "Images by what syncs did with them, each counted in each sync.",
    ("action",),
)
PULLS: Final = Metric("prewarm_pulls_total", "counter", "Pulls charged, those of killed runs too.")
BYTES: Final = Metric(
    "prewarm_bytes_total", "counter", "Bytes of blobs copied from upstreams or another mirror."
)
LAST_SUCCESS: Final = Metric(
    "prewarm_last_success_timestamp_seconds",
    "gauge",
    "When a sync of all that is wanted ended with exit 0 last.",
)
DURATION: Final = Metric(
    "prewarm_run_duration_seconds", "gauge", "How long the last sync of all that is wanted took."
)
PROBLEMS: Final = Metric(
    "prewarm_problems",
    "gauge",
    "Problems of the last sync of all that is wanted.",
    ("severity", "code"),
)
PULL_FAILURES: Final = Metric(
    "prewarm_pull_failures",
    "gauge",
    "CI jobs of the history window that failed because an image could not be pulled.",
)
TOKEN_EXPIRY: Final = Metric(
    "prewarm_gitlab_token_expiry_timestamp_seconds",
    "gauge",
    "When GitLab's token expires; +Inf: never; absent where GitLab does not tell.",
)
METRICS: Final = (
    BUDGET_PULLS,
    BUDGET_USED,
    REPORTED_REMAINING,
    COVERAGE,
    IMAGES,
    ACTIONS,
    PULLS,
    BYTES,
    LAST_SUCCESS,
    DURATION,
    PROBLEMS,
    PULL_FAILURES,
    TOKEN_EXPIRY,
)
"""Every metric, in the order of the file."""

_ACTIONS: Final = ("copy", "tag", "fresh", "defer", "skip", "fail")


def samples_of(
    settings: Settings,
    ledger: Ledger,
    now: Moment,
    state: StatePlace,
    failure: Problem | None = None,
) -> tuple[Sample, ...]:
    """Return all samples at `now`; what is not known has none.

    `failure` is what broke off a sync that therefore has no report: the problem that is left.
    """
    document = status_of(settings, ledger, now, state, sizes=False).document
    return (
        *_budgets(document["budgets"]),
        *_mirrors(document),
        *_totals(ledger),
        *_runs(ledger, failure),
        *_gitlab(settings, document, ledger),
    )


def _budgets(budgets: Mapping[str, Any]) -> Iterator[Sample]:
    for registry, budget in budgets.items():
        labels = (registry, budget["account"])
        for metric, key in (
            (BUDGET_PULLS, "pulls"),
            (BUDGET_USED, "used"),
            (REPORTED_REMAINING, "reported_remaining"),
        ):
            yield from _known(metric, budget[key], labels)


def _mirrors(document: Mapping[str, Any]) -> Iterator[Sample]:
    for mirror in document["mirrors"]:
        yield from _known(COVERAGE, mirror["coverage"], (mirror["url"],))
    for state in ("fresh", "stale", "missing"):
        yield Sample(IMAGES, (state,), document["images"][state])


def _totals(ledger: Ledger) -> Iterator[Sample]:
    totals = ledger.totals()
    for action in _ACTIONS:
        yield Sample(ACTIONS, (action,), totals.actions.get(action, 0))
    yield Sample(PULLS, (), totals.pulls)
    yield Sample(BYTES, (), totals.bytes)


def _runs(ledger: Ledger, failure: Problem | None) -> Iterator[Sample]:
    yield from _known(LAST_SUCCESS, ledger.last_success())
    run = ledger.last_whole_run()
    if run is not None and run.finished is not None:
        yield Sample(DURATION, (), round(max(0.0, run.finished - run.started), 3))
    counted = Counter(
        [(failure.severity, failure.code)] if failure is not None else _problems_of(run)
    )
    for (severity, code), number in sorted(counted.items()):
        yield Sample(PROBLEMS, (severity, code), number)


def _problems_of(run: Run | None) -> Iterable[tuple[str, str]]:
    document = json.loads(run.report or "{}") if run is not None else {}
    return [(one["severity"], one["code"]) for one in document.get("problems", ())]


def _gitlab(settings: Settings, document: Mapping[str, Any], ledger: Ledger) -> Iterator[Sample]:
    if settings.gitlab is None:
        return
    yield Sample(PULL_FAILURES, (), sum(document["pull_failures_per_day"]))
    scan = ledger.last_scan()
    yield from _known(TOKEN_EXPIRY, scan.token_expiry if scan is not None else None)


def _known(metric: Metric, value: float | None, labels: tuple[str, ...] = ()) -> Iterator[Sample]:
    if value is not None:
        yield Sample(metric, labels, value)
