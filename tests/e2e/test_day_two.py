"""What docs/operations.md has people do does what it says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host
from tests.sandbox import Sandbox

PINS = ["app:1", "app:2", "other:1"]


@pytest.fixture
def two() -> Any:
    with Sandbox(mirrors=2) as box:
        yield box


def filled(folder: Path, box: Sandbox, **keys: Any) -> Host:
    """Return a host with one mirror, on which all pins are warm."""
    for name in PINS:
        repository, _, tag = name.partition(":")
        box.push(f"library/{repository}", tag, name=name)
    host = Host(folder, box)
    host.configure(PINS, mirrors=[box.taps[0].url], **keys)
    assert host.sync().summary["pulls"] == 3
    return host


def test_mirror_is_moved_without_a_pull(two: Sandbox, tmp_path: Path) -> None:
    host = filled(tmp_path, two)
    old, new = (tap.url for tap in two.taps)
    host.configure(PINS, mirrors=[old, new])
    done = host.sync()
    assert (done.summary["pulls"], done.summary["tagged"], done.gets) == (0, 3, ())
    host.configure(PINS, mirrors=[new])
    two.mirrors[0].stop()
    done = host.sync()
    assert (done.summary["fresh"], done.gets) == (3, ())
    assert host.run("verify").stdout == "3 tags are whole\n"


def test_budget_of_nothing_keeps_a_sync_at_heads(two: Sandbox, tmp_path: Path) -> None:
    host = filled(tmp_path, two)
    two.push("library/app", "1", name="app:1", revision=2)
    budget = {"pulls": 0, "window": "6h"}
    registries = {"docker.io": {"endpoint": two.hub.url, "budget": budget}}
    host.configure(PINS, mirrors=[two.taps[0].url], registries=registries)
    done = host.sync()
    assert (done.summary["deferred"], done.summary["fresh"], done.gets) == (1, 2, ())


def test_state_that_is_lost_costs_no_pull_and_forgets_whose_tags_they_are(
    two: Sandbox, tmp_path: Path
) -> None:
    host = filled(tmp_path, two)
    host.forget_state()
    done = host.sync()
    assert (done.summary["fresh"], done.summary["pulls"], done.gets) == (3, 0, ())
    assert host.charged() == 0, "the pulls of the window are forgotten"
    # Tags from before are nobody's: no prune removes them.
    host.configure(PINS[1:], mirrors=[{"url": two.taps[0].url, "max_size": "1B"}])
    told = host.run("prune", "--dry-run", "--force", "--json").json
    assert told["summary"]["removed"] == 0


def test_copy_of_the_state_that_is_made_beside_a_sync_can_be_put_back(
    two: Sandbox, tmp_path: Path
) -> None:
    host = filled(tmp_path, two)
    copy = tmp_path / "copy.db"
    with (
        closing(sqlite3.connect(host.state)) as held,
        closing(sqlite3.connect(host.state)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        held.execute("BEGIN IMMEDIATE")
        source.backup(target)
    host.forget_state()
    copy.rename(host.state)
    assert host.charged() == 3
    assert host.sync().summary["fresh"] == 3
