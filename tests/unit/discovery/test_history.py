"""History: what counts as a run, and that each counts exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prewarm.core.settings import Runners
from prewarm.core.usage import DAY, NEVER, Mark, plain
from prewarm.discovery.history import (
    NAMES_MAX,
    OVERLAP,
    Job,
    Runner,
    Tally,
    counts,
    excludes,
    platform_of,
    read_job,
)

NOW = 1_700_000_000.0


def job(number: int = 1, **more: Any) -> Job:
    fields: dict[str, Any] = {
        "id": number,
        "project": 1,
        "name": "build",
        "created": NOW - 100,
        "started": NOW - 90,
        "running": False,
        "pull_failed": False,
        "ref": "main",
        "sha": "",
        "runner": 1,
        "shared": False,
        "platform": "linux/amd64",
        "tags": frozenset(),
    }
    return Job(**(fields | more))


def tally(marks: dict[int, Mark] | None = None, **more: Any) -> Tally:
    return Tally(NOW - 14 * DAY, NOW, marks or {1: NEVER}, **more)


def runs(counted: Tally) -> int:
    return sum(count.runs for count in counted.counts.values())


FIELDS: dict[str, Any] = {
    "id": 7,
    "name": "test 2/3",
    "status": "running",
    "ref": "main",
    "created_at": "2023-11-14T22:13:20.000Z",
    "started_at": "2023-11-14T22:13:21.500Z",
    "commit": {"id": "a" * 40},
    "runner": {"id": 3, "is_shared": True},
    "runner_manager": {"platform": "linux", "architecture": "arm64"},
    "tag_list": ["docker"],
}


def test_read_job_of_a_project_takes_runner_and_platform_from_the_entry() -> None:
    assert read_job(FIELDS, project=5) == Job(
        7, 5, "test", NOW, NOW + 1.5, True, False, "main", "a" * 40, 3, True, "linux/arm64",
        frozenset({"docker"}),
    )  # fmt: skip


def test_read_job_of_a_runner_takes_the_project_from_the_entry() -> None:
    fields = {key: FIELDS[key] for key in FIELDS.keys() - {"runner", "runner_manager", "tag_list"}}
    runner = Runner(9, False, "linux/amd64", frozenset({"big"}))
    found = read_job(fields | {"project": {"id": 5}}, runner=runner)
    assert found is not None
    assert (found.project, found.runner, found.platform) == (5, 9, "linux/amd64")
    assert (found.shared, sorted(found.tags)) == (False, ["big"])


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": True},
        {"id": "7"},
        {"id": -1},
        {"name": None},
        {"name": ""},
        {"created_at": None},
        {"created_at": "yesterday"},
        {"created_at": 12},
    ],
)
def test_read_job_of_rubbish_is_none(change: dict[str, Any]) -> None:
    assert read_job(FIELDS | change, project=5) is None


@pytest.mark.parametrize(
    "change",
    [{"runner": []}, {"runner_manager": "x"}, {"tag_list": {}}, {"commit": 3}, {"started_at": 5}],
)
def test_read_job_with_odd_fields_is_still_a_job(change: dict[str, Any]) -> None:
    assert read_job(FIELDS | change, project=5) is not None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test", "test"),
        ("test 1/3", "test"),
        ("test: [3.12, arm]", "test: [3.12, arm]"),
        ("test 1/3 more", "test 1/3 more"),
        ("1/3", "1/3"),
    ],
)
def test_plain_drops_the_number_of_parallel(name: str, expected: str) -> None:
    assert plain(name) == expected


@pytest.mark.parametrize(
    ("managers", "expected"),
    [
        ([{"platform": "linux", "architecture": "amd64"}], "linux/amd64"),
        ([{"architecture": "x86_64"}, {"architecture": "aarch64"}], "linux/amd64,linux/arm64"),
        ([{"platform": "darwin", "architecture": "arm64"}], "linux/arm64"),
        ([{"platform": "windows", "architecture": "amd64"}], "windows/amd64"),
        ([{"platform": "linux", "architecture": None}, None, 3], ""),
        ([{"platform": "linux", "architecture": "a b"}], ""),
        ([], ""),
    ],
)
def test_platform_of_managers_is_that_of_their_containers(managers: Any, expected: str) -> None:
    assert platform_of(managers) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Runners(), True),
        (Runners(ids=(1, 2)), True),
        (Runners(ids=(2,)), False),
        (Runners(shared=False), False),
        (Runners(tags=("docker",)), True),
        (Runners(tags=("docker", "big")), False),
    ],
)
def test_counts_follows_the_runner_filter(wanted: Runners, expected: bool) -> None:
    assert counts(job(shared=True, tags=frozenset({"docker"})), wanted) is expected


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["sandbox/**"], "sandbox/a/b", True),
        (["sandbox/**"], "sandbox", False),
        (["sandbox/*"], "sandbox/a/b", False),
        (["sandbox/*"], "Sandbox/a", True),
        (["**/old-*"], "team/x/old-app", True),
        (["team/a?p"], "team/app", True),
        (["team/a.p"], "team/app", False),
        (["x", "team/app"], "team/app", True),
    ],
)
def test_excludes_are_globs_on_the_whole_path(
    patterns: list[str], path: str, expected: bool
) -> None:
    found = excludes(patterns)
    assert found is not None
    assert (found.fullmatch(path) is not None) is expected


def test_excludes_of_nothing_is_none() -> None:
    assert excludes([]) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 1),
        ({"started": None}, 0),
        ({"started": NOW + 1}, 0),
        ({"started": NOW - 15 * DAY}, 0),
        ({"project": 2}, 0),
    ],
)
def test_take_counts_jobs_that_ran_in_the_window(change: dict[str, Any], expected: int) -> None:
    counted = tally()
    counted.take(job(**change))
    assert runs(counted) == expected


def test_take_counts_by_name_runner_platform_and_day() -> None:
    counted = tally()
    changes: list[dict[str, Any]] = [
        {}, {}, {"name": "b"}, {"runner": 2}, {"platform": ""}, {"started": NOW - DAY}
    ]  # fmt: skip
    for number, change in enumerate(changes, 1):
        counted.take(job(number, **change))
    assert sorted(count.runs for count in counted.counts.values()) == [1, 1, 1, 1, 2]


def test_take_of_a_pull_failure_counts_it_and_keeps_the_newest_id() -> None:
    counted = tally()
    counted.take(job(9))
    counted.take(job(5, pull_failed=True))
    (count,) = counted.counts.values()
    assert (count.runs, count.pull_failures, count.newest, count.newest_failed) == (2, 1, 9, 5)


def test_take_of_a_logged_job_counts_no_run_but_its_pull_failure() -> None:
    counted = tally(logged={1, 2})
    counted.take(job(1))
    counted.take(job(2, pull_failed=True))
    (count,) = counted.counts.values()
    assert (count.runs, count.pull_failures) == (0, 1)


def test_take_keeps_the_newest_commit_of_the_default_branch() -> None:
    counted = tally(branches={1: "main"})
    counted.take(job(3, sha="c" * 40))
    counted.take(job(2, sha="b" * 40))
    counted.take(job(9, sha="f" * 40, ref="feature"))
    assert counted.heads == {1: (3, "c" * 40)}


def test_take_of_endless_names_is_bounded_and_told() -> None:
    counted = tally()
    for number in range(NAMES_MAX + 5):
        counted.take(job(number + 1, name=f"job-{number}"))
    assert len(counted.counts) == NAMES_MAX
    assert counted.crowded == {1}


def test_floor_is_the_oldest_mark_less_the_overlap() -> None:
    marks = {1: Mark(5, NOW - 100), 2: Mark(9, NOW - 50)}
    counted = tally(marks)
    assert counted.floor([1, 2]) == NOW - 100 - OVERLAP
    assert counted.floor([2]) == NOW - 50 - OVERLAP
    assert tally().floor([1]) == NOW - 14 * DAY - OVERLAP


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[float, float, float, bool]], list[float]]:
    """Jobs as (created, started, finished, failed on a pull), by id, and the moments of scans."""
    span = 3.0 * DAY
    created = sorted(draw(st.lists(st.floats(0, span), max_size=25)))
    jobs = []
    for at in created:
        waits = draw(st.floats(0, OVERLAP * 0.6))
        takes = draw(st.floats(0, OVERLAP * 0.3))
        jobs.append((at, at + waits, at + waits + takes, draw(st.booleans())))
    scans = sorted(draw(st.lists(st.floats(0, 1.5 * span), min_size=1, max_size=6, unique=True)))
    return jobs, scans


@given(histories())
def test_take_over_many_scans_counts_each_run_and_failure_once(
    history: tuple[list[tuple[float, float, float, bool]], list[float]],
) -> None:
    jobs, scans = history
    total = failures = 0
    marks: dict[int, Mark] = {1: NEVER}
    running: set[int] = set()
    for at in scans:
        counted = Tally(-DAY, at, marks, were_running=running)
        for number in range(len(jobs), 0, -1):
            created, started, finished, failed = jobs[number - 1]
            if created > at:
                continue
            if created < counted.floor([1]):
                break
            counted.take(
                job(
                    number,
                    created=created,
                    started=started if started <= at else None,
                    running=started <= at < finished,
                    pull_failed=failed and finished <= at,
                )
            )
        total += runs(counted)
        failures += sum(count.pull_failures for count in counted.counts.values())
        marks, running = counted.marks_after([1]), counted.running
    assert total == sum(started <= scans[-1] for _, started, _, _ in jobs)
    assert failures == sum(failed and done <= scans[-1] for _, _, done, failed in jobs)


def test_read_job_cuts_what_it_keeps_of_texts() -> None:
    job = read_job(
        {
            "id": 1,
            "name": "n" * 4_000_000,
            "ref": "r" * 4_000_000,
            "created_at": "2026-01-01T00:00:00Z",
        },
        project=1,
    )
    assert job is not None
    assert (len(job.name), len(job.ref)) == (500, 500)
