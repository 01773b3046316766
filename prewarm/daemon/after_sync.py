"""What follows a sync, however it ended: the file of the metrics, and notices.

Neither ever changes how the sync ended: a file that cannot be written is a warning of the report,
a notice that does not arrive is one in the log.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from prewarm.core.errors import PrewarmError, Problem
from prewarm.core.settings import Notify, Settings
from prewarm.core.text import printable
from prewarm.daemon.deliver import post, run_command
from prewarm.reports.metrics import samples_of
from prewarm.reports.notifications import (
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
from prewarm.state.clock import Clock
from prewarm.state.ledger import Ledger
from prewarm.state.location import StatePlace, host_of

log = logging.getLogger("prewarm")

_BUG: Final = 3


@dataclass(frozen=True, slots=True)
class Watch:
    """What is told of a sync, and from where; it needs no registry, as a sync may lack them."""

    settings: Settings
    ledger: Ledger
    state: StatePlace
    clock: Clock
    environ: Mapping[str, str]
    stop: threading.Event
    """Set when the run is to end: nobody waits for a notice then."""


def told(watch: Watch, sync: Callable[[], Report], *, whole: bool) -> Report:
    """Do a sync, write the metrics and send the notices; return the report, or raise what it did.

    `whole`: it is of all that is wanted. One of named images tells nobody: who typed them sees it.
    """
    started = watch.clock().wall
    try:
        report = sync()
    except PrewarmError as error:
        problem = Problem("error", error.code, "sync", error.text, error.cure)
        _after_failure(watch, problem, error.exit_code, started, whole=whole)
        raise
    except Exception as error:
        _after_failure(watch, bug_problem(error), _BUG, started, whole=whole)
        raise
    met = write_metrics(watch)
    if met is not None:
        report = replace(report, problems=(*report.problems, met))
    if whole:
        notify(watch, ending_of(report))
    return report


def _after_failure(
    watch: Watch, problem: Problem, exit_code: int, started: float, *, whole: bool
) -> None:
    met = write_metrics(watch, problem if whole else None)
    if met is not None:
        log.warning("%s", printable(str(met)))
    if whole:
        notify(watch, broken_off(problem, exit_code, started, watch.clock().wall))


def write_metrics(watch: Watch, failure: Problem | None = None) -> Problem | None:
    """Write the file that `metrics:` names, if any; return the problem where that fails.

    Without the state nothing is known: the file stays as it is, and its age tells.
    """
    path = watch.settings.metrics
    if path is None or watch.ledger.lost is not None:
        return None
    from prewarm.daemon.prometheus import text_of, write  # prometheus_client is slow to load

    try:
        samples = samples_of(watch.settings, watch.ledger, watch.clock(), watch.state, failure)
        write(path, text_of(samples))
    except PrewarmError as error:
        return Problem("warning", error.code, "metrics", error.text, error.cure)
    except Exception as error:
        log.exception("a bug met the metrics")
        return bug_problem(error, "metrics")
    return None


def notify(watch: Watch, ending: Ending) -> None:
    """Tell of the events that `notify:` asks for and that are due; log what did not arrive."""
    asked = watch.settings.notify
    if asked is None or ending.exit_code >= 128:
        return
    events = events_of(ending)
    for channel, deliver in _channels(asked, watch):
        for event in asked.on:
            if watch.stop.is_set():
                return  # it is told after the next sync
            try:
                _tell(watch, channel, event, events.get(event), ending, deliver)
            except PrewarmError as error:
                log.warning("the notice of %s did not arrive: %s", event, printable(str(error)))
            except Exception:
                log.exception("a bug met the notice of %s", event)


def _tell(
    watch: Watch,
    channel: str,
    event: str,
    about: frozenset[str] | None,
    ending: Ending,
    deliver: Callable[[bytes], None],
) -> None:
    now, ledger = watch.clock().wall, watch.ledger
    if about is None:
        if ending.run is not None:  # one that broke off knows of nothing that it is over
            ledger.forget_told(event, channel)
        return
    try:
        before = ledger.told(event, channel)
    except PrewarmError:
        before = None  # a state that cannot be read is worth telling of
    if not due(about, before, now):
        return
    notice = body(event, ending, host_of(watch.settings), chat=channel == "webhook")
    deliver(json.dumps(notice).encode())
    log.info("told of %s by %s", event, channel)
    try:
        ledger.note_told(remembered(event, channel, about, before, now))
    except PrewarmError as error:
        log.warning("the notice of %s may come again: %s", event, printable(str(error)))


def _channels(asked: Notify, watch: Watch) -> Iterator[tuple[str, Callable[[bytes], None]]]:
    if asked.command:
        command = asked.command
        yield "command", lambda text: run_command(command, text, watch.environ, watch.stop)
    if asked.webhook is not None:
        url = asked.webhook
        yield "webhook", lambda text: post(url, text, watch.environ, watch.stop)
