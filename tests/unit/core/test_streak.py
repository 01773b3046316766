"""Failures in a row, counted by many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from prewarm.core.streak import Streak


def test_failed_counts_repositories_until_an_answer() -> None:
    streak = Streak()
    assert [streak.failed(name) for name in ("a", "b", "a", "c")] == [1, 2, 0, 3]
    assert streak.times == 4
    streak.ended()
    assert streak.times == 0
    assert streak.failed("a") == 1


def test_failed_by_many_threads_gives_each_number_once() -> None:
    streak = Streak()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(streak.failed, [str(n % 500) for n in range(2000)]))
    assert sorted(filter(None, found)) == list(range(1, 501))


def test_streak_that_ends_while_others_fail_raises_nothing() -> None:
    streak = Streak()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: streak.ended() if n % 3 else streak.failed(str(n)), range(5000)))
    streak.ended()
    assert streak.failed("a") == 1
