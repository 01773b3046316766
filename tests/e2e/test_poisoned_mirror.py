"""A mirror's word is no proof: only bytes whose digests upstream itself named become an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.manifest import Manifest, index_for
from prewarm.core.platforms import parse_platform
from tests.e2e.host import Host, Sync
from tests.sandbox import Image, Sandbox, build_image
from tests.sandbox.images import Family, push
from tests.sandbox.registry import Registry

AMD, ARM = "linux/amd64", "linux/arm64"


def forge(mirror: Registry, upstream: Image, media: Family = "oci", **options: Any) -> Image:
    """Put the attacker's image under app:1, as a reduced index that names upstream's digest."""
    evil = build_image("evil", platforms=[AMD, ARM], media=media, **options)
    document = json.loads(evil.content)
    document["annotations"] = {
        "io.prewarm.upstream.digest": upstream.digest,
        "io.prewarm.platforms": AMD,
    }
    if not evil.children:
        raise ValueError("an index is needed")
    content = json.dumps(document, indent=2, sort_keys=True).encode()
    return push(mirror, "library/app", Image(evil.media_type, content, evil.children, (), ""), "1")


def reduced(image: Image, *platforms: str) -> bytes:
    """Return the bytes of the reduced index that prewarm makes of it."""
    wanted = tuple(map(parse_platform, platforms))
    return index_for(Manifest(image.media_type, image.content), wanted).content


def under_tag(mirror: Registry) -> bytes:
    found = mirror.manifest("library/app", "1")
    assert found is not None
    return found[1]


def warned(done: Sync) -> list[str]:
    return [one["code"] for one in done.report["problems"]]


def has_blob(mirror: Registry, digest: str) -> bool:
    return mirror.request("HEAD", f"/v2/prewarm/indexes/blobs/{digest}").status == 200


def lose_blob(mirror: Registry, digest: str) -> None:
    """As garbage collection does, since nothing refers to it."""
    assert mirror.request("DELETE", f"/v2/prewarm/indexes/blobs/{digest}").status == 202


# --- three ways in ---


@pytest.mark.parametrize("media", ["oci", "docker"])
@pytest.mark.parametrize("single", [False, True], ids=["index", "single"])
@pytest.mark.parametrize("roles", [["source", "target"], ["target", "target"]], ids="-".join)
@pytest.mark.parametrize("with_original", [False, True], ids=["bare", "with upstream's index"])
def test_sync_forged_index_on_one_mirror_reaches_no_other(
    tmp_path: Path, roles: Sequence[str], single: bool, media: Family, with_original: bool
) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        platforms = [AMD] if single else [AMD, ARM]
        image = box.push("library/app", "1", platforms=platforms, single=single, media=media)
        forge(box.mirrors[0], image, media)
        if with_original:
            box.mirrors[0].storage.store_blob("prewarm/indexes", image.content)
        mirrors = [
            {"url": tap.url, "role": role} for tap, role in zip(box.taps, roles, strict=True)
        ]
        host.configure(["app:1"], mirrors=mirrors)
        done = host.sync()
        expected = image.content if single else reduced(image, AMD)
        assert under_tag(box.mirrors[1]) == expected
        child = image if single else image.child(AMD)
        assert host.pulled("library/app", ":1", AMD, mirror=1) == child.digest
        if roles[0] == "target":
            assert under_tag(box.mirrors[0]) == expected
        assert done.image("app:1")["digest"] == image.digest
        assert warned(done) == (["forged-index"] if with_original and not single else [])
        assert host.run("verify").returncode == 0


@pytest.mark.parametrize("single", [False, True], ids=["index", "single"])
@pytest.mark.parametrize("known", [False, True], ids=["new state", "known to the state"])
def test_sync_forged_index_on_the_only_mirror_is_found_and_replaced(
    tmp_path: Path, box: Sandbox, single: bool, known: bool
) -> None:
    host = Host(tmp_path, box)
    image = box.push("library/app", "1", platforms=[AMD] if single else [AMD, ARM], single=single)
    host.configure(["app:1"])
    if known:
        host.sync()
    forge(box.mirrors[0], image)
    if known:
        found = host.run("verify", "--json")
        assert (found.returncode, len(found.json["broken"])) == (1, 1)
    explained = host.run("explain", "app:1", "--json")
    assert explained.returncode == 1
    planned = host.run("sync", "--dry-run", "--json").json["images"][0]
    assert planned["action"] in {"copy", "tag"}

    done = host.sync()
    assert under_tag(box.mirrors[0]) == (image.content if single else reduced(image, AMD))
    assert len(done.gets) == (0 if known else 1 if single else 2)
    assert (host.sync().named("fresh"), host.run("verify").returncode) == (["app:1"], 0)


def test_verify_repair_replaces_what_an_older_state_took_for_its_own(
    tmp_path: Path, box: Sandbox
) -> None:
    """It noted a forged index as written; upstream's index has become known since."""
    host = Host(tmp_path, box)
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure(["app:1"])
    host.sync()
    evil = forge(box.mirrors[0], image)
    with host.sql() as sql, sql:
        sql.execute("UPDATE written SET digest = :digest", {"digest": evil.digest})
    assert host.run("verify").returncode == 1
    assert host.run("verify", "--repair").returncode == 0
    assert under_tag(box.mirrors[0]) == reduced(image, AMD)


# --- and a lost or old state still costs nothing ---


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_sync_with_a_lost_state_proves_the_mirror_by_upstreams_index_on_it(
    tmp_path: Path, box: Sandbox, media: Family
) -> None:
    host = Host(tmp_path, box)
    image = box.push("library/app", "1", platforms=[AMD, ARM], media=media)
    host.configure([{"image": "app:1", "platforms": [AMD, ARM, "linux/s390x"]}])
    host.sync()
    # Every platform there is: the original itself, and no blob beside it.
    assert under_tag(box.mirrors[0]) == image.content
    assert not has_blob(box.mirrors[0], image.digest)
    host.forget_state()
    assert host.sync().named("fresh") == ["app:1"]

    image = box.push("library/app", "1", platforms=[AMD, ARM, "linux/s390x"], media=media)
    host.configure([{"image": "app:1", "platforms": [AMD, ARM]}])
    host.sync()
    assert has_blob(box.mirrors[0], image.digest)
    # A client never gets the index with platforms that are not there.
    assert box.mirrors[0].manifest("library/app", image.digest) is None
    host.forget_state()
    # Fewer platforms are wanted now than the index on the mirror was made for.
    host.configure(["app:1"])
    done = host.sync()
    assert (done.named("fresh"), done.gets, done.writes) == (["app:1"], (), ((),))
    assert under_tag(box.mirrors[0]) == reduced(image, AMD, ARM)


def test_sync_with_a_lost_state_and_no_index_on_the_mirror_buys_the_index_alone(
    tmp_path: Path, box: Sandbox
) -> None:
    host = Host(tmp_path, box)
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure(["app:1"])
    host.sync()
    lose_blob(box.mirrors[0], image.digest)
    host.forget_state()
    planned = host.run("sync", "--dry-run", "--json").json["images"][0]
    assert (planned["action"], planned["code"]) == ("copy", "unproven")
    done = host.sync()
    assert (done.digests(), done.blobs, host.charged()) == ([image.digest], (), 1)
    assert has_blob(box.mirrors[0], image.digest)
    again = host.sync()
    assert (again.named("fresh"), again.gets, again.writes) == (["app:1"], (), ((),))


def test_sync_with_an_older_state_believes_what_that_has_written(
    tmp_path: Path, box: Sandbox
) -> None:
    """Before this version no index was kept on mirrors; the first night must not buy them all."""
    host = Host(tmp_path, box)
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure(["app:1"])
    host.sync()
    lose_blob(box.mirrors[0], image.digest)
    with host.sql() as sql, sql:
        sql.execute("DELETE FROM manifests WHERE digest = :digest", {"digest": image.digest})
    done = host.sync()
    assert (done.named("fresh"), done.gets, done.writes) == (["app:1"], (), ((),))


def test_sync_of_another_site_proves_the_source_by_upstreams_index_on_it(tmp_path: Path) -> None:
    with Sandbox(mirrors=3) as box:
        image = box.push("library/app", "1", platforms=[AMD, ARM])
        east, west = Host(tmp_path / "east", box), Host(tmp_path / "west", box)
        east.configure(["app:1"], mirrors=[box.taps[0].url])
        east.sync()
        source = {"url": box.taps[0].url, "role": "source"}
        west.configure(["app:1"], mirrors=[source, *(tap.url for tap in box.taps[1:])])
        done = west.sync()
        assert (done.named("tag"), done.gets) == (["app:1"], ())
        for mirror in (1, 2):
            assert under_tag(box.mirrors[mirror]) == reduced(image, AMD)
            assert has_blob(box.mirrors[mirror], image.digest)
