"""A mirror is left alone only by proof: what one image meets there is that image's."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, Sync, digest_of, small_disk, wait_until
from tests.sandbox import Fault, Sandbox
from tests.sandbox.faults import JSON_HEADERS, disk_full
from tests.sandbox.registry import Registry
from tests.sandbox.server import Server

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"
ONE_AT_A_TIME = {"parallel": 1}


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    return Host(tmp_path, box)


def push_six(box: Sandbox) -> list[str]:
    """Push six good images; return their names."""
    for number in range(6):
        box.push(f"library/app{number}", "1", single=True)
    return [f"app{number}:1" for number in range(6)]


def push_docker(box: Sandbox, layer: str, *more: dict[str, Any]) -> str:
    """Put an image of Docker's schema 2 upstream, with layers of this type and some more."""
    image = box.push("library/odd", "oci", single=True)
    document = json.loads(image.content)
    document["mediaType"] = DOCKER
    document["config"]["mediaType"] = CONFIG
    for entry in document["layers"]:
        entry["mediaType"] = layer
    document["layers"] += more
    box.upstream.storage.store_manifest("library/odd", json.dumps(document).encode(), ["1"])
    return "odd:1"


def only_problem(done: Sync) -> tuple[str, str]:
    (only,) = done.report["problems"]
    return only["code"], only["problem"]


# --- one image ---


def test_sync_image_of_an_unknown_layer_type_is_copied(host: Host, box: Sandbox) -> None:
    """BuildKit makes such, and registry:2 takes them; skopeo 1.9.3 does not."""
    odd, pins = push_docker(box, f"{LAYER}.zstd"), push_six(box)
    host.configure([odd, *pins], limits=ONE_AT_A_TIME)
    assert host.sync().named("copy") == [odd, *pins]


def test_sync_image_of_a_foreign_layer_with_urls_fails_alone(host: Host, box: Sandbox) -> None:
    """registry:2 answers 500 to its manifest (measured on 2.8.2), and to no other."""
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": "sha256:" + "a" * 64,
        "size": 77,
        "urls": ["http://127.0.0.1:1/no space left on device"],
    }
    odd, pins = push_docker(box, f"{LAYER}.gzip", foreign), push_six(box)
    host.configure([odd, *pins], limits=ONE_AT_A_TIME)
    done = host.sync(code=1)
    assert done.named("fail") == [odd]
    assert "full" not in done.image(odd)["error"]["code"]
    assert done.named("copy") == pins


@contextmanager
def registry_of_nobody(box: Sandbox) -> Iterator[Registry]:
    """A mirror that does not run as root."""
    box.path.chmod(0o755)
    yield box.registry("nobody", user=65534)


def test_sync_one_folder_that_the_mirror_may_not_write_costs_that_image(
    host: Host, box: Sandbox
) -> None:
    """`garbage-collect` run as root leaves such."""
    pins = push_six(box)
    with registry_of_nobody(box) as mirror:
        folder = mirror.storage.folder / "docker/registry/v2/repositories/library/app0"
        folder.mkdir(parents=True)
        for one in (folder.parent, *folder.parent.parents):
            if one == mirror.storage.folder:
                break
            os.chown(one, 65534, 65534)
        host.configure(pins, mirrors=[mirror.url], limits=ONE_AT_A_TIME)
        done = host.sync(code=1)
    assert done.named("fail") == ["app0:1"]
    error = done.image("app0:1")["error"]
    assert (error["code"], "permission denied" in error["text"]) == ("mirror-denied", True)
    assert "library/app0" in error["text"]
    assert "disk" not in error["text"] + error["cure"]
    assert done.named("copy") == pins[1:]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "*/library/*", status=500),
        Fault("PATCH", "*/library/*", status=500),
        Fault("PUT", "*/library/*/uploads/*", status=500),
        Fault("PUT", "*/manifests/sha256*", status=500),
        Fault("PUT", "*/manifests/1", status=500),
        Fault("HEAD", "*/blobs/*", status=502),
        Fault("PATCH", "*/library/*", reset=True),
        Fault("PUT", "*/library/*/uploads/*", reset=True),
    ],
    ids=lambda fault: f"{fault.method} {fault.path} {fault.status}",
)
def test_sync_one_failure_of_a_mirror_costs_no_image(
    host: Host, box: Sandbox, fault: Fault
) -> None:
    pins = push_six(box)
    host.configure(pins, limits=ONE_AT_A_TIME)
    box.taps[0].faults.add(fault)
    assert host.sync().named("copy") == pins
    assert fault.seen


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (
            Fault("P*", "/v2/library/app0/blobs/uploads/*", status=500, count=None),
            "mirror-server-error",
        ),
        (Fault("PUT", "*/app0/manifests/*", status=502, count=None), "mirror-server-error"),
        (Fault("HEAD", "*/app0/blobs/*", status=502, count=None), "mirror-server-error"),
        (Fault("PATCH", "*/app0/*", reset=True, count=None), "mirror-reset"),
        (
            Fault(
                "POST",
                "*/app0/*",
                status=403,
                count=None,
                body=b'{"errors":[{"code":"DENIED","message":"denied"}]}',
                headers=JSON_HEADERS,
            ),
            "mirror-denied",
        ),
        (Fault("P*", "*/app0/*", status=413, count=None), "mirror-bad-answer"),
    ],
    ids=["uploads", "manifest", "heads", "reset", "denied", "too large"],
)
def test_sync_one_repository_that_a_mirror_never_takes_costs_that_image(
    host: Host, box: Sandbox, fault: Fault, code: str
) -> None:
    pins = push_six(box)
    host.configure(pins, limits=ONE_AT_A_TIME)
    box.taps[0].faults.add(fault)
    done = host.sync(code=1)
    assert done.named("fail") == ["app0:1"]
    assert done.image("app0:1")["error"]["code"] == code
    assert "library/app0" in done.image("app0:1")["error"]["text"]
    assert done.named("copy") == pins[1:]


def test_sync_each_repository_that_a_mirror_never_takes_is_named(host: Host, box: Sandbox) -> None:
    pins = push_six(box)
    host.configure(pins, limits=ONE_AT_A_TIME)
    for name in ("app0", "app1", "app2", "app3"):
        box.taps[0].faults.add(Fault("PUT", f"*/{name}/manifests/*", status=500, count=None))
    done = host.sync(code=1)
    assert done.named("copy") == pins[4:]
    assert len(done.report["problems"]) == 4


# --- the mirror itself ---


def fails_from_the_third_image_on(box: Sandbox, fault: Fault) -> None:
    """Add the fault once two images are on the mirror."""

    def watch() -> None:
        wait_until(lambda: bool(box.mirrors[0].tags("library/app1")), "second image", 60)
        box.taps[0].faults.add(fault)

    threading.Thread(target=watch, daemon=True).start()


READ_ONLY = Fault("P*", "*", status=405, count=None, body=b"Method not allowed")


@pytest.mark.parametrize(
    ("make", "code"),
    [(lambda: disk_full("*"), "mirror-full"), (lambda: READ_ONLY, "mirror-read-only")],
    ids=["full", "read-only"],
)
def test_sync_mirror_that_takes_nothing_any_more_ends_the_pulls_for_it(
    host: Host, box: Sandbox, make: Callable[[], Fault], code: str
) -> None:
    pins = push_six(box)
    for number in range(6, 12):
        box.push(f"library/app{number}", "1", single=True)
    pins += [f"app{number}:1" for number in range(6, 12)]
    host.configure(pins, limits=ONE_AT_A_TIME)
    fails_from_the_third_image_on(box, make())
    done = host.sync(code=1)
    copied = len(done.named("copy"))
    assert 2 <= copied < 12
    assert len(done.gets) <= copied + 1
    assert only_problem(done)[0] == code
    assert only_problem(done)[1].startswith(f"{box.taps[0].url}: ")


def test_sync_mirror_that_restarts_is_waited_for(host: Host, box: Sandbox) -> None:
    pins = push_six(box)
    host.configure(pins, mirrors=[box.mirrors[0].url], limits=ONE_AT_A_TIME)
    began = threading.Event()

    def restart() -> None:
        there = box.mirrors[0].storage.has_repository
        wait_until(lambda: there("library/app1"), "second image", 60)
        began.set()
        box.mirrors[0].stop()
        time.sleep(2)
        box.mirrors[0].start()

    thread = threading.Thread(target=restart)
    thread.start()
    done = host.sync()
    thread.join()
    assert began.is_set()
    assert done.named("copy") == pins


def test_sync_one_image_whose_path_on_the_mirror_resets_costs_that_image(
    host: Host, box: Sandbox
) -> None:
    pins = push_six(box)
    host.configure(pins)
    box.taps[0].faults.add(Fault("*", "*/library/app0/*", count=None, reset=True))
    done = host.sync(code=1)
    assert done.named("fail") == ["app0:1"]
    assert only_problem(done)[0] == "mirror-reset"
    assert done.named("copy") == pins[1:]


# --- upstream ---


def test_sync_one_repository_redirected_to_a_dead_host_costs_that_image(
    host: Host, box: Sandbox
) -> None:
    pins = push_six(box)
    host.configure(pins, limits={"checks": 1})
    gone = {"Location": "http://127.0.0.1:9/v2/x/manifests/1"}
    box.hub.faults.add(Fault("HEAD", "/v2/library/app0/*", status=307, headers=gone, count=None))
    done = host.sync(code=1)
    assert done.named("fail") == ["app0:1"]
    assert only_problem(done)[0] == "bad-redirect"
    assert "127.0.0.1:9" in only_problem(done)[1]
    assert done.named("copy") == pins[1:]


@pytest.mark.parametrize("method", ["*", "GET"])
def test_sync_401_to_every_manifest_is_unauthorized(host: Host, box: Sandbox, method: str) -> None:
    host.configure(push_six(box))
    box.hub.faults.add(Fault(method, "*/manifests/*", status=401, count=None))
    done = host.sync(code=1)
    assert {done.image(name)["error"]["code"] for name in done.named("fail")} == {"unauthorized"}
    assert len(done.named("fail")) == 6
    (only,) = done.report["problems"]
    assert (only["code"], only["where"], only["severity"]) == ("unauthorized", "docker.io", "error")


def test_sync_from_a_hub_that_fails_three_requests_in_ten_copies_all(
    host: Host, box: Sandbox
) -> None:
    pins = push_six(box)
    registries = {"docker.io": {"endpoint": box.hub.url, "budget": {"pulls": 60, "window": "6h"}}}
    host.configure(pins, registries=registries)
    fails = itertools.cycle([False, True, False, False, True, False, True, False, False, False])
    error = Fault(status=502)
    for site in (box.hub, box.hub.cdn):
        site.faults.match = lambda *_: error if next(fails) else None  # type: ignore[method-assign]
    done = host.sync()
    assert done.named("copy") == pins
    assert host.charged() == len(done.gets)


def test_sync_from_a_hub_that_refuses_connections_for_a_moment_copies_all(
    host: Host, box: Sandbox
) -> None:
    pins = push_six(box)
    server = Server(box.hub)
    host.configure(pins, registries={"docker.io": {"endpoint": server.url}})
    box.hub.latency = 0.1

    def restart() -> None:
        wait_until(lambda: bool(box.hub.access.gets()), "manifest GET")
        server.close()
        time.sleep(2)
        again.append(Server(box.hub, port=server.port))

    again: list[Server] = []
    thread = threading.Thread(target=restart)
    thread.start()
    try:
        done = host.sync()
    finally:
        thread.join()
        again[0].close()
    assert done.named("copy") == pins
    # Only what was cut off may have been sent twice.
    assert host.charged() <= len(pins) + 4


def test_sync_blob_that_comes_damaged_once_is_asked_for_again(host: Host, box: Sandbox) -> None:
    image = box.push("library/app", "1", single=True)
    host.configure(["app:1"])
    for blob in image.blobs:
        box.hub.cdn.faults.add(
            Fault("GET", f"*{digest_of(blob)[7:]}*", status=200, body=b"x" * len(blob))
        )
    done = host.sync()
    assert done.named("copy") == ["app:1"]
    assert len(done.gets) == 1


# --- skopeo itself ---


def test_sync_keeps_no_cache_of_skopeo_that_could_be_damaged(host: Host, box: Sandbox) -> None:
    """Pages of it that are lost make skopeo 1.9.3 panic, in every copy."""
    host.configure(push_six(box)[:1])
    host.sync()
    assert list(host.folder.rglob("blob-info-cache*")) == []


def test_sync_with_a_skopeo_that_crashes_names_the_line_of_the_panic(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    host.configure(push_six(box)[:1])
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "skopeo"
    lines = "panic: out of luck\n\ngoroutine 1 [running]:\ncopy.go:979 +0x393"
    script.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo skopeo version 1.9.3 && exit\n"
        f"printf '{lines}\\n' >&2; exit 2\n"
    )
    script.chmod(0o755)
    done = host.sync(code=1, env={"PATH": f"{folder}:{os.environ['PATH']}"})
    assert only_problem(done)[0] == "copy"
    assert only_problem(done)[1].endswith("skopeo crashed: panic: out of luck")
    assert len(done.gets) == 1


# --- free space ---


def test_sync_image_that_does_not_fit_on_the_disk_leaves_room_for_smaller_ones(
    host: Host, box: Sandbox, tmp_path: Path
) -> None:
    big = box.push("library/big", "1", single=True, size=3_000_000)
    pins = push_six(box)
    with small_disk(tmp_path / "disk", "2m") as disk:
        mirror = {"url": box.taps[0].url, "storage": str(disk)}
        host.configure(["big:1", *pins], mirrors=[mirror], limits=ONE_AT_A_TIME)
        done = host.sync(code=1)
    assert done.named("fail") == ["big:1"]
    assert done.image("big:1")["error"]["code"] == "mirror-full"
    assert done.named("copy") == pins
    assert big.digest in done.digests()
