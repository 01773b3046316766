"""Carrying out a plan: what one image meets stays with it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from prewarm.core.budget import NO_LIMIT
from prewarm.core.errors import Failure, PrewarmError
from prewarm.core.manifest import OCI_MANIFEST, Manifest
from prewarm.core.platforms import Platform
from prewarm.core.reference import Reference, parse
from prewarm.core.settings import Limits, Mirror
from prewarm.planning.demand import Want
from prewarm.planning.outcome import Outcome
from prewarm.planning.plan import Copy, Cost, Defer, Fail, Holding, Plan, Seen, action
from prewarm.registry.client import Registry
from prewarm.registry.policy_json import Policy
from prewarm.state import clock
from prewarm.state.ledger import Ledger
from prewarm.sync.executor import Carrier, Tools, platform_of, too_little_space
from prewarm.sync.gate import Gate
from prewarm.sync.inspect import MirrorSite, Observer

AMD = Platform("linux", "amd64")
NEAR = "http://127.0.0.1:1"
REJECT = Policy(Path("/etc/containers/policy.json"), {"default": [{"type": "reject"}]})


class Quiet:
    """A progress that nobody watches."""

    def __init__(self) -> None:
        self.ended: list[Outcome] = []

    def begin(self, images: int) -> None: ...
    def expect(self, amount: int) -> None: ...
    def moved(self, amount: int) -> None: ...

    def done(self, outcome: Outcome) -> None:
        self.ended.append(outcome)


class Buggy(Policy):
    """A policy with a bug that one image meets; it rejects the others."""

    def refusal(self, reference: Reference) -> PrewarmError | None:
        if reference.repository == "library/odd":
            raise ZeroDivisionError
        return super().refusal(reference)


@pytest.fixture
def site() -> Iterator[MirrorSite]:
    with Registry(NEAR, NEAR, role="mirror", environ={}) as registry:
        yield MirrorSite(Mirror(NEAR, NEAR), registry)


@pytest.fixture
def carrier(site: MirrorSite) -> Iterator[Carrier]:
    with Ledger.memory() as ledger, Gate() as gate:
        yield Carrier(
            "run",
            Observer({}, [site], ledger, clock.now),
            ledger,
            gate,
            -1,
            Tools("skopeo", {}, REJECT),
            lambda _: NO_LIMIT,
            Limits(parallel=2),
            Quiet(),
            threading.Event(),
            time.monotonic() + 60,
        )


def copy(name: str) -> Copy:
    lone = Manifest(OCI_MANIFEST, name.encode())
    want = Want(parse(name), (AMD,), ("pin",), "images.yml:3")
    holding = Holding(NEAR, True, want.reference.mirror_repository)
    seen = Seen(lone.descriptor, None, (lone.digest,), holdings=(holding,))
    return Copy(want, seen, Cost(1, 1), "missing", "not there")


def carried(carrier: Carrier, *names: str) -> Mapping[str, Outcome]:
    outcomes = carrier.carry_out(Plan(tuple(map(copy, names))))
    return {one.step.want.reference.familiar: one for one in outcomes}


def test_carry_out_of_an_image_that_meets_a_bug_goes_on_with_the_others(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    carrier.tools = Tools("skopeo", {}, Buggy(Path("/p"), {"default": []}))
    with caplog.at_level("ERROR", "prewarm"):
        found = carried(carrier, "odd:1", "one:1", "two:1")
    assert {name: one.step.code for name, one in found.items()} == {
        "odd:1": "bug",
        "one:1": "policy",
        "two:1": "policy",
    }
    assert "ZeroDivisionError" in caplog.text


def test_carry_out_without_skopeo_fails_each_image_with_its_cause(carrier: Carrier) -> None:
    carrier.tools = PrewarmError("skopeo-missing", "skopeo is not on PATH", "install it")
    found = carried(carrier, "one:1", "two:1")
    assert [one.step.code for one in found.values()] == ["skopeo-missing"] * 2
    assert all((one.pulls, one.gets, one.moved) == (0, 0, 0) for one in found.values())


@pytest.mark.parametrize(("stopped", "code"), [(True, "interrupted"), (False, "run-time")])
def test_carry_out_after_the_end_begins_nothing(carrier: Carrier, stopped: bool, code: str) -> None:
    if stopped:
        carrier.stop.set()
    else:
        carrier.deadline = time.monotonic() - 1
    (outcome,) = carried(carrier, "one:1").values()
    assert isinstance(outcome.step, Defer)
    assert (outcome.step.code, outcome.step.until) == (code, None)


def test_carry_out_to_a_mirror_that_has_failed_since_spends_nothing(
    carrier: Carrier, site: MirrorSite
) -> None:
    site.failure = Failure("mirror-full", "it is full", "free space")
    (outcome,) = carried(carrier, "one:1").values()
    assert isinstance(outcome.step, Fail)
    assert outcome.step.failure == outcome.holdings[0].failure == site.failure


def test_carry_out_tells_each_outcome_as_it_ends(carrier: Carrier) -> None:
    progress = Quiet()
    carrier.progress = progress
    found = carried(carrier, "one:1", "two:1")
    assert sorted(map(id, progress.ended)) == sorted(map(id, found.values()))
    assert {action(one.step) for one in progress.ended} == {"fail"}
    assert all(one.seconds >= 0 for one in progress.ended)


# Space


@pytest.mark.parametrize(
    ("least", "needed", "code"),
    [
        (None, 0, None),
        (1, 0, None),
        (1 << 60, 0, "mirror-full"),
        (None, 1 << 60, "mirror-full"),
    ],
)
def test_too_little_space_is_what_would_fall_below_min_free(
    site: MirrorSite, tmp_path: Path, least: int | None, needed: int, code: str | None
) -> None:
    site.settings = Mirror(NEAR, NEAR, storage=tmp_path, min_free=least)
    failure = too_little_space(site.settings, needed)
    assert (failure.code if failure else None) == code


@pytest.mark.parametrize(
    ("least", "needed", "ending"),
    [
        (100 << 40, 0, "below min_free 100.0 TiB"),
        (None, 3 << 50, "too little for 3.0 PiB"),
        (1_000_000, 3 << 50, "too little for 3.0 PiB beside min_free 976.6 KiB"),
    ],
)
def test_too_little_space_tells_sizes_in_units_that_fit(
    site: MirrorSite, tmp_path: Path, least: int | None, needed: int, ending: str
) -> None:
    site.settings = Mirror(NEAR, NEAR, storage=tmp_path, min_free=least)
    failure = too_little_space(site.settings, needed)
    assert failure is not None
    assert re.fullmatch(
        rf"{NEAR}: [0-9.]+ [KMGT]iB are free at {tmp_path}, {re.escape(ending)}", failure.text
    )


def test_too_little_space_of_a_disk_elsewhere_is_not_known(site: MirrorSite) -> None:
    assert too_little_space(site.settings, 1 << 60) is None


def test_too_little_space_where_storage_is_not_there_says_so(
    site: MirrorSite, tmp_path: Path
) -> None:
    site.settings = Mirror(NEAR, NEAR, storage=tmp_path / "gone")
    failure = too_little_space(site.settings, 0)
    assert failure is not None
    assert failure.code == "mirror-storage"
    assert str(tmp_path / "gone") in failure.text


# Configs


@pytest.mark.parametrize(
    ("config", "platform"),
    [
        (b'{"os": "linux", "architecture": "amd64"}', AMD),
        (
            b'{"os": "linux", "architecture": "arm", "variant": "v6"}',
            Platform("linux", "arm", "v6"),
        ),
        (b'{"os": "linux", "architecture": "arm64", "variant": 8}', Platform("linux", "arm64")),
        pytest.param(
            b'{"os": "%s", "architecture": "amd64"}' % (b"x" * 4_000_000),
            Platform("unknown", "unknown"),
            id="4 MB of text",
        ),
        (b'{"os": "a b", "architecture": "amd64"}', Platform("unknown", "unknown")),
        (b'{"os": "", "architecture": "amd64"}', None),
        (b'{"os": "linux"}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_platform_of_a_config_is_what_it_names(config: bytes, platform: Platform | None) -> None:
    assert platform_of(config) == platform
