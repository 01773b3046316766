"""Status: what a state tells without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.settings import (
    DOCKER_HUB,
    DOCKER_HUB_ENDPOINT,
    Allowance,
    Gitlab,
    Mirror,
    Settings,
    Upstream,
)
from prewarm.core.usage import DAY, Count, Key, Mark
from prewarm.reports.status import status_of
from prewarm.state.ledger import Ledger
from tests.support.past import WALL, finish, moment, spend

HOURS_6 = 6 * 3600
NEAR, FAR, SOURCE = "http://127.0.0.1:5000", "https://far.example.org", "https://source.org"
STATE = Path("/var/lib/prewarm/prewarm.db")
SETTINGS = Settings(
    Path("/etc/prewarm/images.yml"),
    mirrors=(Mirror(NEAR, NEAR), Mirror(FAR, FAR), Mirror(SOURCE, SOURCE, role="source")),
)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.memory() as opened:
        yield opened


def status(ledger: Ledger, at: float = 100.0, settings: Settings = SETTINGS) -> dict[str, Any]:
    document = status_of(settings, ledger, moment(at), STATE).document
    return dict(json.loads(json.dumps(document)))


def test_status_of_an_empty_state_is_whole(ledger: Ledger) -> None:
    assert status(ledger) == {
        "version": 1,
        "config": "/etc/prewarm/images.yml",
        "state": str(STATE),
        "budgets": {},
        "images": {"tracked": 0, "fresh": 0, "stale": 0, "missing": 0},
        "coverage": None,
        "coverage_series": [],
        "uses_unresolved": 0.0,
        "pull_failures_per_day": [],
        "last_sync": None,
        "mirrors": [
            {
                "url": url,
                "mode": "push",
                "coverage": None,
                "coverage_series": [],
                "bytes": 0,
                "state": "unknown",
            }
            for url in (NEAR, FAR)
        ],
        "runs": [],
    }


def test_status_of_a_run_that_never_ended_has_no_last_sync(ledger: Ledger) -> None:
    run = ledger.start_run(moment())
    told = status(ledger)
    assert told["last_sync"] is None
    assert told["runs"] == [
        {"run": run, "started": "2027-01-15T08:00:00Z", "finished": None, "exit": None}
    ]


def test_status_tells_the_last_run_that_ended(ledger: Ledger) -> None:
    finish(ledger, 10)
    run = finish(ledger, 20, problems=[{"where": FAR, "code": "mirror-full"}])
    ledger.start_run(moment(30))
    told = status(ledger)
    last = told["last_sync"]
    assert (last["run"], last["exit"], last["copied"]) == (run, 0, 0)
    assert last["finished"] == "2027-01-15T08:00:20Z"
    assert last["problems"] == [{"where": FAR, "code": "mirror-full"}]
    assert len(told["runs"]) == 3
    assert [(one["url"], one["state"]) for one in told["mirrors"]] == [
        (NEAR, "ok"),
        (FAR, "mirror-full"),
    ]


def test_status_budget_is_that_of_the_last_run_with_what_the_ledger_holds_now(
    ledger: Ledger,
) -> None:
    finish(ledger, 10)
    spend(ledger, 20, 3)
    spend(ledger, 50, 2, settled=False)
    budget = status(ledger, 100)["budgets"]["docker.io"]
    assert (budget["used"], budget["remaining"], budget["pulls"]) == (5, 3, 10)
    assert (budget["reported_limit"], budget["reported_remaining"]) == (100, 76)
    assert budget["next_free"] == "2027-01-15T14:00:20Z"
    # The settled ones have left the window; what is in flight still counts.
    budget = status(ledger, 20 + HOURS_6)["budgets"]["docker.io"]
    assert (budget["used"], budget["remaining"]) == (2, 6)


def test_status_budget_that_is_written_goes_before_the_one_of_the_last_run(
    ledger: Ledger,
) -> None:
    finish(ledger, 10, limit=None)
    hub = Upstream(DOCKER_HUB, DOCKER_HUB_ENDPOINT, budget=Allowance(50, 3600, 5))
    budget = status(ledger, settings=replace(SETTINGS, registries=(hub,)))["budgets"]["docker.io"]
    assert (budget["pulls"], budget["window_seconds"], budget["remaining"]) == (50, 3600, 45)
    assert budget["reported_remaining"] is None


@pytest.mark.parametrize(
    ("near", "far", "counted"),
    [
        ("fresh", "fresh", "fresh"),
        ("fresh", "stale", "stale"),
        ("stale", "missing", "missing"),
        ("unknown", "fresh", "missing"),
        ("missing", "unknown", "missing"),
    ],
)
def test_status_counts_an_image_by_its_worst_mirror(
    ledger: Ledger, near: str, far: str, counted: str
) -> None:
    for url, state in ((NEAR, near), (FAR, far)):
        ledger.note_state("docker.io/library/a:1", url, state, None, moment())
    images = status(ledger)["images"]
    assert images == {"tracked": 1, "fresh": 0, "stale": 0, "missing": 0, counted: 1}


def test_status_coverage_counts_stale_as_served(ledger: Ledger) -> None:
    for number, (near, far) in enumerate(
        [("fresh", "fresh"), ("stale", "fresh"), ("missing", "fresh"), ("unknown", "fresh")]
    ):
        ledger.note_state(f"docker.io/library/a:{number}", NEAR, near, None, moment())
        ledger.note_state(f"docker.io/library/a:{number}", FAR, far, None, moment())
    told = status(ledger)
    assert told["coverage"] == 0.5
    assert [one["coverage"] for one in told["mirrors"]] == [0.5, 1.0]


def test_status_mirror_bytes_are_those_that_prewarm_wrote(ledger: Ledger) -> None:
    for number, url in enumerate((NEAR, NEAR, FAR, "https://gone.example.org")):
        ledger.note_written(
            url,
            f"docker.io/library/a:{number}",
            "library/a",
            str(number),
            "sha256:a",
            "sha256:b",
            "linux/amd64",
            10**number,
            moment(),
        )
    assert [one["bytes"] for one in status(ledger)["mirrors"]] == [11, 100]


# What CI used: WALL is 08:00 of day TODAY.
TODAY = int(WALL // DAY)
CI = replace(SETTINGS, gitlab=Gitlab("https://gitlab.example.org", history=3 * DAY))


def test_status_coverage_series_holds_what_was_noted_within_the_history_window(
    ledger: Ledger,
) -> None:
    for days, served in ((4, 1), (2.5, 2), (1, 3)):
        ledger.note_coverage("", served, 4, moment(-days * DAY))
        ledger.note_coverage(NEAR, 4, 4, moment(-days * DAY))
    told = status(ledger, 0, CI)
    assert told["coverage_series"] == [
        {"at": "2027-01-12T20:00:00Z", "coverage": 0.5},
        {"at": "2027-01-14T08:00:00Z", "coverage": 0.75},
    ]
    near, far = told["mirrors"]
    assert [point["coverage"] for point in near["coverage_series"]] == [1.0, 1.0]
    assert far["coverage_series"] == []


@pytest.mark.parametrize(
    ("noted", "earlier"),
    [
        ([], None),
        ([(0, 9)], None),
        ([(0.9, 5), (0, 9)], None),
        ([(1, 5), (0, 9)], (1, 0.5)),
        ([(3.5, 4), (2, 5), (0, 9)], (3, 0.4)),
        ([(9, 3), (7.5, 4), (6, 5), (0, 9)], (7, 0.4)),
        ([(40, 1), (2, 5), (0, 9)], (2, 0.5)),
    ],
)
def test_status_earlier_is_the_coverage_of_a_week_ago_or_the_oldest(
    ledger: Ledger, noted: list[tuple[float, int]], earlier: tuple[int, float] | None
) -> None:
    for days, served in noted:
        ledger.note_coverage("", served, 10, moment(-days * DAY))
    assert status_of(SETTINGS, ledger, moment(), STATE).earlier == earlier


def failed(ledger: Ledger, days_ago: int, failures: int, job: str = "build") -> None:
    key = Key(1, job, 1, "linux/amd64", TODAY - days_ago)
    ledger.add_history(
        {key: Count(9, failures, WALL - days_ago * DAY, 7)}, {1: Mark(9, WALL)}, {}, {1: "team/app"}
    )


def test_status_pull_failures_are_told_for_each_day_of_the_window_today_last(
    ledger: Ledger,
) -> None:
    assert status(ledger, 0, CI)["pull_failures_per_day"] == [0, 0, 0, 0]
    for days_ago, failures in ((4, 50), (3, 4), (1, 2), (0, 1)):
        failed(ledger, days_ago, failures)
    failed(ledger, 1, 5, "deploy")
    # No definition told the image of any of these jobs.
    assert status(ledger, 0, CI)["pull_failures_per_day"] == [4, 0, 7, 1]
    # At midnight (UTC) a new day begins.
    assert status(ledger, 16 * 3600 - 1, CI)["pull_failures_per_day"] == [4, 0, 7, 1]
    assert status(ledger, 16 * 3600, CI)["pull_failures_per_day"] == [0, 7, 1, 0]
