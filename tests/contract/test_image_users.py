"""What the ledger tells of one image: who uses it, and which open names may mean it."""

from __future__ import annotations

from prewarm.core.records import ImageUser, LogKey
from prewarm.core.usage import DAY, Count, Key, Mark, Row
from prewarm.state.ledger import Ledger

TODAY = 19_014
NOW = TODAY * float(DAY)
SINCE = NOW - 14 * DAY
ALPINE = "docker.io/library/alpine:3"


def ran(
    ledger: Ledger, project: int, job: str, runs: int, day: int = TODAY, failed: int = 0
) -> None:
    ledger.add_history(
        {Key(project, job, 1, "linux/amd64", day): Count(runs, failed, day * float(DAY), 1, 0)},
        {project: Mark(9, NOW)},
        {},
        {project: f"team/p{project}"},
    )


def define(ledger: Ledger, project: int, *rows: Row) -> None:
    ledger.save_definition(project, rows, (), "c", (), NOW)


def named(job: str, reference: str = ALPINE, via: str | None = None) -> Row:
    return Row(job, "image", "alpine:3", reference, None, "definition", via=via)


def open_row(job: str, text: str) -> Row:
    return Row(job, "image", text, None, "holds variables", "definition")


def test_image_users_sum_the_days_of_each_job_since_then(ledger: Ledger) -> None:
    ran(ledger, 1, "build", 3)
    ran(ledger, 1, "build", 2, TODAY - 3, failed=1)
    ran(ledger, 1, "build", 50, TODAY - 20)
    ran(ledger, 1, "other", 7)
    ran(ledger, 2, "test", 9)
    define(ledger, 1, named("build"), named("other", "docker.io/library/busybox:1"))
    define(ledger, 2, named("test", via="dependency-proxy"), named("never"))
    assert ledger.image_users(ALPINE, SINCE) == (
        ImageUser("team/p2", "test", "dependency-proxy", 9, 0, NOW),
        ImageUser("team/p1", "build", None, 5, 1, NOW),
        ImageUser("team/p2", "never", None, 0, 0, None),
    )
    assert ledger.image_users("docker.io/library/none:1", SINCE) == ()


def test_image_users_count_a_job_once_that_definition_and_trace_name(ledger: Ledger) -> None:
    ran(ledger, 1, "build", 4)
    define(ledger, 1, named("build"))
    answer = Row("build", "image", "alpine:3", ALPINE, None, "trace", question="q")
    ledger.save_trace(1, "q", [answer], NOW)
    (user,) = ledger.image_users(ALPINE, SINCE)
    assert user.jobs == 4
    (use,) = ledger.used_images(SINCE)
    assert use.jobs == 4


def test_image_users_tell_what_a_log_told_without_a_job(ledger: Ledger) -> None:
    key = LogKey(7, "team/logged", "r", "image", "alpine:3", ALPINE, "", "", TODAY)
    ledger.add_logged("log", None, {key: (6, NOW)})
    assert ledger.image_users(ALPINE, SINCE) == (ImageUser("team/logged", "", None, 6, 0, NOW),)


def test_open_names_are_the_unresolved_images_that_fit(ledger: Ledger) -> None:
    ran(ledger, 1, "build", 3)
    ran(ledger, 1, "test: [a]", 2)
    ran(ledger, 1, "test: [b]", 5)
    ran(ledger, 2, "build", 1)
    define(
        ledger,
        1,
        open_row("build", "node:$V"),
        open_row("test: [a]", "golang:$V"),
        open_row("test: [b]", "golang:$V"),
    )
    define(ledger, 2, open_row("build", "golang:$W"), named("other"))
    every = ledger.unresolved_images(SINCE)
    assert len(every) == 3
    assert ledger.open_names(SINCE, lambda _: True) == every
    golang = ledger.open_names(SINCE, lambda text: text.startswith("golang"))
    assert golang == tuple(one for one in every if one.text.startswith("golang"))
    assert [one.jobs for one in golang] == [7, 1]


def test_open_names_leave_out_what_a_trace_answered(ledger: Ledger) -> None:
    ran(ledger, 1, "build", 3)
    define(ledger, 1, open_row("build", "golang:$V"))
    assert len(ledger.open_names(SINCE, lambda _: True)) == 1
    answer = Row("build", "image", "golang:1", ALPINE, None, "trace", question="q")
    ledger.save_trace(1, "q", [answer], NOW)
    assert ledger.open_names(SINCE, lambda _: True) == ()
