"""Coverage over time: each run notes what `status` shows after it, and only a run does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, wait_until
from tests.sandbox import Fault, Sandbox
from tests.sandbox.gitlab import TOKEN, Gitlab


@pytest.fixture
def site() -> Iterator[Gitlab]:
    with Gitlab() as running:
        yield running


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def status(host: Host) -> Any:
    return host.run("status", "--json").json


def shares(told: Any) -> list[float]:
    return [point["coverage"] for point in told["coverage_series"]]


def use_ci(host: Host, site: Gitlab, pulls: int) -> None:
    """Have three projects use three images 6, 3 and 1 times, and a budget."""
    for number, (name, jobs) in enumerate({"a": 6, "b": 3, "c": 1}.items()):
        host.box.push(f"library/{name}", "1")
        project = site.add_project(f"team/p{number}", f"x:\n  image: {name}:1\n  script: [x]\n")
        for _ in range(jobs - 1):
            site.add_job(project, "x")
        site.add_job(project, "x", status="failed", failure_reason="image_pull_failure")
    token = host.folder / "token"
    token.write_text(TOKEN)
    host.configure(
        [],
        gitlab={"url": site.url, "token_file": str(token), "history": "3d"},
        registries={
            "docker.io": {
                "endpoint": host.box.hub.url,
                "budget": {"pulls": pulls, "window": "6h", "reserve": 0},
            }
        },
    )


def test_syncs_within_a_small_budget_are_a_series_that_rises_to_what_status_tells(
    host: Host, site: Gitlab
) -> None:
    use_ci(host, site, pulls=1)
    for expected in ([0.6], [0.6, 0.9], [0.6, 0.9, 1.0]):
        planned = host.sync("--dry-run")
        done = host.sync()
        # The dry run, which knew the plan as well, noted nothing.
        assert planned.named("copy") == done.named("copy")
        told = status(host)
        assert (shares(told), told["coverage"]) == (expected, expected[-1])
        (mirror,) = told["mirrors"]
        assert (shares(mirror), mirror["coverage"]) == (expected, expected[-1])
        assert told["last_sync"]["started"] <= told["coverage_series"][-1]["at"]
        assert told["coverage_series"][-1]["at"] <= told["last_sync"]["finished"]
        host.let_time_pass(6 * 3600 + 1)
    # Of each project one job failed on its pull, this or, as midnight passes, the last day.
    failures = told["pull_failures_per_day"]
    assert (len(failures), sum(failures), sum(failures[-2:])) == (4, 3, 3)


def test_sync_of_a_named_image_is_a_point_of_the_series_where_uses_are_known(
    host: Host, site: Gitlab
) -> None:
    use_ci(host, site, pulls=10)
    host.run("scan", "--json")
    host.sync("b:1")
    assert shares(status(host)) == [0.3]
    # One that no job used changes nothing.
    host.box.push("library/other", "1")
    host.sync("other:1")
    told = status(host)
    assert (shares(told), told["coverage"]) == ([0.3, 0.3], 0.3)


def test_sync_of_a_named_pin_without_uses_says_nothing_of_the_others(
    host: Host, box: Sandbox
) -> None:
    for name in ("a", "b"):
        box.push(f"library/{name}", "1")
    host.configure(["a:1", "b:1", "gone:1"])
    host.sync("a:1")
    assert status(host)["coverage_series"] == []
    host.sync(code=1)
    told = status(host)
    assert shares(told) == [told["coverage"]] == [pytest.approx(2 / 3, abs=1e-4)]


def test_sync_that_is_ended_without_uses_notes_nothing(host: Host, box: Sandbox) -> None:
    box.push("library/a", "1")
    host.configure(["a:1"])
    box.hub.cdn.faults.add(Fault("GET", "*", hang=60, count=None))
    with host.start("sync", "--json") as process:
        try:
            wait_until(lambda: bool(list(box.hub.cdn.access)), "request for a layer")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 143
    told = status(host)
    assert (told["last_sync"]["exit"], told["coverage_series"]) == (143, [])
    box.hub.cdn.faults.clear()
    host.sync()
    assert shares(status(host)) == [1.0]


def test_sync_while_a_mirror_is_down_notes_what_status_tells_of_each(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        for name in ("a", "b"):
            box.push(f"library/{name}", "1")
        host.configure(["a:1"])
        host.sync()
        box.mirrors[1].stop()
        host.configure(["a:1", "b:1"])
        host.sync(code=1)
        told = status(host)
        near, far = told["mirrors"]
        assert (shares(told), told["coverage"]) == ([1.0, 1.0], 1.0)
        assert (shares(near), near["coverage"]) == ([1.0, 1.0], 1.0)
        assert (shares(far), far["coverage"]) == ([1.0, 0.5], 0.5)
        box.mirrors[1].start()
        host.sync()
        assert shares(status(host)["mirrors"][1]) == [1.0, 0.5, 1.0]


def test_status_of_a_month_old_series_tells_the_change_of_a_week(host: Host, box: Sandbox) -> None:
    for name in ("a", "b"):
        box.push(f"library/{name}", "1")
    host.configure(["a:1", "b:1"])
    host.sync()
    assert "coverage 100%\n" in host.run("status").stdout
    with host.sql() as sql, sql:
        sql.execute("UPDATE coverage SET served = 1, at = at - 30 * 86400")
        for days in (8, 3):
            sql.execute(
                "INSERT INTO coverage SELECT at + (30 - :days) * 86400, mirror, 10 - :days, 10"
                " FROM coverage WHERE served = 1",
                {"days": days},
            )
    assert "coverage 100% (7 days ago 20%)\n" in host.run("status").stdout
    # The next whole run forgets none of it yet.
    host.sync()
    with host.sql() as sql:
        assert sql.execute("SELECT COUNT(*) FROM coverage WHERE mirror = ''").fetchone() == (4,)
