"""What a sync asks of Docker Hub, counted: every manifest GET, every blob, every write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, digest_of
from tests.sandbox import Image, Layer, Sandbox

AMD, ARM, S390, PPC, ARMV7 = (
    "linux/amd64",
    "linux/arm64",
    "linux/s390x",
    "linux/ppc64le",
    "linux/arm/v7",
)


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


# --- an unchanged night ---


def push_every_shape(box: Sandbox) -> list[Any]:
    """Put one image of every shape upstream; return the pins."""
    box.push("library/index", "1", platforms=[AMD, ARM])
    box.push("library/proved", "1", platforms=[AMD, ARM], attestations=True)
    box.push("library/whole", "1", platforms=[AMD, ARM], attestations=True)
    box.push("library/single", "1", single=True)
    box.push("library/docker", "1", platforms=[AMD, ARM], media="docker")
    box.push("library/single-docker", "1", single=True, media="docker")
    box.push("acme/team/deep", "1", "2", "latest", platforms=[AMD])
    box.push("library/many", "1.1", "1.2", "1.3", platforms=[AMD, ARM])
    by_digest = box.push("library/by-digest", "x", platforms=[AMD, ARM])
    child = by_digest.child(ARM).digest
    return [
        "index:1",
        "proved:1",
        {"image": "whole:1", "platforms": "all"},
        "single:1",
        "docker:1",
        "single-docker:1",
        {"image": "acme/team/deep", "tags": ["1", "2", "latest"]},
        {"image": "many", "tags": {"match": "1.*", "newest": 2}, "platforms": [AMD, ARM]},
        f"by-digest@{by_digest.digest}",
        f"by-digest@{child}",
    ]


@pytest.mark.parametrize("state", ["kept", "deleted"])
def test_sync_unchanged_sends_no_get_and_writes_nothing(
    host: Host, box: Sandbox, state: str
) -> None:
    host.configure(push_every_shape(box))
    first = host.sync()
    assert {action for _, action in first.actions} == {"copy", "tag"}
    if state == "deleted":
        host.forget_state()

    second = host.sync()

    assert second.gets == ()
    assert second.blobs == ()
    assert second.writes == ((),)
    assert second.named("fresh") == [name for name, _ in first.actions]
    assert len(first.actions) == 13
    assert second.summary["pulls"] == second.summary["gets"] == second.summary["bytes"] == 0


def test_sync_unchanged_asks_each_tag_by_one_head(host: Host, box: Sandbox) -> None:
    for number in range(5):
        box.push(f"library/app{number}", "1", platforms=[AMD, ARM])
    host.configure([f"app{number}:1" for number in range(5)])
    host.sync()
    host.sync()
    heads = [entry.path for entry in box.hub.access.heads()]
    assert sorted(heads) == [f"/v2/library/app{number}/manifests/1" for number in range(5)]


def test_dry_run_spends_nothing_and_writes_nothing(host: Host, box: Sandbox) -> None:
    host.configure(push_every_shape(box))
    planned = host.sync("--dry-run")
    assert planned.report["dry_run"] is True
    assert (planned.gets, planned.blobs, planned.writes) == ((), (), ((),))
    assert box.mirrors[0].catalog() == []
    assert not host.state.exists()
    assert [one["action"] for one in planned.report["images"]] == [
        action for _, action in host.sync().actions
    ]


# --- what a first copy costs ---


def test_sync_one_platform_of_an_index_sends_two_gets_and_charges_one_pull(
    host: Host, box: Sandbox
) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM, S390])
    host.configure(["app:1"])
    done = host.sync()
    assert done.digests() == [image.digest, image.child(AMD).digest]
    entry = done.image("app:1")
    assert (entry["action"], entry["code"]) == ("copy", "missing")
    assert (entry["pulls"], entry["gets"], entry["digest"]) == (1, 2, image.digest)
    assert done.summary["pulls"] == done.report["budgets"]["docker.io"]["used"] == 1
    assert host.ledger() == [("library/app", 1, 2)]


def test_sync_five_tags_of_a_digest_sends_two_gets_and_tags_all(host: Host, box: Sandbox) -> None:
    tags = ["1", "1.2", "1.2.3", "latest", "stable"]
    image = box.push("library/app", *tags, platforms=[AMD, ARM])
    host.configure([{"image": "app", "tags": tags}])
    done = host.sync()
    assert done.digests() == [image.digest, image.child(AMD).digest]
    assert [action for _, action in done.actions] == ["copy", "tag", "tag", "tag", "tag"]
    assert host.charged() == 1
    assert box.mirrors[0].tags("library/app") == sorted(tags)
    on_mirror = {box.mirrors[0].storage.digest("library/app", tag) for tag in tags}
    assert len(on_mirror) == 1
    assert host.pulled("library/app", ":stable", AMD) == image.child(AMD).digest


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_sync_all_platforms_keeps_the_index_byte_for_byte(
    host: Host, box: Sandbox, media: Any
) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM], attestations=True, media=media)
    host.configure([{"image": "app:1", "platforms": "all"}])
    done = host.sync()
    assert len(image.children) == 4
    assert sorted(done.digests()) == sorted([image.digest, *(c.digest for c in image.children)])
    assert done.image("app:1")["pulls"] == host.charged() == 4
    assert box.mirrors[0].manifest("library/app", "1") == (
        image.media_type,
        image.content,
        image.digest,
    )
    for child in image.children:
        assert_whole(box, "library/app", child)


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_sync_single_manifest_sends_one_get(host: Host, box: Sandbox, media: Any) -> None:
    image = box.push("library/app", "1", single=True, media=media)
    host.configure(["app:1"])
    done = host.sync()
    assert done.digests() == [image.digest]
    assert host.ledger() == [("library/app", 1, 1)]
    assert box.mirrors[0].manifest("library/app", "1") == (
        image.media_type,
        image.content,
        image.digest,
    )


@pytest.mark.parametrize("wanted", [[AMD], [ARM, AMD], [AMD, ARM, S390], [AMD, ARM, S390, ARMV7]])
def test_sync_some_platforms_charges_each_and_keeps_them_alone(
    host: Host, box: Sandbox, wanted: list[str]
) -> None:
    image = box.push("library/app", "1", platforms=[S390, AMD, PPC, ARM, ARMV7], attestations=True)
    host.configure([{"image": "app:1", "platforms": wanted}])
    done = host.sync()
    kept = [child for child in image.children if child.platform in wanted]
    assert done.digests() == [image.digest, *(child.digest for child in kept)]
    assert done.image("app:1")["pulls"] == host.charged() == len(wanted)

    found = box.mirrors[0].manifest("library/app", "1")
    assert found is not None
    index = json.loads(found[1])
    assert [entry["digest"] for entry in index["manifests"]] == [child.digest for child in kept]
    assert index["annotations"]["io.prewarm.upstream.digest"] == image.digest
    for child in kept:
        assert_whole(box, "library/app", child)
    for platform in set(wanted) - {ARMV7}:
        assert host.pulled("library/app", ":1", platform) == image.child(platform).digest


def test_sync_wanted_platform_that_the_image_lacks_is_left_out(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, S390])
    host.configure([{"image": "app:1", "platforms": [AMD, ARM]}])
    done = host.sync()
    assert done.digests() == [image.digest, image.child(AMD).digest]
    assert done.image("app:1")["platforms"] == [AMD]
    assert host.charged() == 1
    assert host.sync().named("fresh") == ["app:1"]


def test_sync_digest_pin_of_an_index_copies_it_whole(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM, S390])
    host.configure([{"image": f"app@{image.digest}", "platforms": [AMD]}])
    done = host.sync()
    assert len(done.gets) == 4
    assert host.charged() == 3
    assert box.mirrors[0].manifest("library/app", image.digest) == (
        image.media_type,
        image.content,
        image.digest,
    )
    assert box.mirrors[0].tags("library/app") == []
    assert host.pulled("library/app", f"@{image.digest}", S390) == image.child(S390).digest


def test_sync_digest_pin_on_the_mirror_asks_upstream_nothing(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure([f"app@{image.digest}"])
    host.sync()
    assert host.sync().named("fresh") == [f"app@{image.digest}"]
    assert box.hub.access.of("manifest") == []


def test_sync_sibling_tags_with_other_platforms_fetches_each_manifest_once(
    host: Host, box: Sandbox
) -> None:
    image = box.push("library/app", "a", "b", "c", platforms=[AMD, ARM, S390])
    host.configure(
        [
            {"image": "app:a", "platforms": [AMD]},
            {"image": "app:b", "platforms": [ARM, AMD]},
            {"image": "app:c", "platforms": [ARM]},
        ]
    )
    done = host.sync()
    assert sorted(done.digests()) == sorted(
        [image.digest, image.child(AMD).digest, image.child(ARM).digest]
    )
    assert [one["pulls"] for one in done.report["images"]] == [1, 1, 0]
    assert host.charged() == 2
    kept = {tag: platforms_on(box, "library/app", tag) for tag in "abc"}
    assert kept == {"a": {AMD}, "b": {AMD, ARM}, "c": {ARM}}
    assert host.sync().summary["fresh"] == 3


def test_sync_sibling_tags_one_of_them_whole_fetches_each_manifest_once(
    host: Host, box: Sandbox
) -> None:
    image = box.push("library/app", "a", "b", platforms=[AMD, ARM])
    host.configure([{"image": "app:a"}, {"image": "app:b", "platforms": "all"}])
    done = host.sync()
    assert len(done.gets) == len(set(done.digests())) == 3
    assert host.charged() == 2
    found = box.mirrors[0].manifest("library/app", "b")
    assert found is not None
    assert found[2] == image.digest
    assert platforms_on(box, "library/app", "a") == {AMD}


def test_sync_image_pinned_twice_is_there_once(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", platforms=[AMD, ARM])
    host.configure(
        [
            {"image": "app:1", "platforms": [AMD]},
            {"image": "docker.io/library/app:1", "platforms": [ARM]},
        ]
    )
    done = host.sync()
    assert done.actions == [("app:1", "copy")]
    assert len(done.gets) == 3
    assert platforms_on(box, "library/app", "1") == {AMD, ARM}


def test_sync_named_image_copies_that_alone(host: Host, box: Sandbox) -> None:
    for name in ("one", "two", "three"):
        box.push(f"library/{name}", "1")
    host.configure(["one:1", "two:1"])
    done = host.sync("three:1", "two:1")
    assert done.actions == [("three:1", "copy"), ("two:1", "copy")]
    assert box.mirrors[0].catalog() == ["library/three", "library/two"]


# --- patterns of tags ---


def test_sync_patterns_of_a_repository_list_its_tags_once_page_by_page(
    host: Host, box: Sandbox
) -> None:
    tags = ["3.9", "3.10", "3.11", "3.12", "3.13-rc1", "3.9-slim", "3.12-slim", "latest", "2.7"]
    for tag in tags:
        box.push("library/py", tag, name=tag)
    box.hub.rules.page_size = 2
    host.configure(
        [
            {"image": "py", "tags": {"match": "3.*-slim", "newest": 1}},
            {"image": "py", "tags": {"semver": ">=3.10", "newest": 2}},
        ]
    )
    done = host.sync()
    assert [name for name, _ in done.actions] == ["py:3.12-slim", "py:3.12", "py:3.11"]
    assert len(done.gets) == 6
    lists = [entry for entry in box.hub.access.of("tags") if entry.status == 200]
    assert len({entry.path for entry in lists}) == len(lists) == 5
    assert box.mirrors[0].tags("library/py") == ["3.11", "3.12", "3.12-slim"]


# --- what is on the mirror is the whole image ---


def assert_whole(box: Sandbox, repository: str, image: Image) -> None:
    """The mirror has exactly this manifest, and each of its blobs with the right bytes."""
    found = box.mirrors[0].manifest(repository, image.digest)
    assert found is not None
    assert found[1] == image.content
    for blob in image.blobs:
        digest = digest_of(blob)
        answer = box.mirrors[0].request("GET", f"/v2/{repository}/blobs/{digest}")
        assert (answer.status, answer.body) == (200, blob)


def platforms_on(box: Sandbox, repository: str, tag: str) -> set[str]:
    """The platforms that the index under a tag of the mirror lists."""
    found = box.mirrors[0].manifest(repository, tag)
    assert found is not None
    return {
        f"{entry['platform']['os']}/{entry['platform']['architecture']}"
        for entry in json.loads(found[1])["manifests"]
    }


# --- shared layers ---


@pytest.mark.parametrize("parallel", [1, 8])
def test_sync_layer_shared_by_eight_images_crosses_the_network_once(
    host: Host, box: Sandbox, parallel: int
) -> None:
    base = Layer("base", 200_000)
    images = [box.push(f"library/app{n}", "1", layers=[base]).child(AMD) for n in range(9)]
    shared = digest_of(images[0].blobs[1])
    assert all(digest_of(image.blobs[1]) == shared for image in images)
    limits = {"parallel": parallel}
    host.configure([f"app{n}:1" for n in range(8)], limits=limits)

    first = host.sync()
    assert first.summary["copied"] == 8
    assert first.blobs.count(shared) == 1
    # A config and a layer of each image's own.
    assert len(first.blobs) == len(set(first.blobs)) == 1 + 8 * 2

    host.configure([f"app{n}:1" for n in range(9)], limits=limits)
    second = host.sync()
    assert second.named("copy") == ["app8:1"]
    assert sorted(second.blobs) == sorted(
        digest_of(blob) for blob in images[8].blobs if digest_of(blob) != shared
    )
    assert_whole(box, "library/app8", images[8])


def test_sync_changed_tag_pulls_only_what_is_new(host: Host, box: Sandbox) -> None:
    base = Layer("base", 50_000)
    old = box.push("library/app", "1", layers=[base], platforms=[AMD, ARM])
    host.configure(["app:1"])
    host.sync()
    new = box.push("library/app", "1", layers=[base], platforms=[AMD, ARM], revision=2)
    assert new.digest != old.digest

    planned = host.sync("--dry-run").image("app:1")
    assert (planned["action"], planned["code"], planned["digest"]) == ("copy", "stale", new.digest)
    assert [mirror["state"] for mirror in planned["mirrors"].values()] == ["stale"]

    done = host.sync()
    assert (done.image("app:1")["action"], done.image("app:1")["code"]) == ("copy", "stale")
    assert done.digests() == [new.digest, new.child(AMD).digest]
    was = {digest_of(blob) for blob in old.child(AMD).blobs}
    now = {digest_of(blob) for blob in new.child(AMD).blobs}
    assert sorted(done.blobs) == sorted(now - was)
    assert len(now - was) == 2
    assert host.pulled("library/app", ":1", AMD) == new.child(AMD).digest
    assert host.sync().named("fresh") == ["app:1"]


# --- several mirrors ---


def test_sync_two_mirrors_sends_two_gets_and_fills_both(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        image = box.push("library/app", "1", platforms=[AMD, ARM])
        host.configure(["app:1"])
        done = host.sync()
        assert done.digests() == [image.digest, image.child(AMD).digest]
        assert host.charged() == 1
        assert len(done.blobs) == len(image.child(AMD).blobs)
        for mirror in (0, 1):
            assert host.pulled("library/app", ":1", AMD, mirror) == image.child(AMD).digest
        again = host.sync()
        assert (again.gets, again.writes) == ((), ((), ()))


def test_sync_first_mirror_down_fills_the_second_and_the_first_catches_up(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        images = [box.push(f"library/app{n}", "1", platforms=[AMD, ARM]) for n in range(3)]
        # Not through its tap: a mirror that is down refuses the connection.
        mirrors = [box.mirrors[0].url, box.taps[1].url]
        host.configure([f"app{n}:1" for n in range(3)], mirrors=mirrors)
        box.mirrors[0].stop()

        down = host.sync(code=1)
        assert len(down.gets) == 6
        assert down.summary["copied"] == 3
        (problem,) = down.report["problems"]
        assert (problem["severity"], problem["where"]) == ("error", mirrors[0])
        assert problem["cure"]
        told = host.run("status", "--json").json
        assert (told["images"]["fresh"], told["coverage"]) == (3, 1.0)
        assert [one["state"] for one in told["mirrors"]] == ["mirror-unreachable", "ok"]
        checked = host.run("verify", "--json")
        assert checked.returncode == 1
        assert (checked.json["checked"], checked.json["unchecked"]) == (3, 0)
        asked = host.run("explain", "app0:1", "--json")
        assert (asked.returncode, asked.json["warm"]) == (1, False)
        for number, image in enumerate(images):
            got = host.pulled(f"library/app{number}", ":1", AMD, mirror=1)
            assert got == image.child(AMD).digest

        box.mirrors[0].start()
        up = host.sync()
        assert (up.gets, up.blobs, up.writes[1]) == ((), (), ())
        assert up.summary["tagged"] == 3
        for number, image in enumerate(images):
            got = host.pulled(f"library/app{number}", ":1", AMD, mirror=0)
            assert got == image.child(AMD).digest


def test_sync_both_mirrors_down_spends_nothing(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        box.push("library/app", "1")
        host.configure(["app:1"], mirrors=[mirror.url for mirror in box.mirrors])
        for mirror in box.mirrors:
            mirror.stop()
        done = host.sync(code=1)
        assert done.gets == ()
        assert done.named("fail") == ["app:1"]
        assert host.ledger() == []


def test_sync_without_upstream_tells_what_the_mirrors_still_serve(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", platforms=[AMD, ARM])
    box.push("library/lone", "1", single=True)
    host.configure(["app:1", "lone:1"])
    host.sync()
    host.configure(
        ["app:1", "lone:1"], registries={"docker.io": {"endpoint": "http://127.0.0.1:9"}}
    )
    for forgotten in (False, True):
        if forgotten:
            host.forget_state()
        done = host.sync(code=1)
        assert done.named("fail") == ["app:1", "lone:1"]
        (problem,) = done.report["problems"]
        assert problem["where"] == "docker.io"
        assert "app:1" not in problem["problem"]
        for one in done.report["images"]:
            assert [mirror["state"] for mirror in one["mirrors"].values()] == ["fresh"]
        told = host.run("status", "--json").json
        assert (told["images"]["fresh"], told["coverage"]) == (2, 1.0)


def test_verify_with_its_only_mirror_down_checks_nothing(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1")
    host.configure(["app:1"], mirrors=[box.mirrors[0].url])
    host.sync()
    box.mirrors[0].stop()
    found = host.run("verify", "--json")
    assert found.returncode == 1
    assert (found.json["checked"], found.json["unchecked"]) == (0, 1)
    assert "0 tags are whole, 1 could not be checked" in host.run("verify").stdout


@pytest.mark.parametrize("state", ["kept", "deleted"])
def test_sync_source_mirror_serves_the_image_and_is_never_written(
    tmp_path: Path, state: str
) -> None:
    with Sandbox(mirrors=2) as box:
        host = Host(tmp_path, box)
        image = box.push("library/app", "1", platforms=[AMD, ARM])
        only = box.push("library/only", "1", platforms=[AMD, ARM])
        source, target = (tap.url for tap in box.taps)
        host.configure(["app:1"], mirrors=[source])
        host.sync()
        if state == "deleted":
            host.forget_state()

        host.configure(["app:1", "only:1"], mirrors=[{"url": source, "role": "source"}, target])
        done = host.sync()
        assert done.actions == [("app:1", "tag"), ("only:1", "copy")]
        assert done.digests() == [only.digest, only.child(AMD).digest]
        assert done.image("app:1")["gets"] == 0
        assert list(done.image("app:1")["mirrors"]) == [target]
        assert done.writes[0] == ()
        assert box.taps[0].access.of("upload") == []
        assert sorted(done.blobs) == sorted(digest_of(b) for b in only.child(AMD).blobs)
        assert host.pulled("library/app", ":1", AMD, mirror=1) == image.child(AMD).digest
        assert box.mirrors[0].catalog() == ["library/app"]


# --- the host's own registries.conf ---


def test_sync_changed_tag_is_refreshed_although_registries_conf_names_the_mirror(
    host: Host, box: Sandbox
) -> None:
    old = box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    host.sync()
    mirror = box.mirrors[0].url.removeprefix("http://")
    hub = box.hub.url.removeprefix("http://")
    conf = "".join(
        f'[[registry]]\nlocation = "{location}"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n'
        for location in ("docker.io", hub)
    )
    for folder in (host.folder / "home/.config/containers", host.folder / "home/config/containers"):
        folder.mkdir(parents=True)
        (folder / "registries.conf").write_text(conf)
    new = box.push("library/app", "1", single=True, revision=2)

    # skopeo itself is redirected: without this the test would prove nothing.
    for name in (f"{hub}/library/app:1", "docker.io/library/app:1"):
        assert host.inspected(name) == old.content
    done = host.sync()
    assert done.image("app:1")["code"] == "stale"
    assert done.digests() == [new.digest]
    assert host.pulled("library/app", ":1", AMD) == new.digest
