"""The record: what a simulation gets to know from a state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.budget import Moment, Window
from prewarm.core.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, digest_of
from prewarm.core.platforms import Platform
from prewarm.core.reference import parse
from prewarm.core.settings import Allowance, Gitlab, Limits, Pin, Settings, Upstream
from prewarm.core.usage import DAY, Count, DayUses, Key, Mark, Row
from prewarm.planning.plan import Quota
from prewarm.planning.simulate import Recorded
from prewarm.reports.recorded_demand import metered_registry, present_window, record_of
from prewarm.reports.report import Report, to_json
from prewarm.state.ledger import Ledger

TODAY = 20_000
NOW = (TODAY + 0.5) * DAY
HUB = Upstream("docker.io", "https://registry-1.docker.io")
QUAY = Upstream("quay.io", "https://quay.io")
SETTINGS = Settings(Path("/etc/prewarm/images.yml"), gitlab=Gitlab("https://gitlab.example.org"))
AMD, ARM = Platform("linux", "amd64"), Platform("linux", "arm64")


def moment(at: float = NOW) -> Moment:
    return Moment(at, "boot", 1000.0)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.memory() as opened:
        yield opened


def use(ledger: Ledger, *names: str, runs: int = 3, day: int = TODAY - 1) -> None:
    """Have a job of one project for each image run so often on a day."""
    counts = {Key(1, name, 1, "linux/amd64", day): Count(runs, 0, NOW, 7) for name in names}
    ledger.add_history(counts, {1: Mark(9, NOW)}, {}, {1: "team/app"})
    rows = [Row(name, "image", name, str(parse(name)), None, "definition") for name in names]
    ledger.save_definition(1, rows, (), "c", (), NOW)


def record(ledger: Ledger, settings: Settings = SETTINGS) -> dict[str, Recorded]:
    return {one.reference: one for one in record_of(settings, ledger, moment())}


def saw(ledger: Ledger, name: str, text: str, at: float, media_type: str = OCI_MANIFEST) -> None:
    """Note that a tag upstream had that content then."""
    reference = parse(name)
    assert reference.tag is not None
    descriptor = Descriptor(media_type, digest_of(text.encode()), len(text))
    ledger.note_tag(reference.registry, reference.repository, reference.tag, descriptor, moment(at))


def finish(ledger: Ledger, window: Window, **actions: tuple[str, str]) -> None:
    """Record a sync with that window, and what it did with images: action and code."""
    run = ledger.start_run(moment())
    quota = Quota("acme", window, "reported by docker.io")
    report = to_json(Report(run, False, NOW, NOW, {"docker.io": quota}, (), ()))
    for name, (action, code) in actions.items():
        image = f"docker.io/library/{name}:1"
        ledger.note_copy(run, image, action, code, 0, 0, 0, 0.0, moment())
    ledger.finish_run(run, 0, json.dumps(report), moment())


def test_record_of_a_used_image_holds_its_days(ledger: Ledger) -> None:
    use(ledger, "app:1")
    assert record(ledger) == {
        "docker.io/library/app:1": Recorded(
            "docker.io/library/app:1", (DayUses(TODAY - 1, 1, 3),), payers=("team/app",)
        )
    }


def test_record_of_settings_without_a_gitlab_is_empty(ledger: Ledger) -> None:
    use(ledger, "app:1")
    assert record(ledger, replace(SETTINGS, gitlab=None)) == {}


def test_record_of_an_unlisted_registry_holds_nothing_and_of_another_no_pulls(
    ledger: Ledger,
) -> None:
    use(ledger, "app:1", "quay.io/a/b:1", "ghcr.io/a/b:1")
    found = record(ledger, replace(SETTINGS, registries=(QUAY, HUB)))
    assert {name: one.pulls for name, one in found.items()} == {
        "docker.io/library/app:1": 1,
        "quay.io/a/b:1": 0,
    }


def test_record_of_pins_keeps_their_order_and_their_uses(ledger: Ledger) -> None:
    use(ledger, "app:1", "used:1")
    pins = (Pin(parse("z:1")), Pin(parse("app:1")))
    found = record(ledger, replace(SETTINGS, pins=pins))
    assert {name: (one.pin, len(one.uses)) for name, one in found.items()} == {
        "docker.io/library/z:1": (0, 0),
        "docker.io/library/app:1": (1, 1),
        "docker.io/library/used:1": (None, 1),
    }


def test_record_of_a_tag_has_its_moves_without_the_first_digest(ledger: Ledger) -> None:
    use(ledger, "app:1", "new:1")
    for text, at in (("a", 10.0), ("a", 20.0), ("b", 30.0), ("c", 40.0)):
        saw(ledger, "app:1", text, at)
    saw(ledger, "new:1", "a", 50.0)
    found = record(ledger)
    assert found["docker.io/library/app:1"].moves == (30.0, 40.0)
    assert found["docker.io/library/new:1"].moves == ()


@pytest.mark.parametrize(
    ("platforms", "media_type", "kept", "pulls"),
    [
        ((AMD,), OCI_MANIFEST, False, 1),
        ((AMD, ARM), OCI_MANIFEST, False, 1),
        ((AMD, ARM), OCI_INDEX, False, 2),
        ((AMD, ARM), OCI_INDEX, True, 1),
        ("all", OCI_INDEX, True, 2),
    ],
)
def test_record_of_an_image_costs_what_a_copy_would(
    ledger: Ledger, platforms: Any, media_type: str, kept: bool, pulls: int
) -> None:
    use(ledger, "app:1")
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": digest_of(name.encode()),
            "size": 3,
            "platform": {"os": "linux", "architecture": name},
        }
        for name in ("amd64", "s390x")
    ]
    text = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
    saw(ledger, "app:1", text, NOW, media_type)
    if kept:
        ledger.keep_manifest(Manifest(media_type, text.encode()), moment())
    found = record(ledger, replace(SETTINGS, platforms=platforms))
    assert found["docker.io/library/app:1"].pulls == pulls


def test_record_of_what_cannot_be_warm_says_so(ledger: Ledger) -> None:
    names = ("gone", "private", "down", "hidden", "fine")
    use(ledger, *(f"{name}:1" for name in names), "localhost_1/app:1")
    finish(
        ledger,
        Window(100),
        gone=("fail", "not-found"),
        private=("skip", "private"),
        down=("fail", "mirror-unreachable"),
    )
    found = record(ledger, replace(SETTINGS, skip=("*/hidden:*",)))
    assert {one.reference for one in found.values() if one.mirrored} == {
        "docker.io/library/down:1",
        "docker.io/library/fine:1",
    }


def test_record_of_an_image_above_pulls_per_image_is_never_warm(ledger: Ledger) -> None:
    use(ledger, "app:1")
    saw(ledger, "app:1", "index", NOW, OCI_INDEX)
    settings = replace(SETTINGS, platforms=(AMD, ARM), limits=Limits(pulls_per_image=1))
    assert not record(ledger, settings)["docker.io/library/app:1"].mirrored


def test_record_of_days_to_come_and_of_long_ago_is_left_out(ledger: Ledger) -> None:
    for day in (TODAY - 43, TODAY - 42, TODAY, TODAY + 1):
        use(ledger, "app:1", day=day)
    found = record(ledger)["docker.io/library/app:1"]
    assert [one.day for one in found.uses] == [TODAY - 42, TODAY]


@pytest.mark.parametrize(
    ("registries", "name"),
    [
        ((QUAY, HUB), "docker.io"),
        ((QUAY,), "quay.io"),
        ((QUAY, Upstream("r.example.org", "https://r", budget=Allowance(9))), "r.example.org"),
        ((replace(QUAY, budget=Allowance(9)), HUB), "docker.io"),
    ],
)
def test_metered_registry_is_docker_hub_else_one_with_a_budget(
    registries: tuple[Upstream, ...], name: str
) -> None:
    assert metered_registry(replace(SETTINGS, registries=registries)) == name


def test_present_window_is_what_is_written_else_last_reported_else_assumed(
    ledger: Ledger,
) -> None:
    assert present_window(SETTINGS, ledger) == Window(100, 21600, 20)
    finish(ledger, Window(200, 3600, 40))
    assert present_window(SETTINGS, ledger) == Window(200, 3600, 40)
    written = replace(SETTINGS, registries=(replace(HUB, budget=Allowance(50, 7200, 5)),))
    # A written budget holds for all anonymous addresses together.
    assert present_window(written, ledger) == Window(50, 7200, 5, every_address=True)
