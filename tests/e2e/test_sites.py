"""Several mirrors and sites: what one has costs another nothing, and what one lacks stops none."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Sync, digest_of
from tests.sandbox import Fault, Hub, Image, Rules, Sandbox, build_image
from tests.sandbox.authority import Authority

AMD, ARM = "linux/amd64", "linux/arm64"


class Sites:
    """Two sites before one Docker Hub, each with prewarm and a state of its own.

    East fills mirror 0; west reads it, and fills the mirrors after it.
    """

    def __init__(self, folder: Path, box: Sandbox) -> None:
        self.box = box
        self.east = Host(folder / "east", box)
        self.west = Host(folder / "west", box)
        self.source = box.taps[0].url

    def push(self, name: str, **options: Any) -> Image:
        return self.box.push(f"library/{name}", "1", platforms=[AMD, ARM], **options)

    def fill_east(self, *names: str) -> None:
        self.east.configure([f"{name}:1" for name in names], mirrors=[self.source])
        self.east.sync()

    def configure_west(self, *names: str, source: Any = None, targets: Any = None) -> None:
        source = source or {"url": self.source, "role": "source"}
        targets = targets or [tap.url for tap in self.box.taps[1:]]
        self.west.configure([f"{name}:1" for name in names], mirrors=[source, *targets])

    def assert_east_untouched(self) -> None:
        """Nothing was written to the source, and not even an upload begun, since the last sync."""
        assert self.box.taps[0].access.writes() == []
        assert self.box.taps[0].access.of("upload") == []


def problems(done: Sync) -> list[tuple[str, str, str]]:
    return [(one["severity"], one["code"], one["where"]) for one in done.report["problems"]]


def states(host: Host) -> dict[str, str]:
    """Return the state of each mirror, as status tells it."""
    return {one["url"]: one["state"] for one in host.run("status", "--json").json["mirrors"]}


def test_sync_fills_from_another_site_and_the_mirror_that_was_down_catches_up(
    tmp_path: Path,
) -> None:
    with Sandbox(mirrors=3) as box:
        sites = Sites(tmp_path, box)
        image, new = sites.push("app"), sites.push("new")
        sites.fill_east("app")
        # Not through its tap: a mirror that is down refuses the connection.
        down, up = box.mirrors[1].url, box.taps[2].url
        sites.configure_west("app", "new", targets=[down, up])
        box.mirrors[1].stop()

        done = sites.west.sync(code=1)
        assert problems(done) == [("error", "mirror-unreachable", down)]
        assert done.digests() == [new.digest, new.child(AMD).digest]
        assert sorted(done.blobs) == sorted(map(digest_of, new.child(AMD).blobs))
        assert (sites.east.charged(), sites.west.charged()) == (1, 1)
        for name, pulls in (("app:1", 0), ("new:1", 1)):
            told = done.image(name)
            assert told["pulls"] == pulls
            assert [told["mirrors"][url]["state"] for url in (down, up)] == ["unknown", "fresh"]
            assert down in told["mirrors"][down]["error"]
            assert told["mirrors"][up]["error"] is None
        assert states(sites.west) == {down: "mirror-unreachable", up: "ok"}
        sites.assert_east_untouched()

        box.mirrors[1].start()
        late = sites.west.sync()
        assert (late.gets, late.blobs, late.writes[2]) == ((), (), ())
        assert late.report["problems"] == []
        assert states(sites.west) == {down: "ok", up: "ok"}
        for mirror in (1, 2):
            assert sites.west.pulled("library/app", ":1", AMD, mirror) == image.child(AMD).digest
            assert sites.west.pulled("library/new", ":1", AMD, mirror) == new.child(AMD).digest
        sites.assert_east_untouched()
        assert box.mirrors[0].catalog() == ["library/app"]


def stopped(sites: Sites) -> Any:
    sites.box.mirrors[0].stop()
    return {"url": sites.box.mirrors[0].url, "role": "source"}


def broken(sites: Sites) -> Any:
    sites.box.taps[0].faults.add(Fault(status=503, count=None))
    return {"url": sites.source, "role": "source"}


def locked(sites: Sites) -> Any:
    url = sites.box.registry("locked", users={"reader": "opensesame"}).url
    return {"url": url, "role": "source"}


@pytest.mark.parametrize(
    ("breaks", "code"),
    [
        (stopped, "mirror-unreachable"),
        (broken, "mirror-server-error"),
        (locked, "mirror-unauthorized"),
    ],
)
def test_sync_with_the_source_down_tells_it_and_pulls_from_upstream(
    tmp_path: Path, breaks: Callable[[Sites], Any], code: str
) -> None:
    with Sandbox(mirrors=2) as box:
        sites = Sites(tmp_path, box)
        names = [f"app{number}" for number in range(4)]
        images = [sites.push(name) for name in names]
        sites.fill_east(*names)
        source = breaks(sites)
        sites.configure_west(*names, source=source)

        done = sites.west.sync(code=1)
        assert problems(done) == [("error", code, source["url"])]
        assert done.report["problems"][0]["cure"]
        assert done.summary["copied"] == 4
        assert len(done.gets) == 8
        assert sites.west.charged() == 4
        assert states(sites.west) == {box.taps[1].url: "ok"}
        for name, image in zip(names, images, strict=True):
            got = sites.west.pulled(f"library/{name}", ":1", AMD, mirror=1)
            assert got == image.child(AMD).digest


def test_sync_source_with_a_ca_and_a_login_of_its_own_is_read(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with Sandbox(mirrors=2) as box:
        users = {"reader": "opensesame"}
        tls = authority.issue(["127.0.0.1"])
        secure = box.registry("secure", tls=tls, ca=authority.ca, users=users)
        authfile = tmp_path / "auth.json"
        authfile.touch(0o600)
        key = secure.url.removeprefix("https://")
        pair = base64.b64encode(b"reader:opensesame").decode()
        authfile.write_text(json.dumps({"auths": {key: {"auth": pair}}}))
        sites = Sites(tmp_path, box)
        image = sites.push("app")
        mirror = {"url": secure.url, "ca": str(authority.ca)}
        sites.east.configure(["app:1"], mirrors=[mirror], authfile=str(authfile))
        sites.east.sync()
        sites.west.configure(
            ["app:1"],
            mirrors=[{**mirror, "role": "source"}, box.taps[1].url],
            authfile=str(authfile),
        )
        done = sites.west.sync()
        assert (done.gets, done.blobs) == ((), ())
        assert done.actions == [("app:1", "tag")]
        assert sites.west.pulled("library/app", ":1", AMD, mirror=1) == image.child(AMD).digest
        pushed = {entry.secret for entry in box.taps[1].access}
        assert pushed == {""}


# --- what a source says is not taken on trust ---


def stale(sites: Sites, image: Image) -> Image:
    """Upstream has moved on, the source has not."""
    return sites.push("app", revision=2)


def damaged_blob(sites: Sites, image: Image) -> Image:
    """A layer has other bytes on the source's disk."""
    (*_, layer) = image.child(AMD).blobs
    file = sites.box.mirrors[0].storage.blob_file(digest_of(layer))
    file.write_bytes(bytes(len(layer)))
    return image


def other_manifest(sites: Sites, image: Image) -> Image:
    """The source has another manifest under the digest, and says that it is the right one."""
    other = build_image(name="hostile", single=True)
    child = image.child(AMD)
    sites.box.taps[0].faults.add(
        Fault(
            "GET",
            f"/v2/library/app/manifests/{child.digest}",
            count=None,
            status=200,
            body=other.content,
            headers={"Content-Type": other.media_type, "Docker-Content-Digest": child.digest},
        )
    )
    return image


@pytest.mark.parametrize("lie", [stale, damaged_blob, other_manifest])
def test_sync_source_with_other_content_is_not_believed(
    tmp_path: Path, lie: Callable[[Sites, Image], Image]
) -> None:
    with Sandbox(mirrors=2) as box:
        sites = Sites(tmp_path, box)
        image = sites.push("app")
        sites.fill_east("app")
        true = lie(sites, image)
        sites.configure_west("app")
        done = sites.west.sync()
        assert done.image("app:1")["digest"] == true.digest
        assert done.gets or done.blobs
        # Which site's disk is to be looked at is told; that one is behind is no fault.
        damage = [] if lie is stale else [("warning", "bad-digest", sites.source)]
        assert problems(done) == damage
        assert sites.west.pulled("library/app", ":1", AMD, mirror=1) == true.child(AMD).digest
        layer = true.child(AMD).blobs[-1]
        assert box.mirrors[1].storage.blob_file(digest_of(layer)).read_bytes() == layer
        sites.assert_east_untouched()


# --- sites that reach no Docker Hub, or are to spend nothing there ---


def test_sync_without_pulls_takes_what_the_source_has_and_defers_the_rest(tmp_path: Path) -> None:
    with Sandbox(mirrors=2) as box:
        sites = Sites(tmp_path, box)
        image, new = sites.push("app"), sites.push("new")
        sites.fill_east("app")
        hub = {"endpoint": box.hub.url, "budget": {"pulls": 0}}
        sites.west.configure(
            ["new:1", "app:1"],
            mirrors=[{"url": sites.source, "role": "source"}, box.taps[1].url],
            registries={"docker.io": hub},
        )
        done = sites.west.sync()
        assert done.actions == [("new:1", "defer"), ("app:1", "tag")]
        assert (done.gets, done.blobs) == ((), ())
        assert sites.west.pulled("library/app", ":1", AMD, mirror=1) == image.child(AMD).digest

        sites.east.configure(["app:1", "new:1"], mirrors=[sites.source])
        sites.east.sync()
        late = sites.west.sync()
        assert late.actions == [("new:1", "tag"), ("app:1", "fresh")]
        assert (late.gets, late.blobs) == ((), ())
        assert sites.west.pulled("library/new", ":1", AMD, mirror=1) == new.child(AMD).digest


def test_sync_with_another_sites_mirror_as_upstream_needs_no_other(tmp_path: Path) -> None:
    """Its folders are path prefixes: docker.io lies at its root, quay.io below quay.io/."""
    authority = Authority(tmp_path / "ca")
    with Sandbox(mirrors=1) as box, Hub(box.upstream, Rules()) as quay:
        tls = authority.issue(["127.0.0.1"])
        mirror = box.registry("east", tls=tls, ca=authority.ca)
        sites = Sites(tmp_path, box)
        image = sites.push("app")
        tool = box.push("prometheus/tool", "1", platforms=[AMD, ARM])
        pins = ["app:1", "quay.io/prometheus/tool:1"]
        ca = str(authority.ca)
        sites.east.configure(
            pins,
            mirrors=[{"url": mirror.url, "ca": ca}],
            registries={"docker.io": {"endpoint": box.hub.url}, "quay.io": {"endpoint": quay.url}},
        )
        sites.east.sync()
        quay.access.clear()

        sites.west.configure(
            pins,
            registries={
                "docker.io": {"endpoint": mirror.url, "ca": ca},
                "quay.io": {"endpoint": f"{mirror.url}/quay.io", "ca": ca},
            },
        )
        done = sites.west.sync()
        assert done.summary["copied"] == 2
        assert (box.hub.access, quay.access) == ([], [])
        assert {one["pulls"] for one in done.report["budgets"].values()} == {None}
        got = sites.west.pulled("library/app", ":1", AMD)
        assert got == image.child(AMD).digest
        got = sites.west.pulled("quay.io/prometheus/tool", ":1", AMD)
        assert got == tool.child(AMD).digest
        again = sites.west.sync()
        assert again.summary["fresh"] == 2
        assert again.writes == ((),)
        assert (box.hub.access, quay.access) == ([], [])
