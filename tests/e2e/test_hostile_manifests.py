"""Manifests that whoever pushed them wrote by hand: safe, complete, and no one else's trouble."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host
from tests.sandbox import Fault, Image, Layer, Sandbox, build_image
from tests.sandbox.images import Family, digest_of
from tests.sandbox.registry import Registry

Document = dict[str, Any]
ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
FOREIGN = {
    "docker": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "oci": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
}


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


@contextmanager
def victim() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a service inside the network and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815 (http.server's name)

        def log_message(self, *_: object) -> None:
            """Keep silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/latest/meta-data", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def push_odd(
    registry: Registry, change: Callable[[Document], Any], media: Family = "docker"
) -> Image:
    """Put an image under odd:1 whose manifest was changed; `blobs` are all of it."""
    image = build_image("odd", single=True, media=media)
    document = json.loads(image.content)
    content = change(document) or json.dumps(document).encode()
    for blob in image.blobs:
        registry.storage.store_blob("library/odd", blob)
    registry.storage.store_manifest("library/odd", content, ["1"])
    return Image(image.media_type, content, (), image.blobs, image.platform)


def blobs_there(box: Sandbox, image: Image) -> list[bool]:
    paths = [f"/v2/library/odd/blobs/{digest_of(blob)}" for blob in image.blobs]
    return [box.mirrors[0].request("HEAD", path).status == 200 for path in paths]


def revisions(box: Sandbox) -> set[str]:
    """Return the digests of the manifests in the mirror's repository."""
    folder = box.mirrors[0].storage.folder / "docker/registry/v2/repositories/library/odd"
    links = (folder / "_manifests/revisions").glob("*/*/link")
    return {link.read_text() for link in links}


# --- no urls of a manifest are followed ---


def config_urls(url: str) -> Callable[[Document], Any]:
    return lambda document: document["config"].update(urls=[url])


def config_urls_in_capitals(url: str) -> Callable[[Document], Any]:
    """Go's JSON reader, and so skopeo, takes any case."""
    return lambda document: document["config"].update(URLs=[url])


def config_urls_with_a_long_s(url: str) -> Callable[[Document], Any]:
    return lambda document: document["config"].update({"url\u017f": [url]})


def second_config(url: str) -> Callable[[Document], Any]:
    """Of two objects for one field Go's reader takes the fields of both."""
    return lambda document: document.update(Config={"urls": [url]})


def config_twice(url: str) -> Callable[[Document], Any]:
    def change(document: Document) -> bytes:
        text = json.dumps(document)
        first = json.dumps({"config": {"urls": [url]}})[:-1]
        return text.replace("{", f"{first}, ", 1).encode()

    return change


@pytest.mark.parametrize("media", ["docker", "oci"])
@pytest.mark.parametrize(
    ("hide", "code"),
    [
        (config_urls, "unsupported-manifest"),
        (config_urls_in_capitals, "bad-manifest"),
        (config_urls_with_a_long_s, "bad-manifest"),
        (second_config, "bad-manifest"),
        (config_twice, "bad-manifest"),
    ],
)
def test_sync_follows_no_url_of_a_config(
    host: Host,
    box: Sandbox,
    media: Family,
    hide: Callable[[str], Callable[[Document], Any]],
    code: str,
) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["odd:1", "app:1"])
    with victim() as (url, asked):
        push_odd(box.upstream, hide(url), media)
        done = host.sync(code=1)
        again = host.sync(code=1)
    assert asked == []
    assert (done.named("fail"), done.named("copy")) == (["odd:1"], ["app:1"])
    assert done.image("odd:1")["error"]["code"] == code
    assert not box.mirrors[0].storage.has_repository("library/odd")
    if code == "unsupported-manifest":
        assert again.gets == ()


def test_verify_repair_follows_no_url_of_a_config(host: Host, box: Sandbox) -> None:
    """The tag was copied by an older prewarm."""
    host.configure(["odd:1"])
    image = push_odd(box.upstream, lambda document: None)
    host.sync()
    with victim() as (url, asked):
        odd = push_odd(box.upstream, config_urls(url))
        box.mirrors[0].storage.store_manifest("library/odd", odd.content, ["1"])
        with host.sql() as sql, sql:
            sql.execute(
                "UPDATE written SET digest = :new, upstream_digest = :new", {"new": odd.digest}
            )
        layer = digest_of(image.blobs[-1])
        assert box.mirrors[0].request("DELETE", f"/v2/library/odd/blobs/{layer}").status == 202
        done = host.run("verify", "--repair", "--json")
    assert done.returncode == 1
    assert asked == []


# --- complete means complete ---


@pytest.mark.parametrize("name", ["odd:1", "odd@"])
def test_sync_ordinary_layer_with_urls_is_copied_and_verified(
    host: Host, box: Sandbox, name: str
) -> None:
    """skopeo leaves such a layer out, and registry:2 takes the manifest without it."""
    with victim() as (url, asked):
        image = push_odd(
            box.upstream, lambda document: document["layers"][0].update(urls=[f"{url}/layer"])
        )
        host.configure([name if name == "odd:1" else f"odd@{image.digest}"])
        done = host.sync()
        assert blobs_there(box, image) == [True, True]
        assert asked == []
    assert done.summary["copied"] == 1
    assert box.mirrors[0].manifest("library/odd", image.digest) is not None
    assert host.sync().summary["fresh"] == 1
    # What skopeo was given in its place is gone again.
    assert revisions(box) == {image.digest}

    layer = digest_of(image.blobs[-1])
    box.mirrors[0].request("DELETE", f"/v2/library/odd/blobs/{layer}")
    found = host.run("verify", "--json")
    assert (found.returncode, len(found.json["broken"])) == (1, 1)
    assert host.run("verify", "--repair").returncode == 0
    assert blobs_there(box, image) == [True, True]


@pytest.mark.parametrize("media_type", [ZSTD, "application/x-odd", ""])
def test_sync_schema_2_with_a_layer_type_that_skopeo_does_not_know_is_copied(
    host: Host, box: Sandbox, media_type: str
) -> None:
    image = push_odd(
        box.upstream, lambda document: document["layers"][0].update(mediaType=media_type)
    )
    host.configure(["odd:1"])
    done = host.sync()
    assert (done.summary["copied"], len(done.gets)) == (1, 1)
    assert blobs_there(box, image) == [True, True]
    found = box.mirrors[0].manifest("library/odd", "1")
    assert found is not None
    assert found[1] == image.content
    assert host.run("verify").returncode == 0
    assert host.sync().writes == ((),)


@pytest.mark.parametrize("media", ["docker", "oci"])
def test_sync_foreign_layer_that_the_mirror_refuses_is_that_images_failure(
    host: Host, box: Sandbox, media: Family
) -> None:
    """registry:2 answers 500 to its manifest by default (measured on 2.8.2)."""
    with victim() as (url, asked):
        change = {"mediaType": FOREIGN[media], "urls": [f"{url}/layer"]}
        push_odd(box.upstream, lambda document: document["layers"][0].update(change), media)
        box.push("library/app", "1", single=True)
        host.configure(["odd:1", "app:1"])
        done = host.sync(code=1)
        assert asked == []
    assert (done.named("fail"), done.named("copy")) == (["odd:1"], ["app:1"])
    error = done.image("odd:1")["error"]
    assert error["code"] == "layer-urls"
    assert "validation.manifests.urls.allow" in error["cure"]
    assert host.sync(code=1).gets == ()


def test_sync_foreign_layer_that_the_mirror_allows_is_mirrored_without_it(
    host: Host, box: Sandbox
) -> None:
    """As of Windows: each client gets that layer from its urls."""
    url = "http://127.0.0.1:9/layer"
    change = {"mediaType": FOREIGN["docker"], "urls": [url]}
    image = push_odd(box.upstream, lambda document: document["layers"][0].update(change))
    env = {"REGISTRY_VALIDATION_MANIFESTS_URLS_ALLOW": "[.*]"}
    with box.registry("windows", env=env) as mirror:
        host.configure(["odd:1"], mirrors=[mirror.url])
        assert host.sync().summary["copied"] == 1
        assert mirror.manifest("library/odd", image.digest) is not None
        assert host.run("verify").returncode == 0


# --- sizes ---


def test_sync_image_of_very_many_layers_fails_alone_and_costs_no_copy(
    host: Host, box: Sandbox
) -> None:
    """skopeo takes quadratic time for them: 2,000 held a copy slot for five minutes."""
    push_odd(box.upstream, lambda document: document["layers"].extend(document["layers"] * 2000))
    box.push("library/app", "1", single=True)
    host.configure(["odd:1", "app:1"])
    done = host.sync(code=1)
    assert (done.named("fail"), done.named("copy")) == (["odd:1"], ["app:1"])
    assert done.image("odd:1")["error"]["code"] == "unsupported-manifest"
    again = host.sync(code=1)
    assert (again.named("fail"), again.digests()) == (["odd:1"], [])


@pytest.mark.parametrize("size", [2**63, 10**400, "9" * 5000, -1, 1.5, True], ids=range(6))
def test_sync_image_with_an_impossible_size_fails_alone(
    host: Host, box: Sandbox, size: Any
) -> None:
    document = json.loads(build_image("odd", single=True).content)
    document["layers"][0]["size"] = 77_777
    content = json.dumps(document).replace("77777", str(size).lower()).encode()
    headers = {"Content-Type": document["mediaType"], "Docker-Content-Digest": digest_of(content)}
    # No registry:2 serves such; any upstream may be another program.
    path = "/v2/library/odd/manifests/*"
    box.hub.faults.add(Fault("*", path, count=None, status=200, body=content, headers=headers))
    box.push("library/app", "1", single=True)
    host.configure(["odd:1", "app:1"])
    done = host.sync(code=1)
    assert (done.named("fail"), done.named("copy")) == (["odd:1"], ["app:1"])
    assert done.image("odd:1")["error"]["code"] == "bad-manifest"


# --- what a mirror has of a manifest ---


def test_blob_cut_short_on_the_mirror_is_never_called_good(host: Host, box: Sandbox) -> None:
    """registry:2 tells its size by HEAD, and keeps it whatever is uploaded (measured on 2.8.2)."""
    base = Layer("shared", 200_000)
    for name in ("app", "other"):
        box.push(f"library/{name}", "1", layers=[base], single=True)
    host.configure(["app:1"])
    host.sync()
    stored = box.mirrors[0].storage.folder.rglob("data")
    largest = max(stored, key=lambda file: file.stat().st_size)
    os.truncate(largest, 1000)
    found = host.run("verify", "--json")
    assert found.returncode == 1
    (broken,) = found.json["broken"]
    assert "has 1000 bytes there, not" in broken["problem"]

    host.configure(["app:1", "other:1"])
    done = host.sync(code=1)
    assert done.image("other:1")["error"]["code"] == "mirror-damaged-blob"
    assert box.mirrors[0].manifest("library/other", "1") is None
    # As its cure says: the blob is removed from the storage.
    shutil.rmtree(largest.parent)
    assert host.run("verify", "--repair", "--json").returncode == 0
    assert host.sync().image("other:1")["error"] is None
    assert host.run("verify", "--json").returncode == 0


def test_type_that_a_source_gives_a_manifest_without_one_is_not_kept(
    host: Host, tmp_path: Path
) -> None:
    """It would be sent to every mirror, which refuses it, for as long as the state lasts."""
    with Sandbox(mirrors=2) as two:
        image = build_image("app", single=True)
        document = json.loads(image.content)
        del document["mediaType"]
        content = json.dumps(document).encode()
        for registry in (two.upstream, two.mirrors[1]):
            for blob in image.blobs:
                registry.storage.store_blob("library/app", blob)
            registry.storage.store_manifest("library/app", content, ["1"])
        wrong = {
            "Content-Type": "application/vnd.docker.distribution.manifest.v2+json",
            "Docker-Content-Digest": digest_of(content),
        }
        path = "/v2/library/app/manifests/*"
        two.taps[1].faults.add(
            Fault("*", path, count=None, status=200, body=content, headers=wrong)
        )
        host.box = two
        source = {"url": two.taps[1].url, "role": "source"}
        host.configure(["app:1"], mirrors=[two.taps[0].url, source])
        assert host.sync().actions == [("app:1", "tag")]
        assert host.pulled("library/app", ":1", "linux/amd64") == digest_of(content)
