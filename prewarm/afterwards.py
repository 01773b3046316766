"""What follows a sync, however it ended: the file of the metrics, and notices.

Neither ever changes how the sync ended: a file that cannot be written is a warning of the report,
a notice that does not arrive is one in the log.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from prewarm.console import printable
from prewarm.delivery import post, run_command
from prewarm.errors import PrewarmError, Problem
from prewarm.metrics import samples_of
from prewarm.notices import (
    Ending,
    body,
    broken_off,
    bug_problem,
    due,
    ending_of,
    events_of,
    remembered,
)
from prewarm.report import Report
from prewarm.settings import Notify
from prewarm.sync import Session

log = logging.getLogger("prewarm")

_BUG: Final = 3


def told(
    session: Session,
    sync: Callable[[], Report],
    state: Path,
    environ: Mapping[str, str],
    *,
    whole: bool,
) -> Report:
    """Do a sync, write the metrics and send the notices; return the report, or raise what it did.

    `whole`: it is of all that is wanted. One of named images tells nobody: who typed them sees it.
    """
    started = session.clock().wall
    try:
        report = sync()
    except PrewarmError as error:
        problem = Problem("error", error.code, "sync", error.text, error.cure)
        _after_failure(session, problem, error.exit_code, started, state, environ, whole=whole)
        raise
    except Exception as error:
        problem = bug_problem(error)
        _after_failure(session, problem, _BUG, started, state, environ, whole=whole)
        raise
    met = write_metrics(session, state)
    if met is not None:
        report = replace(report, problems=(*report.problems, met))
    if whole:
        notify(session, ending_of(report), environ)
    return report


def _after_failure(
    session: Session,
    problem: Problem,
    exit_code: int,
    started: float,
    state: Path,
    environ: Mapping[str, str],
    *,
    whole: bool,
) -> None:
    met = write_metrics(session, state, problem if whole else None)
    if met is not None:
        log.warning("%s", printable(str(met)))
    if whole:
        finished = session.clock().wall
        notify(session, broken_off(problem, exit_code, started, finished), environ)


def write_metrics(session: Session, state: Path, failure: Problem | None = None) -> Problem | None:
    """Write the file that `metrics:` names, if any; the warning where that fails."""
    path = session.settings.metrics
    if path is None:
        return None
    from prewarm.exposition import text_of, write  # prometheus_client is slow to load

    try:
        samples = samples_of(session.settings, session.ledger, session.clock(), state, failure)
        write(path, text_of(samples))
    except PrewarmError as error:
        return Problem("warning", error.code, "metrics", error.text, error.cure)
    return None


def notify(session: Session, ending: Ending, environ: Mapping[str, str]) -> None:
    """Tell of the events that `notify:` asks for and that are due; log what did not arrive."""
    asked = session.settings.notify
    if asked is None or ending.exit_code >= 128:
        return
    events = events_of(ending)
    for channel, deliver in _channels(asked, environ):
        for event in asked.on:
            try:
                _tell(session, channel, event, events.get(event), ending, deliver)
            except PrewarmError as error:
                log.warning("the notice of %s did not arrive: %s", event, printable(str(error)))


def _tell(
    session: Session,
    channel: str,
    event: str,
    about: frozenset[str] | None,
    ending: Ending,
    deliver: Callable[[bytes], None],
) -> None:
    now, ledger = session.clock().wall, session.ledger
    if about is None:
        ledger.forget_told(event, channel)
        return
    try:
        before = ledger.told(event, channel)
    except PrewarmError:
        before = None  # a state that cannot be read is worth telling of
    if not due(about, before, now):
        return
    deliver(json.dumps(body(event, ending, socket.gethostname())).encode())
    log.info("told of %s by %s", event, channel)
    ledger.note_told(remembered(event, channel, about, before, now))


def _channels(
    asked: Notify, environ: Mapping[str, str]
) -> Iterator[tuple[str, Callable[[bytes], None]]]:
    if asked.command:
        command = asked.command
        yield "command", lambda text: run_command(command, text, environ)
    if asked.webhook is not None:
        url = asked.webhook
        yield "webhook", lambda text: post(url, text, environ)
