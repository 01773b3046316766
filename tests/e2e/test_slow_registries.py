"""A registry or mirror that answers byte by byte has its own time; no other waits for it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prewarm.core.manifest import OCI_MANIFEST, digest_of
from tests.e2e.host import Host, wait_until
from tests.real import dripping
from tests.real.dripping import Dripping, Pieces, at_once
from tests.sandbox import Sandbox, build_image

GOOD = ["app0:1", "app1:1", "app2:1"]
SLOW = [f"slow.example/team/app{number}:1" for number in range(40)]
LONG = 90.0
"""Seconds after which a sync is taken to hang; the servers drip for longer."""


@pytest.fixture
def host(box: Sandbox, tmp_path: Path) -> Host:
    for name in ("app0", "app1", "app2"):
        box.push(f"library/{name}", "1", single=True)
    return Host(tmp_path, box)


def endless(drip: Callable[[], Iterator[bytes]]) -> Dripping:
    return Dripping(lambda _: drip(), pause=0.2, longest=2 * LONG)


def slow_tokens() -> Dripping:
    def script(asked: str) -> Pieces:
        if asked.startswith("GET /v2/ "):
            realm = f'Bearer realm="{site.url}/token",service="s"'
            return at_once("401 Unauthorized", www_authenticate=realm)
        return dripping.headers()

    site = Dripping(script, pause=0.2, longest=2 * LONG)
    return site


def asks_to_wait() -> Dripping:
    """429 to every HEAD, with `Retry-After: 25`."""

    def script(asked: str) -> Pieces:
        if asked.startswith("GET /v2/ "):
            return at_once()
        return at_once("429 Too Many Requests", retry_after="25")

    return Dripping(script)


SERVERS: dict[str, Callable[[], Dripping]] = {
    "headers": lambda: endless(dripping.headers),
    "100 Continue": lambda: endless(dripping.going_on),
    "tokens": slow_tokens,
    "429": asks_to_wait,
}


def configure(host: Host, slow: Dripping, images: list[Any], **keys: Any) -> None:
    hub = {"endpoint": host.box.hub.url, "budget": {"pulls": 20, "window": "6h", "reserve": 0}}
    registries = {"docker.io": hub, "slow.example": {"endpoint": slow.url}}
    host.configure(images, registries=registries, limits={"run_time": "24s"}, **keys)


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_sync_with_a_slow_registry_copies_what_the_others_have(
    host: Host, server: Callable[[], Dripping]
) -> None:
    with server() as slow:
        configure(host, slow, [*SLOW, *GOOD])
        finished = host.run("sync", "--json", timeout=LONG)
    assert finished.returncode in (0, 1), finished.stderr
    images = {one["image"]: one for one in finished.json["images"]}
    assert [images[f"docker.io/library/{name}"]["action"] for name in GOOD] == ["copy"] * 3
    told = {images[name]["code"] for name in SLOW}
    assert told <= {"too-slow", "unreachable", "abuse-limit", "timeout"}
    assert len([p for p in finished.json["problems"] if "slow.example" in p["problem"]]) <= 3


def test_sync_with_a_slow_list_of_tags_copies_what_the_others_have(host: Host) -> None:
    patterns = [
        {"image": f"slow.example/app{n}", "tags": {"match": "*", "newest": 1}} for n in "ab"
    ]
    with endless(dripping.body) as slow:
        configure(host, slow, [*patterns, *GOOD])
        finished = host.run("sync", "--json", timeout=LONG)
    assert finished.returncode == 1, finished.stderr
    assert finished.json["summary"]["copied"] == 3


@pytest.mark.parametrize("role", ["target", "source"])
def test_sync_with_a_slow_mirror_fills_the_others(host: Host, role: str) -> None:
    good = {"url": host.box.taps[0].url}
    with endless(dripping.headers) as slow:
        hub = {"endpoint": host.box.hub.url, "budget": {"pulls": 20, "window": "6h"}}
        mirrors = [{"url": slow.url, "role": role}, good]
        host.configure(GOOD, mirrors=mirrors, registries={"docker.io": hub})
        finished = host.run("sync", "--json", timeout=LONG)
    assert finished.returncode == 1, finished.stderr
    assert finished.json["summary"]["copied"] == 3
    assert "timed out" in finished.stdout


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_sync_ended_while_a_slow_registry_is_waited_for_ends_soon(
    host: Host, server: Callable[[], Dripping]
) -> None:
    with server() as slow:
        configure(host, slow, [*SLOW, *GOOD])
        with host.start("sync") as process:
            try:
                wait_until(lambda: bool(slow.requests), "request")
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                _, stderr = process.communicate(timeout=LONG)
            finally:
                process.kill()
    assert process.returncode == 143, stderr
    assert time.monotonic() - began < 12


def slow_blobs(drip: Callable[[], Iterator[bytes]]) -> Dripping:
    """A registry that has any image, whose blobs never come to an end."""

    def script(asked: str) -> Pieces:
        method, path, _ = asked.partition("\r\n")[0].split()
        if "/blobs/" in path:
            return drip()
        if "/manifests/" not in path:
            return at_once()
        content = build_image(single=True, name=path.split("/manifests/")[0]).content
        digest = digest_of(content)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {OCI_MANIFEST}\r\nDocker-Content-Digest: {digest}"
        head += f"\r\nContent-Length: {len(content)}\r\n\r\n"
        return (head.encode() + (content if method == "GET" else b""),)

    return Dripping(script, pause=0.2, longest=2 * LONG)


@pytest.mark.parametrize("drip", [dripping.body, dripping.headers])
def test_sync_with_slow_blobs_leaves_slots_for_the_others_and_hears_sigterm(
    host: Host, drip: Callable[[], Iterator[bytes]]
) -> None:
    mirror = host.box.mirrors[0]
    with slow_blobs(drip) as slow:
        hub = {"endpoint": host.box.hub.url, "budget": {"pulls": 20, "window": "6h", "reserve": 0}}
        registries = {"docker.io": hub, "slow.example": {"endpoint": slow.url}}
        host.configure([*SLOW, *GOOD], registries=registries, limits={"parallel": 2})
        with host.start("sync") as process:
            try:
                # Each of the slow ones holds its slot for a minute or two.
                wait_until(
                    lambda: all(mirror.tags(f"library/app{number}") for number in range(3)),
                    "honest images",
                    seconds=45,
                )
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                _, stderr = process.communicate(timeout=LONG)
            finally:
                process.kill()
    assert process.returncode == 143, stderr
    assert time.monotonic() - began < 20
