"""What /healthz tells after each way that a sync can end."""

from __future__ import annotations

import pytest

from prewarm.core.errors import AlreadyRunningError, PrewarmError, Problem
from prewarm.daemon.health import Health
from prewarm.reports.report import Report

LOST = PrewarmError("state", "the disk\x1b[2J is full", "free it")
BUSY = AlreadyRunningError("running", "another sync runs", "wait")
GONE = Problem("error", "not-found", "images.yml:3", "is gone\n", "correct it")
NOTE = Problem("warning", "skipped", "team/app", "is skipped", "")


def report(*problems: Problem) -> Report:
    return Report("run", False, 1.0, 2.0, {}, (), problems)


def broken(health: Health, error: Exception) -> None:
    with pytest.raises(type(error)), health.watching():
        raise error


def test_health_before_any_sync_is_well() -> None:
    assert Health().ill(goes_on=True) == ""


def test_daemon_that_hangs_is_ill_however_its_last_sync_ended() -> None:
    health = Health()
    health.told(report())
    assert "hangs" in health.ill(goes_on=False)


def test_sync_that_failed_is_told_in_one_printable_line() -> None:
    health = Health()
    health.told(report(NOTE, GONE))
    told = health.ill(goes_on=True)
    assert told.startswith("the last sync failed: ")
    assert "is gone" in told
    assert told.isprintable()


@pytest.mark.parametrize("ended", [report(), report(NOTE)])
def test_sync_that_ended_well_heals(ended: Report) -> None:
    health = Health()
    broken(health, LOST)
    health.told(ended)
    assert health.ill(goes_on=True) == ""
    assert health.broken_off is None


@pytest.mark.parametrize("error", [LOST, ValueError("s3cret")])
def test_sync_that_broke_off_is_told_until_one_ends(error: Exception) -> None:
    health = Health()
    broken(health, error)
    told = health.ill(goes_on=True)
    assert told.startswith("the last sync failed: ")
    assert told.isprintable()
    assert "s3cret" not in told
    assert health.broken_off is not None
    # A lock that is held says nothing of how the last sync ended.
    broken(health, BUSY)
    assert health.ill(goes_on=True) == told


def test_lock_that_is_held_is_no_failure() -> None:
    health = Health()
    broken(health, BUSY)
    assert health.ill(goes_on=True) == ""
