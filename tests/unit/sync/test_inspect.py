"""Looking: what a sighting is judged to be, from what mirrors and memory hold."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from prewarm.core.budget import Limit, Moment
from prewarm.core.errors import RegistryError
from prewarm.core.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    ManifestError,
    index_for,
    required_of,
)
from prewarm.core.platforms import ALL, Platform, Wanted
from prewarm.core.records import SeenTag, Written
from prewarm.core.reference import parse
from prewarm.core.settings import Limits, Mirror, Upstream
from prewarm.planning.demand import Want
from prewarm.planning.plan import Holding, action, plan
from prewarm.registry.client import Head, Registry
from prewarm.sync import inspect
from prewarm.sync.inspect import (
    Look,
    MirrorSite,
    Observer,
    UpstreamSite,
    bug,
    is_due,
    no_platform,
    unsupported,
    words,
)

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


def test_required_of_what_is_not_named_by_sha256_is_refused() -> None:
    """It would be fetched in each run: skopeo and registry:2 store it by sha256 alone."""
    digest = "sha512:" + "0" * 128
    entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 10}
    outer = Manifest(OCI_INDEX, json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    with pytest.raises(ManifestError, match="sha256"):
        required_of(outer, outer.descriptor)
    with pytest.raises(ManifestError, match="sha256"):
        required_of(None, Descriptor(OCI_MANIFEST, digest, 10))


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


class Mended(Registry):
    """A mirror that proves that it works."""

    proofs = 0

    def put_blob(self, repository: str, content: bytes) -> None:
        self.proofs += 1

    def ping(self) -> None:
        self.proofs += 1


class Broken(Registry):
    """A mirror that fails its proof."""

    def put_blob(self, repository: str, content: bytes) -> None:
        raise RegistryError("mirror-full", f"{NEAR}/{repository}: has no space left", "free some")

    ping = None  # type: ignore[assignment]


def mirror(kind: type[Registry] = Mended, **settings: Any) -> MirrorSite:
    registry = kind(NEAR, NEAR, role="mirror", environ={})
    return MirrorSite(Mirror(NEAR, NEAR, **settings), registry)


def noted(site: MirrorSite, *errors: RegistryError) -> bool:
    """Note failures to read a mirror; return whether it is left alone then."""
    observer = Observer({}, [site], Memory(), lambda: NOW)
    for error in errors:
        observer.note_failure(site, error)
    return site.failure is not None


def failed(code: str, number: int, **more: Any) -> RegistryError:
    return RegistryError(code, f"{NEAR}/library/a{number}:1: it failed", "cure", **more)


SUSPECT = ["mirror-server-error", "mirror-upstream", "mirror-reset", "mirror-timeout"]
SUSPECT += ["mirror-unauthorized", "mirror-bad-answer"]


@pytest.mark.parametrize(
    "code", ["mirror-unreachable", "mirror-tls", "mirror-plain-http", "mirror-proxy"]
)
def test_note_failure_that_no_image_can_cause_ends_the_mirror_at_once(code: str) -> None:
    assert noted(mirror(), failed(code, 1))
    # Unless it is another host's, to which the mirror redirected the request.
    assert not noted(mirror(), failed(code, 1, elsewhere=True))


@pytest.mark.parametrize(
    "code",
    ["mirror-bad-manifest", "mirror-unsupported-manifest", "mirror-incomplete", "bad-digest"],
)
def test_note_failure_of_an_image_alone_never_ends_the_mirror(code: str) -> None:
    assert not noted(mirror(Broken), *(failed(code, n) for n in range(20)))


@pytest.mark.parametrize("code", SUSPECT)
def test_note_failure_of_three_repositories_in_a_row_has_the_mirror_prove_itself(
    code: str,
) -> None:
    three = [failed(code, n) for n in range(3)]
    well = mirror()
    assert not noted(well, *three)
    assert isinstance(well.registry, Mended)
    assert well.registry.proofs == 1
    assert not noted(mirror(Broken), *three[:2])
    assert not noted(mirror(Broken), *[three[0]] * 9)
    down = mirror(Broken)
    assert noted(down, *three)
    assert down.failure is not None
    assert (down.failure.code, down.failure.text) == ("mirror-full", f"{NEAR}: has no space left")


def test_note_failure_after_an_answer_counts_anew() -> None:
    site = mirror(Broken)
    assert not noted(site, *(failed("mirror-timeout", n) for n in range(2)))
    site.reads.ended()
    assert not noted(site, *(failed("mirror-timeout", n) for n in range(2)))
    assert noted(site, failed("mirror-timeout", 2))


def test_note_failure_of_many_in_a_row_ends_a_mirror_that_answers_about_itself() -> None:
    site = mirror(role="source")
    assert not noted(site, *(failed("mirror-timeout", n) for n in range(11)))
    assert noted(site, failed("mirror-timeout", 11))
    assert site.failure is not None
    assert site.failure.text == f"{NEAR}: it failed, as for 12 repositories in a row"


@pytest.mark.parametrize("code", ["mirror-full", "mirror-read-only", "mirror-denied"])
def test_note_failure_to_write_has_the_mirror_prove_itself_at_once(code: str) -> None:
    assert not noted(mirror(), failed(code, 1))
    assert noted(mirror(Broken), failed(code, 1))


def test_check_by_many_threads_is_one_proof() -> None:
    class Slow(Mended):
        def put_blob(self, repository: str, content: bytes) -> None:
            time.sleep(0.2)
            super().put_blob(repository, content)

    site = mirror(Slow)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: site.check(), range(8)))
    assert isinstance(site.registry, Mended)
    # One that was under way when the others failed proves nothing about them.
    assert site.registry.proofs <= 2


def test_check_waits_for_a_mirror_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "_PAUSES", (0.0, 0.0))

    class Restarting(Mended):
        def put_blob(self, repository: str, content: bytes) -> None:
            super().put_blob(repository, content)
            if self.proofs < 3:
                raise RegistryError("mirror-unreachable", "connection refused", "")

    assert mirror(Restarting).check()


class Asked(Registry):
    """An upstream that fails for each image as it is told to."""

    error = RegistryError("server-error", "docker.io/library/a:1: answered 500", "wait")
    down = False

    def head(self, repository: str, selector: str) -> Head:
        if repository == "good":
            return Head(BOTH.descriptor, None)
        raise self.error

    def ping(self) -> None:
        if self.down:
            raise RegistryError("server-error", "docker.io: answered 503", "wait")


@pytest.fixture
def asked() -> UpstreamSite:
    return UpstreamSite(Upstream("docker.io", NEAR), Asked("docker.io", NEAR, environ={}), None)


def ask(site: UpstreamSite, *repositories: str) -> Any:
    """Ask for images; return the failure of the last, and whether the registry is down then."""
    code = None
    for repository in repositories:
        try:
            site.head(repository, "1", lambda: NOW)
        except RegistryError as error:
            code = error.code
    return code, site.failure is not None


def test_head_errors_of_three_repositories_end_an_upstream_that_fails_itself(
    asked: UpstreamSite,
) -> None:
    assert ask(asked, "a", "b", "c") == ("server-error", False)
    asked.breaking.ended()
    asked.registry.down = True  # type: ignore[attr-defined]
    assert ask(asked, "a", "b", "good", "c", "d") == ("server-error", False)
    assert ask(asked, "e", "f") == ("unreachable", True)


def test_head_errors_of_many_repositories_in_a_row_end_an_upstream(asked: UpstreamSite) -> None:
    assert ask(asked, *(f"a{n}" for n in range(11))) == ("server-error", False)
    assert ask(asked, "b") == ("server-error", True)


def test_head_publicly_of_a_registry_that_is_down_asks_it_no_more(asked: UpstreamSite) -> None:
    asked.public = asked.registry
    asked.registry.error = RegistryError("unreachable", "docker.io: refused", "")  # type: ignore[attr-defined]
    for repository in ("a", "good"):
        with pytest.raises(RegistryError) as caught:
            asked.head_publicly(repository, "1")
        assert caught.value.code == "unreachable"


@pytest.mark.parametrize("code", ["unreachable", "tls"])
def test_head_of_an_image_redirected_to_a_dead_host_is_that_images_failure(
    asked: UpstreamSite, code: str
) -> None:
    text = "docker.io/library/a:1: 192.0.2.1 connection refused"
    error = RegistryError(code, text, "check it", elsewhere=True)
    asked.registry.error = error  # type: ignore[attr-defined]
    assert ask(asked, "a", "b", "c", "d") == ("bad-redirect", False)
    asked.registry.error = RegistryError(code, text, "check it")  # type: ignore[attr-defined]
    assert ask(asked, "a") == (code, True)


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


# Indexes of tens of thousands of entries


@pytest.mark.parametrize("there", [0, 40])
def test_judge_of_a_huge_index_asks_a_mirror_for_few_of_its_children(there: int) -> None:
    """Each asked for is there, or one of those of which too many are missing for a copy."""
    children = [Platform("linux", f"cpu{number}") for number in range(20_000)]
    huge = index(*children)
    held = set(digests(*children[:there]))
    asked: list[str] = []

    class Counting(Registry):
        def head(self, repository: str, selector: str) -> Head:
            asked.append(selector)
            if selector in held:
                return Head(Descriptor(OCI_MANIFEST, selector, 100), None)
            raise RegistryError("not-found", "it is not there", "")

    with Counting(NEAR, NEAR, role="mirror", environ={}) as registry:
        site = MirrorSite(Mirror(NEAR, NEAR), registry)
        holding = Holding(NEAR, True, "library/golang")
        observer = Observer({}, [site], Memory(huge), lambda: NOW, most_children=32)
        wanted = want(f"golang@{huge.digest}")
        seen = observer.judge(wanted, huge.descriptor, [Look(site, holding, None)])
    assert len(asked) <= there + 33
    (step,) = plan([(wanted, seen)], {}, Limits(), (), 0.0).steps
    assert (action(step), step.code) == ("skip", "pulls-per-image")
