"""What goes wrong: each failure has one line with cause and cure, and the rest is done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Sync, blobs_of, digest_of, small_disk
from tests.sandbox import Fault, Hub, Image, Registry, Rules, Sandbox, Tap
from tests.sandbox.authority import Authority
from tests.sandbox.server import Server
from tests.support.process import Finished, private_env

AMD, ARM = "linux/amd64", "linux/arm64"
GOOD = "quay.io/team/good:1"


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


@pytest.fixture
def quay(box: Sandbox) -> Iterator[Hub]:
    """A second upstream, which is well and holds `GOOD`."""
    box.push("team/good", "1", single=True)
    with Hub(box.upstream, Rules()) as hub:
        yield hub


def upstreams(hub_url: str, quay: Hub) -> dict[str, Any]:
    return {"docker.io": {"endpoint": hub_url}, "quay.io": {"endpoint": quay.url}}


def told(host: Host, finished: Finished, code: int) -> Sync:
    """Return the sync of a finished `--json` run, whose problems are one line each, with cures."""
    assert finished.returncode == code, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    report = finished.json
    for problem in report["problems"]:
        assert problem["where"], problem
        for words in (problem["problem"], problem["cure"]):
            assert words.strip(), problem
            assert words.isprintable(), problem
    for image in report["images"]:
        failed = image["action"] == "fail"
        assert not failed or (image["error"]["text"] and image["error"]["cure"]), image
    return Sync(
        report,
        tuple(host.box.hub.access.gets()),
        blobs_of(host.box),
        tuple(tuple(tap.access.writes()) for tap in host.box.taps),
    )


def sync(host: Host, code: int = 1, env: dict[str, str] | None = None) -> Sync:
    host.forget_requests()
    return told(host, host.run("sync", "--json", env=env), code)


def problem(done: Sync) -> tuple[str, str, str]:
    """Return code, place and severity of the only problem."""
    (only, *more) = done.report["problems"]
    assert not more, done.report["problems"]
    return only["code"], only["where"], only["severity"]


def errors(done: Sync) -> dict[str, str]:
    """Return the code of each image that failed, by its familiar name."""
    return {name: done.image(name)["error"]["code"] for name in done.named("fail")}


# --- upstream ---


def test_sync_wrong_credentials_fails_the_registry_once_and_does_the_rest(
    host: Host, box: Sandbox, quay: Hub
) -> None:
    for number in range(20):
        box.push(f"library/app{number}", "1", single=True)
    authfile = box.authfile("acme", "wrong")
    host.configure(
        [*(f"app{n}:1" for n in range(20)), GOOD],
        registries=upstreams(box.hub.url, quay),
        authfile=str(authfile),
    )
    done = sync(host)
    assert problem(done) == ("unauthorized", "docker.io", "error")
    assert "skopeo login" in done.report["problems"][0]["cure"]
    assert set(errors(done).values()) == {"unauthorized"}
    assert len(done.named("fail")) == 20
    assert done.named("copy") == [GOOD]
    assert done.gets == ()
    # A password that was refused is not tried for each image: accounts are locked by that.
    assert len(box.hub.access.of("token")) <= 2


@pytest.mark.parametrize("unknown", [401, 404])
def test_sync_unknown_image_and_tag_fails_these_and_copies_the_others(
    host: Host, box: Sandbox, unknown: Any
) -> None:
    box.push("library/app", "1", platforms=[AMD, ARM])
    box.hub.rules.unknown_repository = unknown
    host.configure(["nope:1", "app:9", "app:1"])
    done = sync(host)
    assert done.actions == [("nope:1", "fail"), ("app:9", "fail"), ("app:1", "copy")]
    assert errors(done) == {"nope:1": "not-found", "app:9": "not-found"}
    named = [(p["severity"], p["where"].rpartition(":")[0]) for p in done.report["problems"]]
    assert named == [("error", "images.yml")] * 2
    assert "nope" in done.report["problems"][0]["problem"]
    assert "app:9" in done.report["problems"][1]["problem"]
    assert len(done.gets) == 2
    assert host.charged() == 1


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Serve connections that all get these bytes, or are closed, and return what each sent."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    asked.append(connection.recv(65536))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_sync_upstream_refusing_connections_is_one_problem_of_the_registry(
    host: Host, box: Sandbox, quay: Hub
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
    host.configure([*(f"app{n}:1" for n in range(20)), GOOD], registries=upstreams(dead, quay))
    done = sync(host)
    assert problem(done) == ("unreachable", "docker.io", "error")
    assert len(done.named("fail")) == 20
    assert done.named("copy") == [GOOD]
    # Nothing is known of its quota, and it is assumed to be small.
    assert done.report["budgets"]["docker.io"]["pulls"] == 100


def test_sync_upstreams_breaking_every_request_are_asked_few_times(host: Host, quay: Hub) -> None:
    unavailable = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    with answering(unavailable) as (hub, hub_asked), answering(b"") as (ghcr, ghcr_asked):
        registries = upstreams(f"http://{hub}", quay)
        registries["ghcr.io"] = {"endpoint": f"http://{ghcr}"}
        pins = [f"{prefix}app{n}:1" for prefix in ("", "ghcr.io/team/") for n in range(20)]
        host.configure([*pins, GOOD], registries=registries, limits={"checks": 3})
        done = sync(host)
    places = [(p["code"], p["where"], p["severity"]) for p in done.report["problems"]]
    assert places == [("unreachable", name, "error") for name in ("docker.io", "ghcr.io")]
    assert done.named("fail") == pins
    assert done.named("copy") == [GOOD]
    # Six tries of one request for all, of the three images that are asked at once, and of those
    # that were begun before the third had failed, and three for the registry itself: not of 20.
    for asked in (hub_asked, ghcr_asked):
        assert len(asked) <= 6 * (1 + 3 + 3) + 3


def test_sync_one_repository_answering_500_fails_that_alone(host: Host, box: Sandbox) -> None:
    for name in ("a", "b", "c"):
        box.push(f"library/{name}", "1", single=True)
    box.hub.faults.add(Fault(path="/v2/library/a/*", status=500, count=None))
    host.configure(["a:1", "b:1", "c:1"])
    done = sync(host)
    assert errors(done) == {"a:1": "server-error"}
    assert problem(done)[0] == "server-error"
    assert done.named("copy") == ["b:1", "c:1"]


@pytest.mark.parametrize(("scheme", "code"), [("https", "plain-http"), ("http", "tls")])
def test_sync_upstream_of_the_other_scheme_is_told_so(
    host: Host, box: Sandbox, quay: Hub, scheme: str, code: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    secure = {"tls": authority.issue(["127.0.0.1"]), "ca": authority.ca}
    other = box.upstream if scheme == "https" else box.registry("secure", **secure)
    url = f"{scheme}://127.0.0.1:{other.port}"
    host.configure(["app:1", "other:1", GOOD], registries=upstreams(url, quay))
    done = sync(host)
    assert problem(done) == (code, "docker.io", "error")
    assert set(errors(done).values()) == {code}
    assert done.named("copy") == [GOOD]


def test_sync_upstream_with_an_unknown_ca_is_refused_and_with_ca_trusted(
    host: Host, box: Sandbox, quay: Hub, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    box.push("library/app", "1", single=True)
    box.hub.rules.auth, box.hub.rules.blobs = "none", "direct"
    with Server(box.hub, tls=authority.server_context(["127.0.0.1"])) as server:
        registries = upstreams(server.url, quay)
        host.configure(["app:1", GOOD], registries=registries)
        refused = sync(host)
        assert problem(refused) == ("tls", "docker.io", "error")
        assert "ca:" in refused.report["problems"][0]["cure"]
        assert refused.named("copy") == [GOOD]
        assert len(box.hub.access) == 0

        registries["docker.io"]["ca"] = str(authority.ca)
        host.configure(["app:1", GOOD], registries=registries)
        trusted = sync(host, code=0)
    assert trusted.actions == [("app:1", "copy"), (GOOD, "fresh")]


# --- the abuse limit: HEADs answered 429 ---


def too_many(count: int | None, **headers: str) -> Fault:
    return Fault("HEAD", "*/manifests/*", count=count, status=429, body=b"Slow", headers=headers)


def test_sync_heads_answered_429_defers_the_images_after_few_tries(
    host: Host, box: Sandbox
) -> None:
    for number in range(6):
        box.push(f"library/app{number}", "1", single=True)
    host.configure([f"app{n}:1" for n in range(6)])
    fault = box.hub.faults.add(too_many(None))
    done = sync(host, code=0)
    assert [done.image(f"app{n}:1")["code"] for n in range(6)] == ["abuse-limit"] * 6
    assert len(done.named("defer")) == 6
    assert done.gets == ()
    assert len(box.hub.access.heads()) <= 6 * 3

    box.hub.faults.remove(fault)
    assert sync(host, code=0).summary["copied"] == 6


def test_sync_heads_answered_429_for_an_hour_asks_each_once(host: Host, box: Sandbox) -> None:
    for number in range(6):
        box.push(f"library/app{number}", "1", single=True)
    host.configure([f"app{n}:1" for n in range(6)])
    box.hub.faults.add(too_many(None, **{"Retry-After": "3600"}))
    done = sync(host, code=0)
    assert len(done.named("defer")) == 6
    assert len(box.hub.access.heads()) <= 6


def test_sync_head_answered_429_once_copies_all(host: Host, box: Sandbox) -> None:
    box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    box.hub.faults.add(too_many(1))
    done = sync(host, code=0)
    assert done.named("copy") == ["app:1"]
    assert [entry.status for entry in box.hub.access.heads()][:2] == [429, 200]


# --- what lies upstream cannot be mirrored ---


def test_sync_image_without_a_wanted_platform_fails_for_one_get(host: Host, box: Sandbox) -> None:
    index = box.push("library/index", "1", platforms=[ARM, "linux/s390x"])
    lone = box.push("library/lone", "1", platforms=[ARM], single=True)
    box.push("library/app", "1", single=True)
    host.configure(["index:1", "lone:1", "app:1"])
    done = sync(host)
    assert errors(done) == {"index:1": "no-platform", "lone:1": "no-platform"}
    texts = [p["problem"] for p in done.report["problems"]]
    assert [ARM in text for text in texts] == [True, True]
    assert all("platforms:" in p["cure"] for p in done.report["problems"])
    assert done.named("copy") == ["app:1"]
    assert sorted(done.digests())[:3] == sorted(
        [index.digest, lone.digest, done.image("app:1")["digest"]]
    )
    assert len(done.gets) == 3
    assert box.mirrors[0].catalog() == ["library/app"]

    again = sync(host)
    assert again.gets == ()
    assert len(again.named("fail")) == 2


def put_document(box: Sandbox, repository: str, document: Any) -> str:
    """Put a manifest of any content upstream under the tag 1; return its digest."""
    content = json.dumps(document).encode()
    box.upstream.storage.store_manifest(repository, content, ["1"])
    return digest_of(content)


def nested(box: Sandbox) -> str:
    """Put an index upstream whose entry for linux/amd64 is another index."""
    inner = box.push("library/odd", "inner", platforms=[AMD])
    entry = {
        "mediaType": inner.media_type,
        "digest": inner.digest,
        "size": len(inner.content),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    document = {"schemaVersion": 2, "mediaType": inner.media_type, "manifests": [entry]}
    return put_document(box, "library/odd", document)


def test_sync_nested_index_fails_for_one_get(host: Host, box: Sandbox) -> None:
    digest = nested(box)
    box.push("library/app", "1", single=True)
    host.configure(["odd:1", {"image": "docker.io/library/odd:1", "platforms": "all"}, "app:1"])
    done = sync(host)
    assert errors(done) == {"odd:1": "unsupported-manifest"}
    assert done.digests().count(digest) == 1
    assert len(done.gets) == 2
    assert done.named("copy") == ["app:1"]
    assert sync(host).gets == ()


SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
OCI = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (SCHEMA_1, b'{"schemaVersion": 1, "name": "library/odd", "fsLayers": [], "history": []}'),
        (OCI, b"not JSON"),
        (OCI, b"[" * 100_000),
        (OCI, b'{"schemaVersion": 2, "config": 7, "layers": {}}'),
        (OCI_INDEX, b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:../../etc"}]}'),
        (OCI_INDEX, b'{"schemaVersion": 2, "manifests": "x"}'),
        ("text/html", b"<html>log in to the wireless network</html>"),
    ],
)
def test_sync_manifest_that_is_none_fails_alone_for_one_get(
    host: Host, box: Sandbox, media_type: str, body: bytes
) -> None:
    box.push("library/odd", "1", single=True)
    box.push("library/app", "1", single=True)
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}
    box.hub.faults.add(
        Fault(path="/v2/library/odd/*", status=200, headers=headers, body=body, count=None)
    )
    host.configure(["odd:1", "app:1"])
    done = sync(host)
    assert done.actions == [("odd:1", "fail"), ("app:1", "copy")]
    assert problem(done)[1:] == ("images.yml:10", "error")
    assert len(done.gets) - 1 <= 1
    assert box.mirrors[0].catalog() == ["library/app"]


def test_sync_manifest_of_another_digest_fails_for_one_get(host: Host, box: Sandbox) -> None:
    image = box.push("library/odd", "1", single=True)
    other = box.push("library/other", "1", single=True)
    box.hub.faults.add(
        Fault(
            "GET",
            "/v2/library/odd/manifests/*",
            status=200,
            headers={"Content-Type": OCI, "Docker-Content-Digest": image.digest},
            body=other.content,
            count=None,
        )
    )
    host.configure(["odd:1"])
    done = sync(host)
    assert errors(done) == {"odd:1": "bad-digest"}
    assert len(done.gets) == 1
    assert host.charged() == 1
    assert box.mirrors[0].catalog() == []


def test_sync_blob_of_another_content_fails_alone_and_is_not_on_the_mirror(
    host: Host, box: Sandbox
) -> None:
    image = box.push("library/odd", "1", single=True)
    box.push("library/app", "1", single=True)
    layer = digest_of(image.blobs[1])
    box.hub.cdn.faults.add(
        Fault("GET", f"*{layer[7:]}*", status=200, body=b"x" * len(image.blobs[1]), count=None)
    )
    host.configure(["odd:1", "app:1"])
    done = sync(host)
    assert done.actions == [("odd:1", "fail"), ("app:1", "copy")]
    assert len(done.gets) == 2
    assert box.mirrors[0].manifest("library/odd", "1") is None
    assert box.mirrors[0].request("HEAD", f"/v2/library/odd/blobs/{layer}").status == 404


# --- the mirror ---


def many(box: Sandbox, amount: int, size: int = 1000) -> list[Image]:
    return [
        box.push(f"library/app{n}", "1", platforms=[AMD, ARM], size=size) for n in range(amount)
    ]


def test_sync_mirror_down_spends_nothing(host: Host, box: Sandbox) -> None:
    many(box, 20)
    host.configure([f"app{n}:1" for n in range(20)], mirrors=[box.mirrors[0].url])
    box.mirrors[0].stop()
    done = sync(host)
    assert problem(done) == ("mirror-unreachable", box.mirrors[0].url, "error")
    assert len(done.named("fail")) == 20
    assert done.gets == ()
    assert host.ledger() == []


def assert_mirror_refused(host: Host, registry: Registry, code: str) -> None:
    """The only mirror takes nothing: one problem, no pull; beside a good one that is filled."""
    images = many(host.box, 3)
    pins = [f"app{n}:1" for n in range(3)]
    host.configure(pins, mirrors=[registry.url])
    alone = sync(host)
    assert problem(alone) == (code, registry.url, "error")
    assert set(errors(alone).values()) == {code}
    assert alone.gets == ()
    assert host.ledger() == []

    good = host.box.taps[0].url
    host.configure(pins, mirrors=[registry.url, good])
    both = sync(host)
    assert problem(both) == (code, registry.url, "error")
    assert both.named("copy") == pins
    assert len(both.gets) == 6
    assert host.pulled("library/app2", ":1", AMD) == images[2].child(AMD).digest


def test_sync_mirror_that_is_a_proxy_fails_and_it_asks_upstream_for_nothing(
    host: Host, box: Sandbox
) -> None:
    proxy = box.registry("proxy", proxy=box.hub.url)
    assert_mirror_refused(host, proxy, "mirror-mode")
    agents = {entry.user_agent.partition("/")[0] for entry in box.hub.access.of("manifest")}
    assert agents == {"prewarm"}


def test_sync_mirror_in_maintenance_fails_before_a_pull(host: Host, box: Sandbox) -> None:
    assert_mirror_refused(host, box.registry("readonly", readonly=True), "mirror-read-only")


def test_sync_mirror_that_wants_credentials_fails_without_and_fills_with_them(
    host: Host, box: Sandbox
) -> None:
    locked = box.registry("locked", users={"pusher": "opensesame"})
    assert_mirror_refused(host, locked, "mirror-unauthorized")
    authfile = box.path / "mirror-auth.json"
    authfile.touch(0o600)
    for password, code in (("wrong", 1), ("opensesame", 0)):
        key = locked.url.removeprefix("http://")
        entry = {"username": "pusher", "password": password}
        authfile.write_text(json.dumps({"auths": {key: entry}}))
        host.configure(["app0:1"], mirrors=[locked.url], authfile=str(authfile))
        done = sync(host, code)
        if code:
            assert problem(done) == ("mirror-unauthorized", locked.url, "error")
    assert done.gets == ()
    assert done.actions == [("app0:1", "copy")]
    assert locked.tags("library/app0") == ["1"]


def test_sync_mirror_with_an_unknown_ca_is_refused_and_with_ca_filled(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    secure = box.registry("secure", tls=authority.issue(["127.0.0.1"]), ca=authority.ca)
    assert_mirror_refused(host, secure, "mirror-tls")
    host.configure(["app0:1"], mirrors=[{"url": secure.url, "ca": str(authority.ca)}])
    host.forget_state()
    done = sync(host, code=0)
    assert done.named("copy") == ["app0:1"]
    assert secure.tags("library/app0") == ["1"]


def test_sync_mirror_of_plain_http_written_https_is_told_so(host: Host, box: Sandbox) -> None:
    many(box, 1)
    url = box.mirrors[0].url.replace("http:", "https:")
    host.configure(["app0:1"], mirrors=[url])
    done = sync(host)
    assert problem(done) == ("mirror-plain-http", url, "error")
    assert "http://" in done.report["problems"][0]["cure"]
    assert done.gets == ()


# --- a full disk ---


def assert_uploads_are_cancelled(tap: Tap) -> None:
    """Each upload that the mirror broke off was cancelled afterwards.

    registry:2 answers that with 404 once it wrote some bytes of the upload, and keeps them.
    """
    uploads = tap.access.of("upload")
    broken = [entry.reference for entry in uploads if entry.reference and entry.status == 500]
    cancelled = [entry.reference for entry in uploads if entry.method == "DELETE"]
    assert broken
    assert set(broken) <= set(cancelled)


@contextmanager
def full_mirror(box: Sandbox, folder: Path) -> Iterator[tuple[Registry, Tap]]:
    """A real mirror on a disk of 1 MiB that has room for one image of 600 kB."""
    with small_disk(folder, "1m") as disk:
        registry = box.registry("full", storage=disk)
        try:
            with Tap(registry) as tap:
                yield registry, tap
        finally:
            registry.stop()


@pytest.mark.parametrize("parallel", [1, 4])
def test_sync_mirror_full_ends_the_pulls_for_it_and_cancels_the_upload(
    host: Host, box: Sandbox, tmp_path: Path, parallel: int
) -> None:
    images = many(box, 8, size=600_000)
    with full_mirror(box, tmp_path / "disk") as (full, tap):
        pins = [f"app{n}:1" for n in range(8)]
        host.configure(pins, mirrors=[tap.url], limits={"parallel": parallel})
        done = sync(host)
        assert problem(done) == ("mirror-full", tap.url, "error")
        assert "_uploads" in done.report["problems"][0]["cure"]
        assert set(errors(done).values()) == {"mirror-full"}
        # With one at a time the first fits; of several at once perhaps none does.
        assert len(done.named("copy")) in ((1,) if parallel == 1 else (0, 1))
        assert 1 <= len(done.gets) <= 2 * (1 + parallel)
        assert_uploads_are_cancelled(tap)

        again = sync(host)
        assert len(again.gets) <= 2 * parallel

        if parallel == 1:
            assert_heals(host, full, tmp_path / "disk", images, (done, again))


def assert_heals(
    host: Host, full: Registry, disk: Path, images: list[Image], before: tuple[Sync, Sync]
) -> None:
    """With room on the disk all is copied, and what was bought before was not bought in vain."""
    grow = ["mount", "-o", "remount,size=50m", str(disk)]
    subprocess.run(grow, check=True, capture_output=True)
    healed = sync(host, code=0)
    paid = [digest for run in (*before, healed) for digest in run.digests()]
    assert len(paid) == len(set(paid)) == 2 * len(images)
    assert host.charged() == len(images)
    for number, image in enumerate(images):
        assert full.manifest(f"library/app{number}", image.child(AMD).digest) is not None


def test_sync_full_mirror_beside_a_good_one_fills_the_good_one(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    many(box, 4, size=600_000)
    with full_mirror(box, tmp_path / "disk") as (_, tap):
        host.configure([f"app{n}:1" for n in range(4)], mirrors=[tap.url, box.taps[0].url])
        done = sync(host)
        assert problem(done) == ("mirror-full", tap.url, "error")
        assert done.summary["copied"] == 4
        assert len(done.gets) == 8
        assert box.mirrors[0].catalog() == [f"library/app{n}" for n in range(4)]
        assert_uploads_are_cancelled(tap)


def test_sync_disk_below_min_free_spends_nothing(host: Host, box: Sandbox, tmp_path: Path) -> None:
    many(box, 2)
    with small_disk(tmp_path / "disk", "4m") as disk:
        mirror = {"url": box.taps[0].url, "storage": str(disk), "min_free": "5MiB"}
        host.configure(["app0:1", "app1:1"], mirrors=[mirror])
        done = sync(host)
    assert problem(done) == ("mirror-full", box.taps[0].url, "error")
    assert done.gets == ()


# --- skopeo and its policy ---


def without_skopeo(tmp_path: Path) -> dict[str, str]:
    empty = tmp_path / "empty"
    empty.mkdir()
    return {"PATH": str(empty)}


def old_skopeo(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "old"
    folder.mkdir()
    script = folder / "skopeo"
    script.write_text("#!/bin/sh\necho skopeo version 1.2.2\n")
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("make", "code"), [(without_skopeo, "skopeo-missing"), (old_skopeo, "skopeo-old")]
)
def test_sync_without_a_usable_skopeo_spends_nothing_and_does_what_needs_none(
    host: Host, box: Sandbox, tmp_path: Path, make: Any, code: str
) -> None:
    many(box, 4)
    box.push("library/warm", "1", "2", single=True)
    host.configure(["warm:1"])
    sync(host, code=0)
    host.configure(["warm:1", "warm:2", *(f"app{n}:1" for n in range(4))])
    done = sync(host, env=make(tmp_path))
    assert done.named("fresh") == ["warm:1"]
    assert errors(done) == dict.fromkeys(done.named("fail"), code)
    assert done.named("fail")[-4:] == [f"app{n}:1" for n in range(4)]
    assert problem(done) == (code, "skopeo", "error")
    assert "install skopeo" in done.report["problems"][0]["cure"]
    assert done.gets == ()


def test_sync_without_policy_spends_nothing(host: Host, box: Sandbox) -> None:
    many(box, 2)
    host.configure(["app0:1", "app1:1"])
    hide = 'mount -t tmpfs prewarm-test /etc/containers && exec "$@"'
    command = [sys.executable, "-m", "prewarm", "--config", str(host.config), "sync", "--json"]
    found = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "sh", *command],
        cwd=host.folder,
        env=private_env(host.folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    done = told(host, Finished(found.returncode, found.stdout, found.stderr), 1)
    assert problem(done)[0] == "policy-missing"
    assert set(errors(done).values()) == {"policy-missing"}
    assert "policy.json" in done.report["problems"][0]["problem"]
    assert "apt install" in done.report["problems"][0]["cure"]
    assert done.gets == ()


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ({"type": "reject"}, "rejects it"),
        ({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}, "demands a signature"),
        ({"type": "sigstoreSigned", "keyPath": "/k"}, "demands a signature"),
    ],
)
def test_sync_image_that_the_policy_refuses_fails_alone_without_a_pull(
    host: Host, box: Sandbox, requirement: dict[str, str], words: str
) -> None:
    many(box, 2)
    policy = {
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {"docker.io/library/app0": [requirement]}},
    }
    file = host.folder / "home/.config/containers/policy.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(policy))
    host.configure(["app0:1", "app1:1"])
    done = sync(host)
    assert errors(done) == {"app0:1": "policy"}
    assert problem(done)[0] == "policy"
    assert words in done.report["problems"][0]["problem"]
    assert done.named("copy") == ["app1:1"]
    assert len(done.gets) == 2


# --- as people see it ---


def test_sync_failures_for_people_are_one_line_each_with_the_cure(host: Host, box: Sandbox) -> None:
    many(box, 1)
    host.configure(["nope:1", "app0:9", "app0:1"])
    report = sync(host).report
    box.mirrors[0].delete("library/app0", report["images"][2]["mirrors"][box.taps[0].url]["digest"])
    finished = host.run("sync")
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    lines = finished.stdout.splitlines()
    for one in report["problems"]:
        line = f"error: {one['where']}: {one['problem']}; {one['cure']}"
        assert lines.count(line) == 1
    assert lines[-1].startswith("3 images: ")
    assert "2 failed" in lines[-1]
    for line in lines:
        assert line.isprintable()


def test_sync_answer_with_control_characters_does_not_reach_the_terminal(
    host: Host, box: Sandbox
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    body = json.dumps({"errors": [{"code": evil, "message": evil, "detail": evil}]}).encode()
    box.push("library/app", "1", single=True)
    box.hub.faults.add(Fault("HEAD", "*/manifests/*", status=418, body=body, count=None))
    host.configure(["app:1"])
    finished = host.run("-v", "sync")
    assert finished.returncode == 1
    assert "\x1b" not in finished.stdout + finished.stderr
    assert "owned" not in finished.stdout + finished.stderr
