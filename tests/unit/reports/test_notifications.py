"""Notices: which events there are, and when one is told again."""

from __future__ import annotations

import json

import pytest

from prewarm.core.errors import Problem
from prewarm.core.records import Told
from prewarm.core.reference import parse
from prewarm.planning.demand import Want
from prewarm.planning.outcome import Outcome
from prewarm.planning.plan import Defer, Seen
from prewarm.reports.notifications import (
    AGAIN,
    Ending,
    body,
    broken_off,
    bug_problem,
    due,
    ending_of,
    events_of,
    remembered,
)
from prewarm.reports.report import Report

ERROR = Problem("error", "unreachable", "docker.io", "does not answer", "try later")
FULL = Problem("error", "mirror-full", "http://m", "is full", "free disk")
WARNING = Problem("warning", "not-found", "team/app", "is gone", "correct it")
X, Y = frozenset({"x"}), frozenset({"y"})


def ending(exit_code: int, *problems: Problem, waits: frozenset[str] = frozenset()) -> Ending:
    return Ending(exit_code, "run-1", 1.0, 2.0, problems, "1 image: 1 failed", waits)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (ending(0), {}),
        (ending(0, WARNING), {}),
        (ending(1, ERROR, WARNING), {"failure": {"unreachable docker.io"}}),
        (ending(3, ERROR), {"failure": {"unreachable docker.io"}}),
        (ending(75, ERROR), {}),
        (ending(143, ERROR), {}),
        (
            ending(1, FULL),
            {"failure": {"mirror-full http://m"}, "mirror-full": {"mirror-full http://m"}},
        ),
        (ending(0, waits=frozenset({"docker.io budget"})), {"budget": {"docker.io budget"}}),
    ],
)
def test_events_of_an_ending(ended: Ending, expected: dict[str, set[str]]) -> None:
    assert events_of(ended) == expected


@pytest.mark.parametrize(
    ("about", "told", "now", "expected"),
    [
        (X, None, 0.0, True),
        (X, Told("failure", "command", X, 0.0), 60.0, False),
        (X, Told("failure", "command", X | Y, 0.0), 60.0, False),
        (X | Y, Told("failure", "command", X, 0.0), 60.0, True),
        (X, Told("failure", "command", X, 0.0), AGAIN, True),
        (X, Told("failure", "command", X, 100.0), 60.0, True),
    ],
    ids=["new", "same", "less", "more", "a-day-later", "clock-set-back"],
)
def test_due_when_it_is_new_or_a_day_old(
    about: frozenset[str], told: Told | None, now: float, expected: bool
) -> None:
    assert due(about, told, now) is expected


def test_due_of_failures_in_turn_is_told_once_each_in_a_day() -> None:
    told: Told | None = None
    sent = []
    for minute in range(0, 48 * 60, 30):
        now = minute * 60.0
        about = X if minute % 60 else Y
        if due(about, told, now):
            sent.append(minute)
            told = remembered("failure", "command", about, told, now)
    # The second joins after half an hour; a day later each is news again.
    assert sent == [0, 30, 30 + 24 * 60, 60 + 24 * 60]


def test_body_names_event_cause_and_cure() -> None:
    told = body("failure", ending(1, WARNING, ERROR), "runner-1")
    assert json.loads(json.dumps(told)) == told
    assert told["text"] == (
        "prewarm on runner-1: failure: docker.io: does not answer; try later; 1 image: 1 failed"
    )
    assert (told["version"], told["exit"], told["run"]) == (1, 1, "run-1")
    assert [one["code"] for one in told["problems"]] == ["not-found", "unreachable"]


def test_body_tells_what_each_event_is_about() -> None:
    ended = ending(1, ERROR, FULL, waits=frozenset({"docker.io budget"}))
    told = {
        event: body(event, ended, "h")["text"] for event in ("failure", "mirror-full", "budget")
    }
    assert told == {
        "failure": "prewarm on h: failure: docker.io: does not answer; try later (and 1 more); "
        "1 image: 1 failed",
        "mirror-full": "prewarm on h: mirror-full: http://m: is full; free disk; 1 image: 1 failed",
        "budget": "prewarm on h: budget: 1 image: 1 failed",
    }


@pytest.mark.parametrize(
    ("code", "waits"),
    [
        ("budget", {"docker.io budget"}),
        ("project-share", {"docker.io project-share"}),
        ("upstream-quota", {"docker.io upstream-quota"}),
        ("mirror-full", set()),
        ("interrupted", set()),
    ],
)
def test_ending_of_a_report_tells_what_waits_for_pulls(code: str, waits: set[str]) -> None:
    want = Want(parse("redis:7"), (), ("pin",), "images.yml:3")
    waiting = Outcome(Defer(want, Seen(), None, code, "", None), None, (), 0, 0)
    ended = ending_of(Report("run-1", False, 1.0, 2.0, {}, (waiting,), (ERROR,)))
    assert ended.waits == waits
    assert (ended.exit_code, ended.run, ended.summary["deferred"]) == (1, "run-1", 1)


def test_body_of_a_bug_shows_nothing_that_it_said() -> None:
    ended = broken_off(bug_problem(ValueError("glpat-secret")), 3, 1.0, 2.0)
    told = body("failure", ended, "runner-1")
    assert "failure" in events_of(ended)
    assert told["run"] is None
    assert "ValueError" in told["text"]
    assert "secret" not in json.dumps(told)


def test_body_for_a_chat_holds_no_markup_of_a_ci_author() -> None:
    hostile = (
        "<!channel> <https://evil.example|status> @here (@all) [x](https://evil.example) &\u202e "
        "app@sha256:ab"
    )
    told = ending(1, Problem("error", "not-found", "team/app", hostile, "look"))
    text = body("failure", told, "ci", chat=True)["text"]
    assert "&lt;!channel&gt; &lt;https://evil.example|status&gt; (at)here ((at)all)" in text
    assert "[x] (https://evil.example) &amp;\N{REPLACEMENT CHARACTER} app@sha256:ab" in text
    # A command is told as it is, but for what fools a terminal.
    text = body("failure", told, "ci")["text"]
    assert "<!channel>" in text
    assert text.isprintable()
