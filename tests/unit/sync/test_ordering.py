"""Order among workers: turns come in order, a blob is moved once, and a stop ends every wait."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.sync import ordering
from prewarm.sync.ordering import Moving, Slots, Turns

NEAR, FAR = "http://127.0.0.1:5000", "https://far.example.org"


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


# Turns


def test_wait_of_the_first_turn_does_not_wait(stop: threading.Event) -> None:
    turns = Turns(stop)
    turns.wait(turns.issue(3)[0])


@settings(deadline=None)
@given(st.permutations(range(8)))
def test_wait_lets_turns_pass_in_order_however_they_come(came: list[int]) -> None:
    turns = Turns(threading.Event())
    issued = turns.issue(8)
    passed: list[int] = []

    def take(number: int) -> None:
        turns.wait(issued[number])
        passed.append(number)
        turns.over(issued[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, came))
    assert passed == list(range(8))


def test_wait_is_over_only_when_all_earlier_turns_are(stop: threading.Event) -> None:
    turns = Turns(stop)
    issued = turns.issue(3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(turns.wait, issued[2])
        turns.over(issued[1])
        time.sleep(0.05)
        assert not waiting.done()
        turns.over(issued[0])
        waiting.result(timeout=2)


def test_over_said_twice_lets_no_one_pass_too_early(stop: threading.Event) -> None:
    turns = Turns(stop)
    issued = turns.issue(3)
    for _ in range(2):
        turns.over(issued[0])
    with ThreadPoolExecutor(1) as pool:
        turns.wait(issued[1])
        waiting = pool.submit(turns.wait, issued[2])
        turns.over(issued[0])
        time.sleep(0.05)
        assert not waiting.done()
        turns.over(issued[1])
        waiting.result(timeout=2)


def test_wait_of_a_turn_that_is_over_does_not_wait(stop: threading.Event) -> None:
    """Steps of one group share a turn: the second finds it over."""
    turns = Turns(stop)
    issued = turns.issue(2)
    turns.over(issued[0])
    turns.wait(issued[0])


def test_issue_again_goes_on_after_those_issued_before(stop: threading.Event) -> None:
    turns = Turns(stop)
    first, second = turns.issue(2), turns.issue(2)
    assert (list(first), list(second)) == ([0, 1], [2, 3])
    for turn in first:
        turns.over(turn)
    turns.wait(second[0])


def test_wait_ends_when_the_run_is_stopped(stop: threading.Event) -> None:
    turns = Turns(stop)
    issued = turns.issue(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(turns.wait, issued[1])
        stop.set()
        waiting.result(timeout=3)


# Blobs that move


def test_hold_of_the_same_blob_waits_for_the_first(stop: threading.Event) -> None:
    moving = Moving(stop)
    entered = threading.Event()

    def second() -> None:
        with moving.hold(NEAR, "app", ["base", "other"]):
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with moving.hold(NEAR, "app", ["base"]):
            waiting = pool.submit(second)
            time.sleep(0.05)
            assert not entered.is_set()
        waiting.result(timeout=2)
        assert entered.is_set()


@pytest.mark.parametrize(("mirror", "blobs"), [(NEAR, ["other"]), (FAR, ["base"]), (NEAR, [])])
def test_hold_of_another_blob_or_mirror_does_not_wait(
    stop: threading.Event, mirror: str, blobs: list[str]
) -> None:
    moving = Moving(stop)
    with moving.hold(NEAR, "app", ["base"]), moving.hold(mirror, "app", blobs):
        pass


def test_hold_of_a_blob_that_is_there_does_not_wait(stop: threading.Event) -> None:
    moving = Moving(stop)
    with moving.hold(NEAR, "app", ["base"]):
        pass
    with moving.hold(NEAR, "app", ["base", "one"]), moving.hold(NEAR, "app", ["base", "two"]):
        pass


def test_hold_that_failed_leaves_the_blob_to_be_moved(stop: threading.Event) -> None:
    moving = Moving(stop)
    with pytest.raises(ZeroDivisionError), moving.hold(NEAR, "app", ["base"]):
        raise ZeroDivisionError
    entered = threading.Event()

    def second() -> None:
        with moving.hold(NEAR, "app", ["base"]):
            entered.set()

    with ThreadPoolExecutor(1) as pool, moving.hold(NEAR, "app", ["base"]):
        pool.submit(second)
        time.sleep(0.05)
        # It is not there, so who comes next waits for the one who moves it now.
        assert not entered.is_set()
    assert entered.is_set()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([NEAR, FAR]),
            st.lists(st.sampled_from("abcd"), min_size=1, max_size=4),
            st.booleans(),
        ),
        max_size=10,
    )
)
def test_hold_by_many_never_moves_a_blob_twice_at_once_nor_locks_up(
    copies: list[tuple[str, list[str], bool]],
) -> None:
    moving = Moving(threading.Event())
    lock = threading.Lock()
    under_way: set[tuple[str, str]] = set()
    there: set[tuple[str, str]] = set()

    def copy(mirror: str, blobs: list[str], fails: bool) -> None:
        wanted = {(mirror, blob) for blob in blobs}
        try:
            with moving.hold(mirror, "app", blobs):
                with lock:
                    mine = wanted - there
                    assert not mine & under_way
                    under_way.update(mine)
                time.sleep(0.0005)
                with lock:
                    under_way.difference_update(mine)
                    if not fails:
                        there.update(wanted)
                if fails:
                    raise OSError("broken")
        except OSError:
            pass

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(copy, *one) for one in copies]:
            future.result(timeout=10)


def test_hold_ends_its_wait_when_the_run_is_stopped(stop: threading.Event) -> None:
    moving = Moving(stop)

    def second() -> None:
        with moving.hold(NEAR, "app", ["base"]):
            pass

    with ThreadPoolExecutor(1) as pool, moving.hold(NEAR, "app", ["base"]):
        waiting = pool.submit(second)
        stop.set()
        waiting.result(timeout=3)


def test_arrived_lets_a_copy_go_before_the_first_is_over(stop: threading.Event) -> None:
    moving = Moving(stop)
    with moving.hold(NEAR, "first", ["base", "own"]):
        moving.arrived(NEAR, "base", "first")
        with moving.hold(NEAR, "second", ["base", "other"]):
            assert moving.where(NEAR, "base") == "first"
            assert moving.where(NEAR, "own") is None
    assert moving.where(NEAR, "base") == "first"
    assert moving.where(NEAR, "other") == "second"


def test_gone_makes_the_next_copy_move_the_blob_again(stop: threading.Event) -> None:
    moving = Moving(stop)
    moving.arrived(NEAR, "base", "first")
    moving.gone(NEAR, "base")
    with moving.hold(NEAR, "second", ["base"]):
        assert moving.where(NEAR, "base") is None
    assert moving.where(NEAR, "base") == "second"


def test_placed_tells_in_which_repositories_a_blob_is(stop: threading.Event) -> None:
    moving = Moving(stop)
    moving.arrived(NEAR, "base", "first")
    assert moving.placed(NEAR, "first", "base")
    moving.place(NEAR, "second", "base")
    with moving.hold(NEAR, "third", ["own"]):
        pass
    assert moving.placed(NEAR, "second", "base")
    assert moving.placed(NEAR, "third", "own")
    assert not moving.placed(FAR, "second", "base")
    moving.gone(NEAR, "base")
    assert not moving.placed(NEAR, "second", "base")


def test_placing_is_one_at_a_time_in_a_repository(stop: threading.Event) -> None:
    moving = Moving(stop)
    with moving.placing(NEAR, "first"):
        assert not moving.placing(NEAR, "first").acquire(blocking=False)
        assert moving.placing(NEAR, "second").acquire(blocking=False)
        assert moving.placing(FAR, "first").acquire(blocking=False)


# Slots


def test_take_gives_a_slot_to_the_registry_with_the_least_under_way() -> None:
    slots = Slots([*(("slow", n) for n in range(4)), ("hub", 4), ("hub", 5), ("quay", 6)])
    assert [slots.take() for _ in range(4)] == [("slow", 0), ("hub", 4), ("quay", 6), ("slow", 1)]
    slots.ended("hub")
    assert slots.take() == ("hub", 5)
    slots.ended("hub")
    assert [slots.take() for _ in range(3)] == [("slow", 2), ("slow", 3), None]


def test_take_keeps_the_order_of_one_registry() -> None:
    slots = Slots([("hub", n) for n in range(5)])
    assert [slots.take() for _ in range(6)] == [*(("hub", n) for n in range(5)), None]


def test_hold_waits_for_the_blob_of_another_for_a_bounded_time(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "HOLD_FOR", 0.2)
    moving = Moving(stop)
    with moving.hold(NEAR, "slow", ["sha256:1"]), moving.hold(NEAR, "app", ["sha256:1"]) as mine:
        assert mine == set()
