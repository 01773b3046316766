"""The forecast: budgets hold in it, it plans as the plan does, and hindsight knows what comes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.usage import DAY, DayUses, Row, Runs, parts_of, used
from prewarm.planning.demand import weight_of
from prewarm.planning.simulate import (
    Course,
    Order,
    Reached,
    Record,
    Recorded,
    Simulation,
    View,
    document,
    follow,
    hindsight,
    planned,
    simulate,
    useful_budgets,
)

HOUR = 3600
SIX = 6 * HOUR
HISTORY = 14 * DAY
DAY_0 = 20_000


def image(name: str, *uses: tuple[int, int], project: int = 1, **more: Any) -> Recorded:
    """An image with the uses (day of the record, runs) of one project."""
    days = tuple(DayUses(DAY_0 + day, project, runs) for day, runs in uses)
    return Recorded(f"docker.io/library/{name}:1", days, **more)


def every_day(name: str, runs: int, days: int = 4, **more: Any) -> Recorded:
    return image(name, *((day, runs) for day in range(days)), **more)


def moved_at(*steps: float) -> tuple[float, ...]:
    """Times in steps of 6 h after the third day, where a record of four days is replayed."""
    return tuple((DAY_0 + 2) * DAY + step * SIX for step in steps)


def run(images: Sequence[Recorded], pulls: int | None, window: int = SIX) -> Course:
    record = Record(images, window, HISTORY)
    course = Course(record, pulls, planned)
    follow(record, [course])
    return course


def reached(images: Sequence[Recorded], *budgets: int | None, window: int = SIX) -> list[Reached]:
    return list(simulate(images, budgets, window, HISTORY).reached)


@st.composite
def records(draw: st.DrawFn) -> list[Recorded]:
    uses = st.lists(
        st.builds(
            DayUses,
            st.integers(DAY_0, DAY_0 + 9),
            st.integers(1, 3),
            st.integers(1, 40),
            st.integers(0, 1),
        ),
        max_size=8,
        unique_by=lambda use: (use.day, use.project),
    )
    moves = st.lists(st.floats(DAY_0 * DAY, (DAY_0 + 10) * DAY), max_size=4)
    return [
        Recorded(
            f"docker.io/library/i{number}:1",
            tuple(sorted(draw(uses), key=lambda use: (use.day, use.project))),
            tuple(sorted(draw(moves))),
            draw(st.integers(0, 5)),
            draw(st.sampled_from([None, None, number])),
            draw(st.sampled_from([True, True, True, False])),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


WINDOWS = st.sampled_from([600, HOUR, SIX, 7 * HOUR, DAY, 3 * DAY])
PULLS = st.one_of(st.none(), st.integers(0, 12))


# What holds for any record


@given(records(), st.lists(PULLS, max_size=3), WINDOWS)
def test_simulate_any_record_shares_are_shares(
    images: list[Recorded], budgets: list[int | None], window: int
) -> None:
    found = simulate(images, budgets, window, HISTORY)
    assert [one.pulls for one in found.reached] == (budgets if found.uses else [])
    windows = found.replayed_days * DAY / window + 1
    for one in found.reached:
        assert 0 <= one.coverage <= 1
        assert 0 <= one.best <= 1
        assert one.windows_to_full is None or 1 <= one.windows_to_full <= windows


@given(records(), PULLS, WINDOWS, st.randoms(use_true_random=False))
def test_simulate_any_order_of_the_record_tells_the_same(
    images: list[Recorded], pulls: int | None, window: int, chance: random.Random
) -> None:
    before = simulate(images, [pulls], window, HISTORY)
    shuffled = [
        replace(one, uses=tuple(chance.sample(one.uses, len(one.uses))))
        for one in chance.sample(images, len(images))
    ]
    assert simulate(shuffled, [pulls], window, HISTORY) == before


@given(records(), st.integers(0, 12), WINDOWS, st.sampled_from([planned, hindsight]))
def test_course_no_window_spends_more_than_its_budget(
    images: list[Recorded], pulls: int, window: int, order: Order
) -> None:
    record = Record(images, window, HISTORY)
    course = Course(record, pulls, order, knows_all=order is hindsight)
    follow(record, [course])
    assert len(course.spent) == record.steps
    assert all(spent * record.window <= pulls * record.step for spent in course.spent)


@given(records(), WINDOWS)
def test_simulate_without_a_limit_misses_only_what_was_unknown(
    images: list[Recorded], window: int
) -> None:
    """Nobody can fetch an image before its first use; hindsight can."""
    record = Record(images, window, HISTORY)
    known = {ran.image for ran in record.learned}
    known |= {n for n, one in enumerate(record.images) if one.pin is not None}
    hit = mirrored = 0
    for step in record.ran:
        may = [ran for ran in step if record.images[ran.image].mirrored]
        mirrored += sum(ran.runs for ran in may)
        hit += sum(ran.runs for ran in may if ran.image in known)
        known.update(ran.image for ran in step)
    for one in reached(images, None, window=window):
        assert one.coverage == pytest.approx(hit / record.total)
        assert one.best == pytest.approx(mirrored / record.total)


@given(records(), WINDOWS)
def test_record_every_run_is_replayed_once_on_its_day_or_known_before(
    images: list[Recorded], window: int
) -> None:
    record = Record(images, window, HISTORY)
    found: Counter[tuple[int, int]] = Counter()
    for ran in record.learned:
        assert ran.day * DAY < record.start
        found[ran.image, ran.day] += ran.runs
    for step, rans in enumerate(record.ran):
        begin = record.start + step * record.step
        for ran in rans:
            assert ran.runs > 0
            assert begin < (ran.day + 1) * DAY
            assert begin + record.step > ran.day * DAY
            found[ran.image, ran.day] += ran.runs
    expected: Counter[tuple[int, int]] = Counter()
    for number, one in enumerate(record.images):
        for use in one.uses:
            expected[number, use.day] += use.runs
    assert found == expected


@given(records(), st.integers(1, 5))
def test_view_weighs_as_the_plan_does(images: list[Recorded], history_days: int) -> None:
    """Every day anew: the weights are those of `demand`, for the runs so far."""
    record = Record(images, SIX, history_days * DAY)
    view = View(record)
    seen = list(record.learned)
    for step in range(record.steps):
        now = float(record.start + step * SIX)
        if step:
            view.advance(step)
            seen += record.ran[step - 1]
        rows = {
            (ran.project, str(ran.image)): [
                Row(str(ran.image), "image", "", record.images[ran.image].reference, None, "trace")
            ]
            for ran in seen
        }
        runs: dict[tuple[int, str], list[Runs]] = {}
        for ran in seen:
            if ran.day >= (now - record.history) // DAY:
                parts = parts_of(int(now // DAY) - ran.day)
                runs.setdefault((ran.project, str(ran.image)), []).append(
                    Runs(
                        ran.project,
                        str(ran.image),
                        "",
                        ran.runs,
                        ran.failed,
                        0.0,
                        ran.runs * parts,
                        ran.failed * parts,
                    )
                )
        weights = {one.reference: weight_of(one) for one in used(rows, runs, now=now)}
        for number, one in enumerate(record.images):
            assert view.weights[number] == pytest.approx(
                weights.get(one.reference, 0.0), rel=1e-3, abs=1e-5
            )


# What goes first


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (every_day("zz", 9), every_day("aa", 5)),
        (every_day("zz", 1, pin=0), every_day("aa", 50)),
        (every_day("zz", 1, pin=0), every_day("aa", 1, pin=1)),
        (every_day("zz", 5), every_day("aa", 9, pulls=3)),
        (replace(every_day("zz", 1), uses=(DayUses(DAY_0, 1, 1, 1),)), every_day("aa", 20)),
        (
            Recorded(
                "docker.io/library/zz:1",
                tuple(DayUses(DAY_0 + day, project, 2) for day in range(4) for project in range(5)),
            ),
            every_day("aa", 10),
        ),
        (image("zz", (1, 5), (3, 1)), image("aa", (0, 5), (3, 1))),
    ],
    ids=["more-uses", "pin", "first-pin", "fewer-pulls", "failed", "many-projects", "newer"],
)
def test_planned_of_two_the_more_wanted_goes_first(first: Recorded, second: Recorded) -> None:
    record = Record([second, first, image("last", (3, 1))], SIX, HISTORY)
    view = View(record)
    wanted = {
        one.reference: planned(view, number, one.pulls, False)
        for number, one in enumerate(record.images)
    }
    assert wanted[first.reference] < wanted[second.reference]


def test_planned_failed_pulls_older_than_the_history_are_forgotten() -> None:
    failed = replace(every_day("zz", 1, 8), uses=(DayUses(DAY_0 + 3, 1, 1, 1),))
    record = Record([failed, every_day("aa", 5, 8)], SIX, 2 * DAY)
    view = View(record)
    assert [record.images[n].reference[-4:] for n in range(2)] == ["aa:1", "zz:1"]
    order = []
    for step in range(record.steps):
        if step:
            view.advance(step)
        order.append(min(range(2), key=lambda image: planned(view, image, 1, False)))
    assert record.learned_days == 2
    # The one run of the fourth day comes late on it; two days are remembered with today's.
    assert order == [0] * 7 + [1] * 9 + [0] * 8


def test_planned_stale_gains_less_than_missing() -> None:
    view = View(Record([every_day("a", 5)], SIX, HISTORY))
    assert planned(view, 0, 1, False) < planned(view, 0, 1, True)


def test_hindsight_weighs_the_uses_until_the_tag_moves() -> None:
    once = image("moves", (0, 9), (2, 4), (3, 90), moves=moved_at(4))
    rest = image("stays", (0, 1), (2, 6), (3, 6))
    record = Record([once, rest], SIX, HISTORY)
    view = View(record)
    assert view.to_come == [4, 12]
    for step in range(1, 5):
        view.advance(step)
    assert view.to_come == [90, 6]


# What a budget reaches


def test_simulate_known_images_are_served_from_the_window_that_copies_them() -> None:
    """Of two images one goes in each window, the most used first: 8 windows, the last two days."""
    images = [every_day("much", 8), every_day("little", 4)]
    (one,) = reached(images, 1)
    assert one == Reached(1, (16 + 7) / 24, (16 + 7) / 24, 2)


def test_simulate_budget_of_nothing_serves_only_what_costs_nothing() -> None:
    images = [every_day("metered", 4), every_day("free", 4, pulls=0)]
    (one,) = reached(images, 0)
    assert one == Reached(0, 0.5, 0.5, None)


def test_simulate_image_that_may_not_be_mirrored_counts_and_is_never_served() -> None:
    images = [every_day("ours", 4), every_day("private", 12, mirrored=False)]
    (one,) = reached(images, 5)
    assert one == Reached(5, 0.25, 0.25, 1)


def test_simulate_stale_tag_serves_and_its_copy_is_paid_again() -> None:
    images = [every_day("app", 4, moves=moved_at(-3, 2, 5))]
    course = run(images, 9)
    assert course.coverage == 1
    assert course.spent == [1, 0, 1, 0, 0, 1, 0, 0]


def test_simulate_image_larger_than_a_window_comes_in_parts() -> None:
    course = run([every_day("large", 4, pulls=5)], 2)
    assert course.spent == [2, 2, 1, 0, 0, 0, 0, 0]
    assert (course.coverage, course.full_after) == (6 / 8, 3)


def test_simulate_image_that_does_not_fit_leaves_the_rest_to_the_next() -> None:
    two = every_day("two", 60, pulls=2)
    course = run([every_day("much", 90, pulls=2), two, every_day("one", 4)], 3)
    assert course.spent == [3, 2, 0, 0, 0, 0, 0, 0]
    assert course.coverage == 1 - 15 / (2 * (90 + 60 + 4))


def test_simulate_window_below_an_hour_has_the_pulls_of_all_in_it() -> None:
    images = [every_day(f"i{number}", 24) for number in range(12)]
    course = run(images, 1, window=600)
    assert course.spent[:3] == [6, 6, 0]
    assert course.full_after == 12


def test_simulate_pin_without_uses_costs_its_pulls() -> None:
    assert run([every_day("app", 4), image("pinned", pin=0, pulls=2)], 2).spent[:3] == [2, 1, 0]


def test_simulate_full_waits_for_what_only_a_definition_names() -> None:
    (one,) = reached([every_day("app", 4), image("defined"), image("other")], 1)
    assert one.windows_to_full == 3


@pytest.mark.parametrize(
    ("days", "history", "split"),
    [(1, 14, (0, 1)), (2, 14, (1, 1)), (15, 14, (7, 8)), (28, 14, (14, 14)), (60, 14, (14, 28)),
     (28, 3, (3, 25))],
)  # fmt: skip
def test_simulate_first_half_within_the_history_is_known_before(
    days: int, history: int, split: tuple[int, int]
) -> None:
    found = simulate([every_day("app", 2, days)], [1], SIX, history * DAY)
    assert (found.learned_days, found.replayed_days) == split
    assert found.uses == 2 * split[1]


def test_simulate_nothing_recorded_reaches_nothing() -> None:
    assert simulate([image("pinned", pin=0)], [100], SIX, HISTORY) == Simulation(
        SIX, 0, 0, 0, 0, ()
    )


@pytest.mark.parametrize(
    ("present", "budgets"),
    [
        (None, (25, 50, 100, 200, 400)),
        (0, (25, 50, 100, 200, 400)),
        (80, (25, 50, 80, 100, 200, 400)),
        (200, (25, 50, 100, 200, 400)),
    ],
)
def test_useful_budgets_hold_the_present_one(present: int | None, budgets: tuple[int, ...]) -> None:
    assert useful_budgets(present) == budgets


def test_document_is_that_of_the_contract() -> None:
    found = Simulation(SIX, 14, 14, 1, 3, (Reached(100, 2 / 3, 0.94, None), Reached(9, 1, 1, 3)))
    assert document(found) == {
        "version": 1,
        "window_seconds": 21600,
        "budgets": [
            {"pulls": 100, "coverage": 0.6667, "best": 0.94, "windows_to_full": None},
            {"pulls": 9, "coverage": 1, "best": 1, "windows_to_full": 3},
        ],
    }
