"""Looking: what a sighting is judged to be, from what mirrors and memory hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from prewarm.budget import Limit, Moment
from prewarm.demand import Want
from prewarm.errors import PrewarmError, RegistryError
from prewarm.ledger import SeenTag, Written
from prewarm.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    ManifestError,
    index_for,
)
from prewarm.observe import (
    Look,
    MirrorSite,
    Observer,
    UpstreamSite,
    bug,
    concerns_all,
    is_due,
    no_platform,
    required_of,
    unsupported,
    words,
)
from prewarm.plan import Holding
from prewarm.platforms import ALL, Platform, Wanted
from prewarm.reference import parse
from prewarm.registry import Head, Registry
from prewarm.settings import Mirror, Upstream

AMD, ARM, S390 = (Platform("linux", name) for name in ("amd64", "arm64", "s390x"))
NOW = Moment(1_800_000_000.0, "boot", 1000.0)
NEAR = "http://127.0.0.1:1"


def manifest(name: str) -> Manifest:
    blob = {"mediaType": "", "digest": "sha256:" + "c" * 64, "size": 7}
    document = {"schemaVersion": 2, "config": blob, "layers": [], "annotations": {"n": name}}
    return Manifest(OCI_MANIFEST, json.dumps(document).encode())


def index(*platforms: Platform, media_type: str = OCI_INDEX, **more: Any) -> Manifest:
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": manifest(str(platform)).digest,
            "size": len(manifest(str(platform)).content),
            "platform": {"os": platform.os, "architecture": platform.architecture},
        }
        for platform in platforms
    ]
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries, **more}
    return Manifest(media_type, json.dumps(document).encode())


class Memory:
    """Manifests that are remembered."""

    def __init__(self, *manifests: Manifest) -> None:
        self.kept = {one.digest: one for one in manifests}

    def manifest(self, digest: str) -> Manifest | None:
        return self.kept.get(digest)

    def keep_manifest(self, manifest: Manifest, now: Moment) -> None:
        self.kept[manifest.digest] = manifest

    def is_public(self, registry: str, repository: str, since: float) -> bool | None:
        return None

    def note_public(self, registry: str, repository: str, public: bool, now: Moment) -> None:
        """Nobody asks."""

    def tag(self, registry: str, repository: str, tag: str) -> SeenTag | None:
        return None

    def cached(self, mirror: str, repository: str) -> dict[str, float]:
        return {}

    def written(self, mirror: str | None, image: str | None) -> tuple[Written, ...]:
        return ()


def want(text: str = "golang:1", platforms: Wanted = (AMD,)) -> Want:
    return Want(parse(text), platforms, ("pin",), "images.yml:3")


def digests(*platforms: Platform) -> tuple[str, ...]:
    return tuple(manifest(str(platform)).digest for platform in platforms)


BOTH = index(AMD, ARM)


# What content stands on


def test_required_of_an_index_are_its_entries_each_once() -> None:
    assert required_of(index(AMD, ARM, AMD), BOTH.descriptor) == digests(AMD, ARM)


def test_required_of_a_single_manifest_is_itself() -> None:
    lone = manifest("lone")
    assert required_of(lone, lone.descriptor) == (lone.digest,)


@pytest.mark.parametrize(
    ("media_type", "known"),
    [(OCI_MANIFEST, True), (DOCKER_MANIFEST, True), (OCI_INDEX, False), (DOCKER_LIST, False)],
)
def test_required_of_what_is_unread_is_known_for_a_single_manifest(
    media_type: str, known: bool
) -> None:
    descriptor = Descriptor(media_type, BOTH.digest, 100)
    assert required_of(None, descriptor) == ((BOTH.digest,) if known else ())


def test_required_of_an_index_in_an_index_is_refused() -> None:
    inner = {"mediaType": OCI_INDEX, "digest": BOTH.digest, "size": 10}
    outer = Manifest(OCI_INDEX, json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode())
    with pytest.raises(ManifestError):
        required_of(outer, outer.descriptor)


# Judging


def judged(
    wanted: Want, upstream: Descriptor, *kept: Manifest, sites: Sequence[MirrorSite] = ()
) -> Any:
    """Judge with memory alone: no mirror is asked."""
    observer = Observer({}, sites, Memory(*kept), lambda: NOW)
    return observer.judge(wanted, upstream, [])


def test_judge_of_an_index_that_nobody_has_knows_nothing_of_it() -> None:
    seen = judged(want(), BOTH.descriptor)
    assert (seen.content, seen.required, seen.failure) == (None, (), None)


def test_judge_of_a_remembered_index_is_reduced_to_what_is_wanted() -> None:
    seen = judged(want(), BOTH.descriptor, BOTH, manifest("linux/amd64"))
    assert seen.content == index_for(BOTH, (AMD,))
    assert seen.required == digests(AMD)
    assert seen.sizes == {digests(AMD)[0]: 7}
    assert seen.unfetched == ()


@pytest.mark.parametrize(
    ("text", "platforms"), [("golang:1", ALL), (f"golang@{BOTH.digest}", (AMD,))]
)
def test_judge_of_what_is_wanted_whole_keeps_the_index(text: str, platforms: Wanted) -> None:
    seen = judged(want(text, platforms), BOTH.descriptor, BOTH)
    assert seen.content == BOTH
    assert seen.required == seen.unfetched == digests(AMD, ARM)


def test_judge_leaves_out_a_wanted_platform_that_the_image_lacks() -> None:
    assert judged(want(platforms=(AMD, S390)), BOTH.descriptor, BOTH).required == digests(AMD)


def test_judge_without_any_wanted_platform_is_a_failure_that_names_what_there_is() -> None:
    failure = judged(want(platforms=(S390,)), BOTH.descriptor, BOTH).failure
    assert failure.code == "no-platform"
    assert "has none of linux/s390x, only linux/amd64, linux/arm64" in failure.text
    assert "images.yml:3" in failure.cure


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"schemaVersion": 2}', b"\xff"])
def test_judge_of_a_broken_index_is_a_failure_of_that_image(content: bytes) -> None:
    broken = Manifest(OCI_INDEX, content)
    seen = judged(want(), broken.descriptor, broken)
    assert seen.failure.code == "unsupported-manifest"
    assert "docker.io/library/golang:1" in seen.failure.text


@pytest.mark.parametrize(
    ("under_tag", "wanted", "state"),
    [
        (BOTH, (AMD,), "fresh"),
        (BOTH, ALL, "fresh"),
        (index_for(BOTH, (AMD,)), (AMD,), "fresh"),
        # Made for fewer platforms than are wanted now: to be completed, but not moved upstream.
        (index_for(BOTH, (AMD,)), (AMD, ARM), "missing"),
        (index_for(BOTH, (AMD,)), ALL, "missing"),
        # Looked for and not found counts as had.
        (index_for(index(AMD, ARM, media_type=OCI_INDEX), (AMD, S390)), (AMD, S390), "fresh"),
        (index(AMD), (AMD,), "stale"),
        (index_for(index(AMD, ARM, annotations={"v": "old"}), (AMD,)), (AMD,), "stale"),
    ],
)
def test_judge_of_a_mirrors_tag_tells_fresh_from_stale_and_partial(
    under_tag: Manifest, wanted: Wanted, state: str
) -> None:
    children = [manifest(str(platform)) for platform in (AMD, ARM)]

    class Whole(Registry):
        """A mirror that answers HEADs for every child."""

        def head(self, repository: str, selector: str) -> Head:
            for child in children:
                if child.digest == selector:
                    return Head(child.descriptor, None)
            raise RegistryError("not-found", "it is not there", "")

    with Whole(NEAR, NEAR, role="mirror", environ={}) as registry:
        site = MirrorSite(Mirror(NEAR, NEAR), registry)
        holding = Holding(NEAR, True, "library/golang", under_tag.digest)
        observer = Observer({}, [site], Memory(BOTH, under_tag, *children), lambda: NOW)
        seen = observer.judge(
            want(platforms=wanted), BOTH.descriptor, [Look(site, holding, under_tag)]
        )
    (found,) = seen.holdings
    assert found.state == state
    assert set(seen.required) <= found.present


# What is the mirror's and what an image's


@pytest.mark.parametrize(
    ("code", "status", "all_of_it"),
    [
        ("mirror-unreachable", None, True),
        ("mirror-full", 500, True),
        ("mirror-server-error", 502, True),
        ("mirror-unauthorized", 401, True),
        ("mirror-tls", 400, True),
        ("mirror-proxy", 405, True),
        ("mirror-bad-answer", 418, True),
        ("mirror-bad-answer", 400, False),
        ("mirror-incomplete", 404, False),
        ("mirror-bad-manifest", 200, False),
        ("mirror-unsupported-manifest", 200, False),
        ("not-found", 404, False),
        ("bad-digest", 200, False),
        ("unreachable", None, False),
    ],
)
def test_concerns_all_is_what_every_image_of_the_mirror_would_meet(
    code: str, status: int | None, all_of_it: bool
) -> None:
    assert concerns_all(RegistryError(code, "text", "cure", status=status)) is all_of_it


def test_concerns_all_of_what_skopeo_met_goes_by_its_code() -> None:
    assert concerns_all(PrewarmError("mirror-full", "text", "cure"))
    assert not concerns_all(PrewarmError("copy", "text", "cure"))


def site() -> MirrorSite:
    return MirrorSite(Mirror(NEAR, NEAR), Registry(NEAR, NEAR, role="mirror", environ={}))


def noted(mirror: MirrorSite, *errors: tuple[str, str]) -> bool:
    """Note failures of a mirror, each a code and a text; return whether it is left alone then."""
    observer = Observer({}, [mirror], Memory(), lambda: NOW)
    for code, text in errors:
        observer.note_failure(mirror, RegistryError(code, text, "cure"))
    return mirror.failure is not None


def test_note_failure_of_the_mirror_ends_it_at_once() -> None:
    assert noted(site(), ("mirror-unreachable", "it is down"))
    assert not noted(site(), ("mirror-bad-manifest", "a:1 is none"), ("bad-digest", "b:1"))


def test_note_failure_of_server_errors_ends_a_mirror_that_answers_nothing_else() -> None:
    errors = [("mirror-server-error", f"a:{n}: answered 500") for n in range(3)]
    assert noted(site(), *errors)
    assert not noted(site(), *errors[:2])
    assert not noted(site(), *[errors[0]] * 9)
    answering = site()
    answering.breaking = None
    assert not noted(answering, *errors)


# An upstream's reports


def upstream(account: str | None = None) -> UpstreamSite:
    registry = Registry("docker.io", NEAR, environ={})
    return UpstreamSite(Upstream("docker.io", NEAR), registry, account)


def later(seconds: float) -> Moment:
    return Moment(NOW.wall + seconds, "boot", NOW.boot + seconds)


def test_note_keeps_the_newest_report_whatever_came_last() -> None:
    assert upstream().reported is None
    site = upstream()
    site.note(Limit(100, 21600, 50, "a"), later(5))
    site.note(Limit(100, 21600, 60, "a"), later(2))
    assert site.reported == (50, later(5))
    site.note(None, later(9))
    assert site.reported == (50, later(5))
    site.note(Limit(100, 21600, 40, "a"), later(9))
    assert site.reported == (40, later(9))
    assert site.answered


@pytest.mark.parametrize(
    ("account", "source", "name"),
    [
        ("acme", "192.0.2.7", "acme"),
        (None, "192.0.2.7", "anonymous@192.0.2.7"),
        (None, "", "anonymous"),
        (None, None, "anonymous"),
    ],
)
def test_account_name_is_the_user_or_the_reported_address(
    account: str | None, source: str | None, name: str
) -> None:
    site = upstream(account)
    if source is not None:
        site.note(Limit(100, 21600, 50, source), NOW)
    assert site.account_name == name


# Words


def test_failures_name_image_and_cure() -> None:
    assert "linux/amd64" in no_platform(want(), index()).text
    assert "only none" in no_platform(want(), index()).text
    for failure in (unsupported(want(), ManifestError("odd")), bug(want())):
        assert "docker.io/library/golang:1" in failure.text
        assert failure.cure


def test_words_of_platforms() -> None:
    assert words(ALL) == "all"
    assert words((AMD, ARM)) == "linux/amd64, linux/arm64"


# When a tag is asked for again

HOUR, DAY = 3600.0, 86400.0


@pytest.mark.parametrize(
    ("quiet", "moves", "ago", "due"),
    [
        pytest.param(0, 0, 1, True, id="seen once"),
        pytest.param(DAY - 1, 0, 1, True, id="quiet for less than a day"),
        pytest.param(5 * DAY, 0, 11 * HOUR, False, id="within half of recheck"),
        pytest.param(5 * DAY, 0, 12 * HOUR, True, id="after half of recheck"),
        pytest.param(500 * DAY, 0, 12 * HOUR, True, id="never later than half of recheck"),
        pytest.param(2 * DAY, 0, 4 * HOUR, False, id="within a tenth of the quiet"),
        pytest.param(2 * DAY, 0, 5 * HOUR, True, id="after a tenth of the quiet"),
        pytest.param(2 * DAY, 1, 3 * HOUR, True, id="moved once: half of that"),
        pytest.param(9 * DAY, 0, -1, True, id="asked in the future: the clock was set"),
    ],
)
def test_is_due_follows_how_long_and_how_often(
    quiet: float, moves: int, ago: float, due: bool
) -> None:
    checked = NOW.wall - ago
    tag = SeenTag("r", "a", "t", BOTH.descriptor, checked, checked - quiet, moves)
    assert is_due(tag, DAY, NOW.wall) is due
