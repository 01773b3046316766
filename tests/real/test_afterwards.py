"""What follows a sync that ended in an unusual way: its notices and its metrics."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.errors import PrewarmError, Problem
from prewarm.core.settings import Notify, Settings
from prewarm.daemon.after_sync import Watch, notify, told
from prewarm.reports.notifications import Ending
from prewarm.reports.report import Report
from prewarm.state import clock
from prewarm.state.ledger import Ledger
from tests.real.scripted import Scripted, reply

FULL = Problem("error", "mirror-full", "http://m", "is full", "free disk")
WAITING = Ending(1, "run-1", 1.0, 2.0, (FULL,), "1 image", frozenset({"docker.io budget"}))


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """All events are told to a command that keeps each notice as a line of a file."""
    page = tmp_path / "page"
    page.write_text(f"#!/bin/sh\ncat >>{tmp_path}/notices\necho >>{tmp_path}/notices\n")
    page.chmod(0o755)
    settings = Settings(
        tmp_path / "images.yml",
        metrics=tmp_path / "prewarm.prom",
        notify=Notify((str(page),), None, ("failure", "mirror-full", "budget")),
    )
    path = tmp_path / "prewarm.db"
    with Ledger.open(path) as ledger:
        yield Watch(settings, ledger, path, clock.now, {"PATH": "/bin"}, threading.Event())


def state(watch: Watch) -> Path:
    assert isinstance(watch.state, Path)
    return watch.state


def events(watch: Watch) -> list[Any]:
    file = state(watch).parent / "notices"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["event"] for line in lines]


def raises(error: Exception) -> Callable[[], Report]:
    def sync() -> Report:
        raise error

    return sync


def damage(ledger: Ledger) -> None:
    """Let a run have a report that no version of prewarm writes."""
    ledger.finish_run(ledger.start_run(clock.now()), 0, '{"problems": [{}]}', clock.now())


def test_sync_that_broke_off_ends_no_event_but_is_one(watch: Watch) -> None:
    notify(watch, replace(WAITING, exit_code=0))
    assert events(watch) == ["mirror-full", "budget"]
    with pytest.raises(PrewarmError):
        told(watch, raises(PrewarmError("state", "the disk is full", "free it")), whole=True)
    assert events(watch) == ["mirror-full", "budget", "failure"]
    notify(watch, replace(WAITING, exit_code=0))
    assert events(watch) == ["mirror-full", "budget", "failure"]
    notify(watch, Ending(0, "run-2", 1.0, 2.0, (), "no image"))
    notify(watch, WAITING)
    assert events(watch)[3:] == ["failure", "mirror-full", "budget"]


def test_notice_is_of_the_host_as_it_is_called_in_the_file(watch: Watch) -> None:
    notify(replace(watch, settings=replace(watch.settings, host="runner-7")), WAITING)
    first, *_ = (state(watch).parent / "notices").read_text().splitlines()
    assert json.loads(first)["host"] == "runner-7"


def test_notice_is_not_begun_where_the_run_is_to_end(watch: Watch) -> None:
    watch.stop.set()
    notify(watch, WAITING)
    assert events(watch) == []
    watch.stop.clear()
    notify(watch, WAITING)
    assert events(watch) == ["failure", "mirror-full", "budget"]


@pytest.mark.parametrize("code", [75, 130, 143])
def test_lock_and_signal_tell_nothing_and_end_no_event(watch: Watch, code: int) -> None:
    notify(watch, WAITING)
    notify(watch, Ending(code, None, 1.0, 2.0, (FULL,), "ended"))
    notify(watch, WAITING)
    assert events(watch) == ["failure", "mirror-full", "budget"]


def test_sync_of_named_images_that_breaks_off_tells_nobody(watch: Watch) -> None:
    lost = PrewarmError("state", "the disk is full", "free it")
    with pytest.raises(PrewarmError):
        told(watch, raises(lost), whole=False)
    assert events(watch) == []
    text = (state(watch).parent / "prewarm.prom").read_text()
    assert "prewarm_problems" not in text
    assert "prewarm_pulls_total" in text


def test_state_that_cannot_be_read_hinders_no_notice(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(state(watch))) as sql, sql:
        sql.execute("DROP TABLE notices")
    with caplog.at_level(logging.WARNING, "prewarm"):
        notify(watch, WAITING)
    assert events(watch) == ["failure", "mirror-full", "budget"]
    logged = [record.getMessage().partition(": ")[0] for record in caplog.records]
    assert logged == [f"the notice of {event} may come again" for event in events(watch)]


def test_channels_are_told_each_by_itself(watch: Watch) -> None:
    with Scripted(lambda _: reply(503)) as site:
        assert watch.settings.notify is not None
        both = replace(watch.settings.notify, webhook=f"{site.url}/hook", on=("failure",))
        watch = replace(watch, settings=replace(watch.settings, notify=both))
        notify(watch, WAITING)
        notify(watch, WAITING)
        # Only who did not get it is told again.
        assert (events(watch), len(site.requests)) == (["failure"], 2)


def test_bug_of_the_metrics_is_a_problem_of_the_report(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    damage(watch.ledger)
    with caplog.at_level(logging.ERROR, "prewarm"):
        report = told(watch, lambda: Report("run", False, 1, 2, {}, (), ()), whole=True)
    assert [(one.code, one.where) for one in report.problems] == [("bug", "metrics")]
    assert report.exit_code == 3
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert events(watch) == ["failure"]


def test_bug_of_the_metrics_hides_no_failure(watch: Watch) -> None:
    damage(watch.ledger)
    with pytest.raises(PrewarmError, match="the disk is full"):
        told(watch, raises(PrewarmError("state", "the disk is full", "free it")), whole=True)
    assert events(watch) == ["failure"]
