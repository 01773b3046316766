"""What the ledger remembers of CI: sums of runs, images joined when asked, scans, and no more."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.errors import Problem
from prewarm.core.records import LogKey, PastScan
from prewarm.core.usage import DAY, LOUD, Count, DayUses, Key, Mark, Row, UnresolvedImage, UsedImage
from prewarm.state import ledger as ledger_module
from prewarm.state.ledger import MIGRATIONS, Ledger

DAY_0 = 19_000
NOW = (DAY_0 + 14) * float(DAY)
SINCE = NOW - 14 * DAY
ALPINE = "docker.io/library/alpine:3"


def key(job: str = "build", project: int = 1, **more: Any) -> Key:
    fields: dict[str, Any] = {"runner": 1, "platform": "linux/amd64", "day": DAY_0 + 13}
    return Key(project, job, **(fields | more))


def add(ledger: Ledger, counts: dict[Key, Count], mark: Mark = Mark(9, NOW)) -> None:  # noqa: B008
    projects = {each.project for each in counts}
    marks = dict.fromkeys(projects, mark)
    ledger.add_history(counts, marks, {}, {number: f"team/p{number}" for number in projects})


def row(job: str = "build", reference: str | None = ALPINE, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "kind": "image",
        "text": "alpine:3" if reference else "$X",
        "unresolved": None if reference else "holds $X",
        "source": "definition",
    }
    return Row(job, reference=reference, **(fields | more))


def define(ledger: Ledger, *rows: Row, project: int = 1, **more: Any) -> None:
    fields: dict[str, Any] = {"jobs": (), "commit": "c", "problems": (), "linted": NOW}
    ledger.save_definition(project, rows, **(fields | more))


def test_used_images_joins_runs_of_all_runners_and_days(ledger: Ledger) -> None:
    add(
        ledger,
        {
            key(): Count(3, 1, NOW - 10, 7),
            key(runner=2, platform="linux/arm64"): Count(2, 0, NOW - 5, 8),
            key(day=DAY_0 + 1): Count(4, 0, NOW - 12 * DAY, 2),
            key(project=2): Count(1, 0, NOW - 99, 5),
        },
    )
    define(ledger, row())
    define(ledger, row(), project=2)
    assert ledger.used_images(SINCE) == (
        UsedImage(
            ALPINE, ("image",), ("definition", "history"), 10, 2, NOW - 5,
            ("linux/amd64", "linux/arm64"), None, 1, (("linux/amd64", 8), ("linux/arm64", 2)),
        ),
    )  # fmt: skip


def test_used_images_weigh_the_runs_by_their_age_for_each_project(ledger: Ledger) -> None:
    """Those of a day to come, by a clock that was set back since, as those of today."""
    add(
        ledger,
        {
            key(day=DAY_0 + 14): Count(8, 0, NOW, 7),
            key("test", runner=2, platform="linux/arm64", day=DAY_0 + 7): Count(8, 0, NOW, 8),
            key(day=DAY_0 + 16): Count(2, 0, NOW, 9),
            key(project=2, day=DAY_0 - 7): Count(8, 0, NOW, 5),
            key(project=3, day=DAY_0 + 7): Count(2, 2, NOW, 5),
            key(project=4, day=DAY_0 + 14): Count(600, 2, NOW, 5),
            key(project=5, day=DAY_0 + 7): Count(8, 2, NOW, 5),
        },
    )
    define(ledger, row(), row("test"))
    define(ledger, row(), project=2)
    for project in (3, 4, 5):
        define(ledger, row(), project=project)
    logged = LogKey(1, "team/p1", "r", "image", "alpine:3", ALPINE, "", "", DAY_0 + 7)
    ledger.add_logged("/log", "1", {logged: (4, NOW)})
    (image,) = ledger.used_images(0.0, now=NOW)
    assert dict(image.weights) == {
        "team/p1": 8 + 4 + 2 + 2,
        "team/p2": 1,
        # Failed pulls count once, and no more than the other runs do.
        "team/p3": 1,
        "team/p4": 600 + LOUD,
        "team/p5": 4 + 3,
    }


def test_used_images_of_one_project_leaves_out_the_others(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key(project=2): Count(1, 0, NOW, 8)})
    define(ledger, row())
    define(ledger, row(), project=2)
    assert [one.jobs for one in ledger.used_images(SINCE, 2)] == [1]


def test_used_images_leaves_out_runs_before_the_window(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key(day=DAY_0 - 1): Count(5, 0, SINCE - 9, 1)})
    define(ledger, row())
    assert [one.jobs for one in ledger.used_images(SINCE)] == [3]


def test_used_images_of_a_definition_without_runs_has_zero_jobs(ledger: Ledger) -> None:
    add(ledger, {key("other"): Count(3, 0, NOW, 7)})
    define(ledger, row())
    (image,) = ledger.used_images(SINCE)
    assert (image.jobs, image.projects, image.last_used) == (0, 1, None)
    assert (image.sources, image.platforms) == (("definition",), ())


def test_used_images_of_one_job_twice_counts_its_runs_once(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7)})
    define(ledger, row(), row(kind="service", text="docker.io/alpine:3"))
    (image,) = ledger.used_images(SINCE)
    assert (image.jobs, image.kinds) == (3, ("image", "service"))


def test_used_images_with_a_platform_takes_it_for_the_runners(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7)})
    define(ledger, row(platform="linux/arm64"))
    (image,) = ledger.used_images(SINCE)
    assert image.platforms == ("linux/arm64",)
    assert image.jobs_on == (("linux/arm64", 3),)


def test_used_images_through_the_dependency_proxy_stand_apart(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key("b"): Count(2, 0, NOW, 8)})
    define(ledger, row(), row("b", via="dependency-proxy"))
    found = {one.via: one.jobs for one in ledger.used_images(SINCE)}
    assert found == {None: 3, "dependency-proxy": 2}


def test_used_images_are_sorted_by_jobs_then_name(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key("b"): Count(9, 0, NOW, 8)})
    define(ledger, row(), row("b", "x/b:1"), row("c", "x/a:1"), row("d", "x/0:1"))
    names = [one.reference for one in ledger.used_images(SINCE)]
    assert names == ["x/b:1", ALPINE, "x/0:1", "x/a:1"]


def test_add_history_twice_adds_and_keeps_the_newest(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 1, NOW - 10, 7, 5)})
    add(ledger, {key(): Count(2, 1, NOW - 50, 6, 6)})
    define(ledger, row())
    (image,) = ledger.used_images(SINCE)
    (ran,) = ledger.ran_jobs(SINCE)[1]
    assert (image.jobs, image.pull_failures, image.last_used) == (5, 2, NOW - 10)
    assert (ran.job, ran.newest, ran.newest_failed) == ("build", 7, 6)


def test_add_history_moves_mark_and_head_and_follows_a_renamed_project(ledger: Ledger) -> None:
    for mark, head, path in (
        (Mark(5, 10.0), (5, "a"), "old/p"),
        (Mark(9, 20.0), (8, "b"), "new/p"),
        (Mark(9, 30.0), (7, "older"), "new/p"),
    ):
        ledger.add_history({}, {1: mark}, {1: head}, {1: path})
    project = ledger.known_projects()[1]
    assert (project.path, project.mark, project.head) == ("new/p", Mark(9, 30.0), "b")


def test_save_definition_replaces_images_and_keeps_answers_of_traces(ledger: Ledger) -> None:
    problem = Problem("warning", "definition", "team/p1", "is odd", "mend it")
    add(ledger, {key(): Count(1, 0, NOW, 7)})
    define(ledger, row(), row("b", None))
    ledger.save_trace(1, "q", [row("b", "x/b:1", source="trace", question="q")], NOW)
    define(ledger, row("b", None), jobs=("b", "a"), commit="d", problems=(problem,))
    project = ledger.known_projects()[1]
    assert [one.reference for one in ledger.used_images(SINCE)] == ["x/b:1"]
    assert (sorted(project.jobs), project.commit, project.linted) == (["a", "b"], "d", NOW)
    assert project.problems == (problem,)


def test_save_trace_again_replaces_its_answer(ledger: Ledger) -> None:
    add(ledger, {key(): Count(1, 0, NOW, 7)})
    ledger.save_trace(1, "q", [row(source="trace", question="q")], NOW - 9)
    ledger.save_trace(1, "q", [row(reference="x/b:1", source="trace", question="q")], NOW)
    assert [one.reference for one in ledger.used_images(SINCE)] == ["x/b:1"]
    assert ledger.asked(1) == {"q": NOW}


def test_keep_answers_forgets_all_others(ledger: Ledger) -> None:
    add(ledger, {key(): Count(1, 0, NOW, 7)})
    ledger.save_trace(1, "old", [row(source="trace", question="old")], NOW)
    ledger.save_trace(1, "new", [row(reference="x/b:1", source="trace", question="new")], NOW)
    ledger.keep_answers(1, {"new"})
    assert [one.reference for one in ledger.used_images(SINCE)] == ["x/b:1"]
    assert ledger.asked(1) == {"new": NOW}


def test_unresolved_images_are_those_without_an_answer(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key("b: [1]"): Count(2, 0, NOW, 8)})
    define(ledger, row("build", None), row("b: [1]", None), row("b: [2]", None), row("c"))
    ledger.save_trace(1, "q", [row("build", source="trace", question="q")], NOW)
    assert ledger.unresolved_images(SINCE) == (
        UnresolvedImage("team/p1", "b", "image", "$X", "holds $X", 2),
    )


def test_unresolved_images_after_an_answer_about_services_keeps_the_image(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7)})
    define(ledger, row("build", None))
    ledger.save_trace(1, "q", [row(kind="service", source="trace", question="q")], NOW)
    assert len(ledger.unresolved_images(SINCE)) == 1


def test_unresolved_images_of_a_tool_answer_no_runner_line(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7)})
    define(ledger, row("build", None))
    tool = row(source="trace", question="q", certain=False)
    ledger.save_trace(1, "q", [tool], NOW)
    assert len(ledger.unresolved_images(SINCE)) == 1


def test_unresolved_images_without_a_name_need_runs(ledger: Ledger) -> None:
    add(ledger, {key("ran"): Count(3, 0, NOW, 7)})
    define(ledger, *(row(job, None, text="") for job in ("ran", "idle")))
    assert [one.job for one in ledger.unresolved_images(SINCE)] == ["ran"]


def test_add_pull_failure_counts_for_the_job_of_the_trace(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key("b"): Count(3, 0, NOW, 8)})
    define(ledger, row())
    ledger.add_pull_failure(1, "build", 7)
    (image,) = ledger.used_images(SINCE)
    assert (image.pull_failures, ledger.ran_jobs(SINCE)[1][1].newest_failed) == (1, 7)


def test_pull_failures_are_summed_by_day_whatever_the_image(ledger: Ledger) -> None:
    add(
        ledger,
        {
            key(): Count(3, 1, NOW, 7),
            key(runner=2, project=2): Count(3, 2, NOW, 8),
            key("unknown", day=DAY_0 + 2): Count(1, 1, NOW, 3),
            key("fine", day=DAY_0 + 5): Count(4, 0, NOW, 4),
            key(day=DAY_0 - 1): Count(5, 5, SINCE - 9, 1),
        },
    )
    define(ledger, row())
    ledger.add_pull_failure(1, "build", 7)
    assert ledger.pull_failures(SINCE) == {DAY_0 + 2: 1, DAY_0 + 13: 4}


def test_add_logged_adds_uses_and_moves_the_position(ledger: Ledger) -> None:
    use = LogKey(4, "team/p4", "t1", "service", "redis:7", "docker.io/library/redis:7", "", "", 0)
    uses = {
        LogKey(**{**_fields(use), "day": DAY_0 + 12}): (2, NOW - 90),
        LogKey(**{**_fields(use), "day": DAY_0 - 1}): (9, SINCE - 90),
    }
    ledger.add_logged("/log", "1:2:3", uses)
    ledger.add_logged("/log", "1:9:3", {next(iter(uses)): (3, NOW - 50)})
    (image,) = ledger.used_images(SINCE)
    assert (image.reference, image.kinds, image.jobs) == (use.reference, ("service",), 5)
    assert (image.sources, image.projects, image.last_used) == (("runner-log",), 1, NOW - 50)
    assert ledger.log_position("/log") == "1:9:3"
    assert ledger.log_position("/other") is None


def _fields(use: LogKey) -> dict[str, Any]:
    return {name: getattr(use, name) for name in LogKey.__slots__}


def past(started: float, **more: Any) -> PastScan:
    fields: dict[str, Any] = {
        "finished": started + 9,
        "complete": True,
        "requests": 12,
        "scope": "s",
        "problems": (Problem("error", "c", "w", "p", "u"),),
        "running": frozenset({5}),
        "logged": frozenset({6, 7}),
    }
    return PastScan(started, **(fields | more))


def test_last_scan_returns_what_was_saved(ledger: Ledger) -> None:
    assert ledger.last_scan() is None
    ledger.save_scan(past(NOW - 90))
    ledger.save_scan(past(NOW, complete=False))
    assert ledger.last_scan() == past(NOW, complete=False)
    assert ledger.last_scan(complete=True) == past(NOW - 90)


def test_forget_uses_drops_old_days_and_whole_projects(ledger: Ledger) -> None:
    add(ledger, {key(): Count(3, 0, NOW, 7), key(day=DAY_0 - 1): Count(5, 0, SINCE - 9, 1)})
    add(ledger, {key(project=2): Count(3, 0, NOW, 7)})
    for project in (1, 2):
        define(ledger, row(), project=project)
        ledger.save_trace(project, "q", [row("b", source="trace", question="q")], NOW)
    ledger.save_scan(past(SINCE - 5))
    ledger.forget_uses(SINCE, [2])
    (image,) = ledger.used_images(0.0)
    assert (image.jobs, image.projects) == (3, 1)
    assert ledger.known_projects().keys() == {1}
    assert ledger.asked(2) == {}
    assert ledger.last_scan() is None


def test_open_state_of_version_two_gains_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prewarm.db"
    monkeypatch.setattr(ledger_module, "MIGRATIONS", MIGRATIONS[:2])
    Ledger.open(path).close()
    monkeypatch.undo()
    with Ledger.open(path) as ledger:
        add(ledger, {key(): Count(3, 0, NOW, 7)})
        define(ledger, row())
    with Ledger.open(path) as ledger:
        assert [one.jobs for one in ledger.used_images(SINCE)] == [3]


def test_open_state_of_before_demands_keeps_what_ci_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prewarm.db"
    monkeypatch.setattr(ledger_module, "MIGRATIONS", MIGRATIONS[:9])
    Ledger.open(path).close()
    monkeypatch.undo()
    rows: dict[str, tuple[object, ...]] = {
        "projects": (1, "team/p1", 7, NOW, "head", 7, "sha", NOW, '["build"]', "[]"),
        "job_runs": (1, "build", 12, "linux/amd64", DAY_0 + 13, 3, 1, NOW, 7, 6),
        "job_images": (1, "build", "image", "alpine:3", ALPINE, None, "trace", 1, None, None, "q"),
        "traces": (1, "q", NOW),
        "log_positions": ("/log", "9"),
        "log_uses": (1, "team/p1", "r", "image", "x", ALPINE, "", "", DAY_0 + 13, 5, NOW),
        "runner_marks": (12, 1, 7, NOW),
        "scans": ("s", NOW, NOW, 1, 9, "scope", "[]", "[7]", "[8]", None),
    }
    with closing(sqlite3.connect(path)) as connection, connection:
        for table, row_ in rows.items():
            marks = ", ".join("?" * len(row_))
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", row_)
    with Ledger.open(path) as ledger:
        (image,) = ledger.used_images(SINCE)
        assert (image.jobs, image.pull_failures) == (8, 1)
        assert ledger.known_projects()[1].jobs == {"build"}
        assert ledger.asked(1) == {"q": NOW}
        assert ledger.log_position("/log") == "9"
        assert ledger.parts() == {12: {1: Mark(7, NOW)}}
        scan = ledger.last_scan(complete=True)
        assert scan is not None
        assert (set(scan.running), set(scan.logged)) == ({7}, {8})
        # And it is gone on with.
        add(ledger, {key(): Count(2, 0, NOW, 8)})
        assert [one.jobs for one in ledger.used_images(SINCE)] == [10]
        ledger.forget_uses(NOW + 99 * 86400, [1])
        assert ledger.used_images(0.0) == ()


def test_state_holds_no_row_for_a_single_job(tmp_path: Path) -> None:
    path = tmp_path / "prewarm.db"
    with Ledger.open(path) as ledger:
        for number in range(50):
            add(ledger, {key(): Count(20, 0, NOW, number)})
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT COUNT(*), SUM(runs) FROM job_runs").fetchone() == (
            1,
            1000,
        )


def test_daily_uses_are_those_of_used_images_by_day_and_project(ledger: Ledger) -> None:
    """Of all runners and platforms together; through GitLab's proxies none."""
    add(
        ledger,
        {
            key(): Count(3, 1, NOW, 7),
            key(runner=2, platform="linux/arm64"): Count(2, 0, NOW, 8),
            key("test"): Count(5, 0, NOW, 9),
            key("proxied"): Count(7, 0, NOW, 9),
            key(day=DAY_0 + 1): Count(4, 0, NOW - 12 * DAY, 2),
            key(day=DAY_0 - 1): Count(9, 0, SINCE - 9, 1),
            key(project=2): Count(1, 0, NOW, 5),
        },
    )
    define(
        ledger,
        row(),
        row(kind="service"),
        row("test"),
        row("proxied", via="dependency-proxy"),
        row("open", None),
        row("never", "docker.io/library/redis:7"),
    )
    define(ledger, row(), project=2)
    told = LogKey(1, "team/p1", "r", "image", "alpine:3", ALPINE, "", "", DAY_0 + 13)
    proxied = LogKey(1, "team/p1", "r", "image", "x", ALPINE, "dependency-proxy", "", DAY_0 + 13)
    ledger.add_logged("/log", "1", {told: (6, NOW), proxied: (8, NOW)})
    found = ledger.daily_uses(SINCE)
    assert found == {
        ALPINE: (
            DayUses(DAY_0 + 1, 1, 4),
            DayUses(DAY_0 + 13, 1, 3 + 2 + 5 + 6, 1),
            DayUses(DAY_0 + 13, 2, 1),
        ),
        "docker.io/library/redis:7": (),
    }
    for one in ledger.used_images(SINCE):
        if one.via is None:
            assert sum(use.runs for use in found[one.reference]) == one.jobs
