"""A registry or mirror that answers byte by byte has its own time; no other waits for it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.host import Host, wait_until
from tests.real import dripping
from tests.real.dripping import Dripping, Pieces, at_once
from tests.sandbox import Sandbox

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
