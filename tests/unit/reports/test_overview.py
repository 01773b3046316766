"""The overview: what a state tells the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.settings import Allowance, Gitlab, Mirror, Settings, Upstream
from prewarm.core.usage import DAY, Count, Key, Mark, Row
from prewarm.reports.overview import Overview, overview_of
from prewarm.reports.status import status_of
from prewarm.state.ledger import Ledger
from tests.support.past import WALL, finish, moment, spend
from tests.support.weeks import FAR, NEAR, SETTINGS, fill

HOUR = 3600.0
STATE = Path("/var/lib/prewarm/prewarm.db")
A, B, C = (f"docker.io/library/{name}:1" for name in "abc")
PLAIN = Settings(None, mirrors=(Mirror(NEAR, NEAR),))


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.memory() as opened:
        yield opened


def overview(ledger: Ledger, settings: Settings = PLAIN) -> Overview:
    return overview_of(settings, ledger, moment(), STATE)


def image(name: str, action: str = "fresh", **more: Any) -> dict[str, Any]:
    return {"image": name, "action": action, "reason": "so", "until": None, "error": None, **more}


def problem(severity: str, where: str) -> dict[str, str]:
    return {"severity": severity, "code": "c", "where": where, "problem": "p", "cure": "do"}


def test_overview_of_an_empty_state_is_whole(ledger: Ledger) -> None:
    seen = overview(ledger)
    assert seen.status == status_of(PLAIN, ledger, moment(), STATE, sizes=False)
    assert (seen.spending, seen.images, seen.waiting, seen.problems, seen.runs) == ((),) * 5


def test_overview_status_is_that_of_status_json(ledger: Ledger) -> None:
    fill(ledger, moment(), 60)
    document = status_of(SETTINGS, ledger, moment(), STATE, sizes=False).document
    seen = overview(ledger, SETTINGS)
    assert seen.status.document == document
    assert [one["run"] for one in seen.runs] == [one["run"] for one in document["runs"]]
    assert [one.registry for one in seen.spending] == list(document["budgets"])
    for spent in seen.spending:
        assert spent.steps[-1] == (WALL, document["budgets"][spent.registry]["used"])


def test_spending_tells_each_day_and_the_most_in_any_window(ledger: Ledger) -> None:
    # 8 days ago, yesterday at 22:00 and 23:00, today at 03:30 and what is in flight.
    for at, pulls in ((-8 * DAY, 50), (-10 * HOUR, 3), (-9 * HOUR, 4), (-4.5 * HOUR, 2)):
        spend(ledger, at, pulls)
    spend(ledger, -60, 1, settled=False)
    finish(ledger, 0)
    (spent,) = overview(ledger).spending
    assert [(day.pulls, day.most) for day in spent.days] == [(0, 0)] * 6 + [(7, 7), (3, 9)]
    assert spent.days[-1].at == spent.start + 7 * DAY == WALL - 8 * HOUR
    assert (spent.most, spent.steps[0], spent.steps[-1]) == (9, (spent.start, 0), (WALL, 3))


def test_spending_begins_with_what_the_first_window_holds_already(ledger: Ledger) -> None:
    midnight = -8 * HOUR
    spend(ledger, midnight - 7 * DAY - HOUR, 4)
    finish(ledger, 0)
    (spent,) = overview(ledger).spending
    assert spent.steps[:2] == ((spent.start, 4), (spent.start + 5 * HOUR, 0))
    # It was no pull of the first day that is shown, but that began with it in the window.
    assert (spent.days[0].pulls, spent.days[0].most) == (0, 4)


def test_spending_of_a_long_window_goes_back_four_of_them(ledger: Ledger) -> None:
    spend(ledger, -9 * DAY, 5)
    finish(ledger, 0)
    written = Upstream(
        "docker.io", "https://registry-1.docker.io", budget=Allowance(10, 3 * DAY, 2)
    )
    (spent,) = overview(ledger, replace(PLAIN, registries=(written,))).spending
    assert (len(spent.days), spent.most) == (13, 5)


def test_waiting_and_problems_are_those_of_the_last_whole_run_and_of_later_ones(
    ledger: Ledger,
) -> None:
    finish(ledger, -9000, images=[image(C, "defer")], problems=[problem("error", "old")])
    finish(
        ledger,
        -6000,
        images=[image(A, "defer", until="2027-01-15T09:00:00Z"), image(B, "defer"), image(C)],
        problems=[problem("warning", "w"), problem("error", NEAR)],
    )
    finish(
        ledger,
        -3000,
        whole=False,
        images=[image(B, "copy")],
        problems=[problem("error", NEAR), problem("error", "later")],
    )
    seen = overview(ledger)
    assert [one["image"] for one in seen.waiting] == [A]
    assert [one["where"] for one in seen.problems] == [NEAR, "later", "w"]
    assert [one["problems"] for one in seen.runs] == [2, 2, 1]
    assert [shown.told["action"] for shown in seen.images] == ["defer", "copy", "fresh"]


def test_runs_that_have_not_ended_tell_no_sums(ledger: Ledger) -> None:
    finish(ledger, -50)
    ledger.start_run(moment(-10))
    running, done = overview(ledger).runs
    assert (running["exit"], running["finished"], "copied" in running) == (None, None, False)
    assert done["copied"] == 0


def use(ledger: Ledger, *uses: tuple[str, int]) -> None:
    today = int(WALL // DAY)
    for number, (reference, runs) in enumerate(uses, 1):
        key = Key(number, "build", 1, "linux/amd64", today)
        count = Count(runs, 0, WALL - 60, 7)
        ledger.add_history({key: count}, {number: Mark(9, WALL)}, {}, {number: f"team/p{number}"})
        rows = [Row("build", "image", reference, reference, None, "definition")]
        ledger.save_definition(number, rows, (), "c", (), WALL)


def test_images_are_those_that_the_coverage_counts_the_most_used_first(ledger: Ledger) -> None:
    use(ledger, (A, 3), (B, 8), ("quay.io/unlisted/x:1", 99), (C, 8))
    ledger.note_state(B, NEAR, "fresh", "sha256:b", moment(-9))
    ledger.note_state(C, NEAR, "stale", "sha256:c", moment(-9))
    ledger.note_state("docker.io/library/pinned:1", NEAR, "fresh", "sha256:d", moment(-9))
    ci = replace(PLAIN, gitlab=Gitlab("https://gitlab.example.org"))
    seen = overview(ledger, ci)
    assert [(one.image, one.states) for one in seen.images] == [
        (B, ("fresh",)),
        (C, ("stale",)),
        (A, ("missing",)),
    ]
    jobs = {one.image: one.used.jobs for one in seen.images if one.used}
    served = sum(jobs[one.image] for one in seen.images if "missing" not in one.states)
    assert seen.status.document["coverage"] == round(served / sum(jobs.values()), 4)


def test_images_without_uses_are_all_that_is_wanted_in_the_order_of_the_plan(
    ledger: Ledger,
) -> None:
    finish(ledger, -60, images=[image(C), image(A)])
    for name in (A, B, C):
        ledger.note_state(name, NEAR, "fresh", "sha256:a", moment(-60))
    assert [one.image for one in overview(ledger).images] == [C, A, B]


def test_image_of_a_registry_that_a_mirror_cannot_hold_has_no_state_there(ledger: Ledger) -> None:
    settings = replace(PLAIN, mirrors=(Mirror(NEAR, NEAR), Mirror(FAR, FAR, "pull-through")))
    other = "quay.io/team/tool:1"
    ledger.note_state(A, FAR, "fresh", "sha256:a", moment(-60))
    ledger.note_state(other, NEAR, "fresh", "sha256:b", moment(-60))
    found = {one.image: one.states for one in overview(ledger, settings).images}
    assert found == {A: ("missing", "fresh"), other: ("fresh", None)}
