"""Notifications: which events of a sync are sent to somebody, and in which words.

An event is told when it begins, when something new joins it, and once a day while it lasts: a
daemon that tries again every few minutes pages nobody every few minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prewarm.core.errors import Problem, problem_json
from prewarm.core.records import Told
from prewarm.core.text import iso, printable
from prewarm.planning.plan import Defer
from prewarm.reports.report import Report, budget_json, sentence, summary

AGAIN: Final = 86400.0
"""Seconds after which an event that lasts is told again."""
_FAILED: Final = frozenset({1, 2, 3})
"""Exit codes that somebody must act on; a signal's and that of a lock are none."""
_WAITS: Final = frozenset({"budget", "project-share", "upstream-quota"})
"""Codes of what is deferred because pulls are short."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a sync of all that is wanted ended."""

    exit_code: int
    run: str | None
    """None where it broke off before it had a report."""
    started: float
    finished: float
    problems: tuple[Problem, ...]
    text: str
    """One line for people."""
    waits: frozenset[str] = frozenset()
    """`REGISTRY CODE` of what waits because pulls are short."""
    summary: Mapping[str, int] = field(default_factory=dict)
    budgets: Mapping[str, Any] = field(default_factory=dict)


def ending_of(report: Report) -> Ending:
    """Return how a sync ended that has a report."""
    steps = [one.step for one in report.outcomes if isinstance(one.step, Defer)]
    return Ending(
        report.exit_code,
        report.run,
        report.started,
        report.finished,
        report.problems,
        sentence(report),
        frozenset(
            f"{step.want.reference.registry} {step.code}" for step in steps if step.code in _WAITS
        ),
        summary(report.outcomes),
        {name: budget_json(quota, report.finished) for name, quota in report.quotas.items()},
    )


def broken_off(problem: Problem, exit_code: int, started: float, finished: float) -> Ending:
    """Return how a sync ended that broke off without a report."""
    text = f"the sync broke off: {problem}"
    return Ending(exit_code, None, started, finished, (problem,), text)


def bug_problem(error: Exception, where: str = "sync") -> Problem:
    """Return the problem that a bug of ours is; what it says may be anything, so it is left out."""
    text = f"a bug met the {where} ({type(error).__name__})"
    return Problem("error", "bug", where, text, "report it with the traceback in the log")


def events_of(ending: Ending) -> dict[str, frozenset[str]]:
    """Return the events of a sync, and what each is about, by which a new one is told from an old.

    Of the problems code and place count: their texts may hold numbers that change.
    """
    events: dict[str, frozenset[str]] = {}
    if ending.exit_code in _FAILED:
        events["failure"] = _about(one for one in ending.problems if one.severity == "error")
    if full := [one for one in ending.problems if one.code == "mirror-full"]:
        events["mirror-full"] = _about(full)
    if ending.waits:
        events["budget"] = ending.waits
    return events


def _about(problems: Iterable[Problem]) -> frozenset[str]:
    return frozenset(f"{one.code} {one.where}" for one in problems)


def due(about: frozenset[str], told: Told | None, now: float) -> bool:
    """Whether an event is to be told now; `told` is its last notice, while it has lasted."""
    return told is None or not about <= told.about or not 0 <= now - told.at < AGAIN


def remembered(
    event: str, channel: str, about: frozenset[str], told: Told | None, now: float
) -> Told:
    """Return what is to be remembered of a notice: for a day, all that was told meanwhile.

    So what comes and goes in turn is no news each time.
    """
    lasts = told is not None and 0 <= now - told.at < AGAIN
    return Told(event, channel, about | told.about if told is not None and lasts else about, now)


def body(event: str, ending: Ending, host: str, *, chat: bool = False) -> dict[str, Any]:
    """Return the JSON of a notice. `text` is for people; with `chat` a chat program shows it."""
    text = printable(f"prewarm on {host}: {event}: {_said(event, ending)}")
    return {
        "version": 1,
        "event": event,
        "host": host,
        "run": ending.run,
        "exit": ending.exit_code,
        "started": iso(ending.started),
        "finished": iso(ending.finished),
        "text": _plain(text) if chat else text,
        "summary": dict(ending.summary),
        "problems": [problem_json(problem) for problem in ending.problems],
        "budgets": dict(ending.budgets),
    }


def _plain(text: str) -> str:
    """Return a text in which a chat program finds no mention and no link with a label.

    Texts hold words of CI's authors: names of images and media types. `&`, `<` and `>` are escaped
    as Slack and Mattermost ask for; the at sign of `@channel` is written out, that of a digest
    stays; and a Markdown link falls apart.
    """
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(letter, entity)
    return re.sub(r"(?<![A-Za-z0-9])@(?=\w)", "(at)", text).replace("](", "] (")


def _said(event: str, ending: Ending) -> str:
    if ending.run is None or event == "budget":
        return ending.text
    told = [
        one
        for one in ending.problems
        if (one.code == "mirror-full" if event == "mirror-full" else one.severity == "error")
    ]
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return "; ".join([*(f"{one}{more}" for one in told[:1]), ending.text])
