"""Coverage: the share of the uses that mirrors serve, and its series."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.budget import Moment
from prewarm.core.records import Covered, Known
from prewarm.core.settings import (
    DOCKER_HUB,
    DOCKER_HUB_ENDPOINT,
    Gitlab,
    Mirror,
    Settings,
    Upstream,
)
from prewarm.core.usage import DAY, UsedImage
from prewarm.reports.coverage import (
    POINTS_MAX,
    answering,
    coverage,
    coverages,
    series_of,
    thinned,
    used_of_late,
    uses_of,
)
from prewarm.state.ledger import Ledger

NOW = 1_800_000_000.0
NEAR, FAR, SOURCE = "http://127.0.0.1:5000", "https://far.example.org", "https://source.org"
HUB = Upstream(DOCKER_HUB, DOCKER_HUB_ENDPOINT)
SETTINGS = Settings(
    None,
    mirrors=(Mirror(NEAR, NEAR), Mirror(FAR, FAR), Mirror(SOURCE, SOURCE, role="source")),
    registries=(HUB,),
)
A, B, C = (f"docker.io/library/{name}:1" for name in "abc")


def known(image: str, mirror: str, state: str) -> Known:
    return Known(image, mirror, state, None, NOW)


def use(reference: str, jobs: int, via: str | None = None) -> UsedImage:
    return UsedImage(reference, ("image",), ("history",), jobs, 1, NOW, (), via, 0)


@pytest.mark.parametrize(
    ("state", "served"), [("fresh", 5), ("stale", 5), ("missing", 0), ("unknown", 0), (None, 0)]
)
def test_coverage_of_a_state_serves_its_uses_or_not(state: str | None, served: int) -> None:
    states = (known(B, NEAR, "fresh"), *((known(A, NEAR, state),) if state else ()))
    assert coverage(states, {A: 5, B: 2}) == (served + 2, 7)


def test_coverage_of_two_mirrors_needs_the_image_on_both() -> None:
    states = (known(A, NEAR, "fresh"), known(A, FAR, "missing"), known(B, NEAR, "fresh"))
    assert coverage(states, {A: 5, B: 2}) == (2, 7)


def test_coverages_of_a_pull_through_mirror_are_of_docker_hub_alone() -> None:
    through = Mirror(FAR, FAR, "pull-through")
    settings = replace(SETTINGS, mirrors=(Mirror(NEAR, NEAR), through))
    other = "quay.io/team/tool:1"
    states = (known(A, NEAR, "fresh"), known(A, FAR, "fresh"), known(other, NEAR, "fresh"))
    found = coverages(settings, states, {A: 5, other: 2}, (), NOW)
    assert {mirror: (one.served, one.total) for mirror, one in found.items()} == {
        "": (7, 7),
        NEAR: (7, 7),
        FAR: (5, 5),
    }


def test_coverage_without_uses_weighs_every_tracked_image_alike() -> None:
    states = (known(A, NEAR, "fresh"), known(B, NEAR, "missing"), known(C, NEAR, "stale"))
    assert coverage(states, {}) == (2, 3)
    # An image that no job used weighs nothing where others were used.
    assert coverage(states, {B: 1}) == (0, 1)


def test_coverages_tell_all_target_mirrors_and_each() -> None:
    states = (
        known(A, NEAR, "fresh"), known(A, FAR, "missing"),
        known(B, NEAR, "fresh"), known(B, FAR, "fresh"),
    )  # fmt: skip
    assert coverages(SETTINGS, states, {A: 5, B: 2}, (), NOW) == {
        "": Covered(NOW, "", 2, 7),
        NEAR: Covered(NOW, NEAR, 7, 7),
        FAR: Covered(NOW, FAR, 2, 7),
    }


def test_coverages_of_a_failing_mirror_lower_its_own_line_alone() -> None:
    states = (known(A, NEAR, "fresh"), known(A, FAR, "missing"))
    told = coverages(SETTINGS, states, {A: 5}, {FAR, "team/project"}, NOW)
    assert {mirror: one.served for mirror, one in told.items()} == {"": 5, NEAR: 5, FAR: 0}
    # Where all fail, what was known of them before is told.
    assert answering(states, {NEAR, FAR}) == states


def test_uses_of_leaves_out_what_the_mirror_would_not_be_asked_for() -> None:
    images = [
        use(A, 3),
        use(A, 9, via="dependency-proxy"),
        use(B, 0),
        use("quay.io/team/base:1", 7),
    ]
    assert uses_of(SETTINGS, images) == {A: 3}
    quay = replace(SETTINGS, registries=(HUB, Upstream("quay.io", "https://quay.io")))
    assert uses_of(quay, images) == {A: 3, "quay.io/team/base:1": 7}


def test_used_of_late_without_gitlab_is_nothing() -> None:
    with Ledger.memory() as ledger:
        assert used_of_late(SETTINGS, ledger, NOW) == ()


# The series


def noted(ledger: Ledger, *ages: float) -> None:
    for age in ages:
        ledger.note_coverage("", 1, 2, Moment(NOW - age, "boot", 1.0))


def ages_of(series: tuple[Covered, ...]) -> list[float]:
    return [NOW - one.at for one in series]


@pytest.mark.parametrize(
    ("history", "ages"),
    [
        (None, [28 * DAY, 20 * DAY, 8 * DAY, DAY, 0]),
        (60 * DAY, [28 * DAY, 20 * DAY, 8 * DAY, DAY, 0]),
        (14 * DAY, [8 * DAY, DAY, 0]),
        (3600, [0]),
    ],
)
def test_series_goes_back_the_history_window_at_most_four_weeks(
    history: int | None, ages: list[float]
) -> None:
    gitlab = Gitlab("https://gitlab.example.org", history=history) if history else None
    with Ledger.memory() as ledger:
        noted(ledger, 40 * DAY, 28 * DAY, 20 * DAY, 8 * DAY, DAY, 0)
        found = series_of(replace(SETTINGS, gitlab=gitlab), ledger, NOW)
    assert ages_of(found) == ages


def test_series_leaves_out_what_a_clock_that_ran_ahead_noted() -> None:
    with Ledger.memory() as ledger:
        noted(ledger, DAY, -DAY)
        assert ages_of(series_of(SETTINGS, ledger, NOW)) == [DAY]


def test_series_of_a_sync_each_quarter_of_an_hour_is_thinned() -> None:
    with Ledger.memory() as ledger:
        noted(ledger, *(number * 900 for number in range(28 * 96)))
        found = series_of(SETTINGS, ledger, NOW)
        later = series_of(SETTINGS, ledger, NOW + 300)
    assert POINTS_MAX <= len(found) <= POINTS_MAX + 1
    assert ages_of(found)[-1] == 0
    assert ages_of(found)[0] > 27 * DAY
    # The points stay where they were.
    assert set(later[1:]) <= set(found)


@given(
    times=st.lists(st.integers(0, 1000), unique=True, max_size=600).map(sorted),
    part=st.floats(5, 2000),
)
def test_thinned_keeps_the_newest_and_few_in_their_order(times: list[int], part: float) -> None:
    series = tuple(Covered(float(time), "", 1, 1) for time in times)
    kept = thinned(series, part)
    assert set(kept) <= set(series)
    assert kept[-1:] == series[-1:]
    assert all(one.at < other.at for one, other in pairwise(kept))
    if len(series) <= POINTS_MAX:
        assert kept == series
    else:
        assert len(kept) <= 1000 / part + 1
