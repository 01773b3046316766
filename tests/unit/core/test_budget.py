"""Budgets: windows, forecasts and where a limit comes from."""

from __future__ import annotations

import time
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.budget import (
    NO_LIMIT,
    Forecast,
    Limit,
    Moment,
    Spend,
    Window,
    loads,
    next_free,
    remaining,
    upstream_allows,
    used,
    window_for,
    window_problem,
)
from prewarm.core.settings import Allowance

HOUR = 3600
TEN = Window(10, 6 * HOUR)


@pytest.mark.parametrize(
    ("earlier", "later", "seconds"),
    [
        pytest.param(Moment(100, "a", 10), Moment(100, "a", 30), 20, id="boot clock"),
        pytest.param(Moment(100, "a", 10), Moment(9999, "a", 30), 20, id="wall forward"),
        pytest.param(Moment(100, "a", 10), Moment(1, "a", 30), 20, id="wall back"),
        pytest.param(Moment(100, "a", 10), Moment(150, "b", 5), 50, id="across boots"),
        pytest.param(Moment(100, "a", 10), Moment(50, "b", 5), 0, id="future across boots"),
        pytest.param(Moment(100, "a", 30), Moment(100, "a", 10), 0, id="out of order"),
    ],
)
def test_since_clocks_tell_elapsed_seconds(earlier: Moment, later: Moment, seconds: float) -> None:
    assert later.since(earlier) == seconds


@pytest.mark.parametrize(
    ("window", "capacity"),
    [
        (Window(200, 6 * HOUR, 20), 180),
        (Window(5, 6 * HOUR, 20), 0),
        (Window(0), 0),
        (NO_LIMIT, None),
        (Window(200, 6 * HOUR, 20).without_reserve(), 200),
    ],
)
def test_capacity_reserve_is_left(window: Window, capacity: int | None) -> None:
    assert window.capacity == capacity


@pytest.mark.parametrize(
    ("spends", "held", "left"),
    [
        pytest.param([], 0, 10, id="empty"),
        pytest.param([Spend(0, 3), Spend(5 * HOUR, 2)], 5, 5, id="inside"),
        pytest.param([Spend(6 * HOUR - 1, 3)], 3, 7, id="last second"),
        pytest.param([Spend(6 * HOUR, 3)], 0, 10, id="gone at its full age"),
        pytest.param([Spend(-50, 3)], 3, 7, id="from the future"),
        pytest.param([Spend(9 * HOUR, 3, in_flight=True)], 3, 7, id="in flight never leaves"),
        pytest.param([Spend(0, 12)], 12, 0, id="overdrawn"),
    ],
)
def test_used_ages_hold_what_is_inside_the_window(
    spends: list[Spend], held: int, left: int
) -> None:
    assert (used(spends, TEN), remaining(spends, TEN)) == (held, left)


def test_remaining_no_limit_is_none() -> None:
    assert remaining([Spend(0, 1000)], NO_LIMIT) is None


@pytest.mark.parametrize(
    ("spends", "cost", "seconds"),
    [
        pytest.param([], 10, 0.0, id="fits"),
        pytest.param([], 11, None, id="never"),
        pytest.param([Spend(1 * HOUR, 4), Spend(2 * HOUR, 6)], 1, 4 * HOUR, id="oldest leaves"),
        pytest.param([Spend(1 * HOUR, 4), Spend(2 * HOUR, 6)], 6, 4 * HOUR, id="exactly"),
        pytest.param([Spend(1 * HOUR, 4), Spend(2 * HOUR, 6)], 7, 5 * HOUR, id="both leave"),
        pytest.param([Spend(5 * HOUR, 10, in_flight=True)], 1, 6 * HOUR, id="in flight"),
        pytest.param([Spend(0, 30), Spend(HOUR, 30)], 0, 0.0, id="nothing always fits"),
        pytest.param([Spend(7 * HOUR, 10)], 10, 0.0, id="already gone"),
        pytest.param([Spend(-90, 10)], 1, 6 * HOUR, id="from the future"),
    ],
)
def test_next_free_window_gives_seconds(
    spends: list[Spend], cost: int, seconds: float | None
) -> None:
    assert next_free(spends, TEN, cost) == seconds


def test_next_free_no_limit_is_now() -> None:
    assert next_free([Spend(0, 1000)], NO_LIMIT, 50) == 0.0


ages = st.integers(0, 120)
spend_lists = st.lists(st.builds(Spend, ages, st.integers(1, 4), st.booleans()), max_size=12)


@given(spend_lists, st.integers(1, 8))
def test_next_free_any_spends_is_the_first_second_with_room(spends: list[Spend], cost: int) -> None:
    window = Window(8, 100)

    def fits(seconds: float) -> bool:
        later = [
            Spend(seconds if spend.in_flight else spend.age + seconds, spend.pulls)
            for spend in spends
        ]
        return used(later, window) + cost <= 8

    free = next_free(spends, window, cost)
    assert free == next(second for second in range(101) if fits(second))


@given(spend_lists, st.integers(0, 150))
def test_loads_are_what_was_used_at_each_time(spends: list[Spend], seconds: int) -> None:
    window = Window(8, 50)
    steps = loads(spends, window, seconds)
    assert (steps[0][0], steps[-1]) == (seconds, (0.0, used(spends, window)))
    for ago in range(1, seconds + 1):
        then = [
            Spend(spend.age - ago, spend.pulls)
            for spend in spends
            if not spend.in_flight and spend.age >= ago
        ]
        assert [held for since, held in steps if since >= ago][-1] == used(then, window)


# Forecast


def test_place_small_after_large_passes_it_without_delay() -> None:
    forecast = Forecast([Spend(1 * HOUR, 8)], TEN)
    placed = [forecast.place(cost) for cost in (3, 2, 1, 11)]
    assert placed == [5 * HOUR, 0.0, 5 * HOUR, None]


def test_place_small_that_would_delay_the_large_waits() -> None:
    forecast = Forecast([Spend(5 * HOUR, 4)], TEN)
    # At 1 h the large one takes the whole window, so nothing may be spent before.
    assert [forecast.place(cost) for cost in (10, 1)] == [1 * HOUR, 7 * HOUR]


def test_earliest_places_nothing() -> None:
    forecast = Forecast([], TEN)
    assert [forecast.earliest(cost) for cost in (10, 10, 11)] == [0.0, 0.0, None]
    assert forecast.place(6) == 0.0
    assert [forecast.earliest(cost) for cost in (4, 4, 5)] == [0.0, 0.0, 6 * HOUR]


def test_place_no_limit_is_now() -> None:
    forecast = Forecast([Spend(0, 1000)], NO_LIMIT)
    assert [forecast.place(1000), forecast.earliest(5)] == [0.0, 0.0]


def test_place_zero_window_is_never_but_nothing_is_now() -> None:
    forecast = Forecast([], Window(0))
    assert [forecast.place(1), forecast.place(0)] == [None, 0.0]


def _load(spends: list[tuple[float, int]], end: float, length: float) -> int:
    return sum(pulls for at, pulls in spends if end - length < at <= end)


def _reference_place(spends: list[tuple[float, int]], cost: int, window: Window) -> float | None:
    """The rule, by trying every second."""
    capacity = window.capacity
    assert capacity is not None
    if cost > capacity:
        return None
    length = window.seconds
    for start in range(10_000):
        tried = [*spends, (float(start), cost)]
        ends = [at for at, _ in tried if start <= at < start + length]
        if all(_load(tried, end, length) <= capacity for end in ends):
            return float(start)
    raise AssertionError("no time found")


@given(
    st.lists(st.builds(Spend, st.integers(0, 30), st.integers(1, 3)), max_size=5),
    st.lists(st.integers(1, 6), max_size=14),
)
def test_place_any_costs_is_each_ones_earliest_time(spends: list[Spend], costs: list[int]) -> None:
    window = Window(6, 20, 1)
    forecast = Forecast(spends, window)
    placed = [(-spend.age, spend.pulls) for spend in spends]
    for cost in costs:
        expected = _reference_place(placed, cost, window)
        assert forecast.place(cost) == expected
        if expected is not None:
            placed.append((expected, cost))


@given(st.lists(st.floats(0, 100), min_size=65, max_size=200), st.integers(1, 9))
def test_place_many_ages_is_never_early_and_hardly_late(ages: list[float], cost: int) -> None:
    window = Window(200, 100)
    spends = [Spend(0.0, 200 - len(ages)), *(Spend(age, 1) for age in ages)]
    exact = next_free(spends, window, cost)
    placed = Forecast(spends, window).place(cost)
    assert exact is not None
    assert placed is not None
    assert exact <= placed <= exact + 100 / 64


def test_place_hundred_thousand_costs_is_quick() -> None:
    spends = [Spend(float(age), 1) for age in range(0, 21600, 120)]
    forecast = Forecast(spends, Window(200, 6 * HOUR, 20))
    started = time.process_time()
    for number in range(100_000):
        forecast.place(1 + number % 5)
    # Some 0.3 s here; quadratic would be minutes.
    assert time.process_time() - started < 3


# Where the limit comes from

REPORTED = Limit(200, 21600, 150, "acme")


@pytest.mark.parametrize(
    ("registry", "written", "reported", "reachable", "window"),
    [
        pytest.param(
            *("docker.io", Allowance(50, 900, 5), REPORTED, True),
            Window(50, 900, 5, every_address=True),
            id="written",
        ),
        pytest.param("docker.io", "none", REPORTED, True, NO_LIMIT, id="none"),
        pytest.param("docker.io", None, REPORTED, True, Window(200, 21600, 40), id="reported"),
        pytest.param(
            "docker.io", None, Limit(100, None, 9, ""), True, Window(100, 21600, 20), id="no w="
        ),
        pytest.param("docker.io", None, Limit(None, None, 9, ""), True, NO_LIMIT, id="no limit="),
        pytest.param("docker.io", None, Limit(-5, 60, 9, ""), True, Window(0, 60, 0), id="absurd"),
        pytest.param("docker.io", None, None, True, NO_LIMIT, id="no header"),
        pytest.param("docker.io", None, None, False, Window(100, 21600, 20), id="unreachable"),
        pytest.param("quay.io", None, REPORTED, True, NO_LIMIT, id="other registry"),
        pytest.param("quay.io", None, None, False, NO_LIMIT, id="other registry unreachable"),
        pytest.param(
            *("quay.io", Allowance(9), None, True),
            Window(9, 21600, 0, every_address=True),
            id="other written",
        ),
    ],
)
def test_window_for_follows_the_contract(
    registry: str,
    written: Allowance | Literal["none"] | None,
    reported: Limit | None,
    reachable: bool,
    window: Window,
) -> None:
    found, source = window_for(registry, written, reported, reachable=reachable)
    assert found == window
    assert source


def test_window_for_use_reserve_opens_it() -> None:
    window, _ = window_for("docker.io", None, REPORTED, reachable=True, use_reserve=True)
    assert window == Window(200, 21600, 0)


@pytest.mark.parametrize(
    ("written", "reported", "is_problem"),
    [
        (Allowance(50, 900), REPORTED, True),
        (Allowance(50, 21600), REPORTED, False),
        (Allowance(50, 900), None, False),
        (Allowance(50, 900), Limit(100, None, 5, ""), False),
        ("none", REPORTED, False),
        (None, REPORTED, False),
    ],
)
def test_window_problem_written_other_than_reported_is_one(
    written: Allowance | Literal["none"] | None, reported: Limit | None, is_problem: bool
) -> None:
    problem = window_problem("docker.io", written, reported)
    assert (problem is not None) == is_problem
    if problem is not None:
        assert problem.where == "docker.io"
        assert "6h" in problem.cure


@pytest.mark.parametrize(
    ("left", "unsettled", "gets", "reserve", "allowed"),
    [
        (12, 0, 2, 10, True),
        (12, 0, 3, 10, False),
        (12, 1, 2, 10, False),
        (-3, 0, 1, 0, False),
        (1, 0, 1, 0, True),
    ],
)
def test_upstream_allows_leaves_the_reserve(
    left: int, unsettled: int, gets: int, reserve: int, allowed: bool
) -> None:
    assert upstream_allows(left, unsettled, gets, reserve) is allowed
