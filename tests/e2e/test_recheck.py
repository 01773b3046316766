"""A tag that has not moved for long is asked for less often than in each run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host
from tests.sandbox import Image, Sandbox
from tests.sandbox.quota import Quota

DAY = 86400.0
NAMES = [f"quiet{number}" for number in range(5)]


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox(quota=Quota(100)) as box:
        yield box


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    """A host that warmed five images, the tags of which have been quiet for a month."""
    for name in NAMES:
        box.push(f"library/{name}", "1")
    host = Host(tmp_path, box)
    host.configure([f"{name}:1" for name in NAMES], limits={"checks": 1})
    assert host.sync().summary["copied"] == len(NAMES)
    with host.sql() as sql, sql:
        sql.execute("UPDATE tags SET changed = checked - :month", {"month": 30 * DAY})
    return host


def asked_heads(box: Sandbox) -> list[str]:
    """The images that Docker Hub was asked for."""
    heads = [entry for entry in box.hub.access if entry.method == "HEAD"]
    return sorted({entry.repository.removeprefix("library/") for entry in heads})


def later(host: Host, seconds: float) -> None:
    with host.sql() as sql, sql:
        sql.execute(
            "UPDATE tags SET checked = checked - :s, changed = changed - :s", {"s": seconds}
        )


def move(box: Sandbox, name: str) -> Image:
    return box.push(f"library/{name}", "1", name="moved")


def test_sync_quiet_tags_asks_one_for_the_quota_and_leaves_the_rest(
    host: Host, box: Sandbox
) -> None:
    later(host, 3600)
    report = host.sync()
    assert asked_heads(box) == NAMES[:1]
    assert report.summary["fresh"] == len(NAMES)
    assert report.report["budgets"]["docker.io"]["reported_remaining"] is not None
    assert "not asked" in report.image("quiet4:1")["reason"]
    assert "not asked" not in report.image("quiet0:1")["reason"]


def test_sync_quiet_tags_after_half_of_recheck_are_all_asked_and_a_move_is_copied(
    host: Host, box: Sandbox
) -> None:
    move(box, "quiet3")
    later(host, 3600)
    assert host.sync().summary["fresh"] == len(NAMES)
    later(host, DAY / 2)
    report = host.sync()
    assert asked_heads(box) == NAMES
    assert report.named("copy") == ["quiet3:1"]


def test_sync_quiet_tag_that_is_named_or_that_a_mirror_lost_is_asked(
    host: Host, box: Sandbox
) -> None:
    move(box, "quiet3")
    later(host, 3600)
    assert host.sync("quiet3:1").named("copy") == ["quiet3:1"]
    mirror = box.mirrors[0]
    held = mirror.manifest("library/quiet4", "1")
    assert held is not None
    assert mirror.delete("library/quiet4", held[2])
    report = host.sync()
    assert "quiet4:1" not in report.named("fresh")
    assert asked_heads(box) == ["quiet0", "quiet3", "quiet4"]
