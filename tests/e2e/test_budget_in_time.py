"""Budgets from window to window, and the examples of the design at their full size."""

from __future__ import annotations

import time
from pathlib import Path

from tests.e2e.host import Host, Sync, epoch
from tests.sandbox import Quota, Sandbox
from tests.sandbox.quota import Spending

AMD, ARM = "linux/amd64", "linux/arm64"
HOUR = 3600


def push_many(box: Sandbox, number: int) -> list[str]:
    """Put one-platform indexes upstream, which cost 1 pull and 2 GETs; return their pins."""
    for n in range(number):
        box.push(f"library/app{n:03}", "1", platforms=[AMD])
    return [f"app{n:03}:1" for n in range(number)]


def settled(host: Host) -> list[float]:
    """Return when the ledger's pulls were settled, in epoch seconds, the first one first."""
    with host.sql() as sql:
        ((base,),) = sql.execute("SELECT base FROM boots")
        rows = sql.execute("SELECT settled FROM pulls ORDER BY settled").fetchall()
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return [at - base + boot for (at,) in rows]


def untils(done: Sync) -> list[float]:
    return [epoch(one["until"]) for one in done.report["images"] if one["action"] == "defer"]


def test_sync_until_is_to_the_second_and_honoured_in_two_windows_in_a_row(
    box: Sandbox, tmp_path: Path
) -> None:
    host = Host(tmp_path, box)
    pins = push_many(box, 6)
    budget = {"pulls": 3, "window": "1h", "reserve": 1}
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": budget}}
    host.configure(pins, registries=registries, limits={"parallel": 1})
    waiting = pins
    for window in (1, 2):
        done = host.sync()
        assert done.named("copy") == waiting[:2]
        waiting = waiting[2:]
        # Each waits for the pull that leaves before it, the third for the first's.
        ends = [at + HOUR for at in settled(host)[-2:]]
        ends = [*ends, *(at + HOUR for at in ends)][: len(waiting)]
        told = untils(done)
        assert all(-1.5 < one - end < 0.5 for one, end in zip(told, ends, strict=True))

        early = told[0] - 120 - time.time()
        host.let_time_pass(early)
        before = host.sync()
        assert (before.gets, before.named("defer")) == ((), waiting)
        assert all(
            abs(one - early - other) <= 1 for one, other in zip(told, untils(before), strict=True)
        )
        # The second to leave left at most the run of two copies later.
        host.let_time_pass(120 + told[1] - told[0] + 2)
        assert host.charged() == 2 * window
    assert host.sync().named("copy") == waiting
    assert host.charged() == 6


def test_sync_hub_that_counts_gets_full_size_stops_at_the_reserve(tmp_path: Path) -> None:
    """200 per 6 h, reserve 20, reported 200, 100 one-platform indexes (DESIGN.md, 2)."""
    with Sandbox(quota=Quota(200, count="gets")) as box:
        host = Host(tmp_path, box)
        pins = push_many(box, 100)
        budget = {"pulls": 200, "window": "6h", "reserve": 20}
        host.configure(pins, registries={"docker.io": {"endpoint": box.hub.url, "budget": budget}})
        done = host.sync()
        assert done.named("copy") == pins[:90]
        assert {(one["code"], one["until"]) for one in done.report["images"][90:]} == {
            ("upstream-quota", None)
        }
        assert box.hub.remaining() == 20
        assert box.hub.access.statuses()[429] == 0


def test_sync_budget_that_is_not_written_follows_the_hub_from_run_to_run(tmp_path: Path) -> None:
    with Sandbox(quota=Quota(10, HOUR)) as box:
        host = Host(tmp_path, box)
        pins = push_many(box, 16)
        host.configure(pins)

        def run(limit: int, seconds: int) -> tuple[list[int], Sync]:
            box.hub.rules.quota = Quota(limit, seconds)
            done = host.sync()
            told = done.report["budgets"]["docker.io"]
            keys = ("pulls", "reserve", "window_seconds", "used", "remaining")
            return [told[key] for key in keys], done

        # A fifth is the reserve, and both GETs of an image must fit above it: 3 remain.
        told, done = run(10, HOUR)
        assert (told, done.named("copy")) == ([10, 2, HOUR, 7, 1], pins[:7])
        # A better plan is bought: 15, of which 3 are the reserve and 7 are spent.
        told, done = run(15, HOUR)
        assert (told, done.named("copy")) == ([15, 3, HOUR, 11, 1], pins[7:11])
        assert {one["code"] for one in done.report["images"][11:]} == {"upstream-quota"}
        # It ends: now more is spent than may be.
        told, done = run(5, HOUR)
        assert (told, done.named("copy"), done.gets) == ([5, 1, HOUR, 11, 0], [], ())
        # What was pulled an hour ago has left a window of an hour, not one of three.
        host.let_time_pass(HOUR + 60)
        box.hub.spending = Spending()
        told, done = run(15, 3 * HOUR)
        assert (told, done.named("copy")) == ([15, 3, 3 * HOUR, 12, 0], pins[11:12])
        assert {one["code"] for one in done.report["images"][12:]} == {"budget"}
        first = min(settled(host)) + 3 * HOUR
        assert -1.5 < untils(done)[0] - first < 0.5
        told, done = run(5, HOUR)
        assert (told, done.named("copy")) == ([5, 1, HOUR, 3, 1], pins[12:14])
