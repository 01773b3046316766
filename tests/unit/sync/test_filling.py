"""Filling: no project takes the mirrors' disk for itself, and shared layers count once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prewarm.core.budget import Moment, Spend
from prewarm.core.manifest import OCI_MANIFEST, Descriptor, Manifest
from prewarm.core.platforms import DEFAULT
from prewarm.core.reference import parse
from prewarm.core.settings import Limits, Mirror
from prewarm.core.shares import payers_of
from prewarm.planning.demand import Want
from prewarm.planning.plan import Copy, Cost, Defer, Disk, Holding, Quota, Seen, Step, plan
from prewarm.state.ledger import Ledger
from prewarm.sync.fetch import EndedError
from prewarm.sync.filling import Filling, disk_of, share_of
from prewarm.sync.task import Image

LIMITS = replace(Limits(), image_size=100)
HOUR = 3600
MIRROR = Mirror("http://m", "http://m")


def at(seconds: float) -> Moment:
    return Moment(1_800_000_000.0 + seconds, "boot", 1000.0 + seconds)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.memory() as ledger:
        yield ledger


class Sized(Image):
    """An image of a given size."""

    @property
    def size(self) -> int:
        return 100


def image(name: str, *users: str) -> Image:
    want = Want(parse(name), DEFAULT, ("history",), "CI", payers=payers_of(users))
    return Sized(Copy(want, Seen(Descriptor(OCI_MANIFEST, "sha256:0", 9)), Cost(1, 1), "", ""))


def copied(filling: Filling, images: list[Image], moved: int = 100) -> int:
    """Copy images one after another; return how many had room."""
    number = 0
    waits: list[Step] = []
    for one in images:
        try:
            with filling.room(one):
                one.moved += moved
                number += 1
        except EndedError as ended:
            waits.append(ended.step)
    assert all(isinstance(step, Defer) and step.until is not None for step in waits)
    assert {step.code for step in waits} <= {"project-share"}
    return number


@pytest.mark.parametrize(
    ("users", "room"),
    [
        pytest.param([("eve/a",)] * 50, 5, id="one project"),
        pytest.param([("eve/a", "eve/b")] * 50, 10, id="two of a group with the same images"),
        pytest.param([(f"eve/{number}",) for number in range(50)], 10, id="many of a group"),
        pytest.param([("eve/a", "team/b")] * 50, 10, id="two of two groups"),
        pytest.param([()] * 50, 50, id="pins, and what everybody uses"),
    ],
)
def test_room_for_images_of_one_group_ends_and_others_have_theirs(
    ledger: Ledger, users: list[tuple[str, ...]], room: int
) -> None:
    filling = Filling(ledger, lambda: at(0), LIMITS, [MIRROR])
    junk = [image(f"junk{number}", *names) for number, names in enumerate(users)]
    assert copied(filling, junk) == room
    assert copied(filling, [image("honest", "other/app")]) == 1
    # The window is over.
    later = Filling(ledger, lambda: at(6 * HOUR + 1), LIMITS, [MIRROR])
    assert copied(later, junk) == room


def test_room_is_charged_with_what_was_moved(ledger: Ledger) -> None:
    """Layers that images share cross the network once, and lie on the disk once."""
    filling = Filling(ledger, lambda: at(0), LIMITS, [MIRROR])
    assert copied(filling, [image(f"i{number}", "team/a") for number in range(60)], moved=5) == 60


def test_room_counts_what_is_being_copied(ledger: Ledger) -> None:
    filling = Filling(ledger, lambda: at(0), LIMITS, [MIRROR])
    started, go = threading.Barrier(6), threading.Event()

    def copy(number: int) -> bool:
        try:
            with filling.room(image(f"i{number}", "eve/a")):
                started.wait(60)
                go.wait(60)
        except EndedError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        begun = [pool.submit(copy, number) for number in range(5)]
        started.wait(60)
        assert not copy(6)
        go.set()
        assert all(one.result() for one in begun)
    # Nothing was moved, so nothing is charged.
    assert ledger.filled(at(0), HOUR) == ()


@pytest.mark.parametrize(
    ("settings", "free", "share"),
    [
        ({}, 0, 500),
        ({"max_size": 1000}, 0, 250),
        ({"storage": Path("/"), "min_free": 400}, 1200, 200),
        ({"storage": Path("/"), "min_free": 400}, 300, 1),
        ({"storage": Path("/"), "role": "source"}, 300, 500),
    ],
)
def test_share_is_a_part_of_the_space_that_is_left(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], free: int, share: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert share_of(LIMITS, [replace(MIRROR, **settings)]) == share


def test_disk_is_never_filled_by_one_project(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    space = {"free": 10_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(**space))
    mirror = replace(MIRROR, storage=Path("/"), min_free=1000)
    for window in range(8):
        clock = partial(at, window * 7 * HOUR)
        filling = Filling(ledger, clock, replace(LIMITS, image_size=5000), [mirror])
        for number in range(50):
            space["free"] -= 100 * copied(filling, [image(f"{window}-{number}", "eve/a")])
        assert space["free"] > 1000 + 100


def test_plan_lets_a_known_image_wait_where_its_users_have_filled_their_share() -> None:
    content = Manifest(OCI_MANIFEST, b"m")
    holding = Holding("http://m", True, "library/x")
    own = content.digest
    seen = Seen(Descriptor(OCI_MANIFEST, own, 9), content, (own,), {own: 100}, (holding,))
    demand = [
        (replace(image("junk", "eve/a").want, reference=parse("junk:1")), seen),
        (replace(image("good", "team/a").want, reference=parse("good:1")), seen),
    ]
    disk = Disk(500, (Spend(HOUR, 450, payers=("eve/a",)),), 6 * HOUR)
    quotas: dict[str, Quota] = {}
    found = plan(demand, quotas, Limits(), (), 1000.0, disk).steps
    assert [(type(step), step.code) for step in found] == [
        (Defer, "project-share"),
        (Copy, "missing"),
    ]
    waits = found[0]
    assert isinstance(waits, Defer)
    assert waits.until == 1000.0 + 5 * HOUR


def test_filled_bytes_are_forgotten_after_a_day(ledger: Ledger) -> None:
    ledger.note_filled(("eve/a",), 7, at(0))
    ledger.note_filled(("eve/a", "eve/b"), 9, at(HOUR))
    assert ledger.filled(at(HOUR), 6 * HOUR) == (
        Spend(HOUR, 7, payers=("eve/a",)),
        Spend(0.0, 9, payers=("eve/a", "eve/b")),
    )
    ledger.note_filled((), 1, at(30 * HOUR))
    assert len(ledger.filled(at(30 * HOUR), 40 * HOUR)) == 1
    assert disk_of(ledger, at(0), LIMITS, [MIRROR]).share == 500
